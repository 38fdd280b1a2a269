"""What one request was promised and may take: its targets, its place in the queue, and the headroom left to others.

Owns tiers, targets and keys. Must not know workers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from core.policy.context import ClassTarget, PolicyContext, Tier
from core.types import RequestShape

_PROTECTED: Final = Tier.PROTECTED  # an enum's members are slow to look up
_BEST_EFFORT: Final = Tier.BEST_EFFORT
NO_TARGET: Final = ClassTarget(math.inf, math.inf)
USUAL_TARGET: Final = ClassTarget(1.0, 0.1)  # weighs first against other tokens where nothing is promised
# Keys of the queue are times; so far apart no time of one tier comes between those of another. The first tier's are
# the times themselves, which the queue ages (core.policy.slack_queue).
TIER_S: Final = 1e8
LATE_S: Final = 1e7  # what is late already goes behind all of its tier that can be in time, unless the queue sees to it
UNPROMISED_TTFT_S: Final = 60.0  # orders requests without a target in the queue
_PRIORITY_SHARE: Final = 0.1  # of the TTFT target, that one step of `priority` moves a key
_MOST_PRIORITY: Final = 10
# Shares of batch, KV cache, queue and TPOT target that a tier may fill while there is one above it.
_STANDARD_SHARE: Final = 0.9
_BEST_EFFORT_SHARE: Final = 0.75
# What its tenant had beyond its share moves a request back, by at most so much of its TTFT target.
_MOST_OVER_SHARE: Final = 0.5


class Promise(NamedTuple):
    """One request's promise."""

    ttft_s: float  # targets; infinite: none
    tpot_s: float
    budget_s: float  # of the TTFT target, what is left of it
    weigh_ttft_s: float  # finite, for scores
    weigh_tpot_s: float
    tier: Tier
    share: float  # of headroom, that this tier may fill
    latest_s: float  # when the prompt must be begun; finite
    key_s: float  # its place in the queue
    gives_way: bool  # somebody was promised more, and may take the place that it has the time to wait for

    @property
    def is_protected(self) -> bool:
        """Nothing of the others' concerns it."""
        return self.tier is _PROTECTED

    @property
    def is_best_effort(self) -> bool:
        """It takes what is left, and waits instead of being refused."""
        return self.tier is _BEST_EFFORT


class _Class(NamedTuple):
    """What all requests of a class have in common."""

    ttft_s: float
    tpot_s: float
    tier: Tier
    share: float
    tier_s: float  # what its tier adds to keys


class Promises:
    """Reads promises off requests."""

    def __init__(self, context: PolicyContext) -> None:
        """Take the classes and their targets."""
        tiers = {target.tier for target in context.targets.values()}
        shares = {
            Tier.PROTECTED: 1.0,
            Tier.STANDARD: _STANDARD_SHARE if Tier.PROTECTED in tiers else 1.0,
            Tier.BEST_EFFORT: _BEST_EFFORT_SHARE if tiers - {Tier.BEST_EFFORT} else 1.0,
        }
        after = float(Tier.PROTECTED in tiers)
        keys_s = {
            Tier.PROTECTED: 0.0,
            Tier.STANDARD: after * TIER_S,
            Tier.BEST_EFFORT: (after + float(Tier.STANDARD in tiers)) * TIER_S,
        }

        def class_of(target: ClassTarget) -> _Class:
            return _Class(target.ttft_s, target.tpot_s, target.tier, shares[target.tier], keys_s[target.tier])

        self._classes: Mapping[str, _Class] = {name: class_of(target) for name, target in context.targets.items()}
        self._no_class = class_of(NO_TARGET)
        firm = [target for target in context.targets.values() if target.tier is not Tier.BEST_EFFORT]
        self.tightest_ttft_s = min((target.ttft_s for target in firm), default=math.inf)
        self.tightest_tpot_s = min((target.tpot_s for target in firm), default=math.inf)
        protected = [target.tpot_s for target in firm if target.tier is Tier.PROTECTED]
        self.protected_tpot_s = min(protected, default=math.inf)  # the tightest of theirs

    def stall_limit_s(self, promise: Promise) -> float:
        """Tell how long outputs may stand still: no longer than anyone's time for a token."""
        own_s, others_s = promise.weigh_tpot_s, self.tightest_tpot_s
        return own_s if own_s < others_s else others_s

    def of(self, request: RequestShape, own_s: float, now_s: float) -> Promise:
        """Read the promise of a request whose first token takes `own_s` with no one before it."""
        ttft_s, tpot_s, tier, share, tier_s = self._classes.get(request.slo_class, self._no_class)
        if request.ttft_s is not None:
            ttft_s = request.ttft_s
        if request.tpot_s is not None:
            tpot_s = request.tpot_s
        ordered_s = ttft_s if ttft_s < UNPROMISED_TTFT_S else UNPROMISED_TTFT_S
        over_s = request.over_share_s
        if over_s:
            over_s = min(over_s, _MOST_OVER_SHARE * ordered_s)
        latest_s = now_s - request.waited_s + ordered_s - own_s
        key_s = latest_s + over_s
        if request.priority:
            key_s += max(-_MOST_PRIORITY, min(_MOST_PRIORITY, request.priority)) * _PRIORITY_SHARE * ordered_s
        key_s += tier_s
        if tier_s and latest_s < now_s:
            key_s += LATE_S
        return Promise(
            ttft_s,
            tpot_s,
            ttft_s - request.waited_s - over_s,
            ttft_s if ttft_s < math.inf else USUAL_TARGET.ttft_s,
            tpot_s if tpot_s < math.inf else USUAL_TARGET.tpot_s,
            tier,
            share,
            latest_s,
            key_s,
            ttft_s > self.tightest_ttft_s or tpot_s > self.tightest_tpot_s,
        )
