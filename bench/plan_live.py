"""`python -m bench.plan_live`: is the plan true here? One trace, simulated with measured profiles and served live.

Measures the engines of one prefill and one decode worker, and of one pool on the same cores; predicts what one seeded
trace of chats and long prompts will see on each; then serves that very trace on each and compares. Prints Markdown for
docs/benchmarks.md. Where router, client and Ray share the engines' cores, steps are slower than any engine alone shows:
so the profile of both pools is corrected by the steps of other traffic, served live just before. Nothing of the trace
itself goes into its prediction.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import yaml

from bench import stacks
from bench.engine_process import running, trace_file
from bench.live_pools import MAX_SEQS, ONE_POOL_CHUNK, PREFILL_CHUNK, apart, one_pool
from bench.load import Prompts, Timing, open_loop, open_session, stream_completion
from bench.plan_live_report import Prediction, Served, corrected_by, predict, report, rows_csv, step_lines
from bench.profile_command import profile_config
from bench.profile_engine import Effort, Say, measure, profile_of
from bench.profile_specs import this_machine
from bench.stacks import Running
from core.config.load import load_config
from core.config.models import BatonConfig
from core.latency.profile import EngineProfile, profile_to_json, read_profile
from core.types import Role
from core.worker_spec import EngineSpec, KVSpec, WorkerSpec
from engine.step_clock import TracedStep
from engine.step_trace import engine_args, flags, read_trace
from engine.vllm_args import NO_TRANSPORT
from engine.vllm_env import is_cpu_build
from sim.outcome import Target
from sim.workload import Workload

KV_MB: Final = 512
MODEL_NAME: Final = "m"
BATON, ONE_POOL = "baton", "one-pool"
LIVE_STEPS: Final = "live-steps"  # folder
LONG_SHARE: Final = 0.12
REHEARSAL_SHARE: Final = 0.5
TTFT_TIMES_IDLE, TPOT_TIMES_IDLE = 5.0, 2.0  # the promise, in terms of what an idle machine does
WARM_UP_TOKENS: Final = (40, 300, 1500, 64, 64, 64)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is replayed, and for how long."""

    seconds: float
    load: float  # share of time that prefill computes, by the profile
    seed: int

    @property
    def rehearsal(self) -> Plan:
        """Traffic of the same kind, shorter, with none of the same requests."""
        return Plan(self.seconds * REHEARSAL_SHARE, self.load, self.seed + 1)


def make_trace(plan: Plan, profile: EngineProfile) -> Workload:
    """Make chats with some long prompts, Poisson, at the rate that keeps the prefill worker busy as `plan` says."""
    rng = np.random.default_rng(plan.seed)
    size = 4096
    long = rng.random(size) < LONG_SHARE
    prompt = np.where(long, rng.integers(600, 1400, size), rng.lognormal(np.log(96), 0.6, size).clip(16, 400))
    output = np.where(long, rng.integers(16, 33, size), rng.lognormal(np.log(40), 0.5, size).clip(8, 120))
    prompt, output = prompt.astype(np.int64), output.astype(np.int64)
    cost = profile.shape(1).cost
    rate = plan.load / float(np.mean([cost.prefill_s(int(tokens)) for tokens in prompt[:500]]))
    arrived_s = rng.exponential(1.0 / rate, size).cumsum()
    arrived_s -= arrived_s[0]
    count = int(np.searchsorted(arrived_s, plan.seconds))
    return Workload("chats and long prompts", arrived_s[:count], prompt[:count], output[:count])


def promise(profile: EngineProfile, ttft_ms: float | None, tpot_ms: float | None) -> Target:
    """Make the targets, those not given from what an idle machine does: a promise that load can break."""
    cost = profile.shape(1).cost
    idle_s = cost.prefill_s(400) + cost.decode_s(1, 400) + profile.request_overhead_s + profile.handover_overhead_s
    ttft_s = ttft_ms / 1e3 if ttft_ms is not None else TTFT_TIMES_IDLE * idle_s
    tpot_s = tpot_ms / 1e3 if tpot_ms is not None else TPOT_TIMES_IDLE * cost.decode_s(1, 100)
    return Target("chat", round(ttft_s, 3), round(tpot_s, 4))


