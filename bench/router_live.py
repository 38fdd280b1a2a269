"""`python -m bench.router_live`: policies on real engines. Mixed load, attainment against rate, overload.

Every system serves the same traffic on the same cores, one after the other, in one run: chats (64 tokens in, 64 out)
as a Poisson process and prompts of 1,000 tokens (16 out) at even gaps, scaled to several rates. Prints Markdown for
docs/benchmarks.md. Clients that are refused come back once, at the time that the refusal named.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

from bench import stacks
from bench.load import LoadSession, Prompts, Timing, open_loop, open_session, quantile, stream_completion
from bench.stacks import Running
from engine.demo_model.random_model import make_preset

CHATS_PER_S, LONGS_PER_S = 3.0, 1.0
CHAT, LONG = (64, 64), (1000, 16)  # tokens in, tokens out
BASE_SLO: Final = (1000.0, 40.0)  # TTFT and TPOT, ms
KV_MB: Final = 512
PD, POOL = "1P1D", "2 x one pool"
POLICIES: Final = ("slo-aware", "least-loaded", "round-robin")
# Decode workers take short prompts whole, a little at a time, so that the outputs beside them go on.
PREFILL_CHUNK, DECODE_CHUNK, POOL_CHUNK = 256, 64, 256
WARM_UP: Final = ((40, 8), (300, 8), (1000, 16), (64, 64), (64, 64), (64, 64))
_Z90: Final = 1.645  # two-sided 90 % of the normal distribution


@dataclass(frozen=True, slots=True)
class System:
    """One way to serve: pools and policy, or vLLM's own server."""

    name: str
    pools: str
    policy: str | None  # None: vLLM's own server


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the traffic."""

    at_s: float
    prompt_tokens: int
    output_tokens: int

    @property
    def is_chat(self) -> bool:
        """Say which of the two kinds it is."""
        return self.prompt_tokens == CHAT[0]


@dataclass(frozen=True, slots=True)
class SLO:
    """The promise to every request."""

    ttft_ms: float
    tpot_ms: float

    def kept_by(self, timing: Timing) -> bool:
        """Say whether a request met both targets."""
        return timing.within(self.ttft_ms, self.tpot_ms)


@dataclass(slots=True)
class Outcome:
    """What a client saw of its request, and of coming back if it was refused."""

    request: Request
    first: Timing
    again: Timing | None = None


@dataclass(slots=True)
class Point:
    """One system at one rate."""

    system: System
    scale: float
    seconds: float
    outcomes: list[Outcome] = field(default_factory=list)


def traffic(scale: float, seconds: float, seed: int) -> list[Request]:
    """Draw the requests of `seconds` at `scale` times the base rates, in order of arrival."""
    rng = random.Random(seed)
    chats, at_s = [], rng.expovariate(CHATS_PER_S * scale)
    while at_s < seconds:
        chats.append(Request(at_s, *CHAT))
        at_s += rng.expovariate(CHATS_PER_S * scale)
    longs = [Request((i + 0.5) / (LONGS_PER_S * scale), *LONG) for i in range(int(seconds * LONGS_PER_S * scale))]
    return sorted(chats + longs, key=lambda request: request.at_s)


async def serve(
    running: Running, system: System, scales: Sequence[float], *, seconds: float, seed: int, slo: SLO
) -> list[Point]:
    """Send the traffic of every scale to one system that is up."""
    points = []
    async with open_session() as session:
        prompts = Prompts(seed)
        client = _Client(session, running.url, prompts)
        for lengths in WARM_UP * 2:
            await client.ask(*lengths)
        for index, scale in enumerate(scales):
            requests = traffic(scale, seconds, seed + index)
            point = Point(system, scale, seconds, [Outcome(request, Timing(0.0)) for request in requests])

            async def send(number: int, point: Point = point) -> Timing:
                await client.see_through(point.outcomes[number])
                return point.outcomes[number].first

            await open_loop([request.at_s for request in requests], send)
            points.append(point)
            _say(f"{system.name} at x{scale:g}: {_attainment_text(point, slo)}")
    return points


class _Client:
    """Asks, and comes back when told to."""

    def __init__(self, session: LoadSession, url: str, prompts: Prompts) -> None:
        self._session, self._url, self._prompts = session, url, prompts

    async def ask(self, prompt_tokens: int, output_tokens: int, reservation: str = "") -> Timing:
        prompt = self._prompts.make(prompt_tokens)
        return await stream_completion(
            self._session, self._url, prompt, model="m", max_tokens=output_tokens, reservation=reservation
        )

    async def see_through(self, outcome: Outcome) -> None:
        request = outcome.request
        outcome.first = await self.ask(request.prompt_tokens, request.output_tokens)
        if outcome.first.earliest_ms is not None:
            await asyncio.sleep(outcome.first.earliest_ms / 1000)
            outcome.again = await self.ask(request.prompt_tokens, request.output_tokens, outcome.first.reservation)


def report(points: Sequence[Point], slo: SLO) -> Iterator[str]:
    """Yield the tables, systems in order of their first point."""
    yield f"Machine: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}."
    yield (
        f"Base rates (x1): {CHATS_PER_S:g} chats/s ({CHAT[0]} in, {CHAT[1]} out), {LONGS_PER_S:g} long prompts/s "
        f"({LONG[0]} in, {LONG[1]} out); SLO: TTFT {slo.ttft_ms:g} ms, TPOT {slo.tpot_ms:g} ms; times in ms; "
        "ranges: 90 % intervals (Wilson)."
    )
    yield (
        "\n| system | rate | within SLO | goodput/s | refused | chat ITL p50/p99/max | chat TTFT p50/p99 "
        "| long TTFT p50/p99 | TTFT of the admitted, max | came back: admitted and kept |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for point in points:
        yield f"| {point.system.name} | x{point.scale:g} | " + " | ".join(_cells(point, slo)) + " |"


def _cells(point: Point, slo: SLO) -> Iterator[str]:
    outcomes = point.outcomes
    answered = [o for o in outcomes if not o.first.error and o.first.tokens_s]
    chats = [o.first for o in answered if o.request.is_chat]
    longs = [o.first for o in answered if not o.request.is_chat]
    back = [o.again for o in outcomes if o.again is not None]
    yield _attainment_text(point, slo)
    yield f"{sum(slo.kept_by(o.first) for o in outcomes) / point.seconds:.2f}"
    yield str(sum(o.first.is_refused for o in outcomes))
    yield _quantiles([gap for timing in chats for gap in timing.itl_ms], 0.5, 0.99, 1.0)
    yield _quantiles([timing.ttft_ms for timing in chats], 0.5, 0.99)
    yield _quantiles([timing.ttft_ms for timing in longs], 0.5, 0.99)
    yield _quantiles([o.first.ttft_ms for o in answered], 1.0)
    yield f"{sum(map(slo.kept_by, back))} of {len(back)}" if back else "-"


def _attainment_text(point: Point, slo: SLO) -> str:
    kept, count = sum(slo.kept_by(o.first) for o in point.outcomes), len(point.outcomes)
    low, high = wilson(kept, count)
    return f"{kept}/{count} = {kept / max(1, count):.0%} ({low:.0%}..{high:.0%})"


def wilson(successes: int, trials: int, z: float = _Z90) -> tuple[float, float]:
    """Return Wilson's score interval of a share; (0, 1) when nothing was tried."""
    if not trials:
        return 0.0, 1.0
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z * ((share * (1 - share) + spread / 4) / trials) ** 0.5 / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _quantiles(values: Sequence[float], *points: float) -> str:
    return "/".join(f"{quantile(values, q):.0f}" for q in points) if values else "-"


