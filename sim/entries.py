"""All that Python calls of compiled code, compiled together.

Owns the list, with the types each is called with. The entries share nearly all that they call, and numba keeps of that
only what is inside an entry: one that is compiled in a later process compiles all of it anew, 35 s of CPU each time.
"""

from __future__ import annotations

from typing import Any, Final, cast

import numba
from numba.core import types

from sim.kernel.outages import admit, push_outage, retire
from sim.kernel.routing import assign, refuse
from sim.kernel.run import advance, advance_to_room, run_all, run_part
from sim.kernel.state import State
from sim.placing import place_and_advance

# What follows the state.
ENTRIES: Final[tuple[tuple[Any, tuple[Any, ...]], ...]] = (
    (run_all, ()),
    (run_part, (types.int64, types.int64, types.float64)),
    (advance, (types.float64,)),
    (advance_to_room, (types.float64,)),
    (
        place_and_advance,
        (types.int64, types.int64, types.int64, types.float64, types.float64, types.boolean),
    ),
    (assign, (types.int64, types.int64, types.int64, types.float64)),
    (refuse, (types.int64,)),
    (push_outage, (types.int64, types.float64, types.float64)),
    (admit, (types.int64, types.float64)),
    (retire, (types.int64, types.float64)),
)


def compile_together(state: State) -> None:
    """Compile all entries for states like `state` if the disk has none of it; else each is loaded when it is called."""
    first = cast("Any", run_all)
    if first.signatures:
        return
    of_state = numba.typeof(state)
    first.compile((of_state,))
    if first.stats.cache_misses:
        for function, others in ENTRIES:
            function.compile((of_state, *others))
