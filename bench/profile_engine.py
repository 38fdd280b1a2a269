"""Measures engines: runs the loads of bench.profile_design on them and makes an EngineProfile of what their steps took.

Owns the order of measuring and the overheads of a request. Engines of both pools are up and busy at the same time, as
they are in life: on one machine they share memory bandwidth, and with few cores the cores too.
"""

from __future__ import annotations

import contextlib
import math
import random
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final

from bench.core_wait import CoreTimes
from bench.engine_process import Call, EngineProcess
from bench.load import Prompts
from bench.profile_design import Limits, Load, Pace, design, fits, join_after_s, samples_of, within
from core.config.model_files import read_model_facts
from core.errors import EngineFailed
from core.latency.fit import fit_step_cost
from core.latency.profile import EngineProfile, ShapeProfile
from core.latency.step import Step, StepCost

_WARM_UP = (Load((16,), 8), Load((256,)), Load((64, 64, 64, 64), 8), Load((512,)))
_PACES = (Load((512,), 6), Load((64,), 6), Load((16,), 3))  # the first that fits tells how fast an engine is
_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1}
_OVERTIME = 2.0  # times a round's length after which it is cut: the machine got slower than it was at first
_HELD_UP = 3.0  # times the typical time of a step
_OVERHEAD_TOKENS = 256  # of a prompt as chats have it
_OVERHEAD_REPEATS = 15

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure."""

    rounds: int = 4  # how often each load is run
    round_s: float = 15.0  # what one round may take, roughly


QUICK = Effort(rounds=2, round_s=6.0)


@dataclass(frozen=True, slots=True)
class Overheads:
    """Seconds to the first token beyond the engine's steps."""

    request_s: float
    handover_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What was measured of engines that were up at the same time."""

    drivers: tuple[Driver, ...]  # they hold the steps
    overheads: Overheads
    times: CoreTimes  # of all engines, while loads ran


class Driver:
    """Runs loads on one engine."""

    def __init__(self, engine: EngineProcess, seed: int) -> None:
        self.engine = engine
        self._prompts = Prompts(seed)
        self._random = random.Random(seed)
        self._pace = Pace(0.0, 0.0)
        self._warm_steps = 0
        self._loads: tuple[Load, ...] = ()
        self.steps: tuple[tuple[Step, float], ...] = ()  # with their seconds, between prepare and finish

    def prepare(self, effort: Effort) -> None:
        """Warm the engine up, and choose the loads that fit the time."""
        limits = _limits(self.engine)
        for _ in range(2):
            for load in _WARM_UP:
                if fits(load, limits):
                    self._run(load)
        self._pace = self._measure_pace(next((load for load in _PACES if fits(load, limits)), _PACES[-1]))
        self._loads = within(design(limits), self._pace, effort.round_s)
        self._warm_steps = len(self.engine.steps())

    @property
    def num_loads(self) -> int:
        """Loads of one round."""
        return len(self._loads)

    def run_round(self, limit_s: float) -> None:
        """Run every load once, in random order; what is left after `limit_s` is left out, for this once."""
        end_s = time.monotonic() + limit_s
        for load in self._random.sample(self._loads, len(self._loads)):
            if time.monotonic() > end_s:
                return
            self._run(load)

    def finish(self) -> None:
        """Take the steps since the warm-up."""
        self.steps = tuple((each.step, each.seconds) for each in self.engine.steps()[self._warm_steps :])

    def call(self, tokens: Sequence[int], output_tokens: int, after_s: float = 0.0) -> Call:
        """Make a completion of exactly `output_tokens`."""
        body: dict[str, object] = {
            "model": self.engine.spec.engine.served_model_name,
            "prompt": list(tokens),
            "max_tokens": output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        return Call(body, after_s)

    def prompt(self, tokens: int) -> list[int]:
        """Make a prompt that shares no prefix with any other."""
        return self._prompts.make(tokens)

    def _run(self, load: Load) -> None:
        prefix = self.prompt(load.cached_tokens)
        if prefix:
            self.engine.run([self.call(prefix, 1)])
        calls = [self.call(prefix + self.prompt(tokens), load.output_tokens) for tokens in load.prompts]
        for position, tokens in enumerate(load.joining):
            calls.append(self.call(self.prompt(tokens), 1, join_after_s(position, self._pace)))
        self.engine.run(calls)

    def _measure_pace(self, load: Load) -> Pace:
        """Time a prompt and some decode steps, the best of a few: what disturbed one did not hit all."""
        before = len(self.engine.steps())
        for _ in range(3):
            self._run(load)
        steps = self.engine.steps()[before:]
        token_s = min(each.seconds / each.step.prefill_tokens for each in steps if each.step.prefill_tokens)
        return Pace(token_s, min(each.seconds for each in steps if not each.step.prefill_tokens))


def measure(engines: Sequence[EngineProcess], effort: Effort, say: Say) -> Measured:
    """Run the design on all engines at once; whatever ends that early ends the engines. Raises EngineFailed."""
    drivers = tuple(Driver(engine, seed) for seed, engine in enumerate(engines))
    with _threads(engines) as pool:
        _on_all(pool, drivers, lambda driver: driver.prepare(effort))
        loads = ", ".join(f"{driver.engine.spec.worker_id} {driver.num_loads} loads" for driver in drivers)
        before = [engine.core_times() for engine in engines]
        for index in range(effort.rounds):
            say(f"round {index + 1} of {effort.rounds}: {loads}")
            _on_all(pool, drivers, lambda driver: driver.run_round(_OVERTIME * effort.round_s))
        _on_all(pool, drivers, Driver.finish)
    times = [engine.core_times().since(first) for engine, first in zip(engines, before, strict=True)]
    say("overheads of a request and of a hand-over")
    return Measured(drivers, overheads(drivers), sum(times, CoreTimes(0.0, 0.0)))


@contextlib.contextmanager
def _threads(engines: Sequence[EngineProcess]) -> Iterator[ThreadPoolExecutor]:
    """Give each engine a thread; on the way out of an error or Ctrl-C, no thread is left to wait for its engine."""
    with ThreadPoolExecutor(len(engines)) as pool:
        try:
            yield pool
        except BaseException:
            for engine in engines:
                engine.kill()
            raise


def _on_all(pool: ThreadPoolExecutor, drivers: Sequence[Driver], work: Callable[[Driver], None]) -> None:
    """Do `work` on all drivers at the same time, until it is done or has failed on one of them."""
    done, _ = wait([pool.submit(work, driver) for driver in drivers], return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()


def overheads(drivers: Sequence[Driver]) -> Overheads:
    """Measure them on idle engines, medians of a few; the hand-over's is 0 without two engines that can do one."""
    request_s = statistics.median(_request_overhead_s(drivers[0]) for _ in range(_OVERHEAD_REPEATS))
    if len(drivers) < 2 or not all(driver.engine.facts.kv_address for driver in drivers):
        return Overheads(max(request_s, 0.0), 0.0)
    # Pairs of one request served whole and one handed over, in turn, so that what drifts hits both alike.
    added_s = [_handed_over_s(*drivers[:2]) - _whole_s(drivers[0]) for _ in range(_OVERHEAD_REPEATS)]
    return Overheads(max(request_s, 0.0), max(statistics.median(added_s), 0.0))


