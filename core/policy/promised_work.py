"""What refused requests were promised and have not used yet, as a view tells it to policies.

Owns the book of due times and prompt tokens. A stateful accountant of whoever drives a policy: it notes each refusal
that names a time, strikes it when the request is back, and forgets what is overdue. Must not know tokens of
reservations (core.policy.reservations), nor the clock: the time is handed in.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import accumulate

from core.types import HeldWork


class PromisedWork:
    """A bounded book; what does not fit is not noted, and so not kept free."""

    def __init__(self, *, window_s: float = 5.0, max_items: int = 4096) -> None:
        """Take how long a promise is kept free for beyond its time, and how many are noted."""
        self._window_s = window_s
        self._max_items = max_items
        self._due: list[tuple[float, str, int]] = []  # all and only the promises not used, ascending: due, name, tokens
        self._due_s: dict[str, float] = {}  # when each of them is due, by name
        self._work: HeldWork | None = HeldWork()  # None: made anew when asked for

    def note(self, name: str, due_s: float, prompt_tokens: int) -> None:
        """Keep capacity for a request from `due_s` on; a name noted again has the later promise only."""
        self.strike(name)
        if len(self._due) < self._max_items:
            insort(self._due, (due_s, name, prompt_tokens))
            self._due_s[name] = due_s
            self._work = None

    def strike(self, name: str) -> bool:
        """Take a promise out, for its request is back; return whether it was there."""
        due_s = self._due_s.pop(name, None)
        if due_s is None:
            return False
        del self._due[bisect_left(self._due, (due_s, name))]
        self._work = None
        return True

    def work(self, now_s: float) -> HeldWork:
        """Describe what is promised, the overdue left out; the same object until something changes."""
        while self._due and self._due[0][0] + self._window_s < now_s:
            self.strike(self._due[0][1])
        if self._work is None:
            keys_s = tuple(due_s for due_s, _, _ in self._due)
            tokens = (tokens for _, _, tokens in self._due)
            self._work = HeldWork(keys_s, tuple(accumulate(tokens, initial=0)))
        return self._work
