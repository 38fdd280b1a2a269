"""The cluster that is broken: who its members are, what its router says, whether its ledgers balance.

Owns how it is asked, by the same commands that its users have, and how one of one's own is started. Must not know
faults or traffic.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cluster.front import Front, front_of
from core.errors import BatonError, NotRunning, StartFailed

_ROOT: Final = Path(__file__).resolve().parents[2]
COMMAND: Final = (sys.executable, str(_ROOT / "baton.py"))
COMMAND_S: Final = 60.0
START_S: Final = 900.0


@dataclass(frozen=True, slots=True)
class Member:
    """One worker or the router, as `status` lists it."""

    name: str
    role: str | None  # "prefill", "decode"; None: the router
    state: str
    epoch: int
    pid: int  # 0: none yet
    kv_address: str
    address: str = ""  # of its service

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self.state == "ready" and self.pid > 0


@dataclass(frozen=True, slots=True)
class Target:
    """A cluster that runs on this machine; `command` is the program with which it is asked."""

    state_dir: Path
    url: str
    run_dir: Path
    model: str
    command: tuple[str, ...] = COMMAND

    @property
    def front(self) -> Front:
        """How its router is reached, with trust and key."""
        return front_of(self.url, self.run_dir)

    def members(self) -> tuple[Member, ...]:
        """List its members. Raises BatonError when nothing answers."""
        answer = _ask(self.command, self.state_dir, "status")
        if "members" not in answer:
            raise BatonError(str(answer.get("message", "status lists no members")))
        return tuple(
            Member(m["name"], m["role"], m["state"], m["epoch"], m["pid"] or 0, m["kv_address"], m["address"])
            for m in answer["members"]
        )

    def wait_balanced(self, timeout_s: float) -> tuple[str, ...]:
        """Wait until no hand-over is amiss and none is held; return what still is when time is up."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            answer = _ask(self.command, self.state_dir, "doctor")
            amiss = _amiss(answer)
            if not amiss or time.monotonic() > deadline_s:
                return amiss
            time.sleep(0.5)


def running(environ: Mapping[str, str]) -> Target:
    """Find the cluster that runs from this checkout. Raises NotRunning when none does."""
    state_dir = Path(environ.get("BATON_STATE_DIR") or _ROOT / ".baton")
    answer = _ask(COMMAND, state_dir, "status")
    if not answer.get("url"):
        raise NotRunning(f"nothing runs from this checkout: {answer.get('message', 'no router')}; start it with `up`")
    return Target(state_dir, answer["url"], Path(answer["run_dir"]), answer["model"])


@contextmanager
def started(
    config: Path, overrides: Sequence[str], folder: Path, command: tuple[str, ...] = COMMAND
) -> Iterator[Target]:
    """Start a cluster with a state folder of its own, below `folder`; end it afterwards. Raises StartFailed."""
    state_dir = folder / "state"
    words = [str(config), *(word for value in overrides for word in ("--set", value))]
    try:
        answer = _ask(command, state_dir, "up", *words, timeout_s=START_S)
        if not answer.get("ok"):
            raise StartFailed(f"the cluster to be broken did not start: {answer.get('message')}")
        yield Target(state_dir, answer["url"], Path(answer["run_dir"]), answer["model"], command)
    finally:
        with _undisturbed():
            _ask(command, state_dir, "down", timeout_s=2 * COMMAND_S)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let Ctrl-C stop neither this process nor those that it starts, so that no cluster stays behind."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _amiss(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """List findings, and leases that are still held."""
    if "findings" not in answer:
        return (str(answer.get("message", "doctor does not answer")),)
    found = [f"{f['subject']}: {f['what']}" for f in answer["findings"]]
    for worker in answer["workers"]:
        held = (worker["stats"] or {}).get("blocks", {}).get("held", 0)
        if held:
            found.append(f"{worker['name']}: {held} blocks held")
    return tuple(found)


def _ask(
    command: tuple[str, ...], state_dir: Path, verb: str, *words: str, timeout_s: float = COMMAND_S
) -> dict[str, Any]:
    """Run one command to its end; return its JSON, or what went wrong as one."""
    environment = {**os.environ, "BATON_STATE_DIR": str(state_dir)}
    try:
        done = subprocess.run(
            [*command, verb, *words, "--json"], env=environment, capture_output=True, text=True, timeout=timeout_s
        )
        answer: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"ok": False, "message": f"`{verb}` did not end in {timeout_s:g} s"}
    except ValueError:
        return {"ok": False, "message": f"`{verb}` said: {(done.stderr or done.stdout).strip()[-400:]}"}
    return answer
