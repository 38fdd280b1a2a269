"""The devices of a question: how many of which kind, how fast the model runs on them, and the way between them.

Owns where a profile is looked for and what is said when there is none. Must not know traffic or promises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from core.config.model_files import file_location, model_location
from core.config.models import BatonConfig
from core.config.specs import served_model_name
from core.errors import ConfigError
from core.latency.profile import EngineProfile
from sim.cluster import LinkSpec
from sim.plan import DeviceGroup

# The only transport of KV is gRPC. Between two processes of one machine its raw frames carried 2.1 to 3.3 GB/s, and the
# last layer landed about 1 ms after it was computed (docs/benchmarks.md, hand-over).
GRPC_BYTES_PER_S, GRPC_LATENCY_S = 2.0e9, 1e-3
_GBIT_BYTES = 1e9 / 8
_DEVICES_PER_NODE = 8  # of the usual GPU servers
_T = TypeVar("_T")
_PROFILE_FOLDER = Path(".baton/profiles")  # where `baton profile` writes


@dataclass(frozen=True, slots=True)
class DeviceFlags:
    """What the command line says of devices; the n-th count and price are of the n-th profile or GPU."""

    profiles: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    prices: tuple[float, ...] = ()
    per_node: int | None = None
    inner_gbit_s: float | None = None  # between workers of one node
    outer_gbit_s: float | None = None  # between nodes


@dataclass(frozen=True, slots=True)
class Devices:
    """The groups, and what was assumed."""

    groups: tuple[DeviceGroup, ...]
    priced: bool
    notes: tuple[str, ...] = ()


def named_devices(config: BatonConfig, flags: DeviceFlags) -> Devices:
    """Take the devices that flags, else the section `plan`, else the pools name.

    Raises ConfigError that says what is missing and where to get it.
    """
    profiles, notes = profiles_of(config, flags)
    counts = _for_each(flags.counts, len(profiles), "--gpus")
    if not counts:
        counts, note = _default_counts(config, len(profiles))
        notes += note
    prices = _for_each(flags.prices, len(profiles), "--price")
    if not prices and config.plan.price_per_hour is not None:
        prices = (config.plan.price_per_hour,) * len(profiles)
    inner, outer, link_notes = _links(config, flags, profiles)
    groups = []
    for i, (profile, count) in enumerate(zip(profiles, counts, strict=True)):
        per_node = flags.per_node or config.plan.gpus_per_node or min(count, _DEVICES_PER_NODE)
        if count % per_node:
            raise ConfigError(
                f"{count} devices do not fill nodes of {per_node}; give --gpus-per-node (plan.gpus_per_node) with the "
                "devices of one machine"
            )
        price = prices[i] if prices else 1.0
        groups.append(DeviceGroup(profile, count // per_node, per_node, price, inner, outer))
    return Devices(tuple(groups), bool(prices), (*notes, *link_notes))


def found_devices(config: BatonConfig, per_node: Sequence[int], kind: str) -> Devices:
    """Take the devices that a cluster has: so many on each node, of one kind; `plan.gpus` is the most of them used."""
    flags = DeviceFlags() if config.plan.profile or config.plan.gpu or not kind else DeviceFlags(kinds=(_known(kind),))
    profiles, notes = profiles_of(config, flags)
    inner, outer, link_notes = _links(config, flags, profiles)
    left = config.plan.gpus if config.plan.gpus is not None else sum(per_node)
    sizes: dict[int, int] = {}
    for count in sorted(per_node, reverse=True):
        taken = min(count, left)
        left -= taken
        if taken:
            sizes[taken] = sizes.get(taken, 0) + 1
    price = config.plan.price_per_hour
    groups = [DeviceGroup(profiles[0], n, size, price or 1.0, inner, outer) for size, n in sizes.items()]
    if not groups:
        raise ConfigError("the cluster has no free device to plan with; free some, or add machines")
    return Devices(tuple(groups), price is not None, (*notes, *link_notes))


def profiles_of(config: BatonConfig, flags: DeviceFlags) -> tuple[list[EngineProfile], list[str]]:
    """Find the profiles: named files, else named kinds of GPU; flags win over the section `plan`."""
    if flags.profiles and flags.kinds:
        raise ConfigError("--profile and --gpu exclude each other: a profile names its device; leave one of them out")
    files = flags.profiles or (() if flags.kinds or not config.plan.profile else (config.plan.profile,))
    if files:
        return _read_profiles(config, files)
    kinds = flags.kinds or ((config.plan.gpu,) if config.plan.gpu else ())
    if kinds:
        return [_derived(config, kind) for kind in kinds], []
    raise ConfigError(_nothing_to_plan_with(config))


def _read_profiles(config: BatonConfig, files: Sequence[str]) -> tuple[list[EngineProfile], list[str]]:
    from core.latency.profile import read_profile

    paths = [Path(file_location(file)) for file in files]
    for file, path in zip(files, paths, strict=True):
        if not path.exists():
            raise ConfigError(
                f"there is no profile {file}: `python baton.py profile CONFIG --out {file}` measures one on the "
                "machine that will serve; or plan with --gpu NAME, or with a file of deploy/profiles"
            )
    profiles = [read_profile(path) for path in paths]
    if len({Path(profile.model).name.lower() for profile in profiles}) > 1:
        models = ", ".join(profile.model for profile in profiles)
        raise ConfigError(
            f"the profiles are of unlike models, {models}; a plan is for one model, on one or more devices"
        )
    served = served_model_name(config)
    notes = [
        f"the profile {file} is of {profile.model}; the configuration serves {served}"
        for file, profile in zip(files, profiles, strict=True)
        if Path(profile.model).name.lower() != served.lower()
    ]
    return profiles, notes


def _derived(config: BatonConfig, kind: str) -> EngineProfile:
    """Derive the profile from a known GPU and the model's config.json."""
    from core.latency.device import engine_profile
    from core.latency.device_file import load_device
    from core.latency.model_config import shape_from_config

    device = load_device(kind)
    file = Path(model_location(config.model.path)) / "config.json"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"model.path: there is no {file} here; the plan needs the model's shape to know its speed on {kind}: "
            "put the model's config.json into a folder and name it with --set model.path=FOLDER, or give --profile FILE"
        ) from None
    return engine_profile(device, shape_from_config(text, served_model_name(config)))


