"""The files of GPUs: their format, the ones that ship, and finding one by name or path.

Owns "baton-device/1". Must not know how the figures were found. A file may take the slowdowns of another with
`kernels_of`: a GPU that nobody measured is then its own data sheet with the efficiency of a measured one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from core.errors import ConfigError
from core.latency.device import DeviceProfile, EngineCost
from core.latency.grid import Grid
from core.latency.kernels import Kernels, Peaks

FORMAT = "baton-device/1"
SHIPPED = Path(__file__).resolve().parents[2] / "deploy" / "devices"
_KERNELS = ("gemm_bfloat16", "gemm_fp8", "prefill_attention", "decode_attention", "all_reduce")

_ENGINE_FIELDS = tuple(EngineCost.__dataclass_fields__)

_Raw = Mapping[str, object]


def list_devices() -> tuple[str, ...]:
    """Return the names of the devices whose files ship, sorted."""
    return tuple(sorted(file.stem for file in SHIPPED.glob("*.json")))


def load_device(name_or_path: str) -> DeviceProfile:
    """Load a device by its name, by an unambiguous beginning of it, or from a file.

    Raises ConfigError that names the known ones, or the field of the file that is wrong.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix != ".json":
        path = SHIPPED / f"{_full_name(name_or_path)}.json"
    raw = _read(path)
    base = raw.get("kernels_of")
    kernels_raw = _read(path.parent / f"{base}.json") if base is not None else raw
    try:
        return _device(raw, kernels_raw)
    except (KeyError, TypeError, ValueError) as exc:
        raise ConfigError(f"{path}: wrong or missing {exc}; compare it with {SHIPPED / 'h100-sxm.json'}") from exc


def dump_device(device: DeviceProfile, *, kernels_of: str | None = None) -> str:
    """Return the text of a device's file; with `kernels_of`, the name of another device in place of the slowdowns."""
    peaks = device.kernels.peaks
    head = {
        "format": FORMAT,
        "name": device.name,
        "source": device.source,
        "memory_bytes": device.memory_bytes,
        "peaks": {field: getattr(peaks, field) for field in Peaks.__dataclass_fields__},
        "engine": {field: getattr(device.engine, field) for field in _ENGINE_FIELDS},
        "routed_engine": {field: getattr(device.routed_engine, field) for field in _ENGINE_FIELDS},
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    if kernels_of is not None:
        return "{\n" + ",\n".join([*lines, f'  "kernels_of": {json.dumps(kernels_of)}']) + "\n}\n"
    grids = [(name, getattr(device.kernels, name)) for name in _KERNELS]
    inner = [
        f'    {json.dumps(n)}: {{"axes": {json.dumps(g.axes)}, "values": {json.dumps(g.values)}}}' for n, g in grids
    ]
    return "{\n" + ",\n".join([*lines, '  "kernels": {\n' + ",\n".join(inner) + "\n  }"]) + "\n}\n"


def _full_name(name: str) -> str:
    known = list_devices()
    wanted = name.lower().replace("_", "-")
    if wanted in known:
        return wanted
    starts = [k for k in known if k.startswith(wanted)] if wanted else []
    if len(starts) == 1:
        return starts[0]
    what = f"the GPU {name!r} could be {' or '.join(starts)}" if starts else f"no GPU {name!r} is known"
    raise ConfigError(f"{what}; known are {', '.join(known)}, or give the path of a device file (.json)")


def _read(path: Path) -> dict[str, object]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"cannot read the device file {path}: {exc}") from exc
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ConfigError(f'{path} is no device file: it needs "format": "{FORMAT}"')
    return raw


def _device(raw: _Raw, kernels_raw: _Raw) -> DeviceProfile:
    peaks_raw, grids_raw = _object(raw, "peaks"), _object(kernels_raw, "kernels")
    fp8 = peaks_raw["fp8_flops"]
    peaks = Peaks(
        bfloat16_flops=_positive(peaks_raw, "bfloat16_flops"),
        fp8_flops=None if fp8 is None else _positive(peaks_raw, "fp8_flops"),
        bytes_per_s=_positive(peaks_raw, "bytes_per_s"),
        link_bytes_per_s=_positive(peaks_raw, "link_bytes_per_s"),
    )
    return DeviceProfile(
        name=str(raw["name"]),
        memory_bytes=_positive(raw, "memory_bytes"),
        kernels=Kernels(peaks, **{name: _grid(_object(grids_raw, name)) for name in _KERNELS}),
        engine=_engine(_object(raw, "engine")),
        routed_engine=_engine(_object(raw, "routed_engine")),
        source=str(raw["source"]),
    )


def _engine(raw: _Raw) -> EngineCost:
    return EngineCost(**{field: _number(raw, field) for field in _ENGINE_FIELDS})


def _grid(raw: _Raw) -> Grid:
    axes, values = raw["axes"], raw["values"]
    if not isinstance(axes, list) or not isinstance(values, list):
        raise TypeError("axes or values")
    return Grid(tuple(tuple(float(k) for k in axis) for axis in axes), tuple(float(v) for v in values))


def _object(raw: _Raw, key: str) -> dict[str, object]:
    value = raw[key]
    if not isinstance(value, dict):
        raise TypeError(key)
    return value


def _number(raw: _Raw, key: str) -> float:
    value = raw[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise ValueError(key)
    return float(value)


def _positive(raw: _Raw, key: str) -> float:
    value = _number(raw, key)
    if value == 0:
        raise ValueError(key)
    return value
