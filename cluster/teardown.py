"""Takes down what one record names: router, workers, actors, placement groups, and the Ray that Baton started.

Owns the order and the bounds. Touches nothing that the record does not name, so any other Ray lives on.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.console import Console
from cluster.interrupts import Interrupts
from cluster.ray_head import STOP_GRACE_S, stop_own_ray
from cluster.ray_runtime import connect, disconnect
from cluster.state import ClusterRecord, StateDir
from core.errors import StartFailed

if TYPE_CHECKING:
    from cluster.ray_actors import Handle

DRAIN_GRACE_S = 35.0  # each for the router and the workers: beyond what they give to running requests
HURRIED_S = 10.0
ACTORS_GONE_S = 10.0
_POLL_S = 0.5


def take_down(state: StateDir, record: ClusterRecord, *, console: Console, interrupts: Interrupts, hurry: bool) -> None:
    """End the cluster of `record` and forget it; a further signal, or `hurry`, skips the drain.

    Everything may be gone already, in part or as a whole.
    """
    if _ray_may_answer(record):
        try:
            connect(record.ray_address)
            interrupts.install()
            _end_actors(console, interrupts, hurry=hurry)
        except StartFailed as exc:
            console.warn(str(exc))
        finally:
            disconnect()
            interrupts.install()
    if record.ray is not None:
        stop_own_ray(record.ray, record.ray_temp_dir, keep_logs_in=Path(record.run_dir), grace_s=STOP_GRACE_S)
        console.stage("ray", "stopped")
    state.remove()


def _ray_may_answer(record: ClusterRecord) -> bool:
    if not record.ray_address:
        return False
    return record.ray is None or record.ray.alive


def _end_actors(console: Console, interrupts: Interrupts, *, hurry: bool) -> None:
    from cluster import ray_actors

    controller = ray_actors.find(ray_actors.CONTROLLER)
    if controller is not None:
        _stop_members(controller, console, interrupts, hurry=hurry)
    ray_actors.remove_everything()
    deadline = time.monotonic() + ACTORS_GONE_S
    while ray_actors.names() and time.monotonic() < deadline:
        time.sleep(0.05)  # Ray tells nobody of an actor's end
    console.stage("workers", "stopped")


def _stop_members(controller: Handle, console: Console, interrupts: Interrupts, *, hurry: bool) -> None:
    """Have the controller drain router and workers; a new signal has it kill them."""
    import ray

    signals_before = interrupts.count
    stopping = controller.stop.remote(0.0 if hurry else DRAIN_GRACE_S)
    deadline = time.monotonic() + (HURRIED_S if hurry else 2 * DRAIN_GRACE_S + HURRIED_S)
    while time.monotonic() < deadline:
        try:
            ray.get(stopping, timeout=_POLL_S)
            return
        except ray.exceptions.GetTimeoutError:
            if interrupts.count > signals_before and not hurry:
                console.stage("workers", "not waiting for running requests")
                hurry, stopping = True, controller.stop.remote(0.0)
                deadline = time.monotonic() + HURRIED_S
        except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as exc:
            console.warn(f"the controller failed while stopping: {str(exc).splitlines()[0]}")
            return
    console.warn("the controller did not stop in time; its processes are killed")