def _request_overhead_s(driver: Driver) -> float:
    before = len(driver.engine.steps())
    ttft_s = _whole_s(driver)
    return ttft_s - sum(each.seconds for each in driver.engine.steps()[before:])


def _whole_s(driver: Driver) -> float:
    times = driver.engine.run([driver.call(_prompt(driver), 1)])[0]
    return times.first_s - times.sent_s


def _handed_over_s(prefill: Driver, decode: Driver) -> float:
    """Return the time to the first token of a request handed over, less the decode step that makes it."""
    transfer_id, prompt = uuid.uuid4().hex, _prompt(prefill)
    call, leg = decode.call(prompt, 2), prefill.call(prompt, 1)
    lease_s = decode.engine.spec.kv.lease_s
    call.body["kv_transfer_params"] = {"do_remote_prefill": True, "transfer_id": transfer_id, "lease_s": lease_s}
    peer = decode.engine.facts.kv_address
    sending = {"do_remote_decode": True, "transfer_id": transfer_id, "peer": peer, "lease_s": lease_s}
    leg.body["kv_transfer_params"] = sending
    before = len(decode.engine.steps())
    decode.engine.begin([call])
    prefill.engine.run([leg])
    times = decode.engine.finish()[0]
    steps = decode.engine.steps()[before:]
    if not steps or steps[0].step.prefill_tokens:
        raise EngineFailed("a prompt that was handed over was computed again; see the workers' logs")
    return times.first_s - times.sent_s - steps[0].seconds


