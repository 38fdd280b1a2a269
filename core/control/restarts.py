"""When a worker that ended is started again.

Owns exponential back-off with jitter, and the verdict that a worker crash-loops. Pure: times and chance come in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

JITTER = 0.5  # a delay is drawn from (1 - JITTER, 1] of its full length, so that not all of a node come back at once
# Failures that are further apart than so many of the longest delays are not of a row: the worker served in between, and
# comes back as fast as after its first failure. They still count for setting it aside.
DELAYS_IN_A_ROW = 4


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How patient the controller is; see the section `healing` of the configuration."""

    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    max_failures: int = 5  # in `window_s`; one more than the restarts that are tried in a row
    window_s: float = 600.0
    set_aside_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Restart:
    """What becomes of a worker that ended."""

    at_s: float  # not before
    is_set_aside: bool  # it fails again and again: nothing is tried before `at_s`
    num_failures: int  # in the window


def next_restart(policy: RestartPolicy, failures_s: Sequence[float], now_s: float, *, chance: float) -> Restart:
    """Decide when a worker is started again that failed at `failures_s`, the last time just now.

    `chance` in [0, 1) spreads the delay. One that was set aside is tried once after `set_aside_s`; a failure within the
    window after that sets it aside anew.
    """
    recent = failures_since(policy, failures_s, now_s)
    num = len(recent)
    if num >= policy.max_failures:
        return Restart(now_s + policy.set_aside_s, True, num)
    full_s = min(policy.max_delay_s, policy.first_delay_s * 2.0 ** (_num_in_a_row(policy, recent) - 1))
    return Restart(now_s + full_s * (1.0 - JITTER * chance), False, num)


def failures_since(policy: RestartPolicy, failures_s: Sequence[float], now_s: float) -> tuple[float, ...]:
    """Keep the failures that still count: those of the window, and of a time set aside within it.

    A time set aside stretches the window, or a worker that fails once in `set_aside_s` would be forgiven each time.
    """
    horizon_s = policy.window_s + policy.set_aside_s
    recent = tuple(at_s for at_s in failures_s if now_s - at_s <= horizon_s)
    in_window = tuple(at_s for at_s in recent if now_s - at_s <= policy.window_s)
    was_set_aside = len(recent) - len(in_window) >= policy.max_failures and len(in_window) > 0
    return (recent if was_set_aside else in_window)[-policy.max_failures :]


def _num_in_a_row(policy: RestartPolicy, failures_s: Sequence[float]) -> int:
    """Count the failures that followed one another closely, up to the latest."""
    num = 1
    for before_s, after_s in list(pairwise(failures_s))[::-1]:
        if after_s - before_s > DELAYS_IN_A_ROW * policy.max_delay_s:
            break
        num += 1
    return num
