"""The cluster that runs from this checkout, as commands ask its controller.

Owns how the controller is found and asked, and how long a command waits for one that Ray makes anew. Must not know
what is asked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from cluster import ray_runtime
from cluster.state import ClusterRecord, StateDir
from core.errors import NotRunning, StartFailed

ASK_S: Final = 10.0  # a controller answers at once
ANEW_S: Final = 30.0  # Ray has made it anew by then
_POLL_S: Final = 0.2


class RunningCluster:
    """Asks one controller; made by `running_cluster`."""

    def __init__(self, record: ClusterRecord) -> None:
        self.record = record

    def ask(self, method: str, *arguments: object, wait_s: float = 0.0) -> Any:
        """Call a method of the controller that may take `wait_s`, and return its answer.

        A controller that is being made anew is waited for, and asked again. Raises what it raised, or StartFailed when
        it is gone or silent.
        """
        from cluster import ray_actors

        deadline_s = time.monotonic() + ANEW_S
        while True:
            controller = ray_actors.find(ray_actors.CONTROLLER)
            if controller is None:
                raise StartFailed(f"no controller on the Ray at {self.record.ray_address}")
            try:
                return ray_actors.fetch(getattr(controller, method).remote(*arguments), wait_s + ASK_S)
            except ray_actors.BeingMadeAnew:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(_POLL_S)  # Ray tells nobody of an actor that is back


@contextmanager
def running_cluster(record: ClusterRecord | None = None) -> Iterator[RunningCluster]:
    """Join the Ray of the cluster that runs from this checkout, or of `record`; leave it afterwards.

    Raises NotRunning when nothing runs, StartFailed when its Ray is gone.
    """
    record = record or StateDir.find(os.environ).read()
    if record is None:
        raise NotRunning("nothing runs from this checkout; `up` starts a cluster")
    if not record.ray_address or (record.ray is not None and not record.ray.alive):
        raise StartFailed("its Ray is gone")
    ray_runtime.connect(record.ray_address)
    try:
        yield RunningCluster(record)
    finally:
        ray_runtime.disconnect()
