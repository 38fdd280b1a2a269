"""A load generator that keeps some requests in flight, against workers that step by a StepCost: mean TTFT and TPOT.

Owns the simulation of such a measurement, as serving benchmarks make it. Must not know models or devices. Arrivals
depend on completions here, which the open-loop simulator (sim.simulate) has no need to know; decode steps between two
events are summed in closed form.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from core.latency.step import StepCost

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
P = ParamSpec("P")
R = TypeVar("R")


class Batching(enum.IntEnum):
    """How prompts and outputs share steps. The numbers are those of the compiled code."""

    MIXED = 0  # chunks of prompts beside the decode batch: vLLM
    PREFILL_FIRST = 1  # steps of prompts only, while there are any: SGLang
    SEPARATE = 2  # prompts on a worker of their own


@dataclass(frozen=True, slots=True)
class Load:
    """What the generator sends."""

    concurrency: int
    prompt_tokens: Ints  # of each request, in order of sending
    output_tokens: Ints

    @classmethod
    def drawn(cls, concurrency: int, prompt: int, output: int, *, rounds: int, shortest: float, seed: int = 0) -> Load:
        """Draw `rounds` times `concurrency` requests, lengths uniform from `shortest` times nominal to nominal."""
        random, count = np.random.default_rng(seed), rounds * concurrency
        low_prompt, low_output = max(1, int(prompt * shortest)), max(1, int(output * shortest))
        prompts = random.integers(low_prompt, prompt + 1, count)
        return cls(concurrency, prompts, random.integers(low_output, output + 1, count))


@dataclass(frozen=True, slots=True)
class Served:
    """The cost and limits of the workers."""

    batching: Batching
    prefill: StepCost
    decode: StepCost  # the same as `prefill` unless SEPARATE
    kv_capacity_tokens: int
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 1024


def measure(load: Load, served: Served) -> tuple[float, float]:
    """Return the mean seconds to the first token, and the mean seconds per token after it."""
    count, places = len(load.prompt_tokens), min(served.max_num_seqs, load.concurrency)
    seqs = range(places + 1)
    at = served.prefill.dense.at
    costs = _Costs(
        at=np.array(at),
        dense=np.array(served.prefill.dense.value),
        pair=np.array([served.prefill.pair(n) for n in at]),
        fixed=np.array([served.decode.decode_fixed(b) for b in seqs]),
        context=np.array([served.decode.decode_context(b) for b in seqs]),
    )
    run = _Run(
        prompt=load.prompt_tokens.astype(np.int64),
        output=load.output_tokens.astype(np.int64),
        sent_s=np.zeros(count),
        first_s=np.zeros(count),
        computed=np.zeros(count, np.int64),
        active=np.zeros(places, np.int64),
        left=np.zeros(places, np.int64),
        counts=np.zeros(_NUM_COUNTS, np.int64),
        times=np.zeros(_NUM_TIMES),
        limits=np.array([served.kv_capacity_tokens, served.max_num_batched_tokens, places]),
    )
    run.counts[_TAIL] = min(load.concurrency, count)
    _serve(run, costs, int(served.batching))
    several = int((load.output_tokens > 1).sum())
    return float((run.first_s - run.sent_s).mean()), float(run.times[_TPOT_SUM]) / max(several, 1)


# Places in _Run.counts. Requests before _HEAD are wholly prefilled :
# the next _MOVING ones are on the prefill worker, those up to _TAIL are sent.
_SEQS, _CONTEXT, _HELD, _HEAD, _TAIL, _MOVING, _DONE, _NUM_COUNTS = range(8)
_NOW, _PREFILL_END, _TPOT_SUM, _NUM_TIMES = range(4)  # places in _Run.times
_CAPACITY, _BUDGET, _PLACES = range(3)  # places in _Run.limits


class _Costs(NamedTuple):
    """The tables of the workers' costs, as arrays."""

    at: Floats
    dense: Floats  # at the knots `at`
    pair: Floats  # at the knots `at`
    fixed: Floats  # by sequences, from 0
    context: Floats  # by sequences, from 0


class _Run(NamedTuple):
    """All that changes, and the requests."""

    prompt: Ints
    output: Ints
    sent_s: Floats
    first_s: Floats
    computed: Ints  # prompt tokens of each request
    active: Ints  # the decoding requests, in the first _SEQS places
    left: Ints  # tokens that each of them still lacks
    counts: Ints
    times: Floats
    limits: Ints


