"""What is compared on: clusters, traffic and promises.

Owns the grid and where its requests come from. Must not know what is compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.known_models import known_model
from core.errors import ConfigError
from core.latency.device import engine_profile
from core.latency.device_file import load_device
from core.latency.profile import EngineProfile
from sim.cluster import LinkSpec
from sim.generators import generate
from sim.outcome import Target
from sim.plan import DeviceGroup
from sim.traces import read_trace
from sim.workload import Workload

PER_NODE: Final = 8
KV_GBIT_S: Final = 400.0  # what each GPU has to send KV by, as in an HGX server; inside a node too, to be cautious
_LINK_LATENCY_S: Final = 1e-4
_GBIT_BYTES: Final = 1e9 / 8


@dataclass(frozen=True, slots=True)
class Fleet:
    """Equal nodes of equal GPUs that serve one model."""

    gpus: int
    device: str  # of deploy/devices
    model: str  # of bench.known_models

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.gpus} x {self.device.partition('-')[0].upper()}, {self.model}"

    def profile(self) -> EngineProfile:
        """Derive how fast the model runs in each tensor-parallel size; pipeline stages are left out."""
        shape = known_model(self.model)
        if shape is None:
            raise LookupError(f"{self.model} is not in bench.known_models")
        profile = engine_profile(load_device(self.device), shape)
        return replace(profile, shapes=tuple(s for s in profile.shapes if s.pipeline_parallel == 1))

    def group(self, kv_gbit_s: float = KV_GBIT_S) -> DeviceGroup:
        """Describe the devices to the planner."""
        link = LinkSpec(kv_gbit_s * _GBIT_BYTES, _LINK_LATENCY_S)
        return DeviceGroup(self.profile(), self.gpus // PER_NODE, PER_NODE, 1.0, link, link)


@dataclass(frozen=True, slots=True)
class Promise:
    """Targets; 90 % of all requests offered are to meet both."""

    ttft_s: float
    tpot_s: float

    @property
    def targets(self) -> tuple[Target, ...]:
        """As the simulator takes them."""
        return (Target("all", self.ttft_s, self.tpot_s),)

    def __str__(self) -> str:
        """As TTFT/TPOT in ms."""
        return f"{1e3 * self.ttft_s:.0f}/{1e3 * self.tpot_s:.0f}"


@dataclass(frozen=True, slots=True)
class Traffic:
    """One kind of requests: a public trace, and the recipe that stands in for it where the file is not at hand."""

    name: str
    file: str
    recipe: str  # of sim.generators
    times: float = 1.0  # as many requests as usual: short ones come so fast that a run of few ends before it is steady

    def workload(self, data: Path | None, *, requests: int, longest: int) -> Workload:
        """Read the beginning of the trace in DATA/traces; without a folder, make requests by the recipe."""
        if data is None:
            return generate(self.recipe, num_requests=requests, rate=1.0, seed=0, max_total_tokens=longest)
        path = data / "traces" / self.file
        if not path.exists():
            raise ConfigError(f"--data: there is no {path}; leave --data out to use made-up requests of the same kind")
        return read_trace(path, max_requests=requests, max_total_tokens=longest).workload


@dataclass(frozen=True, slots=True)
class Scene:
    """One cell of the grid."""

    fleet: Fleet
    traffic: Traffic
    promise: Promise

    @property
    def name(self) -> str:
        """For people, and unlike that of any other scene."""
        return f"{self.fleet.name}, {self.traffic.name}, {self.promise}"


CONV: Final = Traffic("Azure conversations", "azure-2023-conv.csv.gz", "mixed", times=1.5)
CODE: Final = Traffic("Azure code", "azure-2023-code.csv.gz", "code")
MOONCAKE: Final = Traffic("Mooncake", "mooncake-conversation.jsonl.gz", "agent", times=0.75)
SHAREGPT: Final = Traffic("ShareGPT-like", "sharegpt-like-synth-lengths.csv.gz", "chat", times=2.0)

SMALL: Final = (Fleet(8, "h100-sxm", "Llama-3.1-8B"), Fleet(8, "h200-sxm", "Llama-3.1-8B"))
LARGE: Final = (Fleet(64, "h100-sxm", "Llama-3.1-70B"), Fleet(64, "h200-sxm", "Llama-3.1-70B"))
# A loose and a tight promise for each kind of traffic, on large clusters the tight one. Tight: about twice the decode
# step of a nearly idle worker (8B on an H100: 8 ms, 70B on four: 18 ms); TTFT: about four times the longest usual
# prefill.
SMALL_PROMISES: Final = (
    (CONV, Promise(0.5, 0.03), Promise(0.5, 0.015)),
    (CODE, Promise(1.0, 0.03), Promise(1.0, 0.015)),
    (MOONCAKE, Promise(10.0, 0.05), Promise(10.0, 0.02)),
    (SHAREGPT, Promise(0.25, 0.03), Promise(0.25, 0.015)),
)
LARGE_PROMISES: Final = (
    (CONV, Promise(1.5, 0.035)),
    (CODE, Promise(3.0, 0.035)),
    (MOONCAKE, Promise(20.0, 0.045)),
    (SHAREGPT, Promise(1.0, 0.035)),
)


def scenes(only: str = "") -> Iterator[Scene]:
    """Name the scenes whose name contains `only`, those of H100 first."""
    for fleet in (SMALL[0], LARGE[0], SMALL[1], LARGE[1]):
        for traffic, *kinds in SMALL_PROMISES if fleet in SMALL else LARGE_PROMISES:
            for promise in kinds:
                scene = Scene(fleet, traffic, promise)
                if only.lower() in scene.name.lower():
                    yield scene


def longest_of(fleet: Fleet) -> int:
    """Return the tokens of the longest request that is offered: what the model takes and the smallest worker holds."""
    shape = known_model(fleet.model)
    most = shape.max_model_len if shape and shape.max_model_len else 0
    held = min(s.kv_capacity_tokens for s in fleet.profile().shapes)
    return min(most, held) if most else held
