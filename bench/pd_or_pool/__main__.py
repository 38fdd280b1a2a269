"""`python -m bench.pd_or_pool`: one prefill and one decode worker beside one pool, on two cores, measured and planned.

Owns the steps and their order: profile, then turns of both systems (A B, B A, ...), then the report. Each step that is
done is kept in `--out`, so a run that was stopped goes on, and `--steps N` does no more than N of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import yaml

from bench.live_pools import MAX_SEQS, ONE_POOL_CHUNK, PREFILL_CHUNK
from bench.pd_or_pool import cases
from bench.pd_or_pool.choices import Choice, choices, table
from bench.pd_or_pool.planning import Predicted, predict
from bench.pd_or_pool.report import cases_of, picture, report
from bench.pd_or_pool.serving import Seen, parts_of, read, stay
from bench.pd_or_pool.verdict import APART, POOL
from bench.plan_live import profile_one_pool, profile_two_pools
from bench.profile_engine import QUICK, Effort
from bench.serving.target import Target
from core.config.load import load_config
from core.errors import BatonError
from core.latency.profile import EngineProfile, profile_to_json, read_profile
from engine.demo_model.random_model import make_preset
from sim.outcome import Target as PromisedTarget

_OUT: Final = Path(".baton/bench-pd-or-pool")
_DEMO: Final = Path(__file__).resolve().parents[2] / "deploy" / "models" / "baton-demo"
_RANDOM: Final = "bench-76m"


@dataclass(frozen=True, slots=True)
class Bench:
    """One model, and the folder that keeps what is done."""

    model: Path
    folder: Path
    seconds: float
    turns: int
    effort: Effort = QUICK  # of the profiles
    planned: tuple[str, ...] = ()  # workloads for which the plan's own choices are served too

    def steps(self) -> Iterator[tuple[Path, Callable[[], None]]]:
        """List what makes each file, in order; the second half of the turns goes the other way round."""
        yield self.folder / "two-cores.json", self._profile_pool
        yield self.profile_file, self._profile
        for turn in range(self.turns):
            for name in (APART, POOL) if turn % 2 == 0 else (POOL, APART):
                file = self.turn_file(name, turn)
                yield file, lambda name=name, turn=turn, file=file: self._stay(name, turn, file)  # type: ignore[misc]

    def choices(self) -> list[Choice]:
        """List what the planner would run instead, of the workloads for which that is served; the profile is there."""
        predicted = self.predicted(self.planned)
        return [
            choice
            for (workload, target), each in predicted.items()
            for choice in choices(workload, target, each, seconds=self.seconds)
        ]

    def choice_steps(self) -> Iterator[tuple[Path, Callable[[], None]]]:
        """List what makes the file of each choice."""
        for choice in self.choices() if self.planned else ():
            yield self.choice_file(choice), partial(self._serve, choice)

    def choice_file(self, choice: Choice) -> Path:
        """What was seen of what the planner chose."""
        return self.folder / f"plan-{choice.name}.json"

    def predicted(self, workloads: Sequence[str]) -> dict[tuple[str, PromisedTarget], Predicted]:
        """Ask the planner for each workload under each promise."""
        profile = read_profile(self.profile_file)
        targets = [(w, cases.target(w, promise, profile)) for w in workloads for promise in cases.PROMISES]
        return {(workload, target): predict(profile, workload, target) for workload, target in targets}

    @property
    def profile_file(self) -> Path:
        """The profile of one core and, as two devices, of both."""
        return self.folder / "profile.json"

    def turn_file(self, name: str, turn: int) -> Path:
        """What was seen of a system in one turn."""
        return self.folder / f"{'apart' if name == APART else 'pool'}-{turn}.json"

    def config(self) -> Path:
        """Write the configuration of the pair; the promise is only for the router's order, nothing is refused."""
        pool = {"replicas": 1, "cpus": 1, "max_num_seqs": MAX_SEQS, "kv_cache_mb": 512}
        config: dict[str, object] = {
            "model": {"path": str(self.model.resolve()), "name": "m", "max_model_len": 4096},
            "slo": {"classes": {"all": {"ttft_ms": 2000, "tpot_ms": 100}}},
            "pools": {
                "prefill": {**pool, "max_num_batched_tokens": PREFILL_CHUNK},
                "decode": {**pool, "max_num_batched_tokens": ONE_POOL_CHUNK},
            },
            "router": {"admission": False},
        }
        if self.profile_file.exists():
            config["plan"] = {"profile": str(self.profile_file.resolve())}
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "pair.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        return file

    def _profile_pool(self) -> None:
        with tempfile.TemporaryDirectory(prefix="baton-pd-or-pool-") as folder:
            _keep(self.folder / "two-cores.json", profile_one_pool(self.model, Path(folder), self.effort, _say))

    def _profile(self) -> None:
        one_core = profile_two_pools(load_config(self.config(), environ={}), self.effort, _say)
        both = replace(read_profile(self.folder / "two-cores.json").shape(1), tensor_parallel=2)
        _keep(self.profile_file, replace(one_core, shapes=(one_core.shape(1), both)))

    def _stay(self, name: str, turn: int, file: Path) -> None:
        target = Target(name, config=self.config(), is_one_pool=name == POOL)
        profile = read_profile(self.profile_file)
        rates = {workload: cases.rates(workload, profile) for workload in cases.WORKLOADS}
        stay(target, parts_of(rates, seconds=self.seconds, turn=turn), file)

    def _serve(self, choice: Choice) -> None:
        profile = read_profile(self.profile_file)
        config = choice.config(self.config(), profile, self.folder / "plans")
        stay(Target(choice.name, config=config), [choice.part], self.choice_file(choice))

    def lines(self, plot: Path | None) -> Iterator[str]:
        """Plan, judge and report what is there; both systems must have had a turn."""
        turns = [t for t in range(self.turns) if all(self.turn_file(n, t).exists() for n in (APART, POOL))]
        if not turns:
            yield f"{self.model.name}: no whole turn of both systems yet"
            return
        seen: dict[str, list[list[Seen]]] = {n: [read(self.turn_file(n, t)) for t in turns] for n in (APART, POOL)}
        predicted = self.predicted(cases.WORKLOADS)
        targets = {w: [target for workload, target in predicted if workload == w] for w in cases.WORKLOADS}
        found = cases_of(seen, targets, {(w, target.name): each for (w, target), each in predicted.items()})
        yield f"**{self.model.name}**, {len(turns)} turns of each system"
        yield ""
        yield from report(found, seen)
        yield from self._of_choices()
        if plot is not None:
            plot.write_text(picture(found, seen), encoding="utf-8")

    def _of_choices(self) -> Iterator[str]:
        if not self.planned:
            return
        served = [(each, read(file)[0]) for each in self.choices() if (file := self.choice_file(each)).exists()]
        yield from table(served, read_profile(self.profile_file))