def systems(policies: Sequence[str], pools: Sequence[str], *, with_vllm: bool) -> list[System]:
    """List what is to be measured."""
    found = [System(f"{pool}, {policy}", pool, policy) for pool in pools for policy in policies]
    vllm = System(f"vLLM's server, chunk {POOL_CHUNK}, both cores", POOL, None)
    return [vllm, *found] if with_vllm else found


def _up(system: System, model: Path, run_dir: Path, slo: SLO) -> AbstractContextManager[Running]:
    if system.policy is None:
        return stacks.one_pool(model, chunk_tokens=POOL_CHUNK, threads=2, kv_mb=KV_MB, run_dir=run_dir)
    return _baton(_config(system.pools, system.policy, model, slo), run_dir)


@contextmanager
def _baton(config: Mapping[str, object], run_dir: Path) -> Iterator[Running]:
    run_dir.mkdir(parents=True, exist_ok=True)
    file = run_dir / "bench.yaml"
    file.write_text(yaml.safe_dump(config))
    with stacks.baton(file, run_dir=run_dir) as running:
        yield running


def _config(pools: str, policy: str, model: Path, slo: SLO) -> Mapping[str, object]:
    pool = {"replicas": 1, "cpus": 1, "max_num_seqs": 32, "kv_cache_mb": KV_MB}
    if pools == PD:
        sized = {
            "prefill": {**pool, "max_num_batched_tokens": PREFILL_CHUNK},
            "decode": {**pool, "max_num_batched_tokens": DECODE_CHUNK},
        }
    else:
        decode = {**pool, "replicas": 2, "max_num_batched_tokens": POOL_CHUNK}
        sized = {"prefill": {**pool, "replicas": 0}, "decode": decode}
    return {
        "model": {"path": str(model), "name": "m", "max_model_len": 4096},
        "slo": {"classes": {"chat": {"ttft_ms": slo.ttft_ms, "tpot_ms": slo.tpot_ms}}},
        "pools": sized,
        "router": {"policy": policy},
    }


