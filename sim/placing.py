"""The compiled step of the full gear: act on one decision of a policy, then let time pass.

Owns nothing; it is one call because each call into compiled code with a whole state costs as much as a short decision.
"""

from __future__ import annotations

from sim.kernel.compiled import entry
from sim.kernel.routing import assign, refuse
from sim.kernel.run import advance, advance_to_room
from sim.kernel.state import NOBODY, State


@entry
def place_and_advance(
    st: State, request: int, prefill: int, decode: int, now_s: float, until_s: float, to_room: bool
) -> float:
    """Send a request to its workers, or refuse it if `decode` is NOBODY; then let all events up to `until_s` happen.

    With `to_room` time stops where a worker has more room, see advance_to_room. Returns the time reached.
    """
    if decode == NOBODY:
        refuse(st, request)
    else:
        assign(st, request, prefill, decode, now_s)
    if to_room:
        return advance_to_room(st, until_s)
    advance(st, until_s)
    return until_s
