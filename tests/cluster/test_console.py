"""What commands print, by example."""

from __future__ import annotations

import io
import json
from dataclasses import replace

from cluster.cluster_status import ClusterEvent, ClusterStatus, DecisionStatus, MemberStatus
from cluster.console import (
    Console,
    PredictionReport,
    PromiseReport,
    RouterLoad,
    RouterReport,
    ready_lines,
    status_lines,
)
from core.config.models import BatonConfig, RouterConfig
from core.control.actions import PoolSizes
from core.types import Role

STATUS = ClusterStatus(
    model="demo",
    membership_version=3,
    membership_address="127.0.0.1:4000",
    members=(
        MemberStatus(
            "prefill-0", Role.PREFILL, "vm (::1)", "ready", epoch=1, pid=11, address="127.0.0.1:1",
            fingerprint="db36a794", cores=(0, 1), log_path="/r/prefill-0.log",
        ),
        MemberStatus(
            "decode-0", Role.DECODE, "vm (::1)", "ended", epoch=1, pid=12, log_path="/r/decode-0.log",
            reason="exited with -9",
        ),
        MemberStatus("router", None, "127.0.0.1", "ready", pid=13, address="127.0.0.1:8000", log_path="/r/router.log"),
    ),
    events=(ClusterEvent(7, 12.34, "decode-0", "ended: exited with -9", is_failure=True),),
)  # fmt: skip
REPORT = RouterReport("degraded", "no decode worker", {"prefill-0": RouterLoad(2, 1, 30, 4096, draining=False)})


def test_status_is_a_table_with_what_happened() -> None:
    assert status_lines(STATUS, REPORT, url="http://127.0.0.1:8000", ray_tools="127.0.0.1:5000") == [
        "demo at http://127.0.0.1:8000: degraded (no decode worker)",
        "",
        "NAME       STATE  EPOCH  PID  PAIRING   RUNNING  WAITING  KV BLOCKS  ADDRESS         NODE",
        "prefill-0  ready  1      11   db36a794  2        1        30/4096    127.0.0.1:1     vm (::1), cores 0, 1",
        "decode-0   ended  1      12   -         -        -        -          -               vm (::1)",
        "router     ready  -      13   -         -        -        -          127.0.0.1:8000  127.0.0.1",
        "",
        "decode-0 ended: exited with -9; log: /r/decode-0.log",
        "",
        "Ray      127.0.0.1:5000",
        "members  version 3",
        "",
        "last events:",
        "      12.3 s  decode-0: ended: exited with -9",
    ]


def test_status_says_how_promises_are_kept_and_when_predictions_are_not_trusted() -> None:
    ttft = PredictionReport(
        "ttft", 0.62, (0.85, 0.95), 4.2, False, "the median outcome is 3.10 times the prediction", True
    )
    tpot = PredictionReport("tpot", 0.91, (0.85, 0.95), 1.0, True, "182 of the latest 200 outcomes")
    promises = (
        PromiseReport("chat", 0.9, 0.875, 0.931, (ttft, tpot)),
        PromiseReport("batch", 0.9, None, None, (PredictionReport("ttft", None, (0, 1), 1.0, False, ""),)),
        PromiseReport("blind", 0.9, 1.0, 1.0, ()),
    )
    lines = status_lines(STATUS, replace(REPORT, promises=promises), url="", ray_tools="none")
    at = next(i for i, line in enumerate(lines) if line.startswith("CLASS"))
    assert lines[at : at + 5] == [
        "CLASS  PROMISED  KEPT 60 S  KEPT 1 H  TTFT IN INTERVAL               TPOT IN INTERVAL  PREDICTIONS",
        "chat   90.0%     87.5%      93.1%     62% (85% - 95%, widened 4.2x)  91% (85% - 95%)   not trusted",
        "batch  90.0%     -          -         -                              -                 not known yet",
        "blind  90.0%     100.0%     100.0%    -                              -                 -",
        "chat: admission goes by what is measured, for TTFT predictions are not trusted: "
        "the median outcome is 3.10 times the prediction",
    ]