def _compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function when it is first called; keep the result on disk. All it calls is in this file."""
    return cast("Callable[P, R]", numba.njit(cache=True, error_model="numpy")(cast("Any", function)))


@_compiled
def _line(at: Floats, value: Floats, x: float) -> float:
    """Evaluate a Table: flat before the first knot; after the last straight on, but never falling."""
    if x <= at[0]:
        return float(value[0])
    if x > at[-1] and value[-1] < value[-2]:
        return float(value[-1])
    i = 1
    while i < len(at) - 1 and at[i] <= x:
        i += 1
    return float(value[i - 1] + (x - at[i - 1]) / (at[i] - at[i - 1]) * (value[i] - value[i - 1]))


@_compiled
def _kv_tokens(run: _Run, request: int) -> int:
    """Return the room a request is admitted with: engines ask for the prompt's; on average half the output is there."""
    return int(run.prompt[request] + run.output[request] // 2)


@_compiled
def _take_prompts(run: _Run, room: int, cut: bool) -> tuple[int, float, int]:
    """Choose the next step's prompts, in order, the last one perhaps `cut`. Return tokens, pairs and whole prompts."""
    counts = run.counts
    tokens, pairs, whole = 0, 0.0, 0
    held, i = counts[_HELD], counts[_HEAD]
    while i < counts[_TAIL] and room > 0:
        if counts[_SEQS] + whole >= run.limits[_PLACES]:
            break
        if not cut and run.prompt[i] > room and whole > 0:  # its own worker takes a long prompt in one step
            break
        held += _kv_tokens(run, i)
        if run.computed[i] == 0 and held > run.limits[_CAPACITY] and counts[_SEQS] + whole > 0:
            break
        take = min(run.prompt[i] - run.computed[i], room) if cut else run.prompt[i]
        pairs += take * (run.computed[i] + take / 2.0)
        run.computed[i] += take
        room -= take
        tokens += take
        if run.computed[i] < run.prompt[i]:
            break
        whole += 1
        i += 1
    return tokens, pairs, whole


@_compiled
def _start_decoding(run: _Run, requests: int) -> None:
    """Let the next `requests` requests, whose first token is made, decode from the next step on."""
    counts = run.counts
    for r in range(counts[_HEAD], counts[_HEAD] + requests):
        run.first_s[r] = run.times[_NOW]
        run.active[counts[_SEQS]], run.left[counts[_SEQS]] = r, run.output[r] - 1
        counts[_CONTEXT] += run.prompt[r]
        counts[_HELD] += _kv_tokens(run, r)
        counts[_SEQS] += 1
    counts[_HEAD] += requests


@_compiled
def _quiet_steps(run: _Run, costs: _Costs, step_s: float) -> int:
    """Return how many decode steps pass before a request finishes or comes from the prefill worker."""
    counts, now = run.counts, run.times[_NOW]
    steps = run.left[0]
    for j in range(1, counts[_SEQS]):
        steps = min(steps, run.left[j])
    until = now
    if counts[_MOVING]:
        until = run.times[_PREFILL_END]
    if now < until < now + step_s * steps:
        steps = int(np.ceil((until - now) / step_s))
    return max(1, int(steps))


@_compiled
def _finish(run: _Run, steps: int) -> None:
    """Give every decoding request `steps` tokens; who has all makes room, and its sender sends the next."""
    counts, j = run.counts, 0
    counts[_CONTEXT] += counts[_SEQS] * steps
    while j < counts[_SEQS]:
        run.left[j] -= steps
        if run.left[j] > 0:
            j += 1
            continue
        r = run.active[j]
        if run.output[r] > 1:
            run.times[_TPOT_SUM] += (run.times[_NOW] - run.first_s[r]) / (run.output[r] - 1)
        counts[_HELD] -= _kv_tokens(run, r)
        counts[_CONTEXT] -= run.prompt[r] + run.output[r] - 1 - min(0, run.left[j])
        counts[_SEQS] -= 1
        run.active[j], run.left[j] = run.active[counts[_SEQS]], run.left[counts[_SEQS]]
        counts[_DONE] += 1
        if counts[_TAIL] < len(run.prompt):
            run.sent_s[counts[_TAIL]] = run.times[_NOW]
            counts[_TAIL] += 1


@_compiled
def _serve(run: _Run, costs: _Costs, batching: int) -> None:
    """Step until every request is done."""
    counts, times = run.counts, run.times
    while counts[_DONE] < len(run.prompt):
        if counts[_MOVING] and (times[_PREFILL_END] <= times[_NOW] or counts[_SEQS] == 0):
            times[_NOW] = max(times[_NOW], times[_PREFILL_END])
            arrived, counts[_MOVING] = counts[_MOVING], 0
            _start_decoding(run, arrived)
        tokens, pairs, whole, prefill_s, decode_s, steps = 0, 0.0, 0, 0.0, 0.0, 0
        seqs = counts[_SEQS]
        beside = seqs if batching == 0 else 0  # decoding tokens in the step of the prompts
        if counts[_MOVING] == 0:
            tokens, pairs, whole = _take_prompts(run, run.limits[_BUDGET] - beside, batching != 2)
        if tokens:
            prefill_s = _line(costs.at, costs.pair, tokens) * pairs + _line(costs.at, costs.dense, tokens + beside)
            prefill_s -= _line(costs.at, costs.dense, beside) if beside else 0.0
        if batching == 2 and tokens:
            times[_PREFILL_END], counts[_MOVING] = times[_NOW] + prefill_s, whole
        if seqs and (batching != 1 or tokens == 0):
            step_s = costs.fixed[seqs] + costs.context[seqs] * counts[_CONTEXT]
            steps = 1 if tokens and batching == 0 else _quiet_steps(run, costs, step_s)
            growth = seqs * steps * (steps - 1) / 2.0
            decode_s = steps * step_s + costs.context[seqs] * growth
        times[_NOW] += decode_s + (prefill_s if batching != 2 else 0.0)
        _finish(run, steps)
        if batching != 2:
            _start_decoding(run, whole)
