"""The order of measurements: rounds, systems in turn within a round, a fresh pair of processes for each.

Owns the order and what may fail. Must not know what is made of the figures. One pair is up at a time: some peers keep
a core busy while they wait.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.kv.pair import Pair, PairFailed, Taken, open_pair
from bench.kv.peers import install
from bench.kv.systems import PEERS, TRANSPORTS, System, systems, whole
from bench.peers_venv import PeersMissing
from bench.router.calm import wait_until_calm

PEERS_FOLDER: Final = Path(".baton/bench-kv-peers")
SIZES: Final = (64, 512, 4096, 16384)
PACES: Final = ((512, 1.0), (512, 4.0), (512, 8.0), (4096, 1.0), (4096, 4.0), (4096, 8.0))  # tokens, ms a layer
_PACED_REPEATS: Final = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how often."""

    sizes: Sequence[int] = SIZES
    rounds: int = 5
    transports: Sequence[str] = TRANSPORTS
    peers: Sequence[str] = tuple(PEERS)
    peers_folder: Path = PEERS_FOLDER
    calm_s: float = 0.0  # how long each pair may wait for others to leave the machine alone
    paces: Sequence[tuple[int, float]] = PACES
    repeats: int | None = None  # None: by size


class Comparison:
    """One run of everything; `notes` says what could not be had."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.notes: list[str] = []
        self._failed: set[str] = set()  # systems that are left out from now on
        self._at_once: set[tuple[str, int, int]] = set()  # system, tokens and round of all that was taken without pace
        self._programs: Path | None = None

    def sizes(self) -> Iterator[Taken]:
        """Move whole prompts by every system."""
        chosen = [system for system in systems(self._plan.transports, self._plan.peers) if self._can_run(system)]
        for index in range(self._plan.rounds):
            for place in range(len(chosen)):  # whoever comes first in one round comes later in the next
                yield from self._one(chosen[(place + index) % len(chosen)], index)

    def overlap(self) -> Iterator[Taken]:
        """Hand over while layers are computed, by every transport; all at once too, where `sizes` has not done so."""
        names = {whole(transport) for transport in self._plan.transports}
        chosen = [system for system in systems(self._plan.transports, ()) if system.name in names]
        for index in range(self._plan.rounds):
            for place in range(len(chosen)):
                yield from self._one(chosen[(place + index) % len(chosen)], index, paced=True)

    def _can_run(self, system: System) -> bool:
        if not system.in_peers_venv or self._programs is not None:
            return True
        try:
            self._programs = install(self._plan.peers_folder).absolute()
        except PeersMissing as exc:
            self.notes.append(f"Left out: {system.name} cannot be installed: {exc}")
            return False
        return True

    def _one(self, system: System, index: int, *, paced: bool = False) -> Iterator[Taken]:
        if system.name in self._failed:
            return
        wait_until_calm(self._plan.calm_s)
        largest = max(tokens for tokens, _ in self._plan.paces) if paced else max(self._plan.sizes)
        try:
            with open_pair(system, largest, self._programs if system.in_peers_venv else None) as pair:
                for taken in self._paced(pair, system.name, index) if paced else self._sized(pair, index):
                    _show(taken)
                    if not taken.layer_ms:
                        self._at_once.add((taken.system, taken.tokens, taken.round))
                    yield taken
        except PairFailed as exc:
            self._failed.add(system.name)
            self.notes.append(f"Left out from round {index + 1} on: {exc}")

    def _sized(self, pair: Pair, index: int) -> Iterator[Taken]:
        for tokens in self._plan.sizes:
            yield pair.take(tokens, index, repeats=self._plan.repeats)

    def _paced(self, pair: Pair, name: str, index: int) -> Iterator[Taken]:
        repeats = self._plan.repeats or _PACED_REPEATS
        for tokens in dict.fromkeys(tokens for tokens, _ in self._plan.paces):
            if (name, tokens, index) not in self._at_once:
                yield pair.take(tokens, index, repeats=repeats)
        for tokens, layer_ms in self._plan.paces:
            yield pair.take(tokens, index, layer_ms=layer_ms, repeats=repeats)


def _show(taken: Taken) -> None:
    pace = f" at {taken.layer_ms:g} ms a layer" if taken.layer_ms else ""
    sys.stderr.write(
        f"round {taken.round + 1} {taken.system:34} {taken.tokens:6} tokens{pace} {taken.median_s * 1e3:9.3f} ms "
        f"{taken.gb_per_s:6.2f} GB/s, CPU {taken.cpu_s_per_gb:.2f} s/GB, others {taken.other_cores:.2f} cores\n"
    )
