"""The program as a user runs it: in a process of its own, or called in this one, which costs no start of Python.

A call is as good where what counts is what a verb says and returns. How the program starts, what it loads and what it
does with its streams only a process of its own can show.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from unittest import mock

import baton as program

ROOT = Path(__file__).resolve().parents[2]


def baton(
    *arguments: str, cwd: Path = ROOT, timeout_s: float = 120, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run the program as a user would, without the caller's own BATON_ variables."""
    return subprocess.run(
        [sys.executable, str(ROOT / "baton.py"), *arguments],
        cwd=cwd,
        env=_inherited() | environ,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def call_baton(*arguments: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    """Call the program in this process as `baton` runs it; what it does not catch itself fails the test."""
    environ = {"COLUMNS": "80", **environ}  # a pipe's width
    with (
        contextlib.chdir(cwd),
        mock.patch.dict(os.environ, _inherited() | environ, clear=True),
        contextlib.redirect_stdout(TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True)) as stdout,
        contextlib.redirect_stderr(TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True)) as stderr,
    ):
        try:
            code = program.main(arguments)
        except SystemExit as exc:  # argparse's, after --help
            code = int(exc.code or 0)
    told = [stream.detach().getvalue().decode() for stream in (stdout, stderr)]
    return subprocess.CompletedProcess(arguments, code, *told)


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
