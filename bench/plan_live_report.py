"""Predicted against measured: what a simulation said of each request of a trace, and what its client saw.

Owns the interval of a prediction and whether it covers. Pure but for the simulator; must not know live systems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from core.latency.profile import EngineProfile
from core.latency.step import StepCost
from engine.step_clock import TracedStep
from sim.cluster import ClusterSpec, PoolSpec
from sim.outcome import Target
from sim.simulate import simulate
from sim.workload import Floats, Workload

DRAWS = 100
WINDOW_S = 10.0
SCALES = (0.5, 0.7, 1.0, 1.5, 2.0)  # of both targets
_TAIL = 0.05  # left out of the interval on either side


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """What a client saw, one entry for each request of the trace."""

    ttft_s: Floats
    tpot_s: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What the simulator says of a trace on one system."""

    name: str
    middle: Served  # by the profile as it is
    draws: tuple[Served, ...]  # by profiles that are off as much as their fits

    def interval(self, figure: Callable[[Served], float]) -> tuple[float, float]:
        """Return the 90 % interval of a figure."""
        values = [figure(draw) for draw in self.draws]
        return float(np.quantile(values, _TAIL)), float(np.quantile(values, 1 - _TAIL))

    def covers(self, figure: Callable[[Served], float], measured: float) -> bool:
        """Say whether the interval of a figure holds what was measured."""
        low, high = self.interval(figure)
        return low <= measured <= high


def predict(
    name: str, cluster: ClusterSpec, profile: EngineProfile, trace: Workload, target: Target, *, seed: int = 0
) -> Prediction:
    """Simulate the trace, with the profile and with draws of its error.

    An error is taken to be the same in every step: steps that are off each in its own way would cancel out.
    """
    rng = np.random.default_rng(seed)
    shape = profile.shape(1)
    draws = []
    for _ in range(DRAWS):
        prefill, decode = np.exp(rng.normal(0.0, (shape.prefill_error, shape.decode_error)))
        draws.append(_simulated(_off(cluster, float(prefill), float(decode)), trace, target))
    return Prediction(name, _simulated(cluster, trace, target), tuple(draws))


def report(
    predictions: Sequence[Prediction], served: Sequence[Served], trace: Workload, target: Target
) -> Iterator[str]:
    """Yield tables in Markdown."""
    prompts, outputs = trace.prompt_tokens, trace.output_tokens
    yield (
        f"{len(trace)} requests at {trace.rate:.2f}/s; median prompt {np.median(prompts):.0f} tokens, longest "
        f"{prompts.max()}; median output {np.median(outputs):.0f}; targets: TTFT {target.ttft_s * 1e3:g} ms, "
        f"TPOT {target.tpot_s * 1e3:g} ms. Times in ms."
    )
    yield "\n| system | figure | predicted | 90 % interval | measured | off | covered |"
    yield "|---|---|---|---|---|---|---|"
    for prediction, seen in zip(predictions, served, strict=True):
        for label, figure, factor in _figures(target):
            yield _row(prediction, seen, label, figure, factor)
    yield "\nHow often the interval covers what was measured:\n"
    for prediction, seen in zip(predictions, served, strict=True):
        requests = [request_coverage(prediction, seen, name) for name in ("ttft_s", "tpot_s")]
        windows = [window_coverage(prediction, seen, trace, name) for name in ("ttft_s", "tpot_s")]
        yield (
            f"- {prediction.name}: TTFT of {requests[0]:.0%} and TPOT of {requests[1]:.0%} of the requests; means of "
            f"{WINDOW_S:g} s windows: TTFT {windows[0]:.0%}, TPOT {windows[1]:.0%}"
        )


def corrected_by(profile: EngineProfile, steps: Sequence[TracedStep]) -> EngineProfile:
    """Scale what prompts and what decode steps cost by what such steps took in all, against what was predicted.

    A kind of step that did not occur is left as it is.
    """
    shape = profile.shape(1)
    prefill = _ratio(shape.cost, [each for each in steps if not each.step.decode_seqs])
    decode = _ratio(shape.cost, [each for each in steps if not each.step.prefill_tokens])
    return replace(profile, shapes=(replace(shape, cost=shape.cost.scaled(prefill=prefill, decode=decode)),))


def _ratio(cost: StepCost, steps: Sequence[TracedStep]) -> float:
    return sum(each.seconds for each in steps) / sum(cost.seconds(each.step) for each in steps) if steps else 1.0


