"""Which Ray is meant, decided before Ray is imported."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cluster.ray_runtime import (
    TEMP_PREFIX,
    RunningRay,
    answers,
    prepare_environment,
    python_path,
    ray_to_join,
    running_rays,
)
from cluster.state import CHECKOUT
from core.errors import ConfigError

SHARED, PRIVATE = RunningRay("10.0.0.1:6379", private=False), RunningRay("127.0.0.1:5000", private=True)


@pytest.mark.parametrize(
    ("configured", "environ", "running", "expected"),
    [
        ("auto", {}, (), None),
        ("auto", {}, (SHARED,), "10.0.0.1:6379"),
        ("auto", {}, (PRIVATE,), None),
        ("auto", {}, (PRIVATE, SHARED), "10.0.0.1:6379"),
        ("auto", {"RAY_ADDRESS": "10.0.0.9:6379"}, (SHARED,), "10.0.0.9:6379"),
        ("auto", {"RAY_ADDRESS": ""}, (), None),
        ("auto", {"RAY_ADDRESS": "auto"}, (SHARED,), "10.0.0.1:6379"),
        ("local", {"RAY_ADDRESS": "10.0.0.9:6379"}, (SHARED,), None),
        ("10.0.0.7:6379", {"RAY_ADDRESS": "10.0.0.9:6379"}, (), "10.0.0.7:6379"),
    ],
)
def test_the_ray_that_is_meant(
    configured: str, environ: dict[str, str], running: tuple[RunningRay, ...], expected: str | None
) -> None:
    assert ray_to_join(configured, environ, running) == expected


def test_several_running_rays_must_be_told_apart() -> None:
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1:6379, 10\.0\.0\.2:6379"):
        ray_to_join("auto", {}, (SHARED, RunningRay("10.0.0.2:6379", private=False)))


@pytest.mark.parametrize(("folder", "private"), [("ray", False), (TEMP_PREFIX + "x", True)])
def test_a_running_ray_is_found_by_its_node_process(tmp_path: Path, folder: str, private: bool) -> None:
    """The stand-in has the name and the two flags by which a raylet is recognised, and does nothing."""
    raylet = tmp_path / "raylet" / "raylet"
    raylet.parent.mkdir()
    raylet.symlink_to("/bin/sh")
    flags = ["--gcs-address=192.0.2.77:6379", f"--temp_dir=/tmp/{folder}"]
    with subprocess.Popen([str(raylet), "-c", "echo up; read wait", *flags], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            assert RunningRay("192.0.2.77:6379", private) in running_rays()
        finally:
            process.communicate(b"\n")


def test_nobody_answers_at_a_wrong_address() -> None:
    assert not answers("")
    assert not answers("nowhere")
    assert not answers("127.0.0.1:port")


def test_the_checkout_comes_first_on_the_module_path() -> None:
    assert python_path({}) == str(CHECKOUT)
    given = os.pathsep.join(["/a", str(CHECKOUT), "", "/b"])
    assert python_path({"PYTHONPATH": given}) == os.pathsep.join([str(CHECKOUT), "/a", "/b"])


@pytest.mark.parametrize(
    ("address", "token", "given", "expected"),
    [
        (None, True, None, "disabled"),
        (None, True, "token", "disabled"),
        (None, False, None, "disabled"),
        ("10.0.0.1:6379", True, None, "token"),
        ("10.0.0.1:6379", True, "disabled", "disabled"),
        ("10.0.0.1:6379", False, None, None),
    ],
)
def test_a_ray_of_our_own_takes_no_token_and_another_takes_the_users(
    address: str | None,
    token: bool,
    given: str | None,
    expected: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = {"HOME": str(tmp_path)} | ({"RAY_AUTH_MODE": given} if given else {})
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("t")
    monkeypatch.setattr(os, "environ", environment)
    prepare_environment(address)
    assert environment.get("RAY_AUTH_MODE") == expected
