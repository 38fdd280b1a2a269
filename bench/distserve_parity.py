"""Our simulator beside DistServe's on the same requests: `python -m bench.distserve_parity --distserve DIR --data DIR`.

Owns the comparison: latencies of each request, the search of DistServe's README, and the time of both in one run. DIR
of --distserve is a checkout of github.com/LLMServe/DistServe; it needs simpy and pandas. Must not know how either
simulator works inside. Where the two differ on purpose the comparison is set up to avoid it: DistServe's decode takes
at most 50,000 tokens in an iteration whatever the memory, so rates stay below that; its TPOT divides by the output
length, prefill's token not counted, so our requests have one output token more and as many decode steps.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import marshal
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.ladder import OPT_13B, chat_lengths
from core.latency.distserve import distserve_profile
from core.latency.profile import EngineProfile
from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.outcome import Outcome, Target
from sim.simulate import simulate
from sim.workload import Floats, Ints, Workload

TTFT_MS, TPOT_MS, SHARE = 200, 100, 0.9  # of DistServe's README
MAX_RATE, RATE_STEP = 5, 0.25  # per GPU, its search
SEARCH_REQUESTS = 300
COMPARED_RATE = 1.0  # per GPU: requests queue and batch, and decode stays below DistServe's cap
_TARGETS = (Target("sharegpt", TTFT_MS / 1e3, TPOT_MS / 1e3, SHARE),)
# (tp, pp) of prefill and decode; their sizes sum to at most 4 GPUs, as its get_distserve_configs lists them.
_SIZES = ((1, 1), (1, 2), (2, 1))
CONFIGS = tuple((p, d) for p in _SIZES for d in _SIZES)


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of every request, in order of arrival; and the seconds of the simulation."""

    ttft_s: Floats
    tpot_s: Floats
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Searched:
    """The best rate per GPU of every configuration, and the seconds it took."""

    per_gpu: tuple[float, ...]  # one for each of CONFIGS
    elapsed_s: float

    @property
    def winner(self) -> str:
        """The configuration of the highest rate; the first of equal ones."""
        (tp_p, pp_p), (tp_d, pp_d) = CONFIGS[int(np.argmax(self.per_gpu))]
        return f"P tp{tp_p} pp{pp_p} + D tp{tp_d} pp{pp_d}"


class Theirs:
    """DistServe's simulator, imported from a checkout, with the requests in a folder of its own form."""

    def __init__(self, checkout: Path, dataset: Path) -> None:
        sys.path.insert(0, str(checkout))
        os.environ["DATASET"] = str(dataset)  # simdistserve reads its data set's folder from there
        self._dataset = dataset
        self._simulate: Any = importlib.import_module("simdistserve.benchmarks.simulate_dist")
        self._search: Any = importlib.import_module("simdistserve.benchmarks.search_binary")
        self._types: Any = importlib.import_module("simdistserve.constants")

    def sampled(self, requests: int) -> Workload:
        """Return the requests that its search draws, at one request per second, without the extra output token."""
        drawn, gaps_ms = self._simulate.load_workload("sharegpt", requests, 1.0, 1.0, 0, "poisson")
        lengths = np.array([(r.prefill_lens, r.output_lens) for r in drawn], np.int64)
        return Workload("sharegpt", np.cumsum(np.array(gaps_ms)) / 1e3, lengths[:, 0], lengths[:, 1])

    def latencies(self, workload: Workload, prefill: tuple[int, int], decode: tuple[int, int]) -> Latencies:
        """Simulate one prefill and one decode instance of given (tensor, pipeline) sizes."""
        rows = zip(workload.arrived_s, workload.prompt_tokens, workload.output_tokens, strict=True)
        path = self._dataset / "requests.json"
        path.write_text(
            json.dumps([{"start_time": float(a), "prompt_len": int(p), "output_len": int(o)} for a, p, o in rows])
        )
        flags = [
            "--workload",
            str(path),
            "--rate",
            "1",
            "--N",
            str(len(workload)),
            "--slas",
            "[]",
            "--slo-scales",
            "[1]",
        ]
        for name, value in zip(
            ("tp-prefill", "pp-prefill", "tp-decode", "pp-decode"), (*prefill, *decode), strict=True
        ):
            flags += [f"--{name}", str(value)]
        outputs: dict[str, Any] = {}
        began_s = time.perf_counter()
        self._simulate.main(self._simulate.parse_args(flags), outputs=outputs)
        elapsed_s = time.perf_counter() - began_s
        frame = outputs["per_request_latency_df"].sort_index()
        return Latencies(frame["first_token_latency"].to_numpy() / 1e3, frame["tpot"].to_numpy() / 1e3, elapsed_s)

    def searched(self) -> Searched:
        """Run its own bisection over all configurations, one after the other in this process."""
        percent = round(100 * SHARE)
        began_s = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            rates = [
                self._search.run_binary_search(
                    self._types.ModelTypes.opt_13b,
                    (1, *p, *d),
                    "distserve",
                    (TTFT_MS, TPOT_MS, percent, percent),
                    max_per_gpu_rate=MAX_RATE,
                    esp=RATE_STEP,
                    N=SEARCH_REQUESTS,
                )
                for p, d in CONFIGS
            ]
        return Searched(tuple(float(rate or 0.0) for rate in rates), time.perf_counter() - began_s)


