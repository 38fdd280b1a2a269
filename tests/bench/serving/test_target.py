"""What is started for a benchmark is stopped after it, whatever ends it."""

from __future__ import annotations

import signal
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import stacks
from bench.serving.endpoint import endpoint
from bench.serving.target import Target, reached
from core.command_flags import DEFAULT_CONFIG
from core.errors import ConfigError

TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put a system that only takes notes in the place of Baton."""
    notes: list[str] = []

    @contextmanager
    def baton(config: Path, *, run_dir: Path, overrides: Sequence[str] = ()) -> Iterator[stacks.Running]:
        notes.append(f"start {config} {' '.join(overrides)}")
        try:
            yield stacks.Running("Baton", "https://127.0.0.1:1", "tag", 0.0, tls=TRUST, key="k")
        finally:
            notes.append("stop")

    monkeypatch.setattr(stacks, "baton", baton)
    return notes


def test_a_system_is_started_and_stopped(started: list[str]) -> None:
    with reached(Target("a", config=DEFAULT_CONFIG, overrides=("router.port=0",))) as found:
        assert (found.url, found.tls) == ("https://127.0.0.1:1", TRUST)
        assert found.key == "k"
    assert started == [f"start {DEFAULT_CONFIG} router.port=0", "stop"]


def test_a_configuration_with_errors_starts_nothing(started: list[str]) -> None:
    with pytest.raises(ConfigError, match="there is no such file"), reached(Target("a", config=Path("x.yaml"))):
        pass
    assert started == []


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def test_sigterm_stops_it_too(started: list[str], ctrl_c: Any) -> None:
    before, before_int = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, ctrl_c)
    with pytest.raises(KeyboardInterrupt), reached(Target("a", config=DEFAULT_CONFIG)):
        signal.raise_signal(signal.SIGTERM)  # its handler runs before this returns
    assert started == [f"start {DEFAULT_CONFIG} ", "stop"]
    assert signal.getsignal(signal.SIGTERM) is before
    signal.signal(signal.SIGINT, before_int)


def test_a_server_that_runs_is_left_alone(started: list[str]) -> None:
    where = endpoint("http://a:1")
    with reached(Target("a", where)) as found:
        assert found is where
    assert started == []
