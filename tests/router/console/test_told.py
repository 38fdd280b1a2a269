"""What the console shows, from the values that it is made of."""

from __future__ import annotations

from core.policy.calibration import Coverage
from core.router_spec import SLOTarget
from core.types import Rejection, Role, Route, WorkerRecord
from router.console.history import History
from router.console.told import (
    MAX_SAMPLE,
    class_told,
    ended_lately,
    request_told,
    transfers_told,
    workers_told,
)
from router.record import RequestRecord
from tests.support.records import FORECAST, ROUTE, SLO, begun, held, routed, shape, streamed
from tests.support.views import worker


def test_workers_come_by_role_and_number_and_missing_ones_are_shown() -> None:
    connected = (worker("decode-10", Role.DECODE, num_running=3), worker("decode-2", Role.DECODE, draining=True))
    announced = [WorkerRecord(f"prefill-{n}", Role.PREFILL, 1, "127.0.0.1:1", "n") for n in (0, 1)]
    found = workers_told(connected, announced, lambda worker_id: "open" if worker_id == "decode-2" else "closed")
    assert [(w["id"], w["up"]) for w in found] == [
        ("prefill-0", False),
        ("prefill-1", False),
        ("decode-2", True),
        ("decode-10", True),
    ]
    assert (found[2]["draining"], found[2]["breaker"], found[3]["running"]) == (True, "open", 3)


def under_way(request_id: str, route: Route = ROUTE) -> RequestRecord:
    record = routed(begun(request_id), route)
    record.is_handing_over = True
    return record


def test_hand_overs_are_counted_by_pair_while_they_run() -> None:
    done = routed(begun("r4"))
    alone = routed(begun("r5"), Route("decode-0", None, "short"))
    other = ROUTE._replace(decode="decode-1")
    running = [under_way("r1"), under_way("r2", other), under_way("r3"), done, alone]
    assert transfers_told(running, 10.102) == [
        {"prefill": "prefill-0", "decode": "decode-0", "count": 2, "oldest_ms": 100.0},
        {"prefill": "prefill-0", "decode": "decode-1", "count": 1, "oldest_ms": 100.0},
    ]


def test_a_request_tells_its_way_and_its_times() -> None:
    told = request_told(streamed(routed(begun(tenant="acme"))), epoch_s=1000.0, now_s=70.0, with_tenant=True)
    assert (told["tenant"], told["verdict"], told["state"], told["at"]) == ("acme", "kept", "kept", 940.0)
    assert (told["prefill"], told["decode"], told["prompt_tokens"]) == ("prefill-0", "decode-0", 512)
    assert (told["ttft_ms"], told["tpot_ms"], told["total_ms"]) == (80.0, 20.0, 460.0)
    assert sum(told["stages_us"]) == 80_000
    assert request_told(streamed(routed(begun(tenant="acme"))), epoch_s=0, now_s=0, with_tenant=False)["tenant"] == ""


def test_a_running_request_tells_how_long_it_has_run() -> None:
    told = request_told(held(begun()), epoch_s=1000.0, now_s=10.5, with_tenant=False)
    assert (told["running"], told["state"], told["total_ms"], told["ttft_ms"]) == (True, "running", 500.0, None)
    assert told["prompt_tokens"] == shape().prompt_tokens


def test_a_refused_request_tells_why() -> None:
    record = routed(begun(), Rejection("slo_infeasible", "no route keeps the TTFT"))  # type: ignore[arg-type]
    record.ended(10.01, first_s=None)
    record.outcome, record.kept, record.refusal, record.error = "rejected", False, "slo_infeasible", "long words"
    told = request_told(record, epoch_s=0.0, now_s=11.0, with_tenant=False)
    assert (told["verdict"], told["state"], told["rejected"]) == ("refused", "missed", True)
    assert told["reason"] == "slo_infeasible: no route keeps the TTFT"


def test_a_class_tells_its_promise_beside_what_came() -> None:
    history, latest = History(), [streamed(routed(begun(f"r{n}"))) for n in range(3)]
    latest[0].ttft_s = 0.3
    for record in latest:
        history.ended(record)
    doubt = Coverage("chat", "ttft", 200, 0.5, (0.85, 0.95), 4.0, 3.0, False, "off by 3")
    fine = Coverage("chat", "tpot", 200, 0.9, (0.85, 0.95), 1.0, 1.0, True, "good")
    told = class_told(SLO, history, None, now_s=15.0, up_s=5.0, latest=latest, coverage=(doubt, fine))
    assert (told["name"], told["target"], told["ttft_ms"], told["tier"]) == ("chat", 0.9, 100.0, "standard")
    assert told["now"]["attainment"] == 1.0
    assert told["now"]["goodput"] == 0.6  # three in the five seconds that the router has been up
    assert told["now"]["tokens_per_s"] == 12.0
    assert sum(told["now"]["stages_ms"]) == 80.0
    assert (told["ttft"], told["tpot"]) == ([80.0, 300.0], [20.0, 20.0])
    assert told["doubts"] == ["TTFT: off by 3"]
    quiet = class_told(SLOTarget("batch", 1.0, 1.0), history, None, now_s=15.0, up_s=5.0, latest=latest, coverage=())
    assert (quiet["now"]["attainment"], quiet["ttft"], quiet["doubts"]) == (None, None, [])


def test_percentiles_are_of_the_last_minute_and_of_so_many_at_most() -> None:
    running, recent, old = routed(begun()), streamed(routed(begun())), streamed(routed(begun()))
    recent.marks.ended_s, old.marks.ended_s = 100.0, 39.0
    assert ended_lately([running, recent, recent, old, recent], 100.0) == [recent, recent]
    assert len(ended_lately([recent] * (MAX_SAMPLE + 5), 100.0)) == MAX_SAMPLE
    assert FORECAST.ttft_s > 0
