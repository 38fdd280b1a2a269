"""`submit` on a Ray that takes jobs: what it sends starts there, is followed until it serves, and ends when told to."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cluster import submit_command
from cluster.console import Console
from core.errors import ConfigError, StartFailed
from tests.support.ray_processes import ROOT, UP_S, Baton, job_server

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with job_server() as url:
        yield url


def simulated(config: Path, state: Path) -> str:
    """Write a job's command line that differs from the real one in its engines only."""
    words = f"up --foreground --config={submit_command._CONFIG} router.port=0 model.path={config.parent}/demo"
    return f"PYTHONPATH={ROOT} BATON_STATE_DIR={state} exec {sys.executable} -m tests.support.simulated_baton {words}"


def test_a_job_is_followed_until_it_serves_and_drained_when_it_is_stopped(server: str, tmp_path: Path) -> None:
    Baton.in_folder(tmp_path)
    config = tmp_path / "mine.yaml"
    config.write_text("model: {path: replaced, name: mine}\n")
    client = submit_command.connect(server)
    out = io.StringIO()
    job = submit_command.submit(client, config, simulated(config, tmp_path / "state"))
    submit_command.follow(client, job, Console(as_json=False, out=out), timeout_s=UP_S)
    url = re.search(r"http://127\.0\.0\.1:\d+", out.getvalue())
    assert url is not None
    assert [model["id"] for model in httpx.get(f"{url[0]}/v1/models", timeout=30).json()["data"]] == ["mine"]
    assert submit_command.stop(client, job) == "STOPPED"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url[0]}/v1/models", timeout=30)
    assert "stopped" in client.get_job_logs(job)  # by Baton itself, not killed in the middle


def test_a_job_that_fails_is_told_with_its_own_words(server: str, tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text("modle: {}\n")
    client = submit_command.connect(server)
    out = io.StringIO()
    job = submit_command.submit(client, config, simulated(config, tmp_path / "state"))
    with pytest.raises(StartFailed, match="FAILED"):
        submit_command.follow(client, job, Console(as_json=False, out=out), timeout_s=UP_S)
    assert "modle" in out.getvalue()


def test_a_job_nobody_knows_cannot_be_stopped(server: str) -> None:
    with pytest.raises(ConfigError, match="--stop: nobody"):
        submit_command.stop(submit_command.connect(server), "nobody")
