"""The command that makes the file of a GPU: `python -m bench.import_device --help`.

Owns its flags, its report and how an engine's factors come from measured servings. Must not know the fits
(core.latency.device_fit, bench.calibrate) or the format (core.latency.device_file). A measured GPU is made from kernel
tables and servings; one that nobody measured from its data sheet and the kernels and engine of a measured one.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from bench.calibrate import Predictor, fit_groups
from bench.silicon_points import Point, read_points, split
from core.errors import ConfigError
from core.latency.device import DeviceProfile, EngineCost
from core.latency.device_file import dump_device, load_device
from core.latency.device_fit import FitError, fit_kernels
from core.latency.kernels import Peaks
from sim.kernel_tables import read_kernel_tables

_KINDS = "dense models/vllm/one pool", "routed models/vllm/one pool"
_SIGMA = 0.683  # the share of a normal distribution within one standard deviation
# What a GPU that nobody measured is off beside the errors of the one it takes its kernels from: the largest difference
# between A100 and H100 in predicted over measured times of Llama-2-70B (Splitwise's table; 3 to 26 %).
_UNCHECKED = 0.26
_DIGITS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the file and report the errors on rows kept out; return 0, or 2 for a mistake in what was given."""
    options = _parser().parse_args(arguments)
    try:
        device, errors = _from_data_sheet(options) if options.kernels_of else _from_tables(options)
    except ConfigError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 2
    options.out.write_text(dump_device(device, kernels_of=options.kernels_of), encoding="utf-8")
    for name, error in errors.items():
        sys.stdout.write(
            f"{name:18} {error.rows:6} rows kept out: median error {error.median:.1%}, P90 {error.p90:.1%}\n"
        )
    for kind, engine in zip(_KINDS, (device.engine, device.routed_engine), strict=True):
        sys.stdout.write(f"{kind}: {', '.join(f'{field} {value:g}' for field, value in asdict(engine).items())}\n")
    return 0


def calibrated(device: DeviceProfile, points: Sequence[Point]) -> DeviceProfile:
    """Fit the engines of dense and of routed models to the servings under vLLM on this device.

    Half of the configurations are fitted, the errors are of the other half, both by kind as an unknown model would be
    predicted. Raises ConfigError when one kind has no serving in either half.
    """
    fit, kept_out = split([p for p in points if p.device == device.name and p.kind in _KINDS])
    predictor = Predictor({device.name: device})
    found = fit_groups(predictor, fit)
    engines = []
    for kind in _KINDS:
        rows = [p for p in kept_out if p.kind == kind]
        if kind not in found or not rows:
            raise ConfigError(f"too few servings of {kind} on {device.name} to fit an engine and to test it")
        engine = found[kind].engine
        predicted = np.array([predictor.predict(p, engine, mixed=True) for p in rows])
        off = np.abs(np.log(predicted / np.array([(p.ttft_s, p.tpot_s) for p in rows])))
        prefill_error, decode_error = np.quantile(off, _SIGMA, axis=0)
        engines.append(_rounded(replace(engine, prefill_error=prefill_error, decode_error=decode_error)))
    return replace(device, engine=replace(engines[0], expert_scale=1.0), routed_engine=engines[1])


def _from_tables(options: argparse.Namespace) -> tuple[DeviceProfile, dict[str, FitError]]:
    if not options.tables or not options.servings:
        raise ConfigError("give kernel tables and --servings, or --kernels-of and the name of a measured device")
    kernels, errors = fit_kernels(_peaks(options), read_kernel_tables(options.tables))
    device = DeviceProfile(
        name=options.name,
        memory_bytes=options.memory_gb * 1e9,
        kernels=kernels,
        engine=EngineCost(),
        routed_engine=EngineCost(),
        source=options.source,
    )
    return calibrated(device, read_points(options.servings)[0]), errors


def _from_data_sheet(options: argparse.Namespace) -> tuple[DeviceProfile, dict[str, FitError]]:
    if options.tables or options.servings:
        raise ConfigError("--kernels-of takes kernels and engine from another device: leave out tables and --servings")
    base = load_device(options.kernels_of)
    device = DeviceProfile(
        name=options.name,
        memory_bytes=options.memory_gb * 1e9,
        kernels=replace(base.kernels, peaks=_peaks(options)),
        engine=_less_sure(base.engine),
        routed_engine=_less_sure(base.routed_engine),
        source=options.source,
    )
    return device, {}


def _less_sure(engine: EngineCost) -> EngineCost:
    prefill_error, decode_error = (math.hypot(e, _UNCHECKED) for e in (engine.prefill_error, engine.decode_error))
    return _rounded(replace(engine, prefill_error=prefill_error, decode_error=decode_error))


def _rounded(engine: EngineCost) -> EngineCost:
    return EngineCost(**{field: float(f"{value:.{_DIGITS}g}") for field, value in asdict(engine).items()})


def _peaks(options: argparse.Namespace) -> Peaks:
    return Peaks(
        bfloat16_flops=options.bfloat16_tflops * 1e12,
        fp8_flops=options.fp8_tflops * 1e12 if options.fp8_tflops else None,
        bytes_per_s=options.memory_gb_per_s * 1e9,
        link_bytes_per_s=options.link_gb_per_s * 1e9,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.import_device", description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", type=Path, help="parquet tables: gemm, context, generation, all-reduce")
    parser.add_argument("--servings", type=Path, help="measured servings, to calibrate the engine on")
    parser.add_argument("--kernels-of", metavar="NAME", help="take kernels and engine from this measured device")
    parser.add_argument("--name", required=True, help="h100-sxm")
    parser.add_argument("--out", required=True, type=Path, help="the device file to write")
    parser.add_argument("--source", required=True, help="where the figures come from, and their licence")
    parser.add_argument("--memory-gb", required=True, type=float)
    parser.add_argument("--memory-gb-per-s", required=True, type=float, help="data sheet")
    parser.add_argument("--bfloat16-tflops", required=True, type=float, help="data sheet, dense")
    parser.add_argument("--fp8-tflops", type=float, help="data sheet, dense; leave out where there is none")
    parser.add_argument("--link-gb-per-s", required=True, type=float, help="to the other GPUs of a node, one direction")
    return parser


if __name__ == "__main__":
    sys.exit(main())
