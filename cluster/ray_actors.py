"""Baton's actors and placement groups in Ray: made, found by name, and removed.

Owns names, options and the shape of every Ray call but those that join or start Ray. Must not know what the actors do.
Requires a joined Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from cluster.host_events import Ended, HostEvent
from cluster.placement import WorkerPlacement
from cluster.ray_runtime import NAMESPACE
from core.errors import BatonError, StartFailed

CONTROLLER = "controller"
ROUTER = "router"
GROUP_PREFIX = "baton-"
NODE_ID_LABEL = "ray.io/node-id"

ACTOR_ERRORS = (ray.exceptions.RayActorError,)  # the actor, its process or its node is gone


class BeingMadeAnew(StartFailed):
    """The actor's process died, and Ray makes it anew."""


# Ray makes the methods of a handle while it runs; their types cannot be written down.
Handle = Any


def create_on_node(
    actor_class: type,
    *arguments: object,
    name: str,
    node_id: str,
    env_vars: Mapping[str, str],
    comes_back: bool = False,
) -> Handle:
    """Create a named actor that takes no resources, on one node; it outlives its creator.

    One that `comes_back` is made anew by Ray, with the same arguments, when its process dies. Raises ValueError when
    the name is taken.
    """
    options: dict[str, object] = {"max_restarts": -1} if comes_back else {}
    strategy = _on_node(node_id)
    return _options(actor_class, name, env_vars, num_cpus=0, scheduling_strategy=strategy, **options).remote(*arguments)


def was_made_anew() -> bool:
    """Whether this actor, the one that asks, had an earlier life."""
    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def remove(host_name: str) -> None:
    """Kill the actor of one worker and give its resources back; idempotent."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(host_name, namespace=NAMESPACE), no_restart=True)
    with contextlib.suppress(ValueError):
        remove_placement_group(ray.util.get_placement_group(GROUP_PREFIX + host_name))


async def reserve(placement: WorkerPlacement, timeout_s: float, *, name: str) -> PlacementGroup:
    """Create the placement group of one worker on the node planned for it, and wait until it holds its resources.

    Raises StartFailed after `timeout_s`; the group is removed then.
    """
    group = placement_group(
        [placement.bundle],
        strategy="PACK",
        name=GROUP_PREFIX + name,
        lifetime="detached",
        bundle_label_selector=[{NODE_ID_LABEL: placement.node_id}],
    )
    # wait() and not ready(): the latter runs a task, which costs a process.
    if await asyncio.to_thread(group.wait, timeout_s):
        return group
    remove_placement_group(group)
    wanted = ", ".join(f"{amount:g} {name}" for name, amount in placement.bundle.items())
    raise StartFailed(
        f"{placement.worker_id}: Ray did not give {wanted} on node {placement.address} within {timeout_s:g} s; "
        "something else took them, see `ray status`"
    )


def create_in_group(
    actor_class: type,
    *arguments: object,
    name: str,
    placement: WorkerPlacement,
    group: PlacementGroup,
    env_vars: Mapping[str, str],
) -> Handle:
    """Create the actor of one worker in its placement group, with the GPUs of the group; it outlives its creator."""
    options = _options(
        actor_class,
        name,
        env_vars,
        num_cpus=placement.bundle.get("CPU", 0),
        num_gpus=placement.gpus,
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
    )
    return options.remote(*arguments)


async def events_of(host: Handle, *arguments: object) -> AsyncIterator[HostEvent]:
    """Run what `host` hosts and yield its events; the end of the actor itself becomes one."""
    try:
        async for reference in host.run.remote(*arguments):
            yield await reference
    except ACTOR_ERRORS as exc:
        yield Ended(None, f"its Ray actor died: {str(exc).splitlines()[0]}")


def find(name: str) -> Handle | None:
    """Look one of Baton's actors up; None when there is none."""
    with contextlib.suppress(ValueError):
        return ray.get_actor(name, namespace=NAMESPACE)
    return None


def fetch(reference: Handle, timeout_s: float) -> Any:
    """Fetch one answer of the controller.

    Raises what it raised, BeingMadeAnew when it may answer later, StartFailed when it is gone or silent.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except ray.exceptions.RayTaskError as exc:
        if isinstance(exc.cause, BatonError):
            raise exc.cause from None
        raise StartFailed(f"the controller failed: {exc}") from exc
    except ray.exceptions.GetTimeoutError as exc:
        raise StartFailed(f"the controller did not answer within {timeout_s:g} s") from exc
    except ray.exceptions.ActorUnavailableError as exc:
        raise BeingMadeAnew("the controller died and is being made anew") from exc
    except ray.exceptions.RayError as exc:
        raise StartFailed(f"the controller is gone: {str(exc).splitlines()[0]}") from exc


def names() -> tuple[str, ...]:
    """List the names of Baton's actors that are not dead."""
    return tuple(ray.util.list_named_actors())


def remove_everything() -> None:
    """Kill all of Baton's actors and remove its placement groups; idempotent."""
    for name in names():
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
    for group in placement_group_table().values():
        if group["name"].startswith(GROUP_PREFIX) and group["state"] != "REMOVED":
            with contextlib.suppress(ValueError):
                remove_placement_group(ray.util.get_placement_group(group["name"]))


def _options(actor_class: type, name: str, env_vars: Mapping[str, str], **options: object) -> Handle:
    if env_vars:
        options["runtime_env"] = {"env_vars": dict(env_vars)}
    options = {"max_restarts": 0, "max_task_retries": 0, **options}
    return ray.remote(actor_class).options(name=name, namespace=NAMESPACE, lifetime="detached", **options)


def _on_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
