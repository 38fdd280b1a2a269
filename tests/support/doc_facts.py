"""What the code really has of the things that pages name: verbs, flags, keys, metrics, headers, routes, targets.

Each `..._lies` takes the text of a page and lists what it says that is not so, ready to print.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import baton
from core.completion_command import verbs_of
from core.config.schema import KeySpec, config_schema
from tests.support.doc_pages import MODES, ROOT, Page, words_of

_PACKAGES = (
    *("core", "kv_transfer", "engine", "prefill_workers", "decode_workers", "cluster", "router", "sim", "bench"),
    *("proto", "deploy", "docs", "tests"),
)
_PATH = re.compile(rf"(?:{'|'.join(_PACKAGES)})/[\w./*{{}}-]*")
_PLACEHOLDER = re.compile(r"[A-Z]{2,}|[<>…]")
_SCHEMA = config_schema()
_SECTIONS = tuple(spec.name for spec in _SCHEMA.fields)
# Headers that clients, browsers and proxies know without us.
_FOREIGN_HEADERS = frozenset({"x-api-key", "x-request-id"})
# Flags of programs beside Baton that pages may name.
_FOREIGN_FLAGS = frozenset({"--gpu-memory-utilization"})


@cache
def program_text() -> str:
    """Join all sources of the program, without the tests."""
    files = [ROOT / "baton.py"]
    for package in _PACKAGES:
        if package not in ("docs", "tests"):
            files += sorted(f for f in (ROOT / package).rglob("*.py") if not f.stem.endswith(("_pb2", "_pb2_grpc")))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@cache
def parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    return baton._parser([command.name for command in baton._COMMANDS])


@cache
def verbs() -> dict[str, frozenset[str]]:
    """Map each verb, such as `config show`, to its flags."""
    return {verb.key: frozenset(name for flag in verb.flags for name in flag.names) for verb in verbs_of(parser())}


@cache
def make_targets() -> frozenset[str]:
    """List the targets of the Makefile."""
    return frozenset(re.findall(r"^([a-z][\w-]*)\s*:(?!=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def link_lies(page: Page) -> Iterator[str]:
    """List links within the project that lead nowhere."""
    for target in page.links():
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = ((ROOT / page.path).parent / file).resolve() if file else ROOT / page.path
        if not path.exists():
            yield f"links to {target}: there is no such file"
        elif anchor and anchor not in Page(target, path.read_text(encoding="utf-8")).anchors():
            yield f"links to {target}: there is no such heading"


def path_lies(page: Page) -> Iterator[str]:
    """List files and folders of the project that are named and do not exist."""
    shown = [block.text for block in page.blocks() if block.language in ("sh", "yaml", "python")]
    for code in (*page.inline_code(), *shown):
        for found in re.finditer(rf"(?<![\w./-]){_PATH.pattern}", code):
            path = found[0].rstrip("./") if found[0].endswith(("/", ".")) else found[0]
            if not _PLACEHOLDER.search(path) and not any(ROOT.glob(path)):
                yield f"names {path}: there is no such file"


def verb_lies(page: Page) -> Iterator[str]:
    """List verbs, flags and modules of inline code that do not exist."""
    for code in page.inline_code():
        program = re.match(r"(?:\S*python )?baton(?:\.py)? ([a-z].*)", code)
        if program:
            yield from _command_lies(program[1].split())
        module = re.match(r"python -m ([\w.]+)", code)
        if module and not _is_module(module[1]):
            yield f"names python -m {module[1]}: there is no such module"
        for target in re.findall(r"\bmake ([a-z][\w-]*)", code):
            if target not in make_targets():
                yield f"names make {target}: the Makefile has no such target"
        flag = re.match(r"--(?!help)[\w-]+", code)
        if flag and flag[0] not in _FOREIGN_FLAGS and not _has_flag(flag[0]):
            yield f"names the flag {flag[0]}: nothing has it"


def _has_flag(flag: str) -> bool:
    return any(flag in flags for flags in verbs().values()) or f'"{flag}"' in program_text()


def _command_lies(words: list[str]) -> Iterator[str]:
    verb = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in verbs()), None)
    if verb is None:
        if re.fullmatch(r"[a-z-]+", words[0]):
            yield f"names baton {words[0]}: there is no such verb"
        return
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in verbs()[verb] | {"--help"}:
            yield f"names baton {verb} {word}: it has no such flag"


def _is_module(name: str) -> bool:
    if name.partition(".")[0] not in _PACKAGES:
        return True  # not ours
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def key_lies(page: Page) -> Iterator[str]:
    """List keys of the configuration that do not exist; `*` and `<name>` stand for names of one's own."""
    for code in page.inline_code():
        dotted = re.match(rf"(?:--set '?)?((?:{'|'.join(_SECTIONS)})(?:\.[\w*<>-]+|\.\{{[\w,]+\}}|\[\])+)", code)
        if dotted is None or (ROOT / dotted[1].partition("(")[0].replace(".", "/")).with_suffix(".py").exists():
            continue
        if not _key_exists(_SCHEMA, dotted[1].replace("[]", ".<index>").split(".")):
            yield f"names the key {dotted[1]}: the configuration has no such key"


