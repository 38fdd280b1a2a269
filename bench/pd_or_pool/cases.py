"""What is asked, at which rates, and what is promised.

Owns the workloads and how rates and targets follow from a profile, before anything is served. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.live_pools import apart, one_pool
from core.latency.profile import EngineProfile
from sim.cluster import ClusterSpec
from sim.outcome import Target
from sim.search.crossing import STRIDE, highest_kept
from sim.search.goodput import rate_of, step_below
from sim.simulate import simulate
from sim.workload import Ints, Workload

CHAT, LONG, MIXED = "chats", "long prompts, short answers", "chats and long prompts"
WORKLOADS: Final = (CHAT, LONG, MIXED)
LOADS: Final = (0.35, 0.65, 0.95, 1.3)  # rates, as shares of what the better of both is predicted to keep
_LONG_SHARE: Final = 0.25  # of the mixed requests: three chats for each prompt of 1,000 tokens
_LONG_PROMPT, _CHAT_PROMPT = 1_000, 64
_SIZE: Final = 600  # requests from which rates are predicted


@dataclass(frozen=True, slots=True)
class Promise:
    """Targets as multiples of what an idle engine of one core does."""

    name: str
    ttft_times: float
    tpot_times: float


PROMISES: Final = (
    Promise("relaxed", 4.0, 3.0),
    Promise("quick first token", 1.8, 3.0),
    Promise("steady output", 4.0, 1.6),
)


def make(workload: str, *, rate: float, count: int, seed: int) -> Workload:
    """Draw requests of a kind with Poisson arrivals; equal arguments give equal ones."""
    rng = np.random.default_rng([seed, WORKLOADS.index(workload)])
    chats = rng.integers(_CHAT_PROMPT // 2, 2 * _CHAT_PROMPT + 1, count), rng.integers(32, 97, count)
    long = rng.integers(600, 1_401, count), rng.integers(8, 25, count)
    if workload == CHAT:
        prompt, output = chats
    elif workload == LONG:
        prompt, output = long
    else:
        is_long = rng.random(count) < _LONG_SHARE
        prompt = np.where(is_long, _LONG_PROMPT, _CHAT_PROMPT)
        output = np.where(is_long, 16, 64)
    gaps = rng.exponential(1.0, count)
    arrived_s = np.cumsum(gaps) * (count / rate / gaps.sum())
    return Workload(workload, arrived_s - arrived_s[0], _ints(prompt), _ints(output))


def _ints(values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Ints:
    return values.astype(np.int64)


def target(workload: str, promise: Promise, profile: EngineProfile) -> Target:
    """Make the targets of a workload: TTFT by its long prompts, TPOT by a batch of one."""
    cost = profile.shape(1).cost
    prompt = int(np.quantile(make(workload, rate=1.0, count=_SIZE, seed=0).prompt_tokens, 0.9))
    idle_s = cost.prefill_s(prompt) + cost.decode_s(1, prompt) + profile.request_overhead_s
    ttft_ms, tpot_ms = 1e3 * promise.ttft_times * idle_s, 1e3 * promise.tpot_times * cost.decode_s(1, 200)
    return Target(promise.name, _plain(ttft_ms) / 1e3, _plain(tpot_ms) / 1e3)


def _plain(ms: float) -> float:
    """Round to two digits: a target that people would write."""
    return float(f"{ms:.2g}")


def rates(workload: str, profile: EngineProfile) -> tuple[float, ...]:
    """Choose the rates: below and above what the better of both is predicted to keep of the most relaxed promise."""
    promised = (target(workload, PROMISES[0], profile),)
    best = max(kept_rate(cluster, workload, promised) for cluster in (apart(profile), one_pool(profile, 2)))
    return tuple(float(f"{load * best:.2g}") for load in LOADS)


def kept_rate(cluster: ClusterSpec, workload: str, targets: Sequence[Target]) -> float:
    """Predict the highest rate that keeps the promise; 0 for none."""
    requests = make(workload, rate=1.0, count=_SIZE, seed=0)

    def margin(step: int) -> float:
        outcome = simulate(cluster, requests.at_rate(rate_of(step)), tuple(targets))
        return outcome.attainment(tuple(targets))[0] - targets[0].attainment

    step = highest_kept(margin, step_below(1.0), ceiling=step_below(1_000.0), width=STRIDE)
    return 0.0 if step is None else rate_of(step)