def _prompt(driver: Driver) -> list[int]:
    return driver.prompt(min(_OVERHEAD_TOKENS, driver.engine.facts.max_model_len // 2))


CPU: Final = "cpu"  # how the names of such devices begin
# Router, front, client and Ray share the cores of CPU engines: under load, prompts took 1.12 and decode steps 1.01 of
# what engines alone had shown (bench.plan_live on two cores).
SHARED_CORES_ERROR: Final = 0.1


def profile_of(groups: Sequence[Measured], *, model: str, device: str) -> EngineProfile:
    """Fit one cost for each parallel size.

    The KV capacity is that of the last engine of its size, and the overheads are those of the last group: decode's.
    """
    drivers = [driver for group in groups for driver in group.drivers]
    facts = drivers[-1].engine.facts
    unseen = SHARED_CORES_ERROR if device.startswith(CPU) else 0.0
    over = groups[-1].overheads
    num_steps = sum(len(driver.engine.steps()) for driver in drivers)
    return EngineProfile(
        model=model,
        device=device,
        engine=facts.engine,
        source=f"{num_steps} measured steps of running engines, {waiting_words(groups)}",
        shapes=tuple(_shape(size, drivers, unseen) for size in sorted({_size(driver) for driver in drivers})),
        kv_bytes_per_token=kv_bytes_per_token(drivers[-1].engine),
        block_size=facts.block_size,
        max_model_len=facts.max_model_len,
        request_overhead_s=over.request_s,
        handover_overhead_s=over.handover_s,
    )


def waited_share(groups: Sequence[Measured]) -> float:
    """Return the part of the time in which engines wanted a core and had none."""
    return sum((group.times for group in groups), CoreTimes(0.0, 0.0)).waited_share


def waiting_words(groups: Sequence[Measured]) -> str:
    """Say how quiet the machine was."""
    return f"which waited for cores {waited_share(groups):.0%} of their time"


def _shape(size: tuple[int, int], drivers: Sequence[Driver], unseen_error: float) -> ShapeProfile:
    own = [driver for driver in drivers if _size(driver) == size]
    steps = [each for driver in own for each in driver.steps]
    fit = fit_step_cost([sample for driver in own for sample in samples_of(driver.steps)])
    return ShapeProfile(
        tensor_parallel=size[0],
        pipeline_parallel=size[1],
        cost=at_mean(fit.cost, steps),
        kv_capacity_tokens=own[-1].engine.facts.kv_capacity_tokens,
        prefill_error=math.hypot(fit.prefill_error, unseen_error),
        decode_error=math.hypot(fit.decode_error, unseen_error),
    )


def at_mean(cost: StepCost, steps: Sequence[tuple[Step, float]]) -> StepCost:
    """Scale a cost fitted to typical steps so that the steps of either kind add up to the time they took.

    Steps are skewed, now and then one is held up, and a request pays for the sum. One that took more than
    `_HELD_UP` times its typical time counts as that: it was the machine and not the engine.
    """
    prompts = [(step, seconds) for step, seconds in steps if not step.decode_seqs]
    outputs = [(step, seconds) for step, seconds in steps if not step.prefill_tokens]
    return cost.scaled(prefill=_mean_ratio(cost, prompts), decode=_mean_ratio(cost, outputs))


def _mean_ratio(cost: StepCost, steps: Sequence[tuple[Step, float]]) -> float:
    typical = [cost.seconds(step) for step, _ in steps]
    took = [min(seconds, _HELD_UP * usual) for (_, seconds), usual in zip(steps, typical, strict=True)]
    return sum(took) / sum(typical) if sum(typical) > 0 else 1.0


def kv_bytes_per_token(engine: EngineProcess) -> int:
    """Return the KV bytes of one token over all layers and ranks, by the model's file, else by the size of the cache.

    0 if neither says.
    """
    spec, facts = engine.spec.engine, engine.facts
    model = read_model_facts(spec.model_path)
    dtype = facts.dtype if facts.cache_dtype == "auto" else facts.cache_dtype.partition("_")[0]
    if model is not None and model.kv_values_per_token is not None and dtype in _DTYPE_BYTES:
        return model.kv_values_per_token * _DTYPE_BYTES[dtype]
    if spec.kv_cache_bytes is None:
        return 0
    return spec.kv_cache_bytes * spec.tensor_parallel * spec.pipeline_parallel // facts.kv_capacity_tokens


def _limits(engine: EngineProcess) -> Limits:
    spec, facts = engine.spec.engine, engine.facts
    return Limits(
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        max_model_len=facts.max_model_len,
        kv_capacity_tokens=facts.kv_capacity_tokens,
        prefix_caching=spec.enable_prefix_caching,
    )


def _size(driver: Driver) -> tuple[int, int]:
    spec = driver.engine.spec.engine
    return spec.tensor_parallel, spec.pipeline_parallel
