"""What pools needed in the last minutes, and who changed role when: what hysteresis and cool-down rest on.

Owns the memory. Must not decide.
"""

from __future__ import annotations

from collections import deque

from core.control.actions import Decision, PoolSizes
from core.types import Role


class NeedHistory:
    """The sizes that were needed at each time of the last `longest_s`; a stateful accountant."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._seen: deque[tuple[float, PoolSizes]] = deque()
        self._since_s: float | None = None  # nothing before it is known

    def observe(self, need: PoolSizes, now_s: float) -> None:
        """Note what is needed now."""
        if self._since_s is None:
            self._since_s = now_s
        self._seen.append((now_s, need))
        while self._seen[0][0] < now_s - self._longest_s:
            self._seen.popleft()

    def most(self, window_s: float, now_s: float) -> PoolSizes | None:
        """Return the most that was needed of either role; None: so far back nothing is known."""
        if self._since_s is None or self._since_s > now_s - window_s:
            return None
        needs = [need for at_s, need in self._seen if at_s >= now_s - window_s]
        return PoolSizes(max(need.prefill for need in needs), max(need.decode for need in needs))


class FlipHistory:
    """When workers last changed to each role, and until when they must not."""

    def __init__(self, cool_down_s: float) -> None:
        self._cool_down_s = cool_down_s
        self._flipped_s: dict[Role, float] = {}
        self._barred_until_s: dict[Role, float] = {}

    def decided(self, decision: Decision, now_s: float) -> None:
        """Note the flips of a decision."""
        for flip in decision.flips:
            self._flipped_s[flip.to] = now_s

    def bar(self, to: Role, until_s: float) -> None:
        """Let no worker change to a role for a while: it made things worse."""
        self._barred_until_s[to] = until_s

    def allows(self, to: Role, now_s: float) -> bool:
        """Whether workers may change to a role: none has just changed away from it, and it is not barred."""
        away_s = self._flipped_s.get(other(to))
        is_cool = away_s is None or now_s - away_s >= self._cool_down_s
        return is_cool and now_s >= self._barred_until_s.get(to, now_s)


def other(role: Role) -> Role:
    """Return the role that is not this one."""
    return Role.DECODE if role is Role.PREFILL else Role.PREFILL
