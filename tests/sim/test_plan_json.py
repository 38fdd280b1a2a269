"""A plan as JSON is valid JSON with everything that the text says."""

from __future__ import annotations

import json
from dataclasses import replace

from core.config.models import PoolsConfig
from sim.cluster import LinkSpec
from sim.faster_link import FasterLink
from sim.plan import Interval, RatePoint, Shortfall, Verdict
from sim.plan_json import plan_json
from tests.support.plans import BATCH, CHAT, SETTING, apart, candidate, plan, question, together


def test_a_plan_is_json_even_where_numbers_are_not_finite() -> None:
    cluster = replace(apart(), link=LinkSpec(bytes_per_s=float("inf")))
    p_d = candidate(cluster, (13.1, 14.2, float("inf")), classes=2)
    one = candidate(together(), (10.0, 11.0, 12.0), classes=2, group=(0,))
    answer = plan(p_d=p_d, one=one, front=(p_d,), curve=(RatePoint(2, (1.0, 0.9), 2.0),))
    value = plan_json(answer, question(CHAT, BATCH, rate=12.0), SETTING, PoolsConfig())
    text = json.loads(json.dumps(value, allow_nan=False))
    assert (text["ok"], text["verdict"], text["rate"]) == (True, "P/D pays", 12.0)
    assert text["best"] == text["best_disaggregated"] == text["front"][0]
    assert (text["best"]["mode"], text["best"]["gpus"]) == ("disaggregated", 8)
    assert text["best"]["goodput"] == {"low": 13.1, "mid": 14.2, "high": None}
    assert text["best"]["link"]["bytes_per_s"] is None
    assert text["best"]["attainment"]["batch"] == {"low": 0.88, "mid": 0.912, "high": 0.94}
    assert (text["best_one_pool"]["prefill"], text["best_one_pool"]["link"]) == (None, None)
    assert text["curve"] == [{"rate": 2, "goodput": 2.0, "attainment": {"chat": 1.0, "batch": 0.9}}]
    assert text["pools"]["decode"]["replicas"] == 1
    assert text["promise"][1] == {"class": "batch", "ttft_ms": 10000.0, "tpot_ms": 200.0, "attainment": 0.8}


def test_the_ratio_of_both_kinds_is_told_with_what_it_is_about() -> None:
    found = plan(verdict=Verdict.UNCLEAR, ratio=Interval(0.8, 1.3, float("inf")), own_policy=(13.0, 10.0))
    value = plan_json(found, question(), SETTING, None)
    assert value["verdict"] == "no clear difference"
    assert value["ratio"] == {"low": 0.8, "mid": 1.3, "high": None}
    assert value["own_policy"] == {"disaggregated": 13.0, "one_pool": 10.0}
    alone = plan_json(plan(), question(), SETTING, None)
    assert (alone["ratio"], alone["own_policy"]) == (None, None)


def test_a_shortfall_is_told_in_full() -> None:
    short = Shortfall("chat.tpot_ms", (replace(CHAT, tpot_s=0.05),), None, "why")
    value = plan_json(plan(verdict=Verdict.INFEASIBLE, shortfall=short), question(), SETTING, None)
    assert (value["ok"], value["best"], value["pools"]) == (False, None, None)
    assert value["shortfall"] == {
        "binding": "chat.tpot_ms",
        "reason": "why",
        "nearest": [{"class": "chat", "ttft_ms": 400.0, "tpot_ms": 50.0, "attainment": 0.9}],
        "feasible_rate": None,
    }


def test_the_link_that_would_change_the_verdict_is_told() -> None:
    answer = plan(verdict=Verdict.ONE_POOL, one=candidate(together(), (10.0, 11.0, 12.0), group=(0,)))
    assert plan_json(answer, question(), SETTING, None)["faster_link"] is None
    nothing = plan_json(answer, question(), SETTING, None, FasterLink(50e9, None, pays=False))["faster_link"]
    assert nothing == {"bytes_per_s": 50e9, "pays": False, "candidate": None}