def step_lines(cost: StepCost, steps: Sequence[TracedStep]) -> Iterator[str]:
    """Yield how the steps of a live run compare with the profile, by kind: what contention the profile has not seen."""
    kinds = {
        "prefill": [each for each in steps if not each.step.decode_seqs],
        "decode": [each for each in steps if not each.step.prefill_tokens],
        "mixed": [each for each in steps if each.step.prefill_tokens and each.step.decode_seqs],
    }
    yield "\nSteps of the live prefill and decode engines, times measured over predicted:\n"
    for kind, found in kinds.items():
        if found:
            ratios = [each.seconds / cost.seconds(each.step) for each in found]
            low, middle, high = np.quantile(ratios, (0.1, 0.5, 0.9))
            yield (
                f"- {len(found)} {kind} steps: median {middle:.2f}, P10 {low:.2f}, P90 {high:.2f}; "
                f"all together {_ratio(cost, found):.2f}"
            )


def rows_csv(predictions: Mapping[str, Prediction], served: Mapping[str, Served], trace: Workload) -> str:
    """Write one line for each system and request, times in seconds."""
    lines = ["system,arrived_s,prompt_tokens,output_tokens,predicted_ttft_s,ttft_s,predicted_tpot_s,tpot_s"]
    for name, prediction in predictions.items():
        said, seen = prediction.middle, served[name]
        columns = (trace.arrived_s, trace.prompt_tokens, trace.output_tokens)
        for row in zip(*columns, said.ttft_s, seen.ttft_s, said.tpot_s, seen.tpot_s, strict=True):
            lines.append(",".join([name, *(f"{value:.6g}" for value in row)]))
    return "\n".join(lines) + "\n"


def attainment(served: Served, target: Target, scale: float = 1.0) -> float:
    """Return the share of requests within both targets, the targets times `scale`."""
    return float(((served.ttft_s <= scale * target.ttft_s) & (served.tpot_s <= scale * target.tpot_s)).mean())


def request_coverage(prediction: Prediction, served: Served, name: str) -> float:
    """Return the share of requests whose time `name` lies within the interval of its own prediction."""
    low, high = np.quantile([getattr(draw, name) for draw in prediction.draws], (_TAIL, 1 - _TAIL), axis=0)
    measured = getattr(served, name)
    return float(((low <= measured) & (measured <= high)).mean())


def window_coverage(prediction: Prediction, served: Served, trace: Workload, name: str) -> float:
    """Return the share of windows of arrival in which the mean of `name` lies within its interval."""
    window = (trace.arrived_s // WINDOW_S).astype(np.int64)
    figures = [partial(_mean, name=name, rows=window == index) for index in np.unique(window)]
    return float(np.mean([prediction.covers(figure, figure(served)) for figure in figures]))


def _figures(target: Target) -> Iterator[tuple[str, Callable[[Served], float], float]]:
    """Yield the label of each figure, how it is read, and what it is multiplied by to be shown."""
    for label, name in (("TTFT", "ttft_s"), ("TPOT", "tpot_s")):
        yield f"{label} mean", partial(_mean, name=name, rows=slice(None)), 1e3
        for q in (0.5, 0.9):
            yield f"{label} P{q * 100:g}", partial(_quantile, name=name, q=q), 1e3
    for scale in SCALES:
        label = "attainment, %" if scale == 1.0 else f"attainment at {scale:g} x both targets, %"
        yield label, partial(attainment, target=target, scale=scale), 1e2


def _mean(served: Served, *, name: str, rows: slice | NDArray[np.bool_]) -> float:
    return float(getattr(served, name)[rows].mean())


def _quantile(served: Served, *, name: str, q: float) -> float:
    return float(np.quantile(getattr(served, name), q))


def _row(prediction: Prediction, seen: Served, label: str, figure: Callable[[Served], float], factor: float) -> str:
    low, high = prediction.interval(figure)
    middle, measured = figure(prediction.middle), figure(seen)
    off = f"{(middle - measured) * 1e2:+.1f} points" if "%" in label else f"{middle / measured - 1:+.0%}"
    digits = 0 if "TTFT" in label else 1
    shown = [f"{value * factor:.{digits}f}" for value in (middle, low, high, measured)]
    covered = "yes" if low <= measured <= high else "no"
    return f"| {prediction.name} | {label} | {shown[0]} | {shown[1]} - {shown[2]} | {shown[3]} | {off} | {covered} |"


def _simulated(cluster: ClusterSpec, trace: Workload, target: Target) -> Served:
    outcome = simulate(cluster, trace, (target,))
    return Served(outcome.ttft_s, outcome.tpot_s)


def _off(cluster: ClusterSpec, prefill: float, decode: float) -> ClusterSpec:
    """Make every step of a cluster slower or faster."""

    def scaled(pool: PoolSpec) -> PoolSpec:
        return replace(pool, cost=pool.cost.scaled(prefill=prefill, decode=decode))

    return replace(cluster, decode=scaled(cluster.decode), prefill=scaled(cluster.prefill) if cluster.prefill else None)
