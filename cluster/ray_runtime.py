"""The Ray underneath: which one is meant, and how this process joins it.

Owns every process-wide setting of Ray. Ray is imported inside functions only: it reads its environment once, at
import, and that environment depends on the Ray to be joined. Must not know workers or pools.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.placement import Node
from cluster.state import CHECKOUT
from core.errors import ConfigError, StartFailed

NAMESPACE = "baton"
LOOPBACK = "127.0.0.1"
TEMP_PREFIX = "baton-ray-"  # in the system's temporary folder: paths of Unix sockets must stay below 108 bytes
PROBE_S = 2.0

# What keeps a Ray of our own small and local. Ray replaces 127.0.0.1 by the machine's outer address, and listens there
# without a password, unless told that this is no cluster of several machines. Its workers run at nice 15 by default,
# and so would the engines they start.
LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
AUTH_VARIABLE = "RAY_AUTH_MODE"
LOOPBACK_RAY_ENVIRONMENT = {
    LOOPBACK_VARIABLE: "0",
    "RAY_worker_niceness": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_metrics_collection": "0",
}
# Said outright: `ray start` takes a token it finds in the user's home, and a driver then does not.
OWN_RAY_ENVIRONMENT = {**LOOPBACK_RAY_ENVIRONMENT, AUTH_VARIABLE: "disabled"}


@dataclass(frozen=True, slots=True)
class RunningRay:
    """A Ray with a node on this machine."""

    address: str  # host:port
    private: bool  # started by a Baton, which will end it


def running_rays() -> tuple[RunningRay, ...]:
    """List the Rays that have a node on this machine, by the command lines of their node processes."""
    found: dict[str, RunningRay] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if not arguments[0].endswith("/raylet/raylet"):
                continue
            flags = dict(a.lstrip("-").split("=", 1) for a in arguments[1:] if "=" in a)
            address = flags.get("gcs-address", "")
            private = Path(flags.get("temp_dir", "")).name.startswith(TEMP_PREFIX)
            found[address] = RunningRay(address, private)
    return tuple(found[address] for address in sorted(found) if address)


def ray_to_join(configured: str, environ: Mapping[str, str], running: tuple[RunningRay, ...]) -> str | None:
    """Decide which Ray `ray.address` means; None means to start one here.

    `auto` is RAY_ADDRESS if set, else the Ray that runs on this machine, if any; `local` is always one of our own.
    A Ray that another Baton started is never joined by `auto`: it ends with that Baton. Raises ConfigError when
    several run.
    """
    if configured == "local":
        return None
    if configured != "auto":
        return configured
    if environ.get("RAY_ADDRESS") and environ["RAY_ADDRESS"] not in ("auto", "local"):
        return environ["RAY_ADDRESS"]
    addresses = [ray.address for ray in running if not ray.private]
    if len(addresses) > 1:
        listed = ", ".join(addresses)
        raise ConfigError(f"ray.address: several Rays run here ({listed}); name one, or 'local' for a new one")
    return addresses[0] if addresses else None


def prepare_environment(address: str | None) -> None:
    """Set what Ray reads at import, for a driver of the Ray at `address`; None is one of our own.

    A process can be driver of Rays that listen on the loopback address or of others, not of both.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    joined = [ray for ray in running_rays() if ray.address == address]
    if address is None or any(ray.private for ray in joined):
        os.environ.update(OWN_RAY_ENVIRONMENT)
        return
    if joined and address.startswith(f"{LOOPBACK}:"):  # it says so itself; one reached by that address may not
        os.environ.update(LOOPBACK_RAY_ENVIRONMENT)
    if has_auth_token(os.environ):  # as `ray start` decides, for whoever started that Ray
        os.environ.setdefault(AUTH_VARIABLE, "token")


def has_auth_token(environ: Mapping[str, str]) -> bool:
    """Whether Ray would find a token of the user's."""
    if environ.get("RAY_AUTH_TOKEN") or environ.get("RAY_AUTH_TOKEN_PATH"):
        return True
    return (Path(environ.get("HOME", "/")) / ".ray" / "auth_token").is_file()


def tool_environment(address: str) -> dict[str, str]:
    """List the variables with which Ray's own command line reaches a Ray of our own."""
    own = {name: OWN_RAY_ENVIRONMENT[name] for name in (LOOPBACK_VARIABLE, AUTH_VARIABLE)}
    return {"RAY_ADDRESS": address, **own}


def answers(address: str) -> bool:
    """Whether anybody listens at `address`, a host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PROBE_S).close()
    except (OSError, ValueError):
        return False
    return True


def connect(address: str) -> None:
    """Make this process a driver of the Ray at `address`. Raises StartFailed when nothing answers there.

    The probe comes first because Ray waits for minutes for an address where nobody listens.
    """
    if not answers(address):
        raise StartFailed(f"no Ray answers at {address}")
    prepare_environment(address)
    import ray

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
                logging_level="ERROR",
            )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as exc:
        raise StartFailed(f"cannot join the Ray at {address}: {exc}") from exc


def disconnect() -> None:
    """Stop being a driver; idempotent."""
    if "ray" in sys.modules:
        import ray

        ray.shutdown()


def this_node_id() -> str:
    """Return the id of the node this process runs on. Requires `connect`."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def alive_nodes() -> tuple[Node, ...]:
    """List the alive nodes of the joined Ray with what is free on each, ordered by address and id."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    nodes = [
        Node(
            node_id=raw["NodeID"],
            address=raw["NodeManagerAddress"],
            total=raw["Resources"],
            free=free.get(raw["NodeID"], {}),
            process_address=f"{raw['NodeManagerAddress']}:{raw['NodeManagerPort']}",
        )
        for raw in ray.nodes()
        if raw["Alive"]
    ]
    return tuple(sorted(nodes, key=lambda node: (node.address, node.node_id)))


def python_path(environ: Mapping[str, str]) -> str:
    """Put the checkout first on the module path, so that actors and workers find Baton."""
    inherited = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.pathsep.join(dict.fromkeys([str(CHECKOUT), *inherited]))