async def serve_trace(live: Running, trace: Workload, seed: int) -> Served:
    """Send the trace to a system that is up. Raises SystemExit if a request fails."""
    prompts = Prompts(seed)
    bodies = [prompts.make(int(tokens)) for tokens in trace.prompt_tokens]
    async with open_session() as session:

        async def send(prompt: list[int], output_tokens: int) -> Timing:
            return await stream_completion(session, live.url, prompt, model=MODEL_NAME, max_tokens=output_tokens)

        for tokens in WARM_UP_TOKENS:
            await send(prompts.make(tokens), 4)
        timings = await open_loop(
            trace.arrived_s.tolist(), lambda index: send(bodies[index], int(trace.output_tokens[index]))
        )
    errors = [timing.error for timing in timings if timing.error or not timing.tokens_s]
    if errors:
        raise SystemExit(f"{live.name}: {len(errors)} of {len(timings)} requests failed; the first: {errors[0]}")
    ttft_s = np.array([timing.ttft_ms / 1e3 for timing in timings])
    # By tokens, not events: several tokens share an event when the machine is too busy to take each as it is made.
    spans_s = np.array([timing.tokens_s[-1] - timing.tokens_s[0] for timing in timings])
    return Served(ttft_s, spans_s / np.maximum(trace.output_tokens - 1, 1))


def _config(model: Path, folder: Path) -> Path:
    """Write the configuration of one prefill and one decode worker, a core each, whose engines write their steps."""
    steps = folder / LIVE_STEPS
    steps.mkdir(parents=True, exist_ok=True)
    pool = {"replicas": 1, "cpus": 1, "max_num_seqs": MAX_SEQS, "kv_cache_mb": KV_MB}
    config = {
        "model": {"path": str(model), "name": MODEL_NAME, "max_model_len": 4096, "engine_args": engine_args(steps)},
        "slo": {"classes": {"chat": {"ttft_ms": 1000, "tpot_ms": 100}}},
        "pools": {
            "prefill": {**pool, "max_num_batched_tokens": PREFILL_CHUNK},
            "decode": {**pool, "max_num_batched_tokens": ONE_POOL_CHUNK},
        },
    }
    file = folder / "bench.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def profile_two_pools(config: BatonConfig, effort: Effort, say: Say) -> EngineProfile:
    """Measure the prefill and the decode engine as `baton profile` does."""
    return profile_config(config, list(Role), this_machine(cpu_build=is_cpu_build()), Path.cwd(), effort, say)


def profile_one_pool(model: Path, folder: Path, effort: Effort, say: Say) -> EngineProfile:
    """Measure one engine with every core, as stacks.one_pool starts it."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    engine = EngineSpec(
        kind="vllm",
        model_path=str(model.resolve()),
        served_model_name=MODEL_NAME,
        max_model_len=4096,
        max_num_seqs=MAX_SEQS,
        max_num_batched_tokens=ONE_POOL_CHUNK,
        kv_cache_bytes=KV_MB << 20,
    )
    kv = KVSpec(transport=NO_TRANSPORT)
    spec = WorkerSpec("one-pool", Role.DECODE, 1, "127.0.0.1", str(folder), engine, kv=kv, cpus=cores)
    spec = replace(spec, engine=replace(engine, extra_args=flags(trace_file(spec))))
    say(f"starting one engine on cores {', '.join(map(str, cores))}")
    with running([spec]) as engines:
        measured = measure(engines, effort, say)
    return profile_of([measured], model=model.name, device=f"cpu-{len(cores)}-cores")


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """One system: what was predicted, and what was then measured."""

    prediction: Prediction
    served: Served
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bench:
    """What both systems are compared with."""

    model: Path
    folder: Path
    profiles: Path  # folder
    effort: Effort
    plan: Plan

    def one_pool(self, trace: Workload, target: Target) -> Compared:
        """Predict from the engine's profile, then serve."""
        profile = _kept(
            self.profiles / "one-pool.json", lambda: profile_one_pool(self.model, self.folder, self.effort, _say)
        )
        prediction = predict("one pool", one_pool(profile, 1), profile, trace, target)
        threads = len(os.sched_getaffinity(0))
        run_dir = self.folder / ONE_POOL
        with stacks.one_pool(
            self.model, chunk_tokens=ONE_POOL_CHUNK, threads=threads, kv_mb=KV_MB, run_dir=run_dir
        ) as live:
            return Compared(prediction, self._serve(live, self.plan, trace))

    def baton(self, config: Path, profile: EngineProfile, trace: Workload, target: Target) -> Compared:
        """Serve the rehearsal, predict from the profile corrected by it, then serve."""
        rehearsal = make_trace(self.plan.rehearsal, profile)
        with stacks.baton(config, run_dir=self.folder / BATON) as live:
            self._serve(live, self.plan.rehearsal, rehearsal)
            rehearsed = _live_steps(self.folder)
            corrected = corrected_by(profile, rehearsed)
            prediction = predict("Baton 1P1D", apart(corrected), corrected, trace, target)
            served = self._serve(live, self.plan, trace)
        notes = [f"\nRehearsal, {self.plan.rehearsal.seconds:g} s of other traffic, against the profile as measured:"]
        notes += step_lines(profile.shape(1).cost, rehearsed)
        notes += ["\nThe trace, against the corrected profile:"]
        notes += step_lines(corrected.shape(1).cost, _live_steps(self.folder)[len(rehearsed) :])
        return Compared(prediction, served, tuple(notes))

    def _serve(self, live: Running, plan: Plan, trace: Workload) -> Served:
        _say(f"{live.name}, up after {live.start_s:.1f} s, serves {len(trace)} requests")
        return asyncio.run(serve_trace(live, trace, seed=plan.seed))


