"""What environment variables and `--set` flags lay over the file.

Owns their grammar: `BATON_ROUTER__PORT=8001` and `router.port=8001`, values in YAML. Must not read the environment of
the process: it is handed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from core.config.problems import ConfigProblem
from core.config.schema import KeySpec, leaf_paths
from core.config.tree import ConfigTree, Path, dotted
from core.config.yaml_text import read_value

PREFIX = "BATON_"
LEVEL = "__"  # separates levels in the name of a variable
# Variables that steer the process and are no configuration.
RESERVED = frozenset({"BATON_STATE_DIR", "BATON_DEBUG"})


def apply_environment(tree: ConfigTree, environ: Mapping[str, str], schema: KeySpec) -> list[ConfigProblem]:
    """Lay the variables that are configuration over `tree`, by name; return what is wrong with them.

    Levels are separated by two underscores and names are lower-cased, except that a key which the tree has already is
    found whatever its case and with `-` and `.` for `_`.
    """
    problems: list[ConfigProblem] = []
    near_misses = {PREFIX + "_".join(path).upper(): path for path in leaf_paths(schema) if len(path) > 1}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in RESERVED or not _is_text(name):
            continue
        words = name.removeprefix(PREFIX).split(LEVEL)
        if len(words) == 1 and schema.field(words[0].lower()) is None:
            if name in near_misses:
                problems.append(_near_miss(name, near_misses[name]))
            continue
        if not all(words):
            message = f"a level is empty; levels are separated by `{LEVEL}`, e.g. BATON_ROUTER__PORT"
            problems.append(ConfigProblem("", message, name))
            continue
        problems += _lay(tree, _known_path(tree, words), environ[name], source=name)
    return problems


def apply_overrides(tree: ConfigTree, overrides: Sequence[str]) -> list[ConfigProblem]:
    """Lay `key.path=value` texts over `tree`, in order; return what is wrong with them."""
    problems: list[ConfigProblem] = []
    for override in overrides:
        source = _readable(f"--set {override}")
        key, equals, text = override.partition("=")
        words = key.strip().split(".")
        if not equals or not all(words):
            message = "must be KEY=VALUE with a dotted key, e.g. router.port=8001"
            problems.append(ConfigProblem("", message, source))
            continue
        problems += _lay(tree, _indexed_path(tree, words), text, source=source)
    return problems


def _near_miss(name: str, path: tuple[str, ...]) -> ConfigProblem:
    meant = PREFIX + LEVEL.join(path).upper()
    message = "looks like a setting, but two underscores separate levels"
    return ConfigProblem("", message, name, suggestion=f"write {meant}")


def _lay(tree: ConfigTree, path: Path, text: str, *, source: str) -> list[ConfigProblem]:
    if not _is_text(text + dotted(path)):
        return [ConfigProblem("", "holds bytes that are no text", source)]
    value, problems = read_value(text, source=source)
    if problems:
        return [replace(problem, path=dotted(path)) for problem in problems]
    tree.set(path, value, source)
    return []


def _is_text(text: str) -> bool:
    """Whether `text` has a UTF-8 form; variables and arguments that are not UTF-8 arrive as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _readable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _known_path(tree: ConfigTree, words: Sequence[str]) -> Path:
    path: Path = ()
    for word in words:
        known = next((key for key in tree.keys(path) if _as_variable(key) == _as_variable(word)), None)
        path = (*path, known) if known is not None else _indexed_path(tree, [word.lower()], base=path)
    return path


def _as_variable(key: str) -> str:
    return key.lower().replace("-", "_").replace(".", "_")


def _indexed_path(tree: ConfigTree, words: Sequence[str], *, base: Path = ()) -> Path:
    """Turn digits into an index where the tree has a list."""
    path = base
    for word in words:
        _, node = tree.get(path)
        is_index = isinstance(node, list) and word.isascii() and word.isdigit() and len(word) < 10
        path = (*path, int(word) if is_index else word)
    return path
