"""Calibrates what engines add to kernels on measured servings: four factors for each group, one of experts for a kind.

Owns the prediction of one serving and the fit. Must not know files or reports (bench.fidelity_silicon). The fit is
damped Gauss-Newton on the logarithms of the factors, with rows far off weighted down (Huber) and a pull towards what
its kind of model shares, so that a group with few rows stays near it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bench.closed_loop import Batching, Load, Served, measure
from bench.known_models import known_model
from bench.silicon_points import Point, Worker
from core.errors import ConfigError
from core.latency.device import DeviceProfile, EngineCost, kv_capacity_tokens, step_cost
from core.latency.model_shape import ModelShape
from core.latency.step import StepCost, Table

Floats = NDArray[np.float64]
# Log-factors: prefill_scale, decode_scale, step_s, request_s, expert_scale of EngineCost.
_START = np.log(np.array([1.2, 1.1, 1e-3, 40e-3, 3.0]))
_SPREAD = np.array([0.15, 0.15, 0.5, 1.0])  # prior standard deviations of the logarithms around the shared factors
_EXPERT_SPREAD = 0.1  # of the last, which only kinds with experts fit; chosen with its start by halving the fitted half
_LOOSE = 4.0  # how much wider the prior of the shared factors themselves is
_HUBER = 0.1  # beyond this relative error a row counts less
_NOISE = 0.1  # standard deviation of a row, against which the prior weighs
_ITERATIONS = 5
_MOST_REQUESTS, _MOST_ROUNDS, _FEWEST_ROUNDS = 1500, 10, 3  # of one simulated measurement
_UTILIZATION = 0.95  # of memory: the launch scripts of the public rows (SemiAnalysis InferenceX) say 0.9 or 0.95
_MIN_CAPACITY_TOKENS = 16_384  # a serving was measured, so it fitted, whatever our estimate of its memory says


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was found for one group."""

    engine: EngineCost
    mixed: bool  # prompts beside decoding sequences, else in steps of their own; the rows do not say, the fit chooses
    ttft_spread: float  # standard deviation of the logarithm of measured over predicted
    tpot_spread: float


class Predictor:
    """Predicts servings; keeps the kernels' sums of each model and worker, and the drawn loads."""

    def __init__(self, devices: Mapping[str, DeviceProfile]) -> None:
        self._devices = devices
        self._costs: dict[tuple[object, ...], tuple[StepCost, int]] = {}  # all asked for so far

    def predict(self, point: Point, engine: EngineCost, mixed: bool) -> tuple[float, float]:
        """Return mean TTFT and TPOT in seconds."""
        prefill, _ = self._cost(point, point.prefill, engine)
        decode, capacity = self._cost(point, point.decode, engine)
        batching = Batching.SEPARATE if point.separate else Batching.MIXED if mixed else Batching.PREFILL_FIRST
        if point.separate:  # several prefill workers serve one decode worker as one that is as much faster
            prefill = prefill.scaled(prefill=1.0 / point.prefill_share)
        costs = with_engine(prefill, engine), with_engine(decode, engine)
        ttft_s, tpot_s = measure(_load(point), Served(batching, *costs, capacity, point.step_tokens))
        return ttft_s + engine.request_s, tpot_s

    def _cost(self, point: Point, worker: Worker, engine: EngineCost) -> tuple[StepCost, int]:
        """Return the kernels' cost, of the engine's factors only the experts', and the room for KV."""
        experts = engine.expert_scale if point.routed else 1.0
        key = (point.model, point.device, point.weight_bytes, point.kv_value_bytes, worker, experts)
        if key not in self._costs:
            device, shape = self._device(point.device), _shape(point)
            cost = step_cost(
                device,
                shape,
                tensor_parallel=worker.tensor_parallel,
                expert_devices=worker.expert_devices,
                engine=EngineCost(expert_scale=experts),
            )
            room = kv_capacity_tokens(
                device,
                shape,
                tensor_parallel=worker.tensor_parallel,
                expert_devices=worker.expert_devices,
                utilization=_UTILIZATION,
            )
            self._costs[key] = (cost, max(room, _MIN_CAPACITY_TOKENS))
        return self._costs[key]

    def _device(self, name: str) -> DeviceProfile:
        if name not in self._devices:
            raise ConfigError(f"a serving was measured on {name}, of which no device file was given: add {name}.json")
        return self._devices[name]


def with_engine(cost: StepCost, engine: EngineCost) -> StepCost:
    """Apply what an engine adds to a cost that is kernels only."""
    scaled = cost.scaled(prefill=engine.prefill_scale, decode=engine.decode_scale)
    return replace(
        scaled,
        dense=_raised(scaled.dense, engine.step_s),
        decode_fixed=_raised(scaled.decode_fixed, engine.step_s),
    )


