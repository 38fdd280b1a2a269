"""`baton prove` finds what runs, chooses traffic by the configuration, and tells by its exit code."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import prove_command
from cluster.state import STATE_DIR_VARIABLE, ClusterRecord, ProcessIdentity, StateDir
from core.config.load import load_config
from core.errors import ConfigError, NotRunning
from core.router_spec import SLOTarget
from tests.support.html_pages import check
from tests.support.site_thread import SiteThread

CONFIG = """
model: {path: sim, max_model_len: 4096}
slo: {classes: {interactive: {ttft_ms: %s, tpot_ms: %s}}}
plan: {rate: 25}
"""


def options(*words: str, as_json: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    prove_command.add_flags(parser)
    found = parser.parse_args(words)
    found.as_json = as_json
    return found


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SiteThread]:
    """Run a small cluster, and a record of it where commands look for one."""
    targets = (SLOTarget("interactive", ttft_s=3.0, tpot_s=0.5),)
    site = SiteThread(slo_classes=targets, admission=False)
    monkeypatch.setenv(STATE_DIR_VARIABLE, str(tmp_path / "state"))
    starter = ProcessIdentity.of(os.getpid())
    assert starter is not None
    (tmp_path / "run").mkdir()
    StateDir.find(os.environ).write(
        ClusterRecord("", False, str(tmp_path / "run"), None, starter, url=site.site.url, model="sim")
    )
    yield site
    site.close()


def config(folder: Path, ttft_ms: float, tpot_ms: float) -> str:
    file = folder / "slo.yaml"
    file.write_text(CONFIG % (ttft_ms, tpot_ms))
    return str(file)


WORDS = ("--traffic", "random", "--input-len", "64", "--output-len", "4", "--seconds", "3")


# A step of the simulated engines takes 1 ms, so that no machine keeps a TPOT of 0.1 ms.
@pytest.mark.parametrize(("tpot_ms", "code", "verdict"), [(500, 0, "kept"), (0.1, 3, "not kept")])
def test_kept_and_not_kept(
    site: SiteThread, tmp_path: Path, capsys: pytest.CaptureFixture[str], tpot_ms: float, code: int, verdict: str
) -> None:
    page = tmp_path / "proof.html"
    words = (config(tmp_path, 3000, tpot_ms), *WORDS, "--curve", "--html", str(page))
    found = prove_command.run(options(*words, as_json=True))
    told = json.loads(capsys.readouterr().out)
    assert (found, told["verdict"], told["request_rate"]) == (code, verdict, 25)
    assert told["ledger"] is None  # simulated engines hand nothing over, and there is no controller
    check(page.read_text())


def test_too_short_to_tell(site: SiteThread, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (config(tmp_path, 3000, 500), *WORDS[:-1], "0.2", "--curve")
    assert prove_command.run(options(*words)) == 4
    assert "cannot tell yet: run longer" in capsys.readouterr().out


def test_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(NotRunning, match="nothing runs from this checkout"):
        prove_command.run(options(config(tmp_path, 1, 1)))


def test_traffic_and_rate_come_from_the_plan(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("slo: {classes: {a: {ttft_ms: 1, tpot_ms: 1}, b: {ttft_ms: 9, tpot_ms: 9}}, default: b}\n")
    found = prove_command.proof_plan(options(), load_config(file, environ={}), tmp_path)
    assert (found.spec.dataset.name, found.rate, found.devices) == ("chat", None, 2)
    assert found.spec.dataset.class_shares == (("a", 1.0), ("b", 1.0))
    assert found.spec.targets[""] is found.spec.targets["b"]
    planned = load_config(file, overrides=("plan.rate=3", "plan.trace=t.csv", "pools=auto"), environ={})
    found = prove_command.proof_plan(options("--rate", "5"), planned, tmp_path)
    assert (found.spec.dataset.name, found.spec.dataset.path, found.rate) == ("trace", Path("t.csv"), 5.0)
    assert found.devices == 0
    with pytest.raises(ConfigError, match="--rate"):
        prove_command.run(options(str(file), "--rate", "0"))
