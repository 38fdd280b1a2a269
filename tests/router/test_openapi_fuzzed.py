"""Schemathesis against the OpenAPI document: requests made from it, right and wrong, and every answer held against it.

The workers are simulated. They know two of the generating routes and the list of models; to the others they say 404,
as a worker does whose model lacks the route.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.hostile_client import PROMPT
from tests.support.site_thread import SiteThread

pytest.importorskip("schemathesis")

LIMIT_S = 600


@pytest.fixture
def site() -> Iterator[SiteThread]:
    site = SiteThread(max_body_bytes=1 << 20)
    yield site
    site.close()


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
def test_every_answer_is_described_and_none_is_a_500(site: SiteThread, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{site.site.url}/openapi.json", "--no-color"]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "30", "--checks", "all"]
    command += ["--suppress-health-check", "all", "--generation-deterministic"]
    # Whether a body is right is the worker's to judge: the schema says what the router reads of vLLM's own, which is
    # stricter here and laxer there, and a simulated worker is laxer still.
    command += ["--exclude-checks", "positive_data_acceptance,negative_data_rejection"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    made = re.search(r"(\d+) generated", result.stdout)
    assert made is not None
    assert int(made[1]) > 500
    site.run(site.site.until_idle())
    assert site.run(site.site.metric("baton_requests_total", outcome="ok")) > 10
    assert site.run(site.site.metric("baton_requests_total", outcome="baton_error")) == 0
    assert site.run(_serves(site)) == 200


async def _serves(site: SiteThread) -> int:
    async with httpx.AsyncClient(base_url=site.site.url, timeout=20) as client:
        return (await client.post("/v1/completions", json=PROMPT)).status_code
