"""`baton profile`: measure the engines of a configuration and write what a planner needs to know of them.

Owns the words, the order of checks and the file. Must not know how engines are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.engine_process import running
from bench.profile_engine import QUICK, Effort, Measured, Say, measure, profile_of, waited_share, waiting_words
from bench.profile_specs import EngineToMeasure, Machine, device_name, engines_to_measure, this_machine, visible_gpus
from core.command_flags import add_config
from core.config.load import load_config
from core.config.models import BatonConfig
from core.config.specs import planned_worker, pool_config, served_model_name
from core.errors import ConfigError
from core.latency.profile import EngineProfile, ShapeProfile, profile_to_json
from core.latency.step import Step
from core.types import Role
from engine.vllm_env import is_cpu_build

NOISY = 0.2  # share of waiting for cores above which a profile carries a note: front and core of one engine make 0.05
DEFAULT_FOLDER = Path(".baton") / "profiles"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `profile`."""
    add_config(parser, optional=True)
    parser.add_argument("--out", metavar="FILE", type=Path, help="default: .baton/profiles/MODEL-DEVICE.json")
    parser.add_argument("--pool", choices=("prefill", "decode"), help="only this pool (default: both)")
    parser.add_argument("--quick", action="store_true", help="fewer points, in under a minute for a small model")


def run(options: argparse.Namespace) -> int:
    """Do `baton profile`; return 0. Takes config, overrides, out, pool, quick and as_json of `options`.

    Raises ConfigError before anything is started; StartFailed or EngineFailed after all that was started is stopped.
    """
    config = load_config(options.config, overrides=options.overrides, environ=os.environ)
    roles = [Role(options.pool)] if options.pool else list(Role)
    machine = this_machine(cpu_build=is_cpu_build())
    device = device_name(_cpus(config, roles[-1]), machine)
    out = _writable(options.out or DEFAULT_FOLDER / f"{_file_name(served_model_name(config))}-{device}.json")
    began_s = time.monotonic()

    def say(words: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began_s:6.1f} s  {words}\n")
        sys.stderr.flush()

    profile = profile_config(config, roles, machine, Path.cwd(), QUICK if options.quick else Effort(), say)
    text = profile_to_json(profile)
    _write(out, text)
    if options.as_json:
        sys.stdout.write(json.dumps({"ok": True, "file": str(out), "profile": json.loads(text)}) + "\n")
    else:
        sys.stdout.write("\n".join(summary(profile, out)) + "\n")
    return 0


def profile_config(
    config: BatonConfig, roles: Sequence[Role], machine: Machine, base: Path, effort: Effort, say: Say
) -> EngineProfile:
    """Start, measure and stop the engines of the pools `roles`; paths in the configuration begin in `base`."""
    groups: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="baton-profile-") as folder:
        for group in engines_to_measure(config, roles, machine, Path(folder), base):
            say("starting " + " and ".join(_describe(engine) for engine in group))
            with running([e.spec for e in group], [visible_gpus(e.gpus) for e in group]) as engines:
                groups.append(measure(engines, effort, say))
        say("fitting")
        if waited_share(groups) > NOISY:
            say(f"note: these are engines {waiting_words(groups)}; on a quieter machine they are faster")
        device = device_name(_cpus(config, roles[-1]), machine)
        return profile_of(groups, model=served_model_name(config), device=device)


def summary(profile: EngineProfile, out: Path) -> list[str]:
    """Say what was found, for people."""
    lines = [f"{profile.model} on {profile.device}, {profile.engine}"]
    for shape in profile.shapes:
        lines += _shape_lines(shape)
    lines.append(
        f"  to the first token beyond that: {profile.request_overhead_s * 1e3:.1f} ms, "
        f"handed over {profile.handover_overhead_s * 1e3:.1f} ms more"
    )
    return [*lines, f"written to {out}; `baton plan` takes it as plan.profile"]


def _shape_lines(shape: ShapeProfile) -> list[str]:
    cost = shape.cost
    prompts = ", ".join(f"{tokens} in {cost.prefill_s(tokens) * 1e3:.0f} ms" for tokens in (128, 512, 2048))
    batches = ", ".join(
        f"{batch} in {cost.seconds(Step(decode_seqs=batch, context_tokens=512 * batch)) * 1e3:.1f} ms"
        for batch in (1, 8, 32)
    )
    return [
        f"  tensor parallel {shape.tensor_parallel}, pipeline parallel {shape.pipeline_parallel}, "
        f"KV cache of {shape.kv_capacity_tokens} tokens",
        f"    prompt tokens: {prompts} (steps not seen are off by {shape.prefill_error:.0%})",
        f"    sequences at 512 tokens, one token each: {batches} (off by {shape.decode_error:.0%})",
    ]


def _cpus(config: BatonConfig, role: Role) -> int:
    pool = planned_worker(config) if config.pools == "auto" else pool_config(config, role)
    return max(int(pool.cpus), 1)


def _describe(engine: EngineToMeasure) -> str:
    if engine.gpus:
        return f"{engine.spec.role} engine on GPU {', '.join(map(str, engine.gpus))}"
    cores = engine.spec.cpus
    return f"{engine.spec.role} engine on " + (f"core {', '.join(map(str, cores))}" if cores else "any core")


def _file_name(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "model"


def _writable(out: Path) -> Path:
    """Make sure that `out` can be written, before minutes are spent; an older file stays. Raises ConfigError."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        is_new = not out.exists()
        with out.open("a"):  # permissions tell nothing of a file system that is read-only, or root's
            pass
        if is_new:
            out.unlink()
    except OSError as exc:
        raise _unwritable(out, exc) from exc
    return out


def _write(out: Path, text: str) -> None:
    try:
        out.write_text(text)
    except OSError as exc:
        raise _unwritable(out, exc) from exc


def _unwritable(out: Path, exc: OSError) -> ConfigError:
    return ConfigError(f"--out {out}: cannot be written ({exc.strerror}); name another file")
