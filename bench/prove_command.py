"""`baton prove CONFIG`: show whether what runs from this checkout keeps the promise of a configuration.

Owns flags, how the running system is found, where reports go and the exit code: 0 kept, 3 not kept, 4 cannot tell yet.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import uvloop

from bench.result_file import write_result
from bench.serving.datasets import DatasetSpec
from bench.serving.endpoint import Endpoint, endpoint
from bench.serving.flags import class_targets
from bench.serving.load_run import RunOptions
from bench.serving.load_shape import LoadShape
from bench.serving.progress import Progress
from bench.serving.proof import PlannedFor, Proof, Verdict
from bench.serving.proof_report import proof_json, proof_lines, proof_page
from bench.serving.proving import Ledger, ProofPlan, class_shares, prove
from bench.serving.router_facts import read_plan
from bench.serving.session import BenchSpec, opened
from cluster.front import front_of
from cluster.state import ClusterRecord, StateDir
from core.command_flags import add_config
from core.config.load import load_config
from core.config.models import BatonConfig
from core.errors import BatonError, ConfigError, NotRunning
from sim.generators import RECIPES

EXIT_CODES: Final = {Verdict.KEPT: 0, Verdict.NOT_KEPT: 3, Verdict.CANNOT_TELL: 4}
_SECONDS: Final = 60.0
_WARM_UPS: Final = 4
_CURVE: Final = (0.5, 1.5)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `prove`."""
    add_config(parser, optional=True)
    parser.add_argument(
        "--rate", type=float, help="requests per second (default: plan.rate, else what the plan can carry)"
    )
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="length of the proof (default 60)")
    parser.add_argument(
        "--curve", type=float, nargs="*", default=list(_CURVE), metavar="X", help="also X times the rate, for the curve"
    )
    parser.add_argument(
        "--traffic", choices=[*RECIPES, "random"], help="default: plan.trace or plan.workload, else chat"
    )
    parser.add_argument("--input-len", type=int, default=256, help="of random traffic (default 256)")
    parser.add_argument("--output-len", type=int, default=64, help="of random traffic (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="of all chance (default 0)")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write the report as one page")


def run(options: argparse.Namespace) -> int:
    """Do `baton prove`; return 0 when kept, 3 when not, 4 when nobody can tell yet.

    Raises NotRunning when nothing runs, ConfigError when the configuration is wrong, BatonError when the router does
    not answer.
    """
    config = load_config(options.config, overrides=options.overrides, environ=os.environ)
    _check_rate(options)
    record = StateDir.find(os.environ).read()
    if record is None:
        raise NotRunning("nothing runs from this checkout; start it with `baton up` first")
    if not record.url:
        raise NotRunning("what was started from this checkout does not serve yet; see `baton status`")
    front = front_of(record.url, Path(record.run_dir))
    reached = endpoint(front.url, tls=front.tls, key=front.key)
    if options.html is not None:
        write_result("--html", options.html, "")  # before minutes are spent
    wanted = proof_plan(options, config, Path(record.run_dir))
    return report(prove_endpoint(reached, wanted, _ledger_of(record)), options)


def _check_rate(options: argparse.Namespace) -> None:
    for name, value in (("--rate", options.rate), ("--seconds", options.seconds)):
        if value is not None and not value > 0:
            raise ConfigError(f"{name} is {value:g}; it must be above 0")


def proof_plan(options: argparse.Namespace, config: BatonConfig, run_dir: Path) -> ProofPlan:
    """Choose the traffic and the rate. Raises ConfigError."""
    spec = BenchSpec(
        dataset=_dataset(options, config),
        shape=LoadShape(keeps_times=options.traffic != "random"),
        options=RunOptions(timeout_s=config.router.request_timeout_s, seed=options.seed),
        targets=class_targets(config),
        num_warmups=_WARM_UPS,
        explains=True,
    )
    spec = replace(spec, dataset=replace(spec.dataset, class_shares=class_shares(spec)))
    plan = read_plan(run_dir)
    return ProofPlan(
        config=str(options.config),
        spec=spec,
        rate=options.rate or config.plan.rate or (plan.safe_rate if plan is not None else None),
        seconds=options.seconds,
        curve=tuple(options.curve),
        plan=plan,
        devices=_devices(config, plan),
    )


def prove_endpoint(reached: Endpoint, wanted: ProofPlan, ledger: Ledger) -> Proof:
    """Prove in an event loop of its own."""

    async def steps() -> Proof:
        async with opened(reached) as session, Progress(sys.stderr, wanted.spec.targets) as progress:
            return await prove(session, wanted, ledger, progress)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(steps())


def report(proof: Proof, options: argparse.Namespace) -> int:
    """Write the proof where it is wanted; return the exit code."""
    if options.html is not None:
        write_result("--html", options.html, proof_page(proof))
    if options.as_json:
        sys.stdout.write(json.dumps(proof_json(proof), indent=2, allow_nan=False) + "\n")
    else:
        sys.stdout.write("\n".join(proof_lines(proof)) + "\n")
    return EXIT_CODES[proof.verdict]


def _dataset(options: argparse.Namespace, config: BatonConfig) -> DatasetSpec:
    if options.traffic is None and config.plan.trace is not None:
        return DatasetSpec("trace", Path(config.plan.trace), seed=options.seed)
    name = options.traffic or config.plan.workload or "chat"
    return DatasetSpec(name, input_tokens=options.input_len, output_tokens=options.output_len, seed=options.seed)


def _devices(config: BatonConfig, plan: PlannedFor | None) -> int:
    if config.pools == "auto":
        return plan.devices if plan is not None else 0
    pools = config.pools.prefill, config.pools.decode
    return sum(pool.replicas * (pool.gpus or pool.tensor_parallel * pool.pipeline_parallel) for pool in pools)


def _ledger_of(record: ClusterRecord) -> Ledger:
    """Ask every worker as `doctor` does; None where no engine hands KV over, or the controller cannot be asked."""

    async def read() -> tuple[str, ...] | None:
        from cluster import doctor
        from cluster.commands import controller_status
        from cluster.kv_diagnosis import findings

        run_dir = Path(record.run_dir)
        try:
            members = controller_status(record).members  # Ray wants the main thread; nothing else runs by now
        except BatonError:
            return None
        answers = await doctor.ask(members, doctor.read_token(run_dir), doctor.read_tls(run_dir))
        found = tuple(str(finding) for finding in findings(answers))
        return found if found or any(answer.stats is not None for answer in answers) else None

    return read
