"""The compiled step of the full gear: act on one decision of a policy, then let time pass.

Owns nothing; it is one call because each call into compiled code with a whole state costs as much as a short decision.
"""

from __future__ import annotations

from sim.kernel.compiled import entry
from sim.kernel.routing import assign, refuse
from sim.kernel.run import advance
from sim.kernel.state import NOBODY, State


@entry
def place_and_advance(st: State, request: int, prefill: int, decode: int, now_s: float, until_s: float) -> None:
    """Send a request to its workers, or refuse it if `decode` is NOBODY; then let all events up to `until_s` happen."""
    advance(st, now_s)
    if decode == NOBODY:
        refuse(st, request)
    else:
        assign(st, request, prefill, decode, now_s)
    advance(st, until_s)