class Ours:
    """Our simulator with DistServe's coefficients, its overhead for each iteration among them."""

    def __init__(self, data: Path) -> None:
        folder = data / "profiles"
        self._profile: EngineProfile = distserve_profile(
            (folder / "distserve-a100-opt.json").read_text("utf-8"),
            (folder / "distserve-a100-max-num-tokens.csv").read_text("utf-8"),
            OPT_13B,
            device="a100-sxm-80gb",
            source="DistServe",
        )

    def latencies(self, workload: Workload, prefill: tuple[int, int], decode: tuple[int, int]) -> Latencies:
        """Simulate the same requests."""
        began_s = time.perf_counter()
        outcome = self.simulated(workload, prefill, decode)
        return Latencies(outcome.ttft_s, outcome.tpot_s, time.perf_counter() - began_s)

    def simulated(self, workload: Workload, prefill: tuple[int, int], decode: tuple[int, int]) -> Outcome:
        """Simulate one prefill and one decode instance, with one output token more, made by prefill."""
        cluster = ClusterSpec(
            Mode.DISAGGREGATED, self._pool(decode), prefill=self._pool(prefill), first_token_from_prefill=True
        )
        longer = Workload(workload.name, workload.arrived_s, workload.prompt_tokens, workload.output_tokens + 1)
        return simulate(cluster, longer, _TARGETS)

    def searched(self, workload: Workload) -> Searched:
        """Bisect as DistServe's search does: P90 of TTFT and P90 of TPOT apart, the same steps."""
        began_s = time.perf_counter()
        rates = tuple(self._highest(workload, p, d) for p, d in CONFIGS)
        return Searched(rates, time.perf_counter() - began_s)

    def _highest(self, workload: Workload, prefill: tuple[int, int], decode: tuple[int, int]) -> float:
        gpus = prefill[0] * prefill[1] + decode[0] * decode[1]
        low, high = 0.0, float(MAX_RATE)
        while high - low > RATE_STEP:
            rate = (low + high) / 2
            outcome = self.simulated(sped_up(workload, rate * gpus), prefill, decode)
            kept = (
                np.quantile(outcome.ttft_s, SHARE) < TTFT_MS / 1e3
                and np.quantile(outcome.tpot_s, SHARE) < TPOT_MS / 1e3
            )
            low, high = (rate, high) if kept else (low, rate)
        return low

    def _pool(self, size: tuple[int, int]) -> PoolSpec:
        shape = self._profile.shape(*size)
        # There only memory limits a batch; these limits are out of reach at the rates that keep the promise.
        return PoolSpec(
            1, shape.cost, shape.kv_capacity_tokens, *size, max_num_seqs=1024, max_num_batched_tokens=16_384
        )


def write_dataset(folder: Path, lengths: Ints) -> None:
    """Write (prompt, output) tokens in the form that DistServe's data sets have."""
    rows = [("", prompt, output) for prompt, output in lengths.tolist()]
    (folder / "sharegpt.ds").write_bytes(marshal.dumps({"dataset_name": "sharegpt", "reqs": rows}))


def sped_up(workload: Workload, rate: float) -> Workload:
    """Divide the times of requests drawn for one per second; at_rate would take out the luck of the draw too."""
    return replace(workload, arrived_s=workload.arrived_s / rate)


def furthest_apart(a: Floats, b: Floats) -> float:
    """Return the largest relative difference."""
    return float(np.max(np.abs(a - b) / np.maximum(b, 1e-12)))


def report(checkout: Path, data: Path, requests: int) -> Iterator[str]:
    """Compare, and yield the lines as they come."""
    ours = Ours(data)
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), chat_lengths(data))
        theirs = Theirs(checkout, Path(folder))
        sampled = theirs.sampled(SEARCH_REQUESTS)
        ours.searched(sampled)  # compiles
        yield f"{requests} requests, one prefill and one decode instance: largest difference of any request"
        longer = theirs.sampled(requests)
        for prefill, decode in CONFIGS:
            rate = COMPARED_RATE * (prefill[0] * prefill[1] + decode[0] * decode[1])
            offered = sped_up(longer, rate)
            a, b = ours.latencies(offered, prefill, decode), theirs.latencies(offered, prefill, decode)
            yield (
                f"  P tp{prefill[0]} pp{prefill[1]} + D tp{decode[0]} pp{decode[1]} at {rate:5.2f}/s: "
                f"TTFT {furthest_apart(a.ttft_s, b.ttft_s):.2e}, TPOT {furthest_apart(a.tpot_s, b.tpot_s):.2e}; "
                f"requests/s {requests / a.elapsed_s:,.0f} against {requests / b.elapsed_s:,.0f}"
            )
        mine, other = ours.searched(sampled), theirs.searched()
        yield f"search of the README, {len(CONFIGS)} configurations, {SEARCH_REQUESTS} requests, steps of {RATE_STEP}"
        yield f"  ours    {mine.winner}: {max(mine.per_gpu):.4f}/s per GPU, {mine.elapsed_s:.3f} s"
        yield f"  theirs  {other.winner}: {max(other.per_gpu):.4f}/s per GPU, {other.elapsed_s:.1f} s"
        faster, equal = other.elapsed_s / mine.elapsed_s, _equal(mine, other)
        yield f"  {faster:,.0f} times as fast; equal rates in {equal} of {len(CONFIGS)} configurations"


def _equal(a: Searched, b: Searched) -> int:
    return sum(abs(x - y) < 1e-9 for x, y in zip(a.per_gpu, b.per_gpu, strict=True))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.distserve_parity", description=__doc__)
    parser.add_argument("--distserve", type=Path, required=True, help="checkout of LLMServe/DistServe")
    parser.add_argument("--data", type=Path, required=True, help="folder with profiles/ and traces/")
    parser.add_argument("--requests", type=int, default=1000)
    args = parser.parse_args()
    for line in report(args.distserve, args.data, args.requests):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
