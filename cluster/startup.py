"""Brings a cluster up, stage by stage, and says so.

Owns the order: checks, Ray, plan, controller, first completion; on a Ray of our own, whose devices are known, the plan
comes before Ray. Whoever calls takes down what a failed start left, by the record that is written before each thing
that must be ended. Must not know how pools are planned or workers start.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import preflight, ray_runtime
from cluster.cluster_status import ClusterStatus, StartOrder
from cluster.console import Console
from cluster.front import Front, front_at, keep_for_commands
from cluster.interrupts import Interrupts
from cluster.node_request import wait_for_room
from cluster.placement import Node, WorkerPlacement, needed_bundles, place_workers
from cluster.planning import PlannedConfig, describe_inventory, plan_pools, take_inventory
from cluster.ray_head import HeadOptions, OwnRay, start_own_ray
from cluster.router_probe import complete_once, wait_until_healthy
from cluster.state import ClusterRecord, ProcessIdentity, StateDir
from core.config.models import BatonConfig
from core.config.specs import served_model_name, with_absolute_profile
from core.control.actions import DeciderFactory
from core.errors import ConfigError, StartFailed
from core.planning import Planner

if TYPE_CHECKING:
    from cluster.ray_actors import Handle

RAY_START_S = 60.0
FIRST_COMPLETION_S = 60.0
HEALTHY_S = 15.0
ASK_S = 10.0  # a controller answers at once
PLAN_FILE = "plan.json"  # in the folder of the run
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class UpRequest:
    """What `up` was asked for."""

    config: BatonConfig
    config_path: str | None
    engine_kind: str = "vllm"  # "simulated" for tests
    engine_args: tuple[str, ...] = ()  # for a simulated engine
    planner: Planner | None = None  # for `pools: auto`
    decider: DeciderFactory | None = None  # of sizes and roles, for `scaling`


class Startup:
    """One start of one cluster."""

    def __init__(self, request: UpRequest, *, state: StateDir, console: Console, interrupts: Interrupts) -> None:
        self._request = request
        self._config = request.config  # from the plan on, with the planned pools
        self._plan: PlannedConfig | None = None
        self._state = state
        self._console = console
        self._interrupts = interrupts

    def run(self) -> tuple[ClusterRecord, ClusterStatus]:
        """Bring everything up and return what runs.

        Raises ConfigError before anything starts, StartFailed or Interrupted later; then the record tells what to end.
        """
        self._interrupts.install()
        base = Path.cwd()
        address = ray_runtime.ray_to_join(self._config.ray.address, os.environ, ray_runtime.running_rays())
        nodes = [preflight.this_machine()] if address is None else None
        self._check(base, nodes)
        record = self._claim(address)
        record = self._join(record, base) if address is not None else self._start_ray(record)
        record = record if self._plan is None else self._keep_plan(record, self._plan)
        order = self._order(record, base)
        run_dir = Path(record.run_dir)
        keep_for_commands(order.config, base=base, run_dir=run_dir, token=order.token)
        controller = self._create_controller(order)
        front = front_at(self._follow(controller), run_dir)
        status = self._prove(controller, front)
        record = replace(record, url=front.url, model=status.model)
        self._state.write(record)
        return record, status

    def _check(self, base: Path, nodes: Sequence[Node] | None) -> None:
        """Look for everything that can be wrong before anything starts; `nodes` are None when Ray must tell them."""
        model = preflight.check_model(self._config, base)
        preflight.check_plan_files(self._config, base)
        preflight.check_event_log(self._config)
        router = self._config.router
        preflight.check_port(router.host, router.port)
        port = f"port {router.port} is free" if router.port else "any free port"
        self._console.stage("preflight", f"model {model}; {port}")
        if nodes is not None:
            self._settle_pools(nodes, base)
            self._place(nodes)

    def _settle_pools(self, nodes: Sequence[Node], base: Path) -> None:
        """Plan the pools if the configuration leaves that open; see that they can be routed to.

        Raises ConfigError.
        """
        preflight.check_transport(self._config, nodes)
        if self._config.pools == "auto":
            found = describe_inventory(take_inventory(nodes), cpus_per_worker=self._config.plan.cpus)
            self._console.stage("plan", f"pools for {found}")
            plan = plan_pools(self._config, nodes, self._request.planner, base=base, check=self._interrupts.check)
            self._config, self._plan = plan.config, plan
            self._console.stage("plan", "\n".join(plan.lines))
        preflight.check_policy(self._config, base)
        preflight.check_scaling(with_absolute_profile(self._config, base), self._request.decider)

    def _place(self, nodes: Sequence[Node]) -> tuple[WorkerPlacement, ...]:
        """Find a node for every worker; a plan may use any node, whatever pool that is marked for."""
        return place_workers(self._config, nodes, by_convention=self._plan is None)

    def _claim(self, address: str | None) -> ClusterRecord:
        run_dir = self._state.new_run(time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}")
        starter = ProcessIdentity.of(os.getpid())
        assert starter is not None
        record = ClusterRecord(
            ray_address=address or "",
            started_ray=address is None,
            run_dir=str(run_dir),
            config_path=self._request.config_path,
            starter=starter,
            model=served_model_name(self._config),
        )
        if not self._state.claim(record):
            raise ConfigError(f"another command is working on {self._state.path}; see `status`")
        return record

    def _join(self, record: ClusterRecord, base: Path) -> ClusterRecord:
        ray_runtime.connect(record.ray_address)
        self._interrupts.install()
        from cluster import ray_actors

        if ray_actors.names():
            # Not ours to end: the record must not name it.
            self._state.remove()
            raise ConfigError(f"ray.address: another Baton runs on the Ray at {record.ray_address}")
        self._console.stage("ray", f"joined {record.ray_address}")
        nodes = ray_runtime.alive_nodes()
        self._settle_pools(nodes, base)
        wait_for_room(
            lambda: self._place(ray_runtime.alive_nodes()),
            needed_bundles(self._config, nodes, by_convention=self._plan is None),
            wait_s=self._config.ray.wait_for_nodes_s,
            check=self._interrupts.check,
            say=lambda words: self._console.stage("nodes", words),
        )
        return record

    def _start_ray(self, record: ClusterRecord) -> ClusterRecord:
        machine = preflight.this_machine()
        own = start_own_ray(
            HeadOptions(
                num_cpus=int(machine.total["CPU"]),
                num_gpus=int(machine.total["GPU"]),
                dashboard=self._config.ray.dashboard,
                log_path=Path(record.run_dir) / "ray.log",
                timeout_s=RAY_START_S,
            ),
            check=self._interrupts.check,
            on_started=lambda started: self._state.write(_with_ray(record, started)),
        )
        record = _with_ray(record, own)
        ray_runtime.connect(own.address)
        self._interrupts.install()
        self._console.stage("ray", f"started at {own.address}, for this Baton only")
        return record

    def _keep_plan(self, record: ClusterRecord, plan: PlannedConfig) -> ClusterRecord:
        (Path(record.run_dir) / PLAN_FILE).write_text(plan.plan_json + "\n", encoding="utf-8")
        record = replace(record, plan=plan.lines)
        self._state.write(record)
        return record

    def _order(self, record: ClusterRecord, base: Path) -> StartOrder:
        self._interrupts.check()
        nodes = ray_runtime.alive_nodes()
        placements = self._place(nodes)
        node_id = ray_runtime.this_node_id()
        env_vars = {} if record.started_ray else {"PYTHONPATH": ray_runtime.python_path(os.environ)}
        return StartOrder(
            config=with_absolute_profile(self._config, base),
            placements=placements,
            engine_kind=self._request.engine_kind,
            engine_args=self._request.engine_args,
            base=str(base),
            run_dir=record.run_dir,
            node_id=node_id,
            address=next(node.address for node in nodes if node.node_id == node_id),
            token=secrets.token_hex(16),
            env_vars=env_vars,
            by_convention=self._plan is None,
            decider=self._request.decider,
        )

    def _create_controller(self, order: StartOrder) -> Handle:
        from cluster import ray_actors
        from cluster.controller import Controller

        try:
            return ray_actors.create_on_node(
                Controller,
                order,
                name=ray_actors.CONTROLLER,
                node_id=order.node_id,
                env_vars=order.env_vars,
                comes_back=True,
            )
        except ValueError as exc:
            raise StartFailed(f"the controller cannot be created on Ray: {exc}") from exc

    def _follow(self, controller: Handle) -> str:
        """Print what the controller reports until everything is ready; return the router's host:port."""
        import ray

        from cluster import ray_actors

        timeout_s = self._config.ray.start_timeout_s
        started = controller.start.remote(timeout_s)
        deadline = time.monotonic() + timeout_s + ASK_S
        last_number = 0
        while True:
            self._interrupts.check()
            events = ray_actors.fetch(controller.events_after.remote(last_number, _POLL_S), ASK_S)
            self._console.events(events)
            last_number = events[-1].number if events else last_number
            if not events and ray.wait([started], timeout=0)[0]:
                return str(ray_actors.fetch(started, ASK_S))
            if time.monotonic() > deadline:
                raise StartFailed(f"the controller says nothing of its start after {timeout_s:g} s")

    def _prove(self, controller: Handle, front: Front) -> ClusterStatus:
        """Show that requests are served: the router is healthy and one completion goes through."""
        from cluster import ray_actors

        wait_until_healthy(front, HEALTHY_S, self._interrupts.check)
        took_s = complete_once(front, served_model_name(self._config), FIRST_COMPLETION_S)
        self._interrupts.check()
        self._console.stage("check", f"one completion in {took_s * 1000:.0f} ms, /health is 200")
        status = ray_actors.fetch(controller.status.remote(), ASK_S)
        assert isinstance(status, ClusterStatus)
        return status


def _with_ray(record: ClusterRecord, own: OwnRay) -> ClusterRecord:
    return replace(
        record,
        ray_address=own.address,
        ray=own.process,
        ray_temp_dir=own.temp_dir,
        dashboard_url=own.dashboard_url,
    )