def test_status_says_why_planned_pools_are_what_they_are() -> None:
    lines = status_lines(STATUS, REPORT, url="", ray_tools="none", plan=("P/D pays", "2 requests/s per worker"))
    at = lines.index("planned: P/D pays")
    assert lines[at - 1 : at + 3] == ["", "planned: P/D pays", "  2 requests/s per worker", ""]


def test_status_says_what_was_decided_about_the_pools_and_what_came_of_it() -> None:
    sizes = PoolSizes(2, 1)
    decisions = (
        DecisionStatus(1, 5.0, 1e9, "operator", sizes, (), "asked for", {}, "done in 2.0 s", 2.0),
        DecisionStatus(
            2, 9.0, 1e9, "decider", sizes, ("decode-1 becomes prefill",), "2P1D are needed", {},
            "done in 3.1 s; SLO kept by 70.0% of 50 before, SLO kept by 96.0% of 60 after", 3.1, "better",
        ),
        DecisionStatus(3, 11.0, 1e9, "decider", sizes, (), "under way", {}),
    )  # fmt: skip
    status = replace(STATUS, scaling="auto", decisions=decisions)
    lines = status_lines(status, REPORT, url="", ray_tools="none")
    at = lines.index("scaling  auto")
    assert lines[at + 1 : at + 9] == [
        "",
        "last decisions:",
        "       5.0 s  operator: 2 prefill, 1 decode: asked for",
        "              done in 2.0 s",
        "       9.0 s  decider: 2 prefill, 1 decode; decode-1 becomes prefill: 2P1D are needed",
        "              done in 3.1 s; SLO kept by 70.0% of 50 before, SLO kept by 96.0% of 60 after; better",
        "      11.0 s  decider: 2 prefill, 1 decode: under way",
        "",
    ]


def test_the_ready_block_holds_all_that_is_needed() -> None:
    lines = ready_lines(
        BatonConfig(),
        STATUS,
        url="http://h:1",
        curl="curl http://h:1",
        run_dir="/r",
        ray_tools="none",
        stop="Stop: down",
    )
    assert lines[:2] == ["Ready: http://h:1", "  model      demo"]
    assert "  promise    interactive: TTFT 1000 ms, TPOT 100 ms, 90% of requests" in lines
    curl = lines.index("curl http://h:1/v1/completions -H 'Content-Type: application/json' \\")
    body = json.loads(lines[curl + 1].partition("'")[2].rstrip("'"))
    assert body == {"model": "demo", "prompt": "To be, or not to be", "max_tokens": 16}
    assert lines[-1] == "Stop: down"


def test_the_ready_block_says_where_the_key_goes_that_a_router_asks_for() -> None:
    config = BatonConfig(router=RouterConfig(tenants="tenants.yaml"))
    lines = ready_lines(
        config, STATUS, url="https://h:1", curl="curl --cacert c https://h:1", run_dir="/r", ray_tools="", stop=""
    )
    curl = lines.index("curl --cacert c https://h:1/v1/completions -H 'Content-Type: application/json' \\")
    assert lines[curl + 1] == '  -H "Authorization: Bearer $BATON_API_KEY" \\'


def test_json_alone_goes_to_stdout() -> None:
    out, err = io.StringIO(), io.StringIO()
    console = Console(as_json=True, out=out, err=err)
    console.stage("ray", "started\nsecond line")
    console.result({"ok": True})
    assert json.loads(out.getvalue()) == {"ok": True}
    first, second = err.getvalue().splitlines()
    assert first.endswith(" s  ray          started")
    assert second.endswith("second line")
    assert first.index("started") == second.index("second line")


def test_plain_text_goes_to_stdout_without_json() -> None:
    out, err = io.StringIO(), io.StringIO()
    console = Console(as_json=False, out=out, err=err)
    console.block(["Ready"])
    console.result({"ok": True})
    assert (out.getvalue(), err.getvalue()) == ("\nReady\n\n", "")
