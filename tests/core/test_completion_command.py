"""The completion scripts, run by the shells themselves where they are installed."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from core import completion_command
from core.completion_command import script, verbs_of


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="baton.py")
    verbs = made.add_subparsers()
    up = verbs.add_parser("up", help="start: the [pools]")
    up.add_argument("config", metavar="CONFIG", nargs="?")
    up.add_argument("--set", metavar="KEY=VALUE", help="it's 100 %% sure")
    up.add_argument("--ca", metavar="FILE")
    up.add_argument("--pool", choices=("prefill", "decode"))
    up.add_argument("--json", action="store_true")
    config = verbs.add_parser("config", help="look")
    config.add_subparsers().add_parser("show", help="print").add_argument("--effective", action="store_true")
    return made


def completed(folder: Path, *words: str) -> list[str]:
    """Ask bash what may stand in the place of the last word."""
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("bash is not installed")
    (folder / "baton.bash").write_text(script("bash", parser()))
    quoted = " ".join(f"'{word}'" for word in ("baton", *words))
    lines = f"source ./baton.bash; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _baton; "
    lines += "printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run([shell, "-c", lines], capture_output=True, text=True, cwd=folder, timeout=60, check=True)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("",), {"up", "config", "-h", "--help"}),
        (("u",), {"up"}),
        (("config", ""), {"show", "-h", "--help"}),
        (("config", "show", "--e"), {"--effective"}),
        (("up", "--"), {"--help", "--set", "--ca", "--pool", "--json"}),
        (("up", "--pool", ""), {"prefill", "decode"}),
        (("up", "--json", "--pool", "d"), {"decode"}),
        (("up", "--set", ""), set()),
        (("up", "--ca", "my"), {"my.yaml"}),
        (("up", "my"), {"my.yaml"}),
        (("config", "my"), set()),
    ],
)
def test_bash_completes(tmp_path: Path, words: tuple[str, ...], expected: set[str]) -> None:
    (tmp_path / "my.yaml").touch()
    assert set(completed(tmp_path, *words)) == expected


@pytest.mark.parametrize(("shell", "check"), [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")])
def test_the_shell_reads_its_script(tmp_path: Path, shell: str, check: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    file = tmp_path / f"baton.{shell}"
    file.write_text(script(shell, parser()))
    done = subprocess.run([program, check, str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_fish_completes(tmp_path: Path) -> None:
    program = shutil.which("fish")
    if program is None:
        pytest.skip("fish is not installed")
    (tmp_path / "baton.fish").write_text(script("fish", parser()))
    found = []
    for line in ("baton ", "baton config ", "baton up --po", "baton up --pool "):
        command = [program, "--no-config", "-c", f"source ./baton.fish; complete -C '{line}'"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True)
        found.append({word.partition("\t")[0] for word in done.stdout.splitlines()})
    assert found[0] >= {"up", "config"}
    assert "show" in found[1]
    assert found[2] == {"--pool"}
    assert found[3] >= {"prefill", "decode"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_verb_and_flag_is_in_every_script(shell: str) -> None:
    text = script(shell, parser())
    for verb in verbs_of(parser()):
        for name in (*verb.path, *(name for flag in verb.flags for name in flag.names if name.startswith("--"))):
            assert (f"-l {name[2:]}" if shell == "fish" and name.startswith("--") else name) in text


def test_the_script_is_written_plain_or_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    for as_json in (False, True):
        options = argparse.Namespace(shell="bash", whole_parser=parser, as_json=as_json)
        assert completion_command.run(options) == 0
    plain, _, told = capsys.readouterr().out.rpartition("\n{")
    assert json.loads("{" + told) == {"shell": "bash", "script": plain + "\n"}
