"""Ray's actors in this process: hosts run their children as ever, and only Ray between them and the controller is left
out.

Owns what cluster.ray_actors and cluster.ray_runtime are replaced by, and the death of a host.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cluster import ray_actors, ray_runtime
from cluster.placement import Node, WorkerPlacement
from core.errors import StartFailed

HERE = "127.0.0.1"


class LocalActor:
    """A handle as Ray gives it, of an object in this process."""

    def __init__(self, made: object) -> None:
        self.made = made
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loud: asyncio.Event = asyncio.Event()  # unset: nothing is answered, and nothing ends
        self._loud.set()

    def __getattr__(self, name: str) -> _Method:
        return _Method(self, getattr(self.made, name))

    def fall_silent(self) -> None:
        """Answer nothing and end nothing, as on a machine that lost its network."""
        self._loud.clear()

    def speak(self) -> None:
        """Answer what was asked meanwhile, and all that follows."""
        self._loud.set()

    async def loud(self) -> None:
        """Wait until this host answers."""
        await self._loud.wait()

    async def kill(self) -> None:
        """End the host as `kill -9` does: its child goes with it, and nobody answers for it any more."""
        if not self.died.done():
            self.died.set_result(None)
        process = getattr(self.made, "_process", None)
        if process is not None:
            await process.stop(0)


class _Method:
    def __init__(self, actor: LocalActor, method: Callable[..., Any]) -> None:
        self._actor = actor
        self._method = method

    def remote(self, *arguments: object) -> Any:
        if inspect.isasyncgenfunction(self._method):
            return self._stream(*arguments)
        return asyncio.ensure_future(self._answer(*arguments))

    async def _answer(self, *arguments: object) -> object:
        if self._actor.died.done():
            raise ray_actors.ACTOR_ERRORS[0]()
        await self._actor.loud()
        return await self._method(*arguments)

    async def _stream(self, *arguments: object) -> AsyncIterator[asyncio.Future[object]]:
        events = self._method(*arguments)
        while True:
            following = asyncio.ensure_future(anext(events, None))
            await asyncio.wait((following, self._actor.died), return_when=asyncio.FIRST_COMPLETED)
            if self._actor.died.done():
                following.cancel()
                raise ray_actors.ACTOR_ERRORS[0]()
            if following.result() is None:
                return
            yield following


class LocalRay:
    """All actors by name, and the nodes that they are on."""

    def __init__(self, *, cpus: float) -> None:
        self.nodes = [Node("n1", HERE, {"CPU": cpus}, {"CPU": cpus})]
        self.actors: dict[str, LocalActor] = {}
        self.is_made_anew = False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stand in for Ray."""
        for name in ("reserve", "create_in_group", "create_on_node", "find", "remove"):
            monkeypatch.setattr(ray_actors, name, getattr(self, name))
        monkeypatch.setattr(ray_actors, "was_made_anew", lambda: self.is_made_anew)
        monkeypatch.setattr(ray_runtime, "alive_nodes", lambda: tuple(self.nodes))

    async def reserve(self, placement: WorkerPlacement, timeout_s: float, *, name: str) -> str:
        if placement.node_id not in {node.node_id for node in self.nodes}:
            raise StartFailed(f"{name}: its node is gone")
        return name

    def create_in_group(self, actor_class: type, *arguments: object, name: str, **_: object) -> LocalActor:
        self.actors[name] = LocalActor(actor_class(*arguments))
        return self.actors[name]

    def create_on_node(self, actor_class: type, *arguments: object, name: str, **_: object) -> LocalActor:
        return self.create_in_group(actor_class, *arguments, name=name)

    def find(self, name: str) -> LocalActor | None:
        actor = self.actors.get(name)
        return None if actor is None or actor.died.done() else actor

    def remove(self, name: str) -> None:
        actor = self.actors.pop(name, None)
        if actor is not None:
            process = getattr(actor.made, "_process", None)
            if process is not None:
                process.kill()
