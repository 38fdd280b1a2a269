"""Scrape configuration and rules: of metrics that are exported, and firing when they should and not else.

What promtool says counts where it is installed (Debian: prometheus); names, labels and the form of /metrics are checked
everywhere.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.metrics import METRICS
from tests.support.exported import kv_metrics, router_metrics
from tests.support.promql import Exported, labels_grouped_by

_FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "prometheus"
_PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(_PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")


_H = "# HELP h H.\n# TYPE h histogram\n"


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((_FOLDER / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def promtool(*words: str, text: str | None = None) -> str:
    """Run promtool and give what it says; it must find nothing wrong."""
    assert _PROMTOOL is not None
    done = subprocess.run([_PROMTOOL, *words], input=text, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


async def test_every_metric_and_label_of_a_rule_is_exported(tmp_path: Path) -> None:
    exported = Exported(await router_metrics(), kv_metrics(tmp_path))
    for rule in rules():
        if "record" in rule:
            exported.add_rule(rule["record"], {"class"})
    found = [
        f"{rule.get('alert', rule.get('record'))}: {fault}"
        for rule in rules()
        for fault in exported.faults(rule["expr"])
    ]
    assert not found, "\n".join(found)


def test_alerts_say_what_is_wrong_and_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) >= 10
    for rule in alerts:
        assert rule["labels"]["severity"] in ("page", "ticket")
        words = rule["annotations"]["summary"] + rule["annotations"]["description"]
        named = set(re.findall(r"\$labels\.(\w+)", words))
        assert named <= labels_grouped_by(rule["expr"]) | {"class", "instance"}, rule["alert"]


def test_workers_are_found_through_the_router() -> None:
    config = yaml.safe_load((_FOLDER / "prometheus.yaml").read_text(encoding="utf-8"))
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    [router] = jobs["baton"]["static_configs"][0]["targets"]
    assert jobs["baton-workers"]["http_sd_configs"][0]["url"] == f"http://{router}/metrics/workers"
    assert all((_FOLDER / file).is_file() for file in config["rule_files"])


async def test_metrics_have_the_form_that_prometheus_wants() -> None:
    """By the text format's own rules: each family once, HELP and TYPE before its samples, histograms cumulative."""
    text = await router_metrics()
    assert text.endswith("\n")
    assert _faults_of_form(text) == []
    helps = re.findall(r"^# HELP (\S+) ", text, re.MULTILINE)
    assert sorted(helps) == sorted(metric.name for metric in METRICS)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("# TYPE a counter\na 1\n", "a: no HELP before its first sample"),
        ("# HELP a A.\na 1\n", "a: no TYPE before its first sample"),
        ("# HELP a A.\n# TYPE a gauge\na 1\na 2\n", "a: twice"),
        ('# HELP a A.\n# TYPE a gauge\na 1\n# HELP b B.\n# TYPE b gauge\nb 1\na{x="1"} 2\n', "a: not together"),
        (
            '# HELP h H.\n# TYPE h histogram\nh_bucket{le="1"} 2\nh_bucket{le="+Inf"} 1\nh_sum 1\nh_count 1\n',
            "h: falls",
        ),
        (_H + 'h_bucket{le="1"} 2\nh_sum 1\nh_count 2\n', "h: no bucket +Inf"),
        (_H + 'h_bucket{le="+Inf"} 1\nh_sum 1\nh_count 2\n', "h: count is not +Inf's"),
    ],
)
def test_the_check_of_form_sees(text: str, fault: str) -> None:
    assert fault in _faults_of_form(text)


_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(\{[^}]*\})? (-?[0-9.e+-]+|NaN|[+-]Inf)\Z")


def _faults_of_form(text: str) -> list[str]:
    faults, kinds, helps, seen, latest = [], {}, set(), set(), ""  # type: ignore[var-annotated]
    families: list[str] = []
    buckets: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helps.add(line.split(" ")[2])
            continue
        if line.startswith("# TYPE "):
            kinds[line.split(" ")[2]] = line.split(" ")[3]
            continue
        found = _SAMPLE.match(line)
        if found is None:
            faults.append(f"no sample: {line}")
            continue
        name, labels, value = found[1], found[2] or "", found[3]
        base = re.sub(r"_(bucket|sum|count)\Z", "", name)
        family = base if kinds.get(base) == "histogram" else name
        if family != latest:
            if family in families:
                faults.append(f"{family}: not together")
            families.append(family)
            latest = family
        faults += [
            f"{family}: no {what} before its first sample"
            for what, known in (("HELP", helps), ("TYPE", kinds))
            if family not in known
        ]
        if (name, labels) in seen:
            faults.append(f"{family}: twice")
        seen.add((name, labels))
        if kinds.get(family) == "histogram":
            _take_bucket(buckets, name, labels, float(value))
    return faults + _faults_of_histograms(buckets)


def _take_bucket(buckets: dict[tuple[str, str], list[tuple[str, float]]], name: str, labels: str, value: float) -> None:
    base, _, part = name.rpartition("_")
    edge = re.search(r'le="([^"]+)"', labels)
    rest = ",".join(sorted(label for label in labels.strip("{}").split(",") if label and not label.startswith("le=")))
    if part in ("bucket", "count"):
        buckets.setdefault((base, rest), []).append((edge[1] if edge else part, value))


def _faults_of_histograms(buckets: dict[tuple[str, str], list[tuple[str, float]]]) -> list[str]:
    faults = []
    for (base, _), found in buckets.items():
        rising = [value for edge, value in found if edge != "count"]
        if rising != sorted(rising):
            faults.append(f"{base}: falls")
        values = dict(found)
        if "+Inf" not in values:
            faults.append(f"{base}: no bucket +Inf")
        elif values["+Inf"] != values.get("count"):
            faults.append(f"{base}: count is not +Inf's")
    return faults


@needs_promtool
async def test_promtool_finds_nothing_wrong_with_metrics(tmp_path: Path) -> None:
    for text in (await router_metrics(), kv_metrics(tmp_path)):
        assert promtool("check", "metrics", text=text) == ""


@needs_promtool
def test_promtool_takes_the_configuration() -> None:
    assert "SUCCESS" in promtool("check", "config", str(_FOLDER / "prometheus.yaml"))


@needs_promtool
def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    cases = Path(__file__).with_name("alerts_test.yaml").read_text(encoding="utf-8")
    file = tmp_path / "alerts_test.yaml"
    file.write_text(cases.replace("RULES", str(_FOLDER / "alerts.yaml")))
    assert "SUCCESS" in promtool("test", "rules", str(file))
