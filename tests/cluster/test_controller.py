"""One controller with its workers and router, changed and hurt while it serves; everything is real but Ray.

What Ray adds is tested in test_controller_ray.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest

from cluster import node_request
from cluster.controller import Controller
from cluster.node_request import Bundle
from cluster.placement import Node
from core.control.actions import Decider, Decision, Observation, PoolSizes
from core.errors import ConfigError, StartFailed
from core.types import Role
from tests.support.controlled_cluster import BACK_S, START_S, Cluster, config, order_of
from tests.support.local_actors import HERE, LocalRay
from tests.support.steady_load import steady_load


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "config.json").write_text("{}")
    ray = LocalRay(cpus=5)  # room for one more than the four that there are
    ray.install(monkeypatch)
    made = config(tmp_path)
    order = order_of(made, ray.nodes, tmp_path, decider=lambda _: Growing())
    found = Cluster(order, ray, tmp_path)
    try:
        await found.start()
        await found.wait(prefill_0="prefill 1", prefill_1="prefill 1", decode_0="decode 1", decode_1="decode 1")
        yield found
    finally:
        await found.controller.stop(5.0)


class Growing(Decider):
    """Wants one more decode worker, once requests were seen to end."""

    def decide(self, observation: Observation) -> Decision | None:
        if not observation.num_ended or observation.wanted.decode > 2:
            return None
        sizes = PoolSizes(observation.wanted.prefill, observation.wanted.decode + 1)
        return Decision(sizes, f"{observation.samples[0].output_tokens} tokens")


@pytest.fixture
async def load(cluster: Cluster) -> AsyncIterator[None]:
    """Keep the cluster busy; nothing may fail."""
    busy = steady_load(cluster.url, clients=3)
    answers = busy.__enter__()
    await asyncio.to_thread(answers.first.wait, START_S)
    yield
    await asyncio.to_thread(busy.__exit__, None, None, None)  # the last answers come through this loop's controller
    assert answers.failures == []


async def kill(cluster: Cluster, name: str, number: signal.Signals = signal.SIGKILL) -> None:
    pid = (await cluster.member(name)).pid
    assert pid is not None
    os.kill(pid, number)


async def test_a_killed_worker_leaves_at_once_and_comes_back(cluster: Cluster) -> None:
    await kill(cluster, "decode-1")
    assert await cluster.wait(decode_1="decode 2") < BACK_S
    found = await cluster.member("decode-1")
    assert (found.state, found.epoch, found.num_failures) == ("ready", 2, 1)


async def test_one_that_fails_again_and_again_is_set_aside_and_tried_again(cluster: Cluster) -> None:
    for epoch in (1, 2, 3):
        await cluster.wait(prefill_0=f"prefill {epoch}")
        await kill(cluster, "prefill-0")
        await cluster.wait(prefill_0=None if epoch == 3 else f"prefill {epoch + 1}")
    found = await cluster.member("prefill-0")
    assert (found.state, found.num_failures) == ("set aside", 3)
    assert found.last_log_lines
    await cluster.wait(prefill_0="prefill 4")


async def test_a_worker_whose_host_dies_gets_another_place(cluster: Cluster) -> None:
    host = next(actor for name, actor in cluster.ray.actors.items() if name.startswith("prefill-1"))
    await host.kill()
    await cluster.wait(prefill_1="prefill 2")
    assert cluster.ray.find("prefill-1") is None


async def test_a_host_that_falls_silent_is_given_up_and_its_worker_placed_anew(cluster: Cluster) -> None:
    await cluster.apply("healing.silence_s=1")
    host = next(actor for name, actor in cluster.ray.actors.items() if name.startswith("prefill-1"))
    host.fall_silent()
    await cluster.wait(prefill_1="prefill 2")
    events = [event.what for event in (await cluster.status()).events if event.subject == "prefill-1"]
    assert any(what.startswith("ended: its host has been silent for 1 s; started again") for what in events)


async def test_a_worker_without_a_place_has_a_node_asked_for_and_goes_to_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[int] = []

    def request(bundles: Sequence[Bundle]) -> None:
        requests.append(len(bundles))
        cluster.ray.nodes.append(Node("n2", HERE, {"CPU": 1.0}, {"CPU": 1.0}))

    monkeypatch.setattr(node_request, "request_nodes", request)
    await cluster.apply("ray.wait_for_nodes_s=60")
    cluster.ray.nodes[:] = [Node("n1", HERE, {"CPU": 3.0}, {"CPU": 3.0})]
    host = next(actor for name, actor in cluster.ray.actors.items() if name.startswith("prefill-1"))
    await host.kill()
    await cluster.wait(prefill_1="prefill 2")
    assert requests == [4]
    events = [event.what for event in (await cluster.status()).events if event.subject == "prefill-1"]
    assert "Ray's autoscaler is asked for 4 x (1 CPU)" in events


async def test_a_worker_that_stands_still_is_killed_and_started_again(cluster: Cluster) -> None:
    await cluster.apply("healing.silence_s=1")
    await cluster.controller.drain("decode-1", None, True)  # so that it is started by that
    await cluster.wait(decode_1="decode 2")
    await kill(cluster, "decode-1", signal.SIGSTOP)
    await cluster.wait(decode_1="decode 3")
    events = [event.what for event in (await cluster.status()).events if event.subject == "decode-1"]
    assert any("worker_silent: it gave no sign of life for 1 s and was killed" in what for what in events)


async def test_the_router_comes_back_on_its_port(cluster: Cluster) -> None:
    await kill(cluster, "router")
    await cluster.wait(decode_0="decode 1")  # at the same URL
    assert (await cluster.member("router")).state == "ready"


@pytest.mark.usefixtures("load")
async def test_a_worker_that_gets_a_signal_drains_and_comes_back_without_blame(cluster: Cluster) -> None:
    await kill(cluster, "decode-0", signal.SIGTERM)
    await cluster.wait(decode_0="decode 2")
    assert (await cluster.member("decode-0")).num_failures == 0


@pytest.mark.usefixtures("load")
async def test_a_flip_changes_the_role_and_nothing_else(cluster: Cluster) -> None:
    before = await cluster.member("decode-1")
    epoch = await cluster.controller.flip("decode-1", Role.PREFILL, 5.0, "a test")
    await cluster.done("decode-1", epoch)
    await cluster.wait(decode_1="prefill 1")
    after = await cluster.member("decode-1")
    assert (after.pid, after.role, (await cluster.status()).wanted) == (before.pid, Role.PREFILL, PoolSizes(3, 1))
    await cluster.controller.flip("decode-1", Role.DECODE, 5.0, "a test")
    await cluster.wait(decode_1="decode 1")
    await cluster.settled()


@pytest.mark.usefixtures("load")
async def test_a_drained_worker_is_gone_and_its_pool_smaller(cluster: Cluster) -> None:
    await cluster.done("decode-1", await cluster.controller.drain("decode-1", None, False))
    status = await cluster.status()
    assert [m.name for m in status.members] == ["prefill-0", "prefill-1", "decode-0", "router"]
    assert status.wanted == PoolSizes(2, 1)
    with pytest.raises(ConfigError, match="decode-0 is the only decode worker that is wanted"):
        await cluster.controller.drain("decode-0", None, False)


@pytest.mark.usefixtures("load")
async def test_a_worker_is_replaced(cluster: Cluster) -> None:
    await cluster.done("prefill-0", await cluster.controller.drain("prefill-0", None, True))
    await cluster.wait(prefill_0="prefill 2")
    assert (await cluster.member("prefill-0")).num_failures == 0


@pytest.mark.usefixtures("load")
async def test_changed_sizes_scale(cluster: Cluster) -> None:
    assert await cluster.apply("pools.decode.replicas=3") == ("the decode pool: 2 -> 3",)
    await cluster.wait(decode_2="decode 1")
    assert await cluster.apply() == ("the decode pool: 3 -> 2",)
    await cluster.wait(decode_2=None, decode_1="decode 1")
    assert await cluster.apply() == ()


@pytest.mark.usefixtures("load")
async def test_an_upgrade_without_room_for_a_pair_rolls_pair_by_pair(cluster: Cluster) -> None:
    old = (await cluster.member("decode-0")).fingerprint
    await cluster.apply("model.block_size=64")
    await cluster.wait(prefill_0="prefill 2", prefill_1="prefill 2", decode_0="decode 2", decode_1="decode 2")
    workers = [m for m in (await cluster.status()).members if m.role]
    assert len({m.fingerprint for m in workers} | {old}) == 2


@pytest.mark.usefixtures("load")
async def test_an_upgrade_with_room_starts_a_new_pair_first(cluster: Cluster) -> None:
    cluster.ray.nodes[0].total["CPU"] = cluster.ray.nodes[0].free["CPU"] = 8  # type: ignore[index]
    await cluster.apply("model.block_size=64")
    status = await cluster.status()
    assert len({m.fingerprint for m in status.members if m.role}) == 1
    assert len([m for m in status.members if m.role]) == 4
    assert {m.name for m in status.members} != {"prefill-0", "prefill-1", "decode-0", "decode-1", "router"}


async def test_what_does_not_fit_is_refused_before_anything_starts(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match=r"pools\.decode: the cluster has room for 3 of 4 workers"):
        await cluster.apply("pools.decode.replicas=4")
    with pytest.raises(ConfigError, match="room for 2 of 3 workers"):
        await cluster.apply("pools.decode.replicas=3", "pools.decode.cpus=100")
    assert (await cluster.status()).wanted == PoolSizes(2, 2)


async def test_a_plan_of_an_upgrade_changes_nothing(cluster: Cluster) -> None:
    lines = await cluster.apply("model.block_size=64", "slo.classes.interactive.ttft_ms=5", only_plan=True)
    assert len(lines) == 2
    await cluster.settled()
    assert set((await cluster.serving()).values()) == {"prefill 1", "decode 1"}


async def test_other_promises_restart_the_router_on_its_port(cluster: Cluster) -> None:
    pid = (await cluster.member("router")).pid
    assert "the router starts again on its port" in (await cluster.apply("slo.classes.interactive.ttft_ms=5000"))[0]
    await cluster.wait(decode_0="decode 1")
    assert (await cluster.member("router")).pid != pid
    assert await cluster.apply("slo.classes.interactive.ttft_ms=5000") == ()


@pytest.mark.usefixtures("load")
async def test_a_controller_made_anew_takes_up_what_is_there(cluster: Cluster) -> None:
    await cluster.done("decode-1", await cluster.controller.flip("decode-1", Role.PREFILL, 5.0, "a test"))
    await asyncio.sleep(0.1)  # what was changed is on disk 50 ms later
    before = await cluster.status()
    await cluster.make_anew()
    after = await cluster.status()
    assert [(m.name, m.role, m.state, m.pid, m.epoch) for m in after.members[:-1]] == [
        (m.name, m.role, m.state, m.pid, m.epoch) for m in before.members[:-1]
    ]
    assert after.wanted == PoolSizes(3, 1)
    assert after.membership_address == before.membership_address
    assert after.membership_version > before.membership_version
    await cluster.done("prefill-0", await cluster.controller.drain("prefill-0", None, True))
    await cluster.wait(prefill_0="prefill 2", decode_1="prefill 1")


async def test_a_worker_that_died_while_there_was_no_controller_comes_back(cluster: Cluster) -> None:
    await asyncio.sleep(0.1)  # what was changed is on disk 50 ms later
    pid = (await cluster.member("decode-0")).pid
    assert pid is not None
    making = asyncio.create_task(cluster.make_anew())
    os.kill(pid, signal.SIGKILL)
    await making
    await cluster.wait(decode_0="decode 2", decode_1="decode 1")


async def test_a_decider_is_told_of_the_traffic_and_obeyed(cluster: Cluster) -> None:
    await cluster.apply("scaling.mode=auto", "scaling.interval_s=1")
    with steady_load(cluster.url, clients=2, tokens=7):
        await cluster.wait(decode_2="decode 1")
    status = await cluster.status()
    assert status.wanted == PoolSizes(2, 3)
    assert (status.decisions[-1].by, status.decisions[-1].reason) == ("decider", "7 tokens")


async def test_pools_grow_to_their_configured_size_on_nodes_that_are_made_for_them(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def request(bundles: Sequence[Bundle]) -> None:
        cluster.ray.nodes.append(Node("n2", HERE, {"CPU": 1.0}, {"CPU": 1.0}))

    monkeypatch.setattr(node_request, "request_nodes", request)
    cluster.ray.nodes[:] = [Node("n1", HERE, {"CPU": 4.0}, {"CPU": 4.0})]
    await cluster.apply("ray.wait_for_nodes_s=60", "scaling.mode=auto", "scaling.interval_s=1", "scaling.decode.max=3")
    with steady_load(cluster.url, clients=2, tokens=7):
        await cluster.wait(decode_2="decode 1")
    assert (await cluster.status()).wanted == PoolSizes(2, 3)


async def test_a_flip_is_a_decision_with_its_time_in_status_record_and_at_the_router(cluster: Cluster) -> None:
    epoch = await cluster.controller.flip("decode-1", Role.PREFILL, 0.0, "a test")
    await cluster.done("decode-1", epoch)
    found = await cluster.controller.progress_of("decode-1", epoch, 0.0)
    assert found.took_s is not None
    status = await cluster.status()
    (made,) = status.decisions
    assert (made.by, made.wanted, made.flips) == ("operator", PoolSizes(3, 1), ("decode-1 becomes prefill",))
    taken = [event.took_s for event in status.events if "is a prefill worker" in event.what]
    assert taken == [found.took_s]
    await cluster.settled()
    async with (
        httpx.AsyncClient(timeout=BACK_S) as client,
        client.stream("GET", cluster.url + "/console/events") as told,
    ):
        async for line in told.aiter_lines():
            update = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if update.get("decisions"):
                break
    assert update["decisions"][0]["text"] == "operator: 3 prefill, 1 decode; decode-1 becomes prefill"
    await asyncio.sleep(0.1)  # what was changed is on disk 50 ms later
    await cluster.make_anew()
    (kept,) = (await cluster.status()).decisions
    assert (kept.number, kept.flips) == (1, made.flips)
    assert kept.took_s == pytest.approx(found.took_s, abs=1.0)


async def test_without_a_decision_the_router_is_not_asked_for_its_traffic(cluster: Cluster) -> None:
    asked: list[object] = []
    cluster.controller._observer.observe = lambda *_: asked.append(_)  # type: ignore[assignment,func-returns-value]
    await cluster.apply("scaling.interval_s=1")
    await asyncio.sleep(2.5)  # two intervals
    assert asked == []
    assert (await cluster.status()).scaling == "off"


async def test_the_only_ready_worker_of_a_role_is_not_flipped(cluster: Cluster) -> None:
    await cluster.done("prefill-1", await cluster.controller.drain("prefill-1", 0.0, False))
    with pytest.raises(ConfigError, match="prefill-0 is the only prefill worker that is ready"):
        await cluster.controller.flip("prefill-0", Role.DECODE, 0.0, "a test")
    with pytest.raises(ConfigError, match="decode-0 is a decode worker already"):
        await cluster.controller.flip("decode-0", Role.DECODE, 0.0, "a test")
    with pytest.raises(ConfigError, match="there is no worker 'decode-7'"):
        await cluster.controller.flip("decode-7", Role.DECODE, 0.0, "a test")


async def test_a_worker_that_cannot_start_fails_the_start_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "config.json").write_text("{}")
    ray = LocalRay(cpus=5)
    ray.install(monkeypatch)
    made = config(tmp_path)
    order = order_of(made, ray.nodes, tmp_path, engine_args=("--no-such-flag",))
    controller = Controller(order)
    try:
        with pytest.raises(StartFailed, match="unknown flags --no-such-flag"):
            await asyncio.create_task(controller.start(START_S))
    finally:
        await controller.stop(0.0)
