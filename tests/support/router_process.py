"""A router in a process of its own, and what that process holds: memory, descriptors, requests in flight."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

import router
from cluster.membership import MembershipServer
from core.router_spec import RouterSpec
from core.types import Membership
from tests.support.router_site import TOKEN, Site

ROOT = Path(router.__file__).parents[1]
WAIT_S = 30.0


class RouterProcess:
    """One that serves the workers of a Site."""

    def __init__(self, process: subprocess.Popen[str], url: str, folder: Path) -> None:
        self.process = process
        self.url = url
        self._folder = folder
        self.client = httpx.AsyncClient(base_url=url, timeout=WAIT_S)

    @property
    def memory_bytes(self) -> int:
        """What it holds in memory of its own and of files."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) * 1024

    @property
    def num_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    async def inflight(self) -> int:
        found = re.search(r"^baton_inflight_requests\S* (\S+)$", (await self.client.get("/metrics")).text, re.MULTILINE)
        assert found is not None
        return int(float(found[1]))

    async def until_idle(self, num_descriptors: int) -> None:
        """Wait until no request is in flight and no more descriptors are open than this."""
        async with asyncio.timeout(WAIT_S):
            while await self.inflight() or self.num_descriptors > num_descriptors:  # one request to it a turn
                pass

    def log(self) -> list[dict[str, Any]]:
        """Give its log line for every request; complete once it has stopped."""
        lines = (self._folder / "router.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def errors(self) -> list[str]:
        """Give the lines of its log that tell of its own errors."""
        return [line for line in (self._folder / "router.log").read_text().splitlines() if " ERROR " in line]

    async def stop(self) -> None:
        await self.client.aclose()
        self.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(self.process.communicate, timeout=WAIT_S)


@asynccontextmanager
async def router_process(site: Site, folder: Path, **settings: Any) -> AsyncIterator[RouterProcess]:
    """Start one, wait until it serves, and stop it at the end."""
    membership = MembershipServer(host="127.0.0.1", token=TOKEN)
    address = f"127.0.0.1:{await membership.start()}"
    membership.publish(Membership(1, tuple(w.record for w in site.workers.values())))
    read_fd, write_fd = os.pipe()
    spec = RouterSpec("127.0.0.1", address, str(folder), events_fd=write_fd, token=TOKEN, **settings)
    (folder / "spec.json").write_text(spec.to_json())
    process = _spawn(folder / "spec.json", write_fd)
    try:
        with os.fdopen(read_fd) as events:
            ready = json.loads(await asyncio.to_thread(events.readline))
        found = RouterProcess(process, f"http://{ready['address']}", folder)
        await site.until_healthy(found.client)
        yield found
        await found.stop()
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
        await membership.stop()


def _spawn(spec: Path, events_fd: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "router", "--spec", str(spec)]
    process = subprocess.Popen(command, cwd=ROOT, pass_fds=(events_fd,), stderr=subprocess.DEVNULL, text=True)
    os.close(events_fd)
    return process
