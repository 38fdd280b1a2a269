"""Flags find the router that runs, and the promise of a configuration."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from bench.serving import flags
from bench.serving.metrics import Targets, promises
from cluster.state import STATE_DIR_VARIABLE, ClusterRecord, ProcessIdentity, StateDir


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    flags.add_endpoint_flags(parser)
    flags.add_load_flags(parser)
    flags.add_goodput_flags(parser)
    return parser.parse_args(words)


def test_without_a_url_the_router_of_this_checkout_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE_DIR_VARIABLE, str(tmp_path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert flags.endpoint_from(options(), None).url == flags.DEFAULT_URL
    starter = ProcessIdentity.of(os.getpid())
    assert starter is not None
    (tmp_path / "operator.key").write_text("of-the-run\n")
    record = ClusterRecord("", False, str(tmp_path), None, starter, url="http://127.0.0.1:4321")
    StateDir.find(os.environ).write(record)
    found = flags.endpoint_from(options("--header", "x-a=b=c"), None)
    assert (found.url, found.key, found.headers) == ("http://127.0.0.1:4321", "of-the-run", (("x-a", "b=c"),))
    assert flags.endpoint_from(options(), "http://a:1").key == ""


def test_the_promise_of_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "slo: {classes: {a: {ttft_ms: 5, tpot_ms: 2, attainment: 0.99}, b: {ttft_ms: 9, tpot_ms: 3}}, default: b}\n"
    )
    found = flags.spec_from(options("--slo", str(file))).targets
    assert promises(found) == {"a": Targets(5, 2, attainment=0.99), "b": Targets(9, 3)}
    assert found[""] is found["b"]
    assert flags.spec_from(options("--goodput", "ttft:3")).targets == {"": Targets(3)}
    assert flags.spec_from(options()).targets == {}


def test_traces_keep_their_times_unless_told_otherwise() -> None:
    assert flags.spec_from(options("--dataset-name", "chat")).shape.keeps_times
    assert not flags.spec_from(options("--dataset-name", "chat", "--no-self-timed")).shape.keeps_times
    assert not flags.spec_from(options()).shape.keeps_times