def main() -> int:
    """Do the steps that are missing, then report; about 10 minutes for each model on two quiet cores."""
    parser = argparse.ArgumentParser(prog="python -m bench.pd_or_pool", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="folder (default: a random Llama of 76 M parameters); `demo`: ours")
    parser.add_argument("--seconds", type=float, default=8.0, help="of arrivals at each rate (default 8)")
    parser.add_argument("--turns", type=int, default=2, help="of each system (default 2)")
    parser.add_argument("--rounds", type=int, default=QUICK.rounds, help="of each profile (default %(default)s)")
    parser.add_argument("--round-s", type=float, default=QUICK.round_s, help="length of a round (default %(default)g)")
    parser.add_argument("--steps", type=int, help="do so many steps at most: profiles, and turns of a system")
    parser.add_argument(
        "--plan",
        action="append",
        default=[],
        choices=cases.WORKLOADS,
        help="serve what the planner chooses for this workload too; may be repeated",
    )
    parser.add_argument("--out", type=Path, default=_OUT, help="folder for what is done (%(default)s)")
    parser.add_argument("--plot", type=Path, help="write a picture to this SVG file")
    options = parser.parse_args()
    effort = Effort(options.rounds, options.round_s)
    bench = Bench(*_model(options.model, options.out), options.seconds, options.turns, effort, tuple(options.plan))
    try:
        done = _do(bench.steps(), options.steps)
        _do(bench.choice_steps(), None if options.steps is None else options.steps - done)
    except KeyboardInterrupt:
        _say("stopped; the same command goes on from here")
    except BatonError as exc:
        _say(f"bench.pd_or_pool: {exc}")
        return 2
    for line in bench.lines(options.plot):
        sys.stdout.write(line + "\n")
    return 0


def _do(steps: Iterator[tuple[Path, Callable[[], None]]], most: int | None) -> int:
    """Do the steps whose file is missing, in order and so many at most; return how many were done."""
    missing = [(file, make) for file, make in steps if not file.exists()] if most != 0 else []
    for number, (file, make) in enumerate(missing[:most], 1):
        _say(f"step {number} of {len(missing)}: {file.name}")
        make()
    return len(missing[:most])


def _model(given: Path | None, out: Path) -> tuple[Path, Path]:
    """Find or make the model; return it with the folder for its results."""
    if given is None:
        model = out / _RANDOM / "model" / _RANDOM
        return model if model.exists() else make_preset(model, _RANDOM), out / _RANDOM
    model = _DEMO if given == Path("demo") else given
    return model, out / model.name


def _keep(file: Path, profile: EngineProfile) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(profile_to_json(profile), encoding="utf-8")


def _say(words: str) -> None:
    sys.stderr.write(words + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
