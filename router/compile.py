"""`python -m router.compile` (`make compile`): make machine code of the router's hot modules.

Owns the run of mypyc and of the C compiler, and the folder that results. Must not know what the modules do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from router.compiled import ROOT, folder, module_names, source_of

NEEDS: Final = (
    "it needs a C compiler and Python's headers (Debian: gcc, python3-dev), and the packages mypy and setuptools"
)
_KEPT: Final = 4  # folders of earlier sources; checkouts may share an environment
_LIMIT_S: Final = 1800.0
_SHOWN_LINES: Final = 15
# Run in a process of its own, whose folder and flags are its own: setuptools and mypyc leave traces in both.
_BUILD: Final = """
import sys
from mypyc.build import mypycify
from setuptools import setup
place, *sources = sys.argv[1:]
extensions = mypycify(sources, debug_level="0", multi_file=True, target_dir=place + "/c")
flags = ["build_ext", "--build-lib", place + "/lib", "--build-temp", place + "/o", "--parallel", "2"]
setup(name="compiled", packages=[], py_modules=[], ext_modules=extensions, script_args=["--quiet", *flags])
"""


class CompileFailed(Exception):
    """Nothing was compiled; the message says why, with the last words of the tools."""


def compile_modules() -> Path:
    """Compile what is not compiled yet, in a minute or two of two cores; return the folder. Raises CompileFailed."""
    place = folder()
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=place.parent) as building:
        sources = [str(source_of(name).relative_to(ROOT)) for name in module_names()]
        command = [sys.executable, "-c", _BUILD, building, *sources]
        try:
            built = subprocess.run(
                command, cwd=ROOT, env={**os.environ, "CFLAGS": "-g0"}, timeout=_LIMIT_S, check=False,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise CompileFailed(f"it took more than {_LIMIT_S:g} s") from None
        if built.returncode != 0:
            words = [line for line in built.stdout.splitlines() if line.strip() and ": warning: " not in line]
            raise CompileFailed("\n".join([*words[-_SHOWN_LINES:], NEEDS]))
        os.replace(Path(building) / "lib", place)
    _forget_old(place)
    return place


def _forget_old(place: Path) -> None:
    others = [path for path in place.parent.iterdir() if path != place and not path.name.startswith("building-")]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


def main() -> int:
    """Compile; 0 when the router has its modules, 1 when it will run its sources."""
    began_s = time.monotonic()
    try:
        place = compile_modules()
    except (CompileFailed, OSError) as exc:
        sys.stderr.write(f"the router's modules could not be compiled, it will run its sources: {exc}\n")
        return 1
    sys.stdout.write(f"compiled {len(module_names())} modules in {time.monotonic() - began_s:.0f} s: {place}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