def _key_exists(spec: KeySpec | None, parts: list[str]) -> bool:
    if spec is None:
        return False
    if not parts:
        return True
    head, rest = parts[0], parts[1:]
    if spec.kind in ("map", "list"):
        return _key_exists(spec.item, rest)
    if head == "*":
        return any(_key_exists(field, rest) for field in spec.fields)
    names = head[1:-1].split(",") if head.startswith("{") else [head]
    return all(_key_exists(spec.field(name), rest) for name in names)


def header_lies(page: Page) -> Iterator[str]:
    """List headers that nothing reads or writes."""
    for name in set(re.findall(r"\bx-[a-z]+(?:-[a-z]+)+\b", page.text)) - _FOREIGN_HEADERS:
        if f'"{name}"' not in program_text():
            yield f"names the header {name}: nothing reads or writes it"


def variable_lies(page: Page) -> Iterator[str]:
    """List environment variables of Baton that mean nothing."""
    for name in set(re.findall(r"\bBATON_[A-Z_]+\b", page.text)):
        parts = name.removeprefix("BATON_").lower().split("__")
        if name not in program_text() and not _key_exists(_SCHEMA, parts) and name != "BATON_SECTION__KEY":
            yield f"names the variable {name}: nothing reads it"


def route_lies(page: Page) -> Iterator[str]:
    """List routes that the router does not have."""
    known = {route.replace(":path", "") for route in re.findall(r'"(/[\w/{}:.-]*)"', program_text())}
    for code in page.inline_code():
        found = re.fullmatch(r"(?:(?:GET|POST|HEAD) )?(/[a-z][\w/{}-]*)", code)
        if found is None or Path(found[1]).exists():
            continue
        pattern = re.sub(r"\\\{\w+\\\}|\b[A-Z]{2,}\b", lambda _: r"\{\w+\}", re.escape(found[1]))
        if not any(re.fullmatch(pattern, route) for route in known):
            yield f"names the route {found[1]}: the router does not have it"


def command_lies(page: Page) -> Iterator[str]:
    """List what is wrong with the blocks of commands: no mark, or flags that nothing takes."""
    for block in page.blocks():
        if block.language not in ("sh", "bash"):
            continue
        if block.mode not in MODES:
            yield f"{block.place}: say how these commands are proven, see tests/support/doc_pages.py"
        if block.mode == "parse" and not block.why:
            yield f"{block.place}: say why these commands cannot run here"
        for line in block.command_lines():
            for words in words_of(line):
                yield from (f"{block.place}: {lie}" for lie in _shell_lies(words))


def _shell_lies(words: list[str]) -> Iterator[str]:
    while words and re.fullmatch(r"[A-Za-z_]+=.*", words[0]):
        words = words[1:]  # a variable for the command
    if len(words) > 1 and words[0].endswith("python") and words[1].endswith("baton.py"):
        yield from _argument_lies(words[2:])
    elif len(words) > 2 and words[0].endswith("python") and words[1] == "-m" and not _is_module(words[2]):
        yield f"there is no module {words[2]}"
    elif words[:1] == ["make"]:
        targets = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        yield from (f"the Makefile has no target {t}" for t in targets if t not in make_targets())


def _argument_lies(arguments: list[str]) -> Iterator[str]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # of --help
            _, unknown = parser().parse_known_args(arguments)
    except SystemExit:
        return  # --help
    except baton._UsageError as exc:
        yield f"`baton.py {' '.join(arguments)}`: {str(exc).splitlines()[0]}"
    else:
        yield from (f"`baton.py {' '.join(arguments)}`: unknown {word}" for word in unknown)


def metric_lies(page: Page, exported: set[str]) -> Iterator[str]:
    """List metrics that are not among those `exported`; an alert's name is none."""
    for name in sorted(set(re.findall(r"\bbaton_[a-z_]+\b", page.text))):
        if name not in exported and not (ROOT / f"{name}.py").exists():
            yield f"names the metric {name}: nothing exports it"


def message_lies(page: Page) -> Iterator[str]:
    """List texts that the page of troubles shows and that nothing says; `…` stands for what differs."""
    if page.path != "docs/troubleshooting.md":
        return
    said = re.sub(r"\s+", " ", re.sub(r"\{[^{}]*\}", "…", program_text().replace('"\n', "").replace("\n", " ")))
    said = re.sub(r'" *f?"', "", said)  # texts that go on in the next line
    for line in page.prose.splitlines():
        first = line.split("|")[1] if line.startswith("| ") else ""
        for text in re.findall(r"`([^`]+)`", first):
            parts = [part.strip() for part in text.split("…") if len(part.strip()) > 3]
            if " " in text and not all(part in said for part in parts):
                yield f"shows the text {text!r}: nothing says so"


CHECKS: tuple[Callable[[Page], Iterator[str]], ...] = (
    *(link_lies, path_lies, verb_lies, key_lies, header_lies, variable_lies, route_lies, command_lies, message_lies),
)
