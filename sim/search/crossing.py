"""The highest step of a grid of rates at which a margin is not negative.

Owns the bracketing and the secant only. Must not know what the margin is of.
"""

from __future__ import annotations

from collections.abc import Callable

STRIDE = 8  # steps of the first stride, 4 %; the next ones double
FLOOR_STEPS = 784  # so far below the first guess, a rate 50 times lower, counts as none
_DOWN = 100  # steps below the guess that are walked down before the floor is tried
_KEPT = -1e-9  # shares are means of floats
_FAR = 0.1  # a margin beyond it says no more of where the crossing is


def highest_kept(
    margin: Callable[[int], float],
    near: int,
    *,
    ceiling: int,
    above: int | None = None,
    stride: int = STRIDE,
    width: int = 1,
) -> int | None:
    """Find the highest step up to `ceiling` at which the margin, which falls with the step, is not negative.

    With a `width` above 1 the answer is kept but may lie so many steps less one too low. Returns None when there is
    none above `above`, at the cost of one try; or none at all within FLOOR_STEPS of the guess `near`.
    """
    low, high = None, ceiling + 1
    low_margin = high_margin = 0.0  # of `high`: 0 until a step has failed
    step = min(near, ceiling)
    if above is not None:
        low = above + 1
        if low > ceiling or (low_margin := min(margin(low), _FAR)) < _KEPT:
            return None
        step = step if step > low else min(low + stride, ceiling)
    tried, down, floor = 0, stride, min(near, ceiling) - FLOOR_STEPS
    while low is None or high - low > width:
        found = margin(step)
        if found >= _KEPT:
            low, low_margin = step, min(found, _FAR)
        else:
            high, high_margin = step, max(found, -_FAR)
        if low is None:
            if step <= floor:
                return None
            step, down = (step - down, down * 2) if step - down > near - _DOWN else (floor, down)
        elif not high_margin:
            step, stride = min(low + stride, ceiling), stride * 2
        elif low < near and high - low > 2 * down and high_margin > -_FAR:
            step, down = high - down, down * 2  # near the guess, which was not far off
        else:
            tried += 1
            share = 0.5 if tried % 3 == 0 else low_margin / (low_margin - high_margin)
            step = _between(low, high, share, width)
    return low


def _between(low: int, high: int, share: float, width: int) -> int:
    """Return where a straight margin would cross zero, but so far inside that an end can come near enough."""
    inside = min(width, (high - low) // 2)
    return min(max(low + round((high - low) * share), low + inside), high - inside)
