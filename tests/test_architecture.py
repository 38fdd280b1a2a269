"""The rules of the tree, read from the sources: layers, homes of heavy libraries, sizes, names, mirrored tests.

A rule that fails names each file and line, and what to do. Nothing of the project is imported here.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each package may import of the others. Imports point down only.
LAYERS: Mapping[str, frozenset[str]] = {
    "core": frozenset(),
    "kv_transfer": frozenset({"core"}),
    "engine": frozenset({"core", "kv_transfer"}),
    "prefill_workers": frozenset({"core", "kv_transfer"}),
    "decode_workers": frozenset({"core", "kv_transfer"}),
    "cluster": frozenset({"core", "kv_transfer", "engine", "prefill_workers", "decode_workers"}),
    "router": frozenset({"core", "cluster"}),
    "sim": frozenset({"core"}),
    "bench": frozenset({"core", "kv_transfer", "sim", "engine", "cluster"}),
    "deploy": frozenset(),
    "baton": frozenset({"core", "cluster", "router", "engine", "sim", "bench"}),
}
PACKAGES = tuple(name for name in LAYERS if name not in ("deploy", "baton"))
# The only places that may name a heavy library, even inside a function or for types.
HOMES: Mapping[str, tuple[str, ...]] = {
    "ray": ("cluster/",),
    "vllm": ("engine/", "kv_transfer/connector.py"),
    "fastapi": ("router/",),
    "grpc": ("cluster/", "kv_transfer/", "bench/kv/peers_grpc.py"),
}
# What must not even be loaded by importing any module of a package.
NEVER_LOADED: Mapping[str, tuple[str, ...]] = {
    "core": ("ray", "vllm", "fastapi", "grpc"),
    "prefill_workers": ("ray", "vllm", "fastapi"),
    "decode_workers": ("ray", "vllm", "fastapi"),
    "router": ("ray", "vllm"),
    "sim": ("ray", "vllm", "fastapi", "grpc"),
    "baton": ("ray", "vllm", "fastapi", "grpc", "pydantic", "numpy"),
}
CORE_LIBRARIES = frozenset({"pydantic", "numpy", "yaml"})
VAGUE_NAMES = frozenset({"utils", "util", "common", "helpers", "helper", "misc"})
MAY_PRINT = ("baton.py", "cluster/console", "deploy/")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
# Tests that follow no single module.
SUITES = ("tests/integration/", "tests/test_architecture.py", "tests/test_cli.py")


@dataclass(frozen=True, slots=True)
class Import:
    """One import of one module; `deferred` when it does not run as the module is loaded."""

    name: str
    line: int
    deferred: bool


@dataclass(frozen=True, slots=True)
class Source:
    """One Python file of the project."""

    path: str  # from the root, with slashes
    tree: ast.Module
    num_lines: int

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def _read(path: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    return Source(path.relative_to(ROOT).as_posix(), ast.parse(text), len(text.splitlines()))


def _is_generated(path: Path) -> bool:
    return path.stem.endswith(("_pb2", "_pb2_grpc")) or "__pycache__" in path.parts


def _program() -> list[Source]:
    files = [ROOT / "baton.py"]
    for package in (*PACKAGES, "deploy"):
        files += sorted((ROOT / package).rglob("*.py"))
    return [_read(file) for file in files if not _is_generated(file)]


@pytest.fixture(scope="module")
def program() -> list[Source]:
    return _program()


@pytest.fixture(scope="module")
def tests() -> list[Source]:
    return [_read(file) for file in sorted((ROOT / "tests").rglob("*.py")) if not _is_generated(file)]


@cache
def imports_of(source: Source, modules: frozenset[str]) -> tuple[Import, ...]:
    """List all imports of a file: at the top, in functions, for types only, and by name through importlib.

    `from a import b` counts as `a.b` where that is one of `modules`, else as `a`.
    """
    return tuple(_imports_in(source.tree, source, modules, deferred=False))


def _imports_in(node: ast.AST, source: Source, modules: frozenset[str], *, deferred: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        later = deferred or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(child, ast.If) and _is_for_types(child.test):
            later = True
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, deferred) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(child, source)
            for alias in child.names:
                full = f"{base}.{alias.name}"
                yield Import(full if full in modules else base, child.lineno, deferred)
        elif isinstance(child, ast.Call) and _called(child) in ("import_module", "__import__"):
            yield from (
                Import(argument.value, child.lineno, True)
                for argument in child.args[:1]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            )
        yield from _imports_in(child, source, modules, deferred=later)


def _is_for_types(test: ast.expr) -> bool:
    return any("TYPE_CHECKING" in (getattr(node, "id", ""), getattr(node, "attr", "")) for node in ast.walk(test))


def _called(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _absolute(node: ast.ImportFrom, source: Source) -> str:
    if node.level == 0:
        return node.module or ""
    parts = source.module.split(".")
    keep = len(parts) - node.level + (1 if source.path.endswith("__init__.py") else 0)
    return ".".join([*parts[:keep], *([node.module] if node.module else [])])


def _top(name: str) -> str:
    return name.partition(".")[0]


def _modules(program: Iterable[Source]) -> frozenset[str]:
    return frozenset(source.module for source in program)


def _refuse(violations: Iterable[str], remedy: str) -> None:
    found = sorted(set(violations))
    assert not found, f"\n{remedy}\n  " + "\n  ".join(found)


# Imports


def test_imports_point_down_only(program: list[Source]) -> None:
    modules = _modules(program)
    violations = [
        f"{source.path}:{found.line} imports {found.name}"
        for source in program
        for found in imports_of(source, modules)
        if _top(found.name) in LAYERS
        and _top(found.name) != source.package
        and _top(found.name) not in LAYERS[source.package]
    ]
    allowed = "; ".join(f"{name} -> {', '.join(sorted(below)) or 'none'}" for name, below in LAYERS.items())
    _refuse(violations, f"A package imports only those below it ({allowed}):")


def test_no_package_imports_the_tests(program: list[Source]) -> None:
    modules = _modules(program)
    violations = [
        f"{source.path}:{found.line} imports {found.name}"
        for source in program
        for found in imports_of(source, modules)
        if _top(found.name) == "tests"
    ]
    _refuse(violations, "The program does not know its tests:")


def test_packages_form_no_cycle(program: list[Source]) -> None:
    modules = _modules(program)
    graph: dict[str, set[str]] = {}
    for source in program:
        below = {_top(found.name) for found in imports_of(source, modules)} & set(LAYERS)
        graph.setdefault(source.package, set()).update(below - {source.package})
    assert len(graph) > 5, "the packages were not found"
    TopologicalSorter(graph).prepare()


def test_modules_form_no_cycle(program: list[Source]) -> None:
    modules = _modules(program)
    graph = {
        source.module: {f.name for f in imports_of(source, modules) if f.name in modules} - {source.module}
        for source in program
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        pytest.fail("modules import each other, move what they share below both: " + " <- ".join(exc.args[1]))


def test_heavy_libraries_stay_in_their_homes(program: list[Source]) -> None:
    modules = _modules(program)
    violations = [
        f"{source.path}:{found.line} imports {found.name}; {_top(found.name)} belongs in "
        + " and ".join(HOMES[_top(found.name)])
        for source in program
        for found in imports_of(source, modules)
        if _top(found.name) in HOMES and not source.path.startswith(HOMES[_top(found.name)])
    ]
    _refuse(violations, "A heavy library has one home, imports in functions and for types included:")


def test_core_needs_only_its_few_libraries(program: list[Source]) -> None:
    modules = _modules(program)
    allowed = CORE_LIBRARIES | sys.stdlib_module_names | {"core"}
    violations = [
        f"{source.path}:{found.line} imports {found.name}"
        for source in program
        if source.package == "core"
        for found in imports_of(source, modules)
        if _top(found.name) not in allowed
    ]
    _refuse(violations, f"core imports the standard library and {', '.join(sorted(CORE_LIBRARIES))} only:")


@pytest.mark.parametrize("package", NEVER_LOADED)
def test_heavy_libraries_are_not_loaded_through_others(program: list[Source], package: str) -> None:
    modules = _modules(program)
    loads = {s.module: [f for f in imports_of(s, modules) if not f.deferred] for s in program}
    violations = []
    for start in (source.module for source in program if source.package == package):
        chains: list[tuple[str, ...]] = [(start,)]
        seen = {start}
        while chains:
            chain = chains.pop()
            for found in loads[chain[-1]]:
                if _top(found.name) in NEVER_LOADED[package]:
                    violations.append(" -> ".join((*chain, found.name)))
                for name in _with_parents(found.name):
                    if name in modules and name not in seen:
                        seen.add(name)
                        chains.append((*chain, name))
    _refuse(violations, f"To import {package} must not load {', '.join(NEVER_LOADED[package])}:")


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


# Shape of the tree


def test_proto_is_no_package() -> None:
    violations = [str(file.relative_to(ROOT)) for file in (ROOT / "proto").rglob("*.py")]
    _refuse(violations, "proto/ holds sources only; as a package it would shadow proto-plus, which Ray needs:")


def test_tests_are_no_packages() -> None:
    violations = [str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("__init__.py")]
    _refuse(violations, "tests/ has no __init__.py, for pytest imports by path:")


def test_every_package_says_what_it_owns(program: list[Source]) -> None:
    described = {s.path for s in program if s.path.endswith("/__init__.py") and ast.get_docstring(s.tree)}
    folders = set(PACKAGES) | {s.path.rpartition("/")[0] for s in program if s.package in PACKAGES}
    folders |= {p.parent.relative_to(ROOT).as_posix() for name in PACKAGES for p in (ROOT / name).rglob("*_pb2.py")}
    violations = [f"{f}/__init__.py" for f in folders if f"{f}/__init__.py" not in described]
    _refuse(violations, "A package has an __init__.py whose docstring says what it owns; these lack file or text:")


def test_every_module_says_what_it_owns(program: list[Source]) -> None:
    violations = [s.path for s in program if not ast.get_docstring(s.tree)]
    _refuse(violations, "A module begins with a docstring: what it owns and what it must not know:")


def test_modules_are_named_for_what_they_hold(program: list[Source]) -> None:
    violations = [s.path for s in program if VAGUE_NAMES & set(s.module.split("."))]
    _refuse(violations, "A module is named for what it holds, not:")


def test_files_are_short(program: list[Source], tests: list[Source]) -> None:
    violations = [f"{s.path}: {s.num_lines} lines" for s in [*program, *tests] if s.num_lines > MAX_FILE_LINES]
    _refuse(violations, f"A file has at most {MAX_FILE_LINES} lines; split by what the parts own:")


def test_functions_are_short(program: list[Source], tests: list[Source]) -> None:
    violations = []
    for source in [*program, *tests]:
        for node in ast.walk(source.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    violations.append(f"{source.path}:{node.lineno} {node.name}: {length} lines")
    _refuse(violations, f"A function has at most {MAX_FUNCTION_LINES} lines:")


def test_only_the_command_line_prints(program: list[Source]) -> None:
    violations = [
        f"{source.path}:{node.lineno}"
        for source in program
        if not source.path.startswith(MAY_PRINT)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    _refuse(violations, f"Only {', '.join(MAY_PRINT)} print; elsewhere use logging:")


def test_tests_mirror_the_tree(tests: list[Source]) -> None:
    violations = []
    for source in tests:
        if not Path(source.path).name.startswith("test_") or source.path.startswith(SUITES):
            continue
        mirrored = source.path.removeprefix("tests/").removesuffix(".py").replace("test_", "", 1)
        folder, _, name = mirrored.rpartition("/")
        if not _mirrors_something(ROOT / folder, name):
            violations.append(f"{source.path}: there is neither {mirrored}.py nor a folder {mirrored}/")
    _refuse(violations, f"tests/x/test_y.py tests x/y.py; what tests more lives in {SUITES[0]}:")


def _mirrors_something(folder: Path, name: str) -> bool:
    """Whether `name` is a module, a folder or the folder itself, or is so up to an underscore; `y_faults` tests `y`."""
    if name == folder.name:
        return True
    words = name.split("_")
    names = ["_".join(words[:end]) for end in range(len(words), 0, -1)]
    return any((folder / f"{n}.py").is_file() or (folder / n).is_dir() for n in names)


def test_readme_names_existing_make_targets() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", readme, flags=re.DOTALL))
    named = set(re.findall(r"\bmake ((?:[a-z][\w-]*)(?: [a-z][\w-]*)*)", code))
    words = {word for words in named for word in words.split()}
    targets = set(re.findall(r"^([a-z][\w-]*)\s*:(?!=)", makefile, flags=re.MULTILINE))
    assert words, "README.md names no make target"
    _refuse((f"make {word}" for word in words - targets), "README.md names make targets that do not exist:")


# The reader itself


def test_reader_sees_every_form_of_import() -> None:
    text = (
        "import ray.util\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import vllm\n"
        "def f():\n    from grpc import aio\n"
        "class C:\n    import json\n"
        "from . import ledger\n"
        "import importlib\n"
        "importlib.import_module('fastapi.routing')\n"
    )
    source = Source("kv_transfer/plan.py", ast.parse(text), 9)
    assert list(imports_of(source, frozenset({"kv_transfer.ledger"}))) == [
        Import("ray.util", 1, False),
        Import("typing", 2, False),
        Import("vllm", 4, True),
        Import("grpc", 6, True),
        Import("json", 8, False),
        Import("kv_transfer.ledger", 9, False),
        Import("importlib", 10, False),
        Import("fastapi.routing", 11, True),
    ]
