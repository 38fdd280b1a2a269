"""What must hold before anything is started.

Owns the checks of this machine: model folder, router port, and what pools may take here when Ray is our own. Must not
start anything.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from cluster.placement import GPU_KIND, Node
from cluster.ray_runtime import LOOPBACK
from cluster.topology import node_gpus
from core.config.checks import PREDICTING_POLICY
from core.config.model_files import file_location, looks_like_folder, model_location
from core.config.models import BatonConfig
from core.config.specs import with_absolute_profile
from core.control.actions import DeciderFactory
from core.errors import ConfigError
from core.policy.registry import policy_named
from core.router_spec import RouterSpec


def check_model(config: BatonConfig, base: Path) -> str:
    """Say what is served and from where. Raises ConfigError when it must be a folder and is none that holds a model."""
    path = config.model.path
    location = model_location(path, base)
    for adapter in config.model.lora:
        if looks_like_folder(adapter.path) and not os.path.isdir(model_location(adapter.path, base)):
            where = _below(base, adapter.path)
            raise ConfigError(f"model.lora: there is no folder {adapter.path}{where}, of adapter {adapter.name}")
    if not os.path.isdir(location):
        if looks_like_folder(path):
            raise ConfigError(f"model.path: there is no folder {path}" + _below(base, path))
        return f"{path}, from the hub or its cache"
    if not os.path.isfile(os.path.join(location, "config.json")):
        raise ConfigError(f"model.path: {location} holds no config.json, so it is no model in Hugging Face format")
    return location


def check_plan_files(config: BatonConfig, base: Path) -> None:
    """Raise ConfigError when a file that `plan` names, and that will be read, is not there."""
    is_planned = config.pools == "auto"
    files = (
        ("profile", config.plan.profile, is_planned or config.router.policy == PREDICTING_POLICY),
        ("trace", config.plan.trace, is_planned),
    )
    remedies = {"profile": "`baton profile` measures the engines and writes one", "trace": "correct the path"}
    for key, path, is_read in files:
        if is_read and path is not None and not os.path.isfile(file_location(path, base)):
            raise ConfigError(f"plan.{key}: there is no file {path}{_below(base, path)}; {remedies[key]}")


def check_event_log(config: BatonConfig) -> None:
    """Raise ConfigError when the router could not make its event log or its recording; it runs on this machine."""
    for key, given in (("event_log", config.router.event_log), ("record", config.router.record)):
        if given is None:
            continue
        if not os.path.isabs(given):
            if os.path.basename(given) != given or given in (os.curdir, os.pardir):
                raise ConfigError(
                    f"router.{key}: {given} is in no folder of the run; name a file, or give a whole path"
                )
        elif os.path.isdir(given) or not os.access(os.path.dirname(given), os.W_OK):
            raise ConfigError(f"router.{key}: {given} cannot be written; name a file in a folder that exists")


def check_transport(config: BatonConfig, nodes: Sequence[Node]) -> None:
    """Raise ConfigError when KV is to go from GPU to GPU and no node has one."""
    if config.kv.transport == "nccl" and not any(node.total.get("GPU") for node in nodes):
        raise ConfigError(
            "kv.transport: nccl moves KV from GPU to GPU, and no node has a GPU; set kv.transport to auto, which takes "
            "what is fastest here"
        )


def check_policy(config: BatonConfig, base: Path) -> None:
    """Raise ConfigError when the router could not make its policy; the pools must be named."""
    spec = RouterSpec.from_config(with_absolute_profile(config, base), membership_address="", run_dir="")
    policy_named(spec.policy, spec.policy_context)


def check_scaling(config: BatonConfig, decider: DeciderFactory | None) -> None:
    """Raise ConfigError when sizes are to follow the traffic and nobody can decide them; the pools must be named."""
    if config.scaling.mode == "off":
        return
    if decider is None:
        raise ConfigError(
            f"scaling.mode: {config.scaling.mode} needs a decider of sizes, and this cluster was started without one; "
            "start it with `baton up`, or leave it off and use `baton apply` and `baton flip`"
        )
    decider(config)


def check_port(host: str, port: int) -> None:
    """Raise ConfigError when the router could not listen on `host` and `port`; 0 is any free port."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port left lately is free
            probe.bind(address)
            probe.listen(1)
    except OSError as exc:
        key, advice = "router.port", "choose another with --set router.port=PORT, or 0 for any free one"
        if isinstance(exc, socket.gaierror) or exc.errno == errno.EADDRNOTAVAIL:
            key, advice = "router.host", "name an address of this machine, 127.0.0.1, or 0.0.0.0 for all of them"
        raise ConfigError(f"{key}: cannot listen on {host}:{port}: {exc.strerror or exc}; {advice}") from exc


def this_machine() -> Node:
    """Describe this machine as the only node of a Ray of our own."""
    gpus = node_gpus()
    has = {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(len(gpus))}
    has |= {GPU_KIND + gpus[0].name: 1.0} if gpus else {}  # as Ray says of its nodes
    return Node(node_id="", address=LOOPBACK, total=has, free=has)


def _below(base: Path, path: str) -> str:
    return "" if os.path.isabs(os.path.expanduser(path)) else f" in {base}"