def main() -> int:
    """Measure each system in turn and print the report."""
    parser = argparse.ArgumentParser(prog="python -m bench.router_live", description=__doc__)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="multiples of the base rates")
    parser.add_argument("--seconds", type=float, default=25, help="of traffic at each rate (default 25)")
    parser.add_argument("--policies", nargs="*", default=list(POLICIES), help="policies to measure")
    parser.add_argument("--pools", nargs="*", choices=(PD, POOL), default=[PD, POOL], help="pools to measure")
    parser.add_argument("--vllm", action="store_true", help="measure vLLM's own server too")
    parser.add_argument("--passes", type=int, default=1, help="how often each system is measured")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument(
        "--slo-scale", type=float, default=1.0, help="multiple of 1000 ms and 40 ms, for a slow machine"
    )
    options = parser.parse_args()
    slo = SLO(*(options.slo_scale * target_ms for target_ms in BASE_SLO))
    points: list[Point] = []
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as folder:
        model = make_preset(Path(folder) / "bench-76m", "bench-76m")
        for number in range(options.passes):
            for index, system in enumerate(systems(options.policies, options.pools, with_vllm=options.vllm)):
                with _up(system, model, Path(folder) / f"{number}-{index}", slo) as running:
                    seed = options.seed + 100 * number
                    served = serve(running, system, options.scales, seconds=options.seconds, seed=seed, slo=slo)
                    points += asyncio.run(served)
    sys.stdout.write("\n".join(report(_pooled(points), slo)) + "\n")
    return 0


def _pooled(points: Sequence[Point]) -> list[Point]:
    """Join the passes of each system and rate."""
    joined: dict[tuple[System, float], Point] = {}
    for point in points:
        whole = joined.setdefault((point.system, point.scale), Point(point.system, point.scale, 0.0))
        whole.seconds += point.seconds
        whole.outcomes += point.outcomes
    return list(joined.values())


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
