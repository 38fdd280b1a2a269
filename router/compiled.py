"""The router's hot modules as machine code: which they are, where they lie, and when they may be used.

Owns the list and the import of compiled modules. Must not know how they are compiled: see router.compile.

A module that `make compile` has compiled (mypyc) is imported in the place of its source by a router process, and by
nothing else, and only if all sources of the list are, byte for byte, those that were compiled. Otherwise the router
runs the sources, which costs it half as much CPU again, and its log says why. What compiled code must keep to, and
tests/router/test_compiled.py looks for:

- No `await` in an `except` or `finally` block, and neither `async with` nor `async for`: a compiled coroutine does not
  keep the exception that it is handling while other tasks run, so that a cancellation may be lost.
- No slice of bytes whose end may lie before its beginning: compiled code raises SystemError instead of giving b"".
- Annotations that are literally true: compiled code checks them.

`python -m router.compiled MODULE ARGUMENTS` runs another module as a router would: a benchmark of decisions, say.
"""

from __future__ import annotations

import hashlib
import os
import platform
import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
SWITCH: Final = "BATON_COMPILED"  # set it to 0 to run the sources, for instance under a debugger or profiler
# Of core.policy: what pydantic takes apart, a generic dataclass, Protocols, and the table of policies.
_SOURCE_ONLY: Final = frozenset({"__init__", "context", "protocol", "registry", "slack_queue"})
_NAMED: Final = (
    *("cluster.codec", "cluster.connection", "cluster.inflight", "cluster.reply", "cluster.session_client"),
    *("cluster.wire", "core.latency.online", "core.recording", "core.types"),
    *("router.adapting", "router.answer_headers", "router.body", "router.console.history", "router.dispatcher"),
    *("router.exchange", "router.explain", "router.ids", "router.keys", "router.known_head", "router.knowledge"),
    *("router.legs", "router.life", "router.limits", "router.metrics", "router.observer", "router.placing"),
    *("router.prompt_pieces", "router.record", "router.recorder", "router.relay", "router.request_log"),
    *("router.resuming", "router.series", "router.slo_headers", "router.tenants", "router.timeline"),
    *("router.trace_context", "router.transcript"),
)


def module_names() -> tuple[str, ...]:
    """List the modules that are compiled, sorted: those named above and all policies, also ones that you add."""
    return tuple(sorted({*_NAMED, *(name for name in _policies() if name.rpartition(".")[2] not in _SOURCE_ONLY)}))


def source_of(name: str) -> Path:
    """Return the source of a module."""
    return ROOT.joinpath(*name.split(".")).with_suffix(".py")


def folder() -> Path:
    """Return where the modules that are compiled of the present sources lie, or would: beside the libraries."""
    digest = hashlib.sha256(f"{sys.implementation.cache_tag} {platform.machine()}".encode())
    for name in sorted({*module_names(), *_policies()}):  # a policy may build on any other, as on the table of them
        digest.update(name.encode() + b"\0" + source_of(name).read_bytes() + b"\0")
    return Path(sys.prefix) / "compiled" / digest.hexdigest()[:16]


def _policies() -> list[str]:
    return [f"core.policy.{path.stem}" for path in (ROOT / "core" / "policy").glob("*.py")]


def prefer_compiled() -> str:
    """Have this process import the compiled modules; return a sentence that says whether it will.

    Call it before any of them is imported.
    """
    if os.environ.get(SWITCH) == "0":
        return f"runs its sources: {SWITCH} is 0"
    names, place = module_names(), folder()
    if not place.is_dir():
        return "runs its sources, which were not compiled since they changed; `make compile` makes it faster"
    early = [name for name in names if name in sys.modules]
    if early:
        return f"runs its sources: {early[0]} was imported too early"
    sys.meta_path.insert(0, _Finder(place, frozenset(names)))
    return f"runs {len(names)} compiled modules"


class _Finder:
    """Finds compiled modules, and the one library that holds the code of them all."""

    def __init__(self, place: Path, names: frozenset[str]) -> None:
        self._place = place
        self._names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module by its full name; see importlib.abc.MetaPathFinder."""
        if name not in self._names and not name.endswith("__mypyc"):
            return None
        return PathFinder.find_spec(name, [str(self._place.joinpath(*name.split(".")[:-1]))])


def main() -> None:
    """Run the module that the command line names, with its arguments."""
    del sys.argv[0]
    if not sys.argv:
        sys.exit("name a module to run, for instance: python -m router.compiled bench.router decision")
    sys.stderr.write(f"{sys.argv[0]} {prefer_compiled()}\n")
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