def _known(kind: str) -> str:
    """Name the known GPU that a driver or Ray calls `kind`: "NVIDIA A100-SXM4-80GB" is a100-sxm; else `kind` itself."""
    from core.latency.device_file import list_devices

    words = kind.lower().replace("-", " ").split()
    alike = [name for name in list_devices() if name.split("-")[0] in words]
    exact = [name for name in alike if any(word.startswith(name.split("-")[-1]) for word in words)]
    found = exact or alike
    return found[0] if len(found) == 1 else kind


def _nothing_to_plan_with(config: BatonConfig) -> str:
    from core.latency.device_file import list_devices

    found = sorted(str(file) for file in _PROFILE_FOLDER.glob("*.json"))
    here = f"; there is {', '.join(found)} here" if found else ""
    return (
        f"nothing says how fast {served_model_name(config)} runs: give --profile FILE (plan.profile), which "
        f"`python baton.py profile CONFIG` measures on the machine that will serve{here}; or --gpu NAME (plan.gpu), "
        f"one of {', '.join(list_devices())}, if model.path is a folder with a config.json"
    )


def _default_counts(config: BatonConfig, kinds: int) -> tuple[tuple[int, ...], list[str]]:
    if kinds == 1 and config.plan.gpus is not None:
        return (config.plan.gpus,), []
    if kinds == 1 and config.pools != "auto":
        pools = (config.pools.prefill, config.pools.decode)
        count = sum(p.replicas * p.tensor_parallel * p.pipeline_parallel for p in pools)
        return (count,), [f"planned for {count} devices, as many as the pools in the file take; --gpus N changes it"]
    raise ConfigError("nothing says how many devices there are: give --gpus N for each kind (plan.gpus)")


def _for_each(given: tuple[_T, ...], kinds: int, flag: str) -> tuple[_T, ...]:
    if given and len(given) != kinds:
        raise ConfigError(f"{flag} is given {len(given)} times for {kinds} kinds of devices; give it once for each")
    return given


def _links(
    config: BatonConfig, flags: DeviceFlags, profiles: Sequence[EngineProfile]
) -> tuple[LinkSpec, LinkSpec, list[str]]:
    """Return the ways inside a node and between nodes, and what was assumed of them."""
    network = config.plan.network_gbit_s
    inner_rate, outer_rate = GRPC_BYTES_PER_S, GRPC_BYTES_PER_S
    if network is not None:
        outer_rate = min(outer_rate, network * _GBIT_BYTES)
    if flags.inner_gbit_s is not None:
        inner_rate = flags.inner_gbit_s * _GBIT_BYTES
    if flags.outer_gbit_s is not None:
        outer_rate = flags.outer_gbit_s * _GBIT_BYTES
    above = max(inner_rate, outer_rate) > GRPC_BYTES_PER_S
    notes = [
        f"KV is taken to move at {inner_rate / 1e9:.3g} GB/s inside a node and {outer_rate / 1e9:.3g} GB/s between "
        f"nodes (Baton's gRPC transport{' was measured at 2 GB/s' if above else ', as measured'}); --inner-bandwidth "
        "and --bandwidth change it"
    ]
    for profile in profiles:
        megabytes, tokens = profile.kv_bytes_per_token / 1e6, inner_rate / max(profile.kv_bytes_per_token, 1)
        notes.append(f"{profile.model} has {megabytes:.2g} MB of KV a token: a worker sends {tokens:,.0f} tokens/s")
    return LinkSpec(inner_rate, GRPC_LATENCY_S), LinkSpec(outer_rate, GRPC_LATENCY_S), notes


def profile_file(config: BatonConfig, flags: DeviceFlags) -> str | None:
    """Name the profile file that the plan was made with, as the user wrote it; None without one or with several."""
    files = flags.profiles or (() if flags.kinds or not config.plan.profile else (config.plan.profile,))
    return files[0] if len(files) == 1 else None
