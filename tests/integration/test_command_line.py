"""The verbs side by side: what goes wrong in the same way is told in the same way, and never with a stack trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import baton as program
from core.completion_command import verbs_of
from tests.support.command_line import call_baton

VERBS = (
    *("validate", "plan", "profile", "simulate", "up", "status", "doctor", "explain", "down", "config", "keys"),
    *("completion", "version", "bench", "compare", "prove", "chaos", "apply", "drain", "flip", "submit"),
)


@pytest.mark.parametrize(
    "words",
    [
        *("status", "doctor", "explain r1", "simulate", "prove", "chaos run --running --yes"),
        *("drain decode-0", "flip decode-0 prefill", "apply deploy/slo.yaml"),
    ],
)
def test_what_needs_a_cluster_says_alike_that_none_runs(words: str, tmp_path: Path) -> None:
    plain = call_baton(*words.split(), BATON_STATE_DIR=str(tmp_path))
    assert plain.returncode == 1
    assert "nothing runs" in plain.stdout + plain.stderr
    as_json = call_baton(*words.split(), "--json", BATON_STATE_DIR=str(tmp_path))
    told = json.loads(as_json.stdout)
    assert (as_json.returncode, told["ok"], told["error"]) == (1, False, "not_running")


@pytest.mark.parametrize(
    "words",
    [
        "explain r1 --url http://127.0.0.1:1",
        "explain r1 --url http://127.0.0.1:1 --key-file /nope",
        "simulate --from /nope",
        "simulate --from tests",
        "simulate --from baton.py",
        "simulate --last 5weeks --from baton.py",
        "simulate --set tp=2",
        "simulate --traffic many",
        "plan nope.yaml",
        "profile nope.yaml",
        "config show nope.yaml",
        "completion tcsh",
        "keys new ../a",
        "bench --url http://127.0.0.1:1 --num-prompts 1",
        "bench --sweep nope.yaml",
        "bench --config nope.yaml",
        "bench --key-file /nope",
        "bench --dataset-name trace --dataset-path /nope",
        "bench --extra-body {",
        "compare --config nope.yaml --against one-pool",
        "prove nope.yaml",
        "prove --rate 0",
        "chaos run nope.yaml",
        "apply nope.yaml",
        "submit nope.yaml --address http://127.0.0.1:1",
        "up nope.yaml",
        "up --set x",
    ],
)
def test_faults_of_users_are_told_without_a_trace(words: str, tmp_path: Path) -> None:
    for json_flag in ([], ["--json"]):
        result = call_baton(*words.split(), *json_flag, BATON_STATE_DIR=str(tmp_path))
        assert result.returncode in (1, 2)
        assert "Traceback" not in result.stderr
        assert "[Errno" not in result.stdout + result.stderr
    told = json.loads(result.stdout)
    assert (told["ok"], result.stderr) == (False, "")


def test_completion_knows_every_verb_and_its_flags() -> None:
    result = call_baton("completion", "bash")
    assert (result.returncode, result.stderr) == (0, "")
    for word in (*VERBS, "show", "new", "--what-if", "--key-file", "--from", "--foreground"):
        assert word in result.stdout


def test_every_flag_of_every_verb_says_what_it_is() -> None:
    found = verbs_of(program._parser([command.name for command in program._COMMANDS]))
    assert [(verb.key, flag.names or flag.label) for verb in found for flag in verb.flags if not flag.words] == []
