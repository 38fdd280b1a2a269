"""The one decorator of the compiled code.

numba keeps what it compiled on disk, but looks only at the file of the function itself to see whether it is out of
date, not at the files of what that function calls. So the folder of its cache is named after a digest of all sources of
this package.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def _cache_folder() -> Path | None:
    """Return a folder of our own for what is compiled: beside the sources, else in the home; None if neither can be."""
    here = Path(__file__).resolve().parent
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(here.glob("*.py")):
        digest.update(source.read_bytes())
    for parent in (here / "__pycache__", Path.home() / ".cache" / "baton"):
        folder = parent / f"numba-{digest.hexdigest()[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return None


CACHE = _cache_folder()
if CACHE is not None:
    numba.config.CACHE_DIR = str(CACHE)

# Nothing compiled here makes an array, so none is counted: counting would cost more than all else.
_OPTIONS = {"error_model": "numpy", "nogil": True, "_nrt": False, "no_cfunc_wrapper": True}


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function that only compiled ones call."""
    return cast("Callable[P, R]", numba.njit(no_cpython_wrapper=True, **_OPTIONS)(cast("Any", function)))


def entry(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function that Python calls, with all it calls, and keep the result on disk if there is a place."""
    return cast("Callable[P, R]", numba.njit(cache=CACHE is not None, **_OPTIONS)(cast("Any", function)))
