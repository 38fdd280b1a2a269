"""A whole Baton without Ray: two worker processes with real vLLM engines, a router process, and one plain vLLM beside.

Its own event loop runs on a thread, so that tests stay plain functions. Engines take 10-20 s to start, so one stack
serves a whole test session; a test that kills a worker starts it again.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import httpx

from cluster.launch import WorkerProcess
from cluster.membership import MembershipServer
from cluster.session_client import WorkerSession
from core.engine import HttpCall
from core.router_spec import RouterSpec
from core.types import Handover, Leg, LegFacts, Membership, Role, WorkerRecord, WorkerState
from core.worker_spec import EngineSpec, KVSpec, WorkerSpec
from kv_transfer.control import KVControlClient
from tests.support.processes import ROOT, Child

CHUNK_TOKENS = 512
DECODE_KV_TOKENS = 4224  # one request of full length and a little more: eight at once do not fit
LEASE_S = 5.0
TOKEN = "token-of-the-tests"
TRANSPORTS = ("shm", "tcp", "grpc")
EVENT_LOG = "events.jsonl"  # in the run folder
MODEL = ROOT / "deploy" / "models" / "baton-demo"
START_TIMEOUT_S = 180.0
T = TypeVar("T")


class Stack:
    """Prefill and decode workers, router and reference, started by `start` and ended by `stop`."""

    def __init__(self, run_dir: Path, lora: Path) -> None:
        self.run_dir = run_dir
        self._lora = lora
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stack", daemon=True)
        self._thread.start()
        self.workers: dict[str, WorkerProcess] = {}
        self.records: dict[str, WorkerRecord] = {}
        self._version = 0
        self._epoch = 0
        self._children: list[Child] = []
        self._left_out: dict[str, int] = {}  # faults that leave out transports
        self.url = self.one_pool_url = ""

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 60.0) -> T:
        """Run a coroutine on the stack's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    # Start and stop

    def start(self) -> None:
        """Start everything; two engines at a time, for there are two cores."""
        reference = self._start_one_pool()
        self.run(self._start_membership())
        self.run(self._start_workers(("prefill-0", Role.PREFILL), ("decode-0", Role.DECODE)), START_TIMEOUT_S)
        self._start_router()
        reference.wait_healthy(self.one_pool_url)
        self._children[-1].wait_healthy(self.url)

    def stop(self) -> None:
        """End every process."""
        for child in self._children:
            child.stop()
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def worker_spec(self, worker_id: str, role: Role) -> WorkerSpec:
        """Describe one worker; decode is given so little KV that preemption can be brought about."""
        self._epoch += 1
        bytes_per_token = kv_bytes_per_token(MODEL)
        tokens = DECODE_KV_TOKENS if role is Role.DECODE else 4 * DECODE_KV_TOKENS
        engine = EngineSpec(
            kind="vllm",
            model_path=str(MODEL),
            served_model_name="demo",
            dtype="float32",
            max_model_len=4096,
            max_num_batched_tokens=CHUNK_TOKENS,
            kv_cache_bytes=(tokens + 32) * bytes_per_token,
            lora_adapters=(("demo-lora", str(self._lora)),),
            extra_args=("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        )
        kv = KVSpec(lease_s=LEASE_S, faults=(("runtime", "1"),))
        spec = WorkerSpec(worker_id, role, self._epoch, "127.0.0.1", str(self.run_dir), engine, kv=kv, token=TOKEN)
        return replace(spec, silence_s=START_TIMEOUT_S)  # tests stop workers, and look at much before these go on

    def revive(self) -> None:
        """Start dead workers again, with a greater epoch, and wait until the router has them."""
        for worker_id, process in self.workers.items():
            if not process.tree_pids():
                self.run(self._start_workers((worker_id, process.spec.role)), START_TIMEOUT_S)
                self.wait(lambda name=worker_id: self.router_metric("baton_worker_up", worker=name) == 1)

    def add_worker(self, worker_id: str, role: Role) -> None:
        """Start one worker more and wait until the router has it."""
        self.run(self._start_workers((worker_id, role)), START_TIMEOUT_S)
        self.wait(lambda: self.router_metric("baton_worker_up", worker=worker_id) == 1)

    def remove_worker(self, worker_id: str) -> None:
        """End a worker and announce it no longer."""
        self.run(self._remove_worker(worker_id))

    def signal(self, worker_id: str, signum: signal.Signals) -> None:
        """Send a signal to every process of a worker."""
        for pid in self.workers[worker_id].tree_pids():
            os.kill(pid, signum)

    def signal_engine(self, worker_id: str, signum: signal.Signals) -> None:
        """Send a signal to the engine core of a worker alone."""
        for pid in self.workers[worker_id].tree_pids()[1:]:
            os.kill(pid, signum)

    def kill(self, worker_id: str) -> None:
        """SIGKILL a worker's front process; its engine core must follow by itself. The membership still names it."""
        process = self.workers[worker_id]
        self.run(_kill(process))

    @property
    def membership_address(self) -> str:
        """Where another router learns of the workers."""
        return f"127.0.0.1:{self._membership_port}"

    # What is measured

    def landed(self) -> int:
        """Count the hand-overs that reached the decode engine."""
        return int(self.kv_stats("decode-0")["receives"]["landed"])

    def bytes_landed(self) -> int:
        """Count the KV bytes that reached the decode engine."""
        return int(self.kv_stats("decode-0")["bytes_landed"])

    def block_bytes(self) -> int:
        """Return the bytes of one KV block over all layers."""
        return 32 * kv_bytes_per_token(MODEL)

    def kv_stats(self, worker_id: str) -> dict[str, Any]:
        """Ask an engine core for its ledger and counters."""
        return self.run(self._kv_call(worker_id, lambda client: client.stats()))

    def inject(self, faults: Mapping[str, int], worker_id: str = "prefill-0") -> None:
        """Replace the faults of a worker's hand-overs; an empty mapping heals. The transport asked for stays.

        Workers that took wrong KV forget it when all is healed.
        """
        self.run(self._kv_call(worker_id, lambda client: client.inject({**self._left_out, **faults})))
        if not faults:
            for other in self.workers:
                if other != worker_id:
                    self.run(self._kv_call(other, lambda client: client.inject({})))

    def use_transport(self, name: str | None) -> None:
        """Hand over by this transport only; None: by whichever is chosen."""
        self._left_out = {} if name is None else {f"without_{other}": 1 for other in TRANSPORTS if other != name}
        self.inject({})

    def handovers(self) -> dict[str, int]:
        """Count the hand-overs of the prefill engine that landed, by transport."""
        counts = self.kv_stats("prefill-0")["transports"]
        return {name: int(count["handovers"]) for name, count in counts.items()}

    def state(self, worker_id: str) -> WorkerState:
        """Ask a worker for its state."""
        return self.run(self._state(worker_id))

    def call(self, worker_id: str, method: str, path: str) -> str:
        """Make a plain call to one worker's OpenAI layer, past the router."""
        return self.run(self._call(worker_id, method, path))

    def legs(self, call: HttpCall, handover: Handover) -> tuple[LegFacts, LegFacts]:
        """Run both legs of a call past the router, decode first; return what prefill and decode measured."""
        return self.run(self._legs(call, handover))

    def preemptions(self, worker_id: str) -> int:
        """Count the requests an engine preempted."""
        return int(sum(_series(self.call(worker_id, "GET", "/metrics"), "vllm:num_preemptions_total")))

    def reset_prefix_cache(self, worker_id: str) -> None:
        """Forget every cached prefix of one worker."""
        self.call(worker_id, "POST", "/reset_prefix_cache")

    def reset_prefix_caches(self) -> None:
        """Forget every cached prefix of both workers."""
        for worker_id in self.workers:
            self.reset_prefix_cache(worker_id)

    def router_metric(self, name: str, **labels: str) -> float:
        """Sum a router metric over the series with these labels."""
        text = httpx.get(self.url + "/metrics", timeout=10).text
        return sum(_series(text, name, labels))

    def assert_nothing_held(self, *worker_ids: str) -> None:
        """Check that workers come to hold no block, no request and no lease, and that the ledgers balance."""
        for worker_id in worker_ids or self.workers:
            self.wait(lambda worker_id=worker_id: _is_idle(self.state(worker_id)))
            self.wait(lambda worker_id=worker_id: not self.kv_stats(worker_id)["leases"])
            # What a step copies for a hand-over that ended meanwhile is let go as the step ends.
            self.wait(lambda worker_id=worker_id: not self.kv_stats(worker_id)["staged_bytes"])
            assert self.kv_stats(worker_id)["imbalance_blocks"] == 0

    @staticmethod
    def wait(condition: Any, timeout_s: float = 20.0) -> None:
        """Wait until a condition that other processes bring about is true, within a bound."""
        tick = threading.Event()
        for _ in range(int(timeout_s / 0.05)):
            if condition():
                return
            tick.wait(0.05)
        raise AssertionError("the condition did not come true in time")

    # On the loop

    async def _start_membership(self) -> None:
        self._membership = MembershipServer(host="127.0.0.1", token=TOKEN)
        self._membership_port = await self._membership.start()

    async def _start_workers(self, *workers: tuple[str, Role]) -> None:
        async with asyncio.TaskGroup() as group:
            for worker_id, role in workers:
                group.create_task(self._start_worker(worker_id, role))
        self._version += 1
        self._membership.publish(Membership(self._version, tuple(self.records.values())))

    async def _start_worker(self, worker_id: str, role: Role) -> None:
        process = await WorkerProcess.start(
            self.worker_spec(worker_id, role),
            log_path=self.run_dir / f"{worker_id}.log",
            env={"VLLM_SERVER_DEV_MODE": "1"},
        )
        self.workers[worker_id] = process
        self.records[worker_id] = await process.ready(START_TIMEOUT_S)

    async def _remove_worker(self, worker_id: str) -> None:
        del self.records[worker_id]
        self._version += 1
        self._membership.publish(Membership(self._version, tuple(self.records.values())))
        await self.workers.pop(worker_id).stop(10.0)

    async def _stop(self) -> None:
        for process in self.workers.values():
            await process.stop(10.0)
        await self._membership.stop()

    async def _kv_call(self, worker_id: str, call: Any) -> Any:
        hello = self.workers[worker_id].hello
        assert hello is not None
        client = KVControlClient(hello.kv_address, TOKEN)
        try:
            return await call(client)
        finally:
            await client.close()

    async def _state(self, worker_id: str) -> WorkerState:
        session = await self._session(worker_id)
        try:
            return session.state
        finally:
            await session.close()

    async def _call(self, worker_id: str, method: str, path: str) -> str:
        session = await self._session(worker_id)
        try:
            reply = session.submit(Leg.WHOLE, HttpCall("test", method, path, (), b""), None)
            status, _ = await reply.head()
            body = b""
            while data := await reply.read():
                body += data
            assert status == 200, body
            return body.decode()
        finally:
            await session.close()

    async def _legs(self, call: HttpCall, handover: Handover) -> tuple[LegFacts, LegFacts]:
        sessions = [await self._session(worker_id) for worker_id in ("decode-0", "prefill-0")]
        try:
            decode, prefill = (
                session.submit(leg, call, handover)
                for session, leg in zip(sessions, (Leg.DECODE, Leg.PREFILL), strict=True)
            )
            for reply in (prefill, decode):
                while await reply.read():
                    pass
            assert prefill.facts is not None
            assert decode.facts is not None
            return prefill.facts, decode.facts
        finally:
            for session in sessions:
                await session.close()

    async def _session(self, worker_id: str) -> WorkerSession:
        session = WorkerSession(self.records[worker_id], token=TOKEN, on_change=lambda: None)
        await session.connect(5.0)
        return session

    # Children

    def _start_one_pool(self) -> Child:
        flags = {
            "--model": str(MODEL),
            "--served-model-name": "demo",
            "--dtype": "float32",
            "--max-model-len": "4096",
            "--block-size": "32",
            "--max-num-batched-tokens": str(CHUNK_TOKENS),
            "--max-num-seqs": "64",
            "--kv-cache-memory-bytes": str(256 << 20),
            "--distributed-executor-backend": "uni",
            "--tool-call-parser": "hermes",
            "--max-lora-rank": "16",
            "--lora-modules": f"demo-lora={self._lora}",
            "--host": "127.0.0.1",
            "--port": str(port := _free_port()),
        }
        switches = ["--enforce-eager", "--enable-auto-tool-choice", "--enable-lora"]
        arguments = [part for pair in flags.items() for part in pair] + switches
        child = Child(
            "engine.one_pool",
            lambda _: arguments,
            self.run_dir / "one_pool.log",
            {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"},
        )
        self._children.append(child)
        self.one_pool_url = f"http://127.0.0.1:{port}"
        return child

    def _start_router(self) -> None:
        child = Child("router", self._router_arguments, self.run_dir / "router.out")
        self._children.append(child)
        address = child.event("ready")["address"]
        self.url = address if address.startswith("http") else f"http://{address}"

    def _router_arguments(self, events_fd: int) -> list[str]:
        spec = RouterSpec(
            host="127.0.0.1",
            membership_address=f"127.0.0.1:{self._membership_port}",
            run_dir=str(self.run_dir),
            lease_s=LEASE_S,
            event_log=EVENT_LOG,
            token=TOKEN,
            events_fd=events_fd,
        )
        file = self.run_dir / "router.spec.json"
        file.write_text(spec.to_json())
        return ["--spec", str(file)]


async def _kill(process: WorkerProcess) -> None:
    os.kill(process.pid, signal.SIGKILL)
    await process.exited()


def kv_bytes_per_token(model: Path) -> int:
    """Compute the KV bytes of one token in float32 from a model's config."""
    config = json.loads((model / "config.json").read_text())
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(config["num_hidden_layers"] * 2 * config["num_key_value_heads"] * head * 4)


def _is_idle(state: WorkerState) -> bool:
    return (state.num_running, state.num_waiting, state.kv_blocks_used) == (0, 0, 0)


def _series(text: str, name: str, labels: Mapping[str, str] | None = None) -> list[float]:
    values = []
    for line in text.splitlines():
        match = re.match(rf"{re.escape(name)}(\{{.*\}})? (\S+)$", line)
        if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in (labels or {}).items()):
            values.append(float(match[2]))
    return values


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
