"""The compiled modules of the router: what may be compiled, when it is used, and that it does what the sources do."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from router import compiled
from router.compile import compile_modules

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 900
NAMES = compiled.module_names()
# Of all compiled modules, and of those that live on them.
FOLDERS = ("tests/router", "tests/core/policy")
OTHERS = ("tests/cluster/test_pool.py", "tests/cluster/test_session_server.py")


def file_of(name: str) -> Path:
    folder, _, module = name.rpartition(".")
    return Path("tests", *folder.split("."), f"test_{module}.py")


def waits(nodes: Iterable[ast.AST]) -> Iterator[int]:
    for node in nodes:
        for each in ast.walk(node):
            if isinstance(each, ast.Await):
                yield each.lineno


def waits_while_an_exception_is_handled(source: str) -> list[int]:
    lines: list[int] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Try):
            lines += waits([*node.finalbody, *node.handlers])
        elif isinstance(node, ast.AsyncWith | ast.AsyncFor):
            lines.append(node.lineno)
    return lines


def test_no_compiled_coroutine_waits_while_it_handles_an_exception() -> None:
    found = {name: waits_while_an_exception_is_handled(compiled.source_of(name).read_text()) for name in NAMES}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "body",
    ["try:\n  pass\n finally:\n  await x", "try:\n  pass\n except E:\n  await x", "async with x:\n  pass"],
)
def test_such_a_wait_is_found(body: str) -> None:
    assert waits_while_an_exception_is_handled(f"async def f():\n {body}\n")


def test_all_that_is_listed_is_there() -> None:
    assert [name for name in NAMES if not compiled.source_of(name).is_file()] == []
    assert {"core.policy.slo_aware", "router.dispatcher", "cluster.codec"} <= set(NAMES)


def run_python(code: str, **environ: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environ,
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return ended.stdout


def test_another_module_runs_with_its_arguments() -> None:
    command = [sys.executable, "-m", "router.compiled", "json.tool", "--help"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "JSON" in ended.stdout
    assert ended.stderr.startswith("json.tool runs ")
    nothing = subprocess.run(command[:3], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (nothing.returncode, nothing.stderr[:13]) == (1, "name a module")


def test_what_changed_since_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiled.SWITCH, raising=False)
    before = compiled.folder()
    name = NAMES[0]
    changed = tmp_path / "changed.py"
    changed.write_bytes(compiled.source_of(name).read_bytes() + b"\n")
    source_of = compiled.source_of
    monkeypatch.setattr(compiled, "source_of", lambda each: changed if each == name else source_of(each))
    assert compiled.folder() != before
    finders = list(sys.meta_path)
    assert "make compile" in compiled.prefer_compiled()
    assert sys.meta_path == finders


def test_these_tests_run_what_they_are_said_to_run() -> None:
    from router import dispatcher

    is_source = Path(str(dispatcher.__file__)).suffix == ".py"
    assert is_source != (os.environ.get("BATON_TEST_COMPILED") == "1")


@pytest.mark.slow
def test_a_router_process_imports_what_is_compiled_and_no_other_does() -> None:
    place = compile_modules()
    ask = "import sys; import router.server; print(sys.modules['router.dispatcher'].__file__)"
    prefer = "from router.compiled import prefer_compiled; print(prefer_compiled());"
    said, _, file = run_python(prefer + ask).strip().partition("\n")
    assert said == f"runs {len(NAMES)} compiled modules"
    assert Path(file).is_relative_to(place)
    off, _, file = run_python(prefer + ask, BATON_COMPILED="0").strip().partition("\n")
    assert (off, file) == ("runs its sources: BATON_COMPILED is 0", str(ROOT / "router" / "dispatcher.py"))
    late, _, file = run_python("import core.types;" + prefer + ask).strip().partition("\n")
    assert late == "runs its sources: core.types was imported too early"
    assert file == str(ROOT / "router" / "dispatcher.py")


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
def test_compiled_modules_pass_the_tests_of_their_sources() -> None:
    compile_modules()
    own = {str(file) for name in NAMES if (ROOT / (file := file_of(name))).is_file()}
    tests = [*FOLDERS, *OTHERS, *sorted(file for file in own if not file.startswith(FOLDERS))]
    ended = subprocess.run(  # at lowest priority: tests with real engines run beside it
        ["nice", "-n", "19", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *tests,
         "-m", "not engine and not ray and not slow and not gpu"],
        cwd=ROOT, env=os.environ | {"BATON_TEST_COMPILED": "1", "PYTEST_XDIST_WORKER": ""},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-4000:]
