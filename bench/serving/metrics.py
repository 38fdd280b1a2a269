"""The metrics of one run, named and computed as `vllm bench serve` does, with intervals.

Owns definitions, which are those of vllm/benchmarks/serve.py of 0.32. Added are attainment, the share of all requests
that met their targets, refused and failed ones among those that did not; intervals; and whether the run was long
enough. Must not print.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.serving import statistics
from bench.serving.load_run import Run
from bench.serving.statistics import Estimate, Values
from bench.serving.timing import Timing
from core.errors import ConfigError
from sim.plan import Interval

PERCENTILES: Final = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
TTFT, TPOT, ITL, E2EL = "ttft", "tpot", "itl", "e2el"
METRICS: Final = (TTFT, TPOT, ITL, E2EL)


@dataclass(frozen=True, slots=True)
class Targets:
    """What a request must meet to count as good; inf: anything."""

    ttft_ms: float = math.inf
    tpot_ms: float = math.inf
    e2el_ms: float = math.inf
    attainment: float = 0.9  # share that was promised

    def met_by(self, timing: Timing, scale: float = 1.0) -> bool:
        """Say whether a request met all; `scale` loosens or tightens them alike."""
        return timing.within(self.ttft_ms * scale, self.tpot_ms * scale) and timing.e2el_ms <= self.e2el_ms * scale


ClassTargets = Mapping[str, Targets]  # "" is for requests of no class, or of one that is not named


def parse_goodput(words: Sequence[str]) -> Targets:
    """Read `ttft:400 tpot:40 e2el:5000`, in ms, as `vllm bench serve --goodput` has it. Raises ConfigError."""
    values: dict[str, float] = {}
    for word in words:
        name, _, text = word.partition(":")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if name not in (TTFT, TPOT, E2EL) or not value >= 0:
            raise ConfigError(f"--goodput {word}: write ttft:MS, tpot:MS or e2el:MS, e.g. ttft:400 tpot:40")
        values[f"{name}_ms"] = value
    return Targets(**values)


def targets_of(timing: Timing, targets: ClassTargets) -> Targets | None:
    """Find what a request must meet; None: nothing is promised to it."""
    return targets.get(timing.slo_class, targets.get(""))


def promises(targets: ClassTargets) -> dict[str, Targets]:
    """List each promise once: what holds for requests without a class may be that of a named one."""
    named = {name: each for name, each in targets.items() if name}
    rest = targets.get("")
    is_named = any(each is rest for each in named.values())
    return named if rest is None or is_named else {"": rest, **named}


@dataclass(frozen=True, slots=True)
class Distribution:
    """One metric over all complete requests, in ms."""

    name: str
    values: Values  # in order of time
    mean: Estimate
    std: float
    percentiles: tuple[tuple[float, Estimate], ...]

    @property
    def median(self) -> Estimate:
        """The middle."""
        return dict(self.percentiles)[50.0]


@dataclass(frozen=True, slots=True)
class ClassResult:
    """How one class fared."""

    name: str
    targets: Targets
    attainment: Estimate
    goodput: float  # requests per second that met their targets


@dataclass(frozen=True, slots=True)
class Metrics:
    """All of one run."""

    duration_s: float
    completed: int
    failed: int
    refused: int  # among the failed
    cancelled: int  # left on purpose; they count for nothing
    input_tokens: int
    output_tokens: int
    good: int
    max_output_tokens_per_s: float
    max_concurrent_requests: int
    distributions: Mapping[str, Distribution]
    classes: tuple[ClassResult, ...]
    errors: tuple[tuple[str, int], ...]  # the most frequent first
    remarks: tuple[str, ...]

    @property
    def request_throughput(self) -> float:
        """Complete requests per second."""
        return self.completed / self.duration_s

    @property
    def request_goodput(self) -> float:
        """Requests per second that met their targets."""
        return self.good / self.duration_s

    @property
    def output_throughput(self) -> float:
        """Output tokens per second."""
        return self.output_tokens / self.duration_s

    @property
    def total_token_throughput(self) -> float:
        """Tokens of prompts and outputs per second."""
        return (self.input_tokens + self.output_tokens) / self.duration_s

    @property
    def success(self) -> Estimate:
        """Share of requests, but those that left, with a complete answer."""
        count = self.completed + self.failed
        mid = self.completed / count if count else math.nan
        return Estimate(statistics.wilson(mid, count) if count else Interval(0.0, mid, 1.0), count)


def measure(
    run: Run,
    targets: ClassTargets,
    *,
    percentiles: Sequence[float] = PERCENTILES,
    warm_up_s: float = 0.0,
) -> Metrics:
    """Compute all metrics; what was due in the first `warm_up_s` does not count, and the duration is shorter by it."""
    timings = [t for t in run.timings if t.due_s >= run.began_s + warm_up_s] if warm_up_s else run.timings
    done = [t for t in timings if t.is_complete]
    failed = [t for t in timings if t.error]
    classes = tuple(_class_results(timings, targets, run.duration_s - warm_up_s))
    distributions = {name: _distribution(name, _values(name, done), percentiles) for name in METRICS}
    peak_tokens, peak_requests = _peaks(done)
    errors: dict[str, int] = {}
    for timing in failed:
        errors[timing.error] = errors.get(timing.error, 0) + 1
    return Metrics(
        duration_s=max(run.duration_s - warm_up_s, 1e-9),
        completed=len(done),
        failed=len(failed),
        refused=sum(t.is_refused for t in failed),
        cancelled=sum(t.is_cancelled for t in timings),
        input_tokens=sum(t.prompt_tokens for t in done),
        output_tokens=sum(t.output_tokens for t in done),
        good=sum(_is_good(t, targets) for t in done),
        max_output_tokens_per_s=peak_tokens,
        max_concurrent_requests=peak_requests,
        distributions=distributions,
        classes=classes,
        errors=tuple(sorted(errors.items(), key=lambda pair: -pair[1])),
        remarks=tuple(_remarks(classes, distributions, timings, targets)),
    )


def _values(name: str, done: Sequence[Timing]) -> Values:
    if name == TTFT:
        return np.array([t.ttft_ms for t in done])
    if name == E2EL:
        return np.array([t.e2el_ms for t in done])
    if name == TPOT:  # of requests with more than one token, as in vLLM
        return np.array([t.tpot_ms for t in done if t.output_tokens > 1])
    gaps = [np.diff(np.frombuffer(t.tokens_s)) * 1e3 for t in done if len(t.tokens_s) > 1]
    return np.concatenate(gaps) if gaps else np.zeros(0)


def _distribution(name: str, values: Values, percentiles: Sequence[float]) -> Distribution:
    wanted = sorted({50.0, *percentiles})
    return Distribution(
        name,
        values,
        statistics.mean(values),
        float(values.std()) if len(values) else math.nan,
        tuple((p, statistics.quantile(values, p / 100)) for p in wanted),
    )


def _is_good(timing: Timing, targets: ClassTargets) -> bool:
    found = targets_of(timing, targets)
    return found is not None and found.met_by(timing)


def kept_series(timings: Sequence[Timing], targets: Targets, scale: float = 1.0) -> list[bool]:
    """Say of each request that did not leave whether it met the targets, in order of time."""
    return [targets.met_by(t, scale) for t in timings if not t.is_cancelled]


def _class_results(timings: Sequence[Timing], targets: ClassTargets, duration_s: float) -> list[ClassResult]:
    results = []
    for name, target in promises(targets).items():
        own = [t for t in timings if targets_of(t, targets) is target]
        if not own and name:
            continue
        kept = kept_series(own, target)
        results.append(ClassResult(name, target, statistics.share(kept), sum(kept) / max(duration_s, 1e-9)))
    return results


def _peaks(done: Sequence[Timing]) -> tuple[float, int]:
    """Count tokens and running requests in each second, and take the most, as vllm/benchmarks/serve.py does."""
    if not done:
        return 0.0, 0
    first_s = min(t.sent_s for t in done)
    tokens = np.concatenate([np.frombuffer(t.tokens_s) for t in done]) - first_s
    seconds = int(max(tokens)) + 2
    running = np.zeros(seconds + 1)
    for t in done:
        running[int(t.sent_s - first_s)] += 1
        running[int(t.tokens_s[-1] - first_s) + 1] -= 1
    per_second = np.bincount(tokens.astype(np.int64), minlength=1)
    return float(per_second.max()), int(np.cumsum(running).max())


def _remarks(
    classes: Sequence[ClassResult],
    distributions: Mapping[str, Distribution],
    timings: Sequence[Timing],
    targets: ClassTargets,
) -> list[str]:
    """Say what makes the run too short, or not steady."""
    found = []
    for result in classes:
        ends = result.attainment.interval
        if result.attainment.count and ends.high - ends.low > 0.10:
            needed = statistics.requests_for(result.attainment.mid, 0.05)
            found.append(
                f"attainment{_of(result.name)} is known to {100 * (ends.high - ends.low):.0f} points only; "
                f"{needed:,} independent requests know it to 10"
            )
        drift = statistics.halves_differ(
            kept_series([t for t in timings if targets_of(t, targets) is result.targets], result.targets)
        )
        if abs(drift) > 3:
            word = "fell" if drift < 0 else "rose"
            found.append(
                f"attainment{_of(result.name)} {word} from the first half to the second: the load is not steady"
                + (", or beyond what the server can take" if drift < 0 else "; a warm-up may be missing")
            )
    ttft = distributions[TTFT]
    if statistics.halves_differ(ttft.values) > 3:
        found.append("TTFT rose from the first half to the second: a queue grows, and longer runs show more of it")
    unknown = [p for p, estimate in ttft.percentiles if not math.isfinite(estimate.interval.high)]
    if unknown and len(ttft.values):
        found.append(f"{len(ttft.values):,} requests say nothing certain of P{min(unknown):g} of TTFT and above")
    return found


def _of(name: str) -> str:
    return f" of {name}" if name else ""