def fit_groups(predictor: Predictor, points: Sequence[Point]) -> dict[str, Calibration]:
    """Fit what each kind of model shares on each backend, then each group around it; both are in the answer by name."""
    found: dict[str, Calibration] = {}
    for kind in sorted({p.kind for p in points}):
        rows = [p for p in points if p.kind == kind]
        mixed = rows[0].backend != "sglang"
        loose = np.append(_SPREAD * _LOOSE, _EXPERT_SPREAD * rows[0].routed)
        shared = _fit(predictor, rows, mixed, _START, loose)
        found[kind] = _judged(predictor, rows, shared, mixed)
        tight = np.append(_SPREAD, 0.0)
        for group in sorted({p.group for p in rows}):
            own = [p for p in rows if p.group == group]
            tried = []
            for way in sorted({True, mixed}):
                factors = _fit(predictor, own, way, shared, tight)
                loss = _loss(_errors(predictor, own, factors, way).ravel(), factors - shared, tight)
                tried.append((loss, _judged(predictor, own, factors, way)))
            found[group] = min(tried, key=lambda t: t[0])[1]
    return found


def calibration_of(found: Mapping[str, Calibration], point: Point) -> Calibration:
    """Return the calibration of the point's group, else of its kind, else of any. Raises ConfigError without any."""
    if not found:
        raise ConfigError("nothing was calibrated: the file to fit has no usable row")
    return found.get(point.group) or found.get(point.kind) or next(iter(found.values()))


def _fit(predictor: Predictor, rows: Sequence[Point], mixed: bool, center: Floats, spread: Floats) -> Floats:
    """Minimise Huber-weighted squares of log errors plus the pull towards `center`; return the log-factors.

    A factor whose spread is 0 stays at its center.
    """
    x, damping, free = center.copy(), 1e-2, np.flatnonzero(spread)
    pull = 1.0 / spread[free] ** 2
    errors = _errors(predictor, rows, x, mixed).ravel()
    for _ in range(_ITERATIONS):
        steps = 0.05 * np.eye(len(x))[free]
        slope = np.column_stack([(_errors(predictor, rows, x + s, mixed).ravel() - errors) / 0.05 for s in steps])
        weights = 1.0 / np.maximum(1.0, np.abs(errors) / _HUBER) / _NOISE**2
        normal = (slope.T * weights) @ slope + np.diag(pull)
        right = -(slope.T * weights) @ errors - (x - center)[free] * pull
        move = np.zeros_like(x)
        move[free] = np.clip(np.linalg.solve(normal + damping * np.diag(np.diag(normal)), right), -0.7, 0.7)
        tried = _errors(predictor, rows, x + move, mixed).ravel()
        if _loss(tried, x + move - center, spread) < _loss(errors, x - center, spread):
            x, errors, damping = x + move, tried, damping / 3
            if np.abs(move).max() < 0.01:
                break
        else:
            damping *= 10
    return x


def _loss(errors: Floats, away: Floats, spread: Floats) -> float:
    size, free = np.abs(errors), spread > 0
    huber = np.where(size < _HUBER, size**2, 2 * _HUBER * size - _HUBER**2)
    return float(huber.sum() / _NOISE**2 + ((away[free] / spread[free]) ** 2).sum())


def _errors(predictor: Predictor, rows: Sequence[Point], factors: Floats, mixed: bool) -> Floats:
    """Return log(predicted / measured) of TTFT and TPOT: (num_rows, 2)."""
    engine = _engine(factors)
    predicted = np.array([predictor.predict(point, engine, mixed) for point in rows])
    exact: Floats = np.log(predicted / np.array([(point.ttft_s, point.tpot_s) for point in rows]))
    return exact


def _judged(predictor: Predictor, rows: Sequence[Point], factors: Floats, mixed: bool) -> Calibration:
    """Attach the spread of the errors, from their 90 % point, for their tails are heavy."""
    sizes = np.quantile(np.abs(_errors(predictor, rows, factors, mixed)), 0.9, axis=0) / 1.645
    freedom = np.sqrt((len(rows) + len(factors)) / len(rows))  # the factors were fitted to these very rows
    return Calibration(_engine(factors), mixed, float(sizes[0] * freedom), float(sizes[1] * freedom))


def _engine(factors: Floats) -> EngineCost:
    prefill, decode, step_s, request_s, experts = (float(v) for v in np.exp(factors))
    return EngineCost(prefill, decode, step_s, request_s, expert_scale=experts)


def _raised(table: Table, by_s: float) -> Table:
    return Table(table.at, tuple(value + by_s for value in table.value))


def _shape(point: Point) -> ModelShape:
    shape = known_model(point.model)
    assert shape is not None  # points name models of that table only
    return replace(shape, weight_bytes=point.weight_bytes, kv_value_bytes=point.kv_value_bytes)


@functools.lru_cache(maxsize=4096)
def _load(point: Point) -> Load:
    rounds = min(_MOST_ROUNDS, max(_FEWEST_ROUNDS, _MOST_REQUESTS // point.concurrency))
    return Load.drawn(
        point.concurrency, point.prompt_tokens, point.output_tokens, rounds=rounds, shortest=point.shortest
    )
