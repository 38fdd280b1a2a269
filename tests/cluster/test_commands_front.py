"""A Baton whose front speaks TLS and asks for keys: its own commands reach it, and nobody else without a key."""

from __future__ import annotations

import os
import shlex
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.keys import NewKey, new_key
from tests.support.certificates import make_pair
from tests.support.ray_processes import Baton, words_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class Guarded:
    """A Baton that is up, what it printed, and the key of its only tenant."""

    baton: Baton
    printed: str
    record: dict[str, Any]
    cert: Path
    key: NewKey

    @property
    def run_dir(self) -> Path:
        return Path(self.record["run_dir"])

    def client(self, **headers: str) -> httpx.Client:
        trusted = ssl.create_default_context(cafile=str(self.cert))
        return httpx.Client(base_url=self.record["url"], verify=trusted, headers=headers, timeout=30)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Start it with paths that are seen from here, as they stand in a file."""
    folder = tmp_path_factory.mktemp("guarded")
    baton, pair, key = Baton.in_folder(folder), make_pair(folder, "front"), new_key("acme")
    tenants = folder / "tenants.yaml"
    tenants.write_text(f"tenants: {{acme: {{keys: ['{key.sha256}']}}}}")
    words = {"tls_cert": pair.cert, "tls_key": pair.key, "tenants": tenants}
    try:
        up = baton.run("up", "ray.address=local", *(f"router.{k}={os.path.relpath(v)}" for k, v in words.items()))
        assert up.returncode == 0, up.stdout + up.stderr
        record = baton.record()
        assert record is not None
        yield Guarded(baton, up.stdout, dict(record), pair.cert, key)
    finally:
        baton.run("down")


def test_status_needs_no_flags(guarded: Guarded) -> None:
    status = guarded.baton.result("status")
    assert (status["ok"], status["health"]) == (True, "ok")
    assert status["url"].startswith("https://127.0.0.1:")
    assert status["loads"].keys() == {"prefill-0", "decode-0"}


def test_explain_needs_no_flags(guarded: Guarded) -> None:
    with guarded.client(authorization=f"Bearer {guarded.key.key}") as client:
        answer = client.post("/v1/completions", json={"prompt": "To be", "max_tokens": 3})
    assert answer.status_code == 200
    request_id = answer.headers["x-request-id"]
    assert guarded.baton.result("explain", request_id)["request_id"] == request_id


def test_nobody_else_is_served_without_a_key(guarded: Guarded) -> None:
    with guarded.client() as client:
        assert client.post("/v1/completions", json={"prompt": "To be", "max_tokens": 3}).status_code == 401


def test_the_printed_line_works_once_the_key_is_put_in(guarded: Guarded) -> None:
    line = guarded.printed[guarded.printed.index("curl ") :].partition("\n\n")[0].replace("\\\n", " ")
    words = shlex.split(line.replace("$BATON_API_KEY", guarded.key.key))
    done = subprocess.run([*words, "-sS", "-m", "30"], capture_output=True, text=True, check=False)
    assert '"choices"' in done.stdout, line + done.stdout + done.stderr


def test_the_key_of_the_operator_is_told_to_nobody(guarded: Guarded) -> None:
    """It is in one file that only its owner can read; no log, no command line and no output holds it."""
    file = guarded.run_dir / "operator.key"
    key = file.read_text().strip()
    assert len(key) > 40
    assert file.stat().st_mode & 0o777 == 0o600
    holders = [p for p in guarded.run_dir.rglob("*") if p.is_file() and key.encode() in p.read_bytes()]
    assert holders == [file]
    assert key not in guarded.printed
    lines = [words_of(int(p.name)) for p in Path("/proc").glob("[0-9]*")]
    assert not any(key in word for line in lines for word in line)
