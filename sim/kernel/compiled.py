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


def _cache_folder() -> str:
    here = Path(__file__).resolve().parent
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(here.glob("*.py")):
        digest.update(source.read_bytes())
    name = f"numba-{digest.hexdigest()[:16]}"
    beside = here / "__pycache__"
    parent = beside if os.access(beside if beside.exists() else here, os.W_OK) else Path.home() / ".cache" / "baton"
    return str(parent / name)


numba.config.CACHE_DIR = _cache_folder()


# Nothing compiled here makes an array, so none is counted: counting would cost more than all else.
_OPTIONS = {"error_model": "numpy", "nogil": True, "_nrt": False, "no_cfunc_wrapper": True}


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function that only compiled ones call."""
    return cast("Callable[P, R]", numba.njit(no_cpython_wrapper=True, **_OPTIONS)(cast("Any", function)))


def entry(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function that Python calls, with all it calls, and keep the result on disk."""
    return cast("Callable[P, R]", numba.njit(cache=True, **_OPTIONS)(cast("Any", function)))
