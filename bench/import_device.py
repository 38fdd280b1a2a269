"""The command that makes a device file from measured kernel tables: `python -m bench.import_device --help`.

Owns its flags and its report. Must not know the fit (core.latency.device_fit) or the format (core.latency.device_file).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from core.errors import ConfigError
from core.latency.device import DeviceProfile, EngineCost
from core.latency.device_file import dump_device
from core.latency.device_fit import FitError, fit_kernels
from core.latency.kernels import Peaks
from sim.kernel_tables import read_kernel_tables

_UNCALIBRATED = EngineCost(1.0, 1.0, 1e-3, 15e-3, 0.25, 0.2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, write the file and report the errors on rows kept out; return 0, or 2 for a mistake in what was given."""
    options = _parser().parse_args(arguments)
    try:
        device, errors = import_device(options)
    except ConfigError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 2
    options.out.write_text(dump_device(device), encoding="utf-8")
    for name, error in errors.items():
        sys.stdout.write(
            f"{name:18} {error.rows:6} rows kept out: median error {error.median:.1%}, P90 {error.p90:.1%}\n"
        )
    return 0


def import_device(options: argparse.Namespace) -> tuple[DeviceProfile, dict[str, FitError]]:
    """Fit the device that the flags describe. Raises ConfigError."""
    peaks = Peaks(
        bfloat16_flops=options.bfloat16_tflops * 1e12,
        fp8_flops=options.fp8_tflops * 1e12 if options.fp8_tflops else None,
        bytes_per_s=options.memory_gb_per_s * 1e9,
        link_bytes_per_s=options.link_gb_per_s * 1e9,
    )
    kernels, errors = fit_kernels(peaks, read_kernel_tables(options.tables))
    device = DeviceProfile(
        name=options.name,
        memory_bytes=options.memory_gb * 1e9,
        kernels=kernels,
        engine=options.engine,
        routed_engine=options.routed_engine,
        source=options.source,
    )
    return device, errors


def _engine_cost(text: str) -> EngineCost:
    """Read the six numbers of a calibration; argparse tells a ValueError as a usage error."""
    scale, decode_scale, step_s, request_s, prefill_error, decode_error = (float(part) for part in text.split(","))
    return EngineCost(scale, decode_scale, step_s, request_s, prefill_error, decode_error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.import_device", description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", type=Path, help="parquet tables: gemm, context, generation, all-reduce")
    parser.add_argument("--name", required=True, help="h100-sxm")
    parser.add_argument("--out", required=True, type=Path, help="the device file to write")
    parser.add_argument("--source", required=True, help="where the tables come from, and their licence")
    parser.add_argument("--memory-gb", required=True, type=float)
    parser.add_argument("--memory-gb-per-s", required=True, type=float, help="data sheet")
    parser.add_argument("--bfloat16-tflops", required=True, type=float, help="data sheet, dense")
    parser.add_argument("--fp8-tflops", type=float, help="data sheet, dense; leave out where there is none")
    parser.add_argument("--link-gb-per-s", required=True, type=float, help="to the other GPUs of a node, one direction")
    calibrated = parser.add_argument_group("what the engine adds, from bench.fidelity_silicon")
    fields = "PREFILL_SCALE,DECODE_SCALE,STEP_S,REQUEST_S,PREFILL_ERROR,DECODE_ERROR"
    calibrated.add_argument("--engine", type=_engine_cost, default=_UNCALIBRATED, metavar=fields, help="dense models")
    calibrated.add_argument("--routed-engine", type=_engine_cost, default=_UNCALIBRATED, metavar=fields)
    return parser


if __name__ == "__main__":
    sys.exit(main())
