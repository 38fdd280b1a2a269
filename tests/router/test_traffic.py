"""What the router tells of its traffic: each ended request once, counts that only grow, the load as it is."""

from __future__ import annotations

import itertools

import orjson
from pydantic import TypeAdapter

from core.control.actions import MAX_SAMPLES, MeasuredCosts, RequestSample
from core.latency.step import StepCost, Table
from core.policy.context import PolicyContext, PoolFacts
from core.router_spec import SLOTarget
from core.types import ClusterView, HeldWork, LegFacts, Role
from router.record import RequestRecord
from router.traffic import TrafficMeter
from tests.support.views import worker

CHAT = SLOTarget("chat", 1.0, 0.1)
NOBODY = ClusterView()
NOTHING = PolicyContext()  # is known of costs


def ended(meter: TrafficMeter, *, arrived_s: float = 1.0, kept: bool | None = True, outcome: str = "ok") -> None:
    record = RequestRecord("r", "", CHAT, arrived_s)
    record.kept, record.outcome, record.output_tokens = kept, outcome, 9
    record.ttft_s, record.tpot_s, record.waited_s = 0.5, 0.05, 0.1
    record.prefill_facts = LegFacts(prompt_tokens=100, cached_tokens=64)
    meter.began(record)
    meter.ended(record)


def test_a_sample_is_what_deciders_take() -> None:
    meter = TrafficMeter((CHAT,))
    ended(meter)
    (raw,) = orjson.loads(orjson.dumps(meter.report(NOBODY, 0, NOTHING)))["samples"]
    assert RequestSample(*raw) == RequestSample(1.0, "chat", 100, 64, 9, 0.5, 0.05, 0.1, True, "ok")


def test_only_what_ended_after_is_told() -> None:
    meter = TrafficMeter((CHAT,))
    for arrived_s in range(5):
        ended(meter, arrived_s=arrived_s)
    told = meter.report(NOBODY, 3, NOTHING)
    assert [sample[0] for sample in told["samples"]] == [3, 4]  # type: ignore[attr-defined]
    assert (told["number"], told["num_ended"]) == (5, 2)
    assert meter.report(NOBODY, 5, NOTHING)["samples"] == []
    assert meter.report(NOBODY, 99, NOTHING)["samples"] == []  # of a router that was there before


def test_of_too_many_an_even_choice_is_told() -> None:
    meter = TrafficMeter((CHAT,))
    for arrived_s in range(3 * MAX_SAMPLES):
        ended(meter, arrived_s=arrived_s)
    told = meter.report(NOBODY, 0, NOTHING)
    arrivals = [sample[0] for sample in told["samples"]]  # type: ignore[attr-defined]
    assert len(arrivals) <= MAX_SAMPLES
    assert {after - before for before, after in itertools.pairwise(arrivals)} == {2}
    assert told["num_ended"] == 3 * MAX_SAMPLES


def test_classes_are_counted() -> None:
    meter = TrafficMeter((CHAT,))
    ended(meter)
    ended(meter, kept=False)
    ended(meter, kept=False, outcome="rejected")
    ended(meter, kept=None, outcome="client_gone")
    (counted,) = meter.report(NOBODY, 0, NOTHING)["classes"]  # type: ignore[misc]
    assert {name: counted[name] for name in ("num_arrived", "num_ended", "num_kept", "num_refused")} == {
        "num_arrived": 4, "num_ended": 3, "num_kept": 1, "num_refused": 1,
    }  # fmt: skip


def test_the_load_is_that_of_the_view() -> None:
    view = ClusterView(
        (worker("decode-0", Role.DECODE, tokens=70, context=300, num_running=4),), HeldWork((5.0, 9.0), (0, 10, 30))
    )
    told = TrafficMeter((CHAT,)).report(view, 0, NOTHING)
    assert told["workers"]["decode-0"]["owed_prompt_tokens"] == 70  # type: ignore[index]
    assert told["workers"]["decode-0"]["num_running"] == 4  # type: ignore[index]
    assert (told["num_held"], told["held_tokens"]) == (2, 30)
    assert isinstance(told["least_slack_s"], float)


def test_costs_are_told_once_those_of_both_pools_are_known() -> None:
    cost = StepCost(Table.line(0.01, 1e-4), Table.constant(0.0), Table.line(0.02, 1e-4), Table.constant(1e-7))
    meter = TrafficMeter((CHAT,))
    assert meter.report(NOBODY, 0, NOTHING)["costs"] is None
    one = PolicyContext(pools={Role.PREFILL: PoolFacts(cost)})
    assert meter.report(NOBODY, 0, one)["costs"] is None
    both = PolicyContext(pools={role: PoolFacts(cost) for role in Role}, request_overhead_s=0.03)
    raw = orjson.loads(orjson.dumps(meter.report(NOBODY, 0, both)["costs"]))
    assert TypeAdapter(MeasuredCosts).validate_python(raw) == MeasuredCosts(cost, cost, 0.03)
