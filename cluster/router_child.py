"""`python -m cluster.router_child --parent-pid N ARGUMENTS`: the router as a child, tied to its parent's life.

The router's package lies above this one: it is named, never imported. Must import none of the modules that the router
may import compiled, which is settled as it starts (router/compiled.py).
"""

from __future__ import annotations

import runpy
import sys
from typing import Final

from engine.process_guard import die_with_parent

ROUTER_MODULE: Final = "router"


def main() -> None:
    """Become the router; ends with the parent named by the first two arguments."""
    _, flag, parent_pid, *rest = sys.argv
    assert flag == "--parent-pid"
    die_with_parent(int(parent_pid))
    sys.argv[1:] = rest
    runpy.run_module(ROUTER_MODULE, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