def main() -> int:
    """Profile, predict, serve and report."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="baton-plan-live-") as temporary:
        folder = Path(temporary)
        model = (options.model or _bench_model(folder)).resolve()
        config = _config(model, folder)
        effort, plan = Effort(options.rounds, options.round_s), Plan(options.seconds, options.load, options.seed)
        bench = Bench(model, folder, options.profiles or folder, effort, plan)
        two = _kept(
            bench.profiles / "two-pools.json",
            lambda: profile_two_pools(load_config(config, environ={}), effort, _say),
        )
        trace, target = make_trace(plan, two), promise(two, options.ttft_ms, options.tpot_ms)
        compared: dict[str, Compared] = {}
        if options.only != ONE_POOL:
            compared[BATON] = bench.baton(config, two, trace, target)
        if options.only != BATON:
            compared[ONE_POOL] = bench.one_pool(trace, target)
        found = list(compared.values())
        lines = [f"Machine: {_machine()}; model {model.name}.\n"]
        lines += report([each.prediction for each in found], [each.served for each in found], trace, target)
        lines += [line for each in found for line in each.notes]
        sys.stdout.write("\n".join(lines) + "\n")
        if options.rows:
            predictions = {name: each.prediction for name, each in compared.items()}
            options.rows.write_text(rows_csv(predictions, {n: each.served for n, each in compared.items()}, trace))
    return 0


def _live_steps(folder: Path) -> list[TracedStep]:
    """Read what the live engines have written, engine by engine, in order of time."""
    steps = [each for part in (folder / LIVE_STEPS).iterdir() for each in read_trace(part)]
    return sorted(steps, key=lambda each: each.ended_s)


def _machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.plan_live", description=__doc__)
    parser.add_argument("--model", type=Path, help="model folder (default: a random Llama of 76 M parameters)")
    parser.add_argument("--seconds", type=float, default=75.0, help="length of the trace (default 75)")
    parser.add_argument(
        "--load", type=float, default=0.6, help="share of time that prefill is to be busy (default 0.6)"
    )
    parser.add_argument("--ttft-ms", type=float, help="target of TTFT (default: 5 times that of a long chat, idle)")
    parser.add_argument("--tpot-ms", type=float, help="target of TPOT (default: twice that of one chat, idle)")
    parser.add_argument("--seed", type=int, default=7, help="of the trace (default 7)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each profile (default 3)")
    parser.add_argument("--round-s", type=float, default=15.0, help="length of a round (default 15)")
    parser.add_argument("--only", choices=(BATON, ONE_POOL), help="one system only")
    parser.add_argument("--rows", type=Path, help="CSV file for what was predicted and measured of each request")
    parser.add_argument("--profiles", type=Path, help="folder to keep both profiles in, and to take them from")
    return parser.parse_args()


def _say(words: str) -> None:
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()


def _kept(file: Path, make: Callable[[], EngineProfile]) -> EngineProfile:
    """Read a profile, or make it and keep it."""
    if file.exists():
        return read_profile(file)
    profile = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(profile_to_json(profile))
    return profile


def _bench_model(folder: Path) -> Path:
    from engine.demo_model.random_model import make_preset

    return make_preset(folder / "bench-76m", "bench-76m")


if __name__ == "__main__":
    sys.exit(main())
