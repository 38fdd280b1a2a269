"""The command line as a user meets it: exit codes, messages, JSON, and what it does not load."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import ROOT, baton, call_baton

VERBS = (
    *("validate", "plan", "profile", "simulate", "up", "status", "doctor", "explain", "down", "config", "keys"),
    *("completion", "version", "bench", "compare", "prove", "chaos", "apply", "drain", "flip", "submit"),
)
GOOD = "router: {port: 8001}\nslo: {classes: {chat: {ttft_ms: 400, tpot_ms: 40}}, default: chat}\n"
BAD = (
    "slo:\n"
    "  classes:\n"
    "    chat:\n"
    "      ttft_s: 0.4\n"
    "      tpot_ms: 40ms\n"
    "  default: nobody\n"
    "router:\n"
    "  prot: 8000\n"
    "  port: 99999\n"
)


@pytest.fixture
def good(tmp_path: Path) -> str:
    file = tmp_path / "good.yaml"
    file.write_text(GOOD)
    return str(file)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    file = tmp_path / "bad.yaml"
    file.write_text(BAD)
    return str(file)


def test_help_names_each_verb_its_exit_codes_and_examples() -> None:
    result = baton("--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert [verb for verb in VERBS if f"\n    {verb} " not in result.stdout] == []
    for text in ("exit codes:", "examples:", "BATON_STATE_DIR", "docs/configuration.md"):
        assert text in result.stdout


@pytest.mark.parametrize("verb", [*VERBS, "config show", "keys new"])
def test_every_verb_has_help(verb: str) -> None:
    result = call_baton(*verb.split(), "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: baton.py {verb}")
    assert "--json" in result.stdout or verb in ("config", "keys")


def test_validate_accepts_a_good_file(good: str) -> None:
    result = baton("validate", good)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == f"{good}: valid"
    assert "chat: TTFT 400 ms, TPOT 40 ms for 0.9 of requests" in result.stdout


def test_validate_reports_every_error_with_its_line(bad: str) -> None:
    result = call_baton("validate", bad)
    assert (result.returncode, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert lines[0] == "error: 5 problems in the configuration:"
    assert [line.split(": ")[0].strip().removeprefix(f"{bad}:") for line in lines[1:]] == ["4", "5", "6", "8", "9"]
    assert "write ttft_ms: 400" in lines[1]
    assert "did you mean port?" in lines[4]
    assert "whole number from 0 to 65535" in lines[5]


def test_validate_json_of_a_good_file(good: str) -> None:
    result = call_baton("validate", good, "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout) == {"ok": True, "config": good, "pools": "named", "problems": [], "notes": []}


def test_validate_json_of_a_bad_file(bad: str) -> None:
    result = baton("validate", "--json", bad)
    assert (result.returncode, result.stderr) == (2, "")
    reply = json.loads(result.stdout)
    assert (reply["ok"], reply["error"], len(reply["problems"])) == (False, "config_error", 5)
    assert reply["problems"][-1] == {
        "path": "router.port",
        "message": "is out of range",
        "source": f"{bad}:9",
        "value": "99999",
        "allowed": "whole number from 0 to 65535",
        "suggestion": None,
    }
    assert reply["message"].startswith("5 problems in the configuration:\n")


def test_a_missing_file_is_one_error_without_a_stack_trace(tmp_path: Path) -> None:
    result = call_baton("validate", str(tmp_path / "no.yaml"))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: {tmp_path}/no.yaml: there is no such file\n"


def test_a_stack_trace_is_shown_on_demand(tmp_path: Path) -> None:
    result = baton("validate", str(tmp_path / "no.yaml"), BATON_DEBUG="1")
    assert result.returncode == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert "there is no such file" in result.stderr.splitlines()[-1]


def test_layers_reach_the_program(good: str) -> None:
    arguments = ("config", "show", good, "--effective", "--json", "--set", "kv.lease_s=7")
    values = json.loads(call_baton(*arguments, BATON_ROUTER__HOST="0.0.0.0").stdout)
    assert (values["router"]["port"], values["router"]["host"], values["kv"]["lease_s"]) == (8001, "0.0.0.0", 7.0)
    wrong = call_baton("validate", good, BATON_ROUTER__PORT="many")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: BATON_ROUTER__PORT: router.port = many: is text")


def test_config_show_writes_yaml_that_validates(good: str, tmp_path: Path) -> None:
    shown = call_baton("config", "show", "--effective", good)
    assert shown.returncode == 0
    assert f"  port: 8001  # {good}:1\n" in shown.stdout
    copy = tmp_path / "copy.yaml"
    copy.write_text(shown.stdout)
    assert call_baton("validate", str(copy)).returncode == 0
    assert call_baton("config", "show", str(copy), "--effective", "--json").stdout == (
        call_baton("config", "show", good, "--effective", "--json").stdout
    )


def test_the_shipped_file_is_the_default_from_any_folder(tmp_path: Path) -> None:
    result = baton("config", "show", "--effective", cwd=tmp_path)
    assert result.returncode == 0
    assert "path: deploy/models/baton-demo" in result.stdout


def test_a_folder_that_is_not_here_is_noted_but_no_error(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: {path: /no/such/folder}\n")
    result = call_baton("validate", str(file))
    assert result.returncode == 0
    assert result.stderr.startswith("note: model.path: there is no folder /no/such/folder here")
    assert len(json.loads(call_baton("validate", str(file), "--json").stdout)["notes"]) == 1


@pytest.mark.parametrize(
    "arguments",
    [(), ("fly",), ("validate",), ("validate", "a", "b"), ("status", "--loud"), ("config",), ("up", "--mod", "x")],
)
def test_wrong_usage_is_exit_code_2_and_points_to_help(arguments: tuple[str, ...]) -> None:
    result = call_baton(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert "--help" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_wrong_usage_is_json_on_demand() -> None:
    result = call_baton("status", "--loud", "--json")
    assert (result.returncode, result.stderr) == (2, "")
    assert json.loads(result.stdout)["error"] == "usage_error"


def test_up_refuses_a_bad_file_before_anything_else(bad: str) -> None:
    result = call_baton("up", bad, "--json")
    assert result.returncode == 2
    assert len(json.loads(result.stdout)["problems"]) == 5


def test_the_model_flag_is_text_whatever_it_looks_like(good: str) -> None:
    result = call_baton("up", good, "--model", "", "--json")
    problems = json.loads(result.stdout)["problems"]
    assert result.returncode == 2
    assert [(p["path"], p["message"], p["value"]) for p in problems] == [("model.path", "must not be empty", "''")]


def test_version_lists_what_is_installed() -> None:
    versions = json.loads(baton("version", "--json").stdout)
    assert set(versions) == {"baton", "python", "ray", "vllm"}
    assert versions["python"] == ".".join(str(part) for part in sys.version_info[:3])
    plain = baton("version").stdout
    assert f"baton {versions['baton']}\n" in plain


def test_status_without_a_cluster_is_exit_code_1_and_down_has_nothing_to_do(tmp_path: Path) -> None:
    status = baton("status", "--json", BATON_STATE_DIR=str(tmp_path / "state"))
    assert status.returncode == 1
    assert json.loads(status.stdout)["ok"] is False
    down = baton("down", BATON_STATE_DIR=str(tmp_path / "state"))
    assert down.returncode == 0
    assert "nothing runs" in down.stdout


def test_arguments_that_are_no_text_are_reported(good: str) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "baton.py"), "validate", good, "--json", "--set", b"router.host=\xff"],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 2
    assert json.loads(result.stdout)["problems"][0]["message"] == "holds bytes that are no text"


def test_a_reader_that_goes_away_is_no_crash(good: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [sys.executable, str(ROOT / "baton.py"), "config", "show", "--effective", good],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (1, b"")


DISK_FULL = "error: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("config show --effective | head -1", 0, ""),
        ("config show --effective >&-", 0, ""),
        ("config show --effective >/dev/full", 1, DISK_FULL),
        ("plan --gpus x --json | head -1", 0, ""),
        ("plan --gpus x --json >&-", 2, ""),
        ("plan --gpus x --json >/dev/full", 1, DISK_FULL),
    ],
)
def test_output_that_goes_nowhere_is_no_crash(words: str, code: int, said: str) -> None:
    command = f"{sys.executable} {ROOT / 'baton.py'} {words}"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (code, said)


LOADED = "import runpy, sys\ntry:\n    runpy.run_path({path!r}, run_name='__main__')\nexcept SystemExit:\n    pass\n"


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (("--help",), ("ray", "vllm", "torch", "grpc", "fastapi", "numpy", "pydantic", "yaml")),
        (("validate", "deploy/slo.yaml"), ("ray", "vllm", "torch", "grpc", "fastapi", "numpy")),
        (("version",), ("ray", "vllm", "torch", "grpc", "fastapi", "numpy", "pydantic")),
        (("keys", "new", "acme"), ("ray", "vllm", "torch", "grpc", "fastapi", "numpy")),
        (("plan", "--help"), ("ray", "vllm", "torch", "grpc", "fastapi", "numpy", "pydantic", "numba")),
        (("plan", "--gpu", "no-such-gpu"), ("ray", "vllm", "torch", "grpc", "fastapi", "numba")),
    ],
)
def test_quick_verbs_load_nothing_heavy(arguments: tuple[str, ...], absent: tuple[str, ...]) -> None:
    code = LOADED.format(path=str(ROOT / "baton.py")) + f"print('LOADED', [m for m in {absent!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stdout.splitlines()[-1] == "LOADED []", result.stdout + result.stderr


def test_explain_says_how_to_name_a_router(tmp_path: Path) -> None:
    result = call_baton("explain", "r1", BATON_STATE_DIR=str(tmp_path / "state"))
    assert (result.returncode, result.stdout) == (1, "")
    assert "name the router with --url" in result.stderr
    result = call_baton("explain", "r1", "--url", "http://127.0.0.1:9", "--json")
    assert result.returncode == 1
    assert "http://127.0.0.1:9 does not answer" in json.loads(result.stdout)["message"]


def test_an_unknown_flag_points_at_the_help_of_its_verb() -> None:
    result = call_baton("up", "--bogus")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: unrecognized arguments: --bogus\nTry: baton.py up --help\n"


def test_validate_says_that_pools_are_planned_later(good: str) -> None:
    result = call_baton("validate", good, "--set", "pools=auto")
    assert result.returncode == 0
    assert "  pools    auto: `up` plans them for the devices that the cluster has" in result.stdout
    assert json.loads(call_baton("validate", good, "--set", "pools=auto", "--json").stdout)["pools"] == "auto"


def test_plan_says_what_is_missing_and_where_to_get_it(good: str, tmp_path: Path) -> None:
    result = call_baton("plan", good, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    for remedy in ("--profile FILE", "`python baton.py profile CONFIG`", "--gpu NAME", "h100-sxm"):
        assert remedy in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--gpu", "no-such-gpu", "--gpus", "8"), "no-such-gpu"),
        (("--gpu", "h100-sxm"), "--gpus N"),
        (("--gpu", "h100-sxm", "--gpus", "8", "--trace", "no.csv"), "there is no such trace file"),
        (("--gpu", "h100-sxm", "--gpus", "8", "--workload", "talk"), "choose one of chat"),
        (("--gpu", "h100-sxm", "--gpus", "8", "--what-if", "decode=many"), "decode=3"),
        (("--rate", "fast"), "invalid number value: 'fast'"),
    ],
)
def test_plan_refuses_wrong_flags_in_one_line_or_with_its_usage(good: str, flags: tuple[str, ...], words: str) -> None:
    result = call_baton("plan", good, "--set", "pools=auto", *flags)
    assert (result.returncode, result.stdout) == (2, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}


@pytest.mark.timeout(300)  # the simulator is compiled first where its cache is empty
def test_plan_answers_from_flags_alone_and_writes_what_up_takes(good: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    written = tmp_path / "planned.yaml"
    model = ("--set", f"model.path={tmp_path}", "--set", "pools.prefill.kv_cache_mb=16384")
    flags = ("--gpu", "h100-sxm", "--gpus", "2", "--requests", "300", "--workload", "chat", "--what-if", "prefill=1")
    result = baton("plan", good, *model, *flags, "--write", str(written), timeout_s=290)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("As asked: P/D 1 x tp1 + 1 x tp1 carries ")
    assert "kv_cache_mb" not in result.stdout + written.read_text()
    assert f"written: {written}\nnote: what --set or BATON_ variables say of model was planned for" in result.stderr
    assert baton("validate", str(written)).returncode == 0


def test_up_says_once_what_is_wrong_with_the_model(tmp_path: Path) -> None:
    result = call_baton("up", "--model", "/no/such/folder", BATON_STATE_DIR=str(tmp_path))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: model.path: there is no folder /no/such/folder\n"


def test_a_new_key_is_printed_once_and_its_hash_goes_into_the_file(tmp_path: Path) -> None:
    made = json.loads(call_baton("keys", "new", "acme", "--json").stdout)
    assert made["sha256"] == hashlib.sha256(made["key"].encode()).hexdigest()
    shown = call_baton("keys", "new", "acme").stdout
    (tmp_path / "tenants.yaml").write_text(shown[shown.index("tenants:") : shown.index("A tenant")])
    (tmp_path / "slo.yaml").write_text(f"router: {{tenants: {tmp_path}/tenants.yaml}}\n")
    assert call_baton("validate", str(tmp_path / "slo.yaml")).returncode == 0
    refused = call_baton("keys", "new", "a b")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "'a b' is not a valid name" in refused.stderr
