"""YAML text to plain values with line numbers, and back.

Owns the dialect: what PyYAML's safe loader parses, with the scalars of YAML 1.2's core schema (only `true` and
`false` are booleans, `1:30` is text, `1e3` is a number), no custom tags, no duplicate keys. Must not
know the schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from core.config.problems import ConfigProblem
from core.config.tree import ConfigTree, Path, Value, dotted

_MAX_VALUES = 100_000  # a file of aliases to aliases may otherwise unfold without bound
_MAX_DEPTH = 64
_MAX_INT = 1 << 63
_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CORE_SCHEMA = (  # tag, pattern, characters it can begin with
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", _INT.pattern, "-+0123456789"),
    ("float", _FLOAT.pattern, "-+.0123456789"),
    ("null", r"~|null|Null|NULL", "~nN"),
    ("null", "", ""),
    ("merge", "<<", "<"),
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Arrange the core schema as PyYAML wants it: by first character of the scalar."""
    by_first: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for name, pattern, first_characters in _CORE_SCHEMA:
        for first in first_characters or ("",):
            by_first.setdefault(first, []).append((_TAG + name, re.compile(rf"(?:{pattern})\Z")))
    return by_first


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the core schema's scalars."""

    yaml_implicit_resolvers = _resolvers()


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the text that `_Loader` would not read back as text."""

    yaml_implicit_resolvers = _resolvers()

    def ignore_aliases(self, data: object) -> bool:
        """Never write anchors: equal values are written twice."""
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Keep every text on one line: with escapes where it holds a line break or a control character."""
        style = None if text.isprintable() else '"'
        return self.represent_scalar(_TAG + "str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def read_yaml(
    text: str, *, file: str, sections: str = "model, slo, pools, ...", empty: str = "`{}` stands for all defaults"
) -> tuple[ConfigTree, list[ConfigProblem]]:
    """Read one document whose root is a mapping; `sections` and `empty` tell what belongs into this kind of file.

    Returns the tree, whose sources are `file:line`, and every problem of form: bad syntax, duplicate keys,
    keys that are no text, tags. A value with a problem is left out of the tree.
    """
    tree = ConfigTree(default_source=file)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as exc:
        return tree, [_syntax_problem(exc, file)]
    except RecursionError:
        return tree, [ConfigProblem("", "is nested too deeply", file)]
    if node is None:
        return tree, [ConfigProblem("", f"is empty; {empty}", file)]
    if not isinstance(node, yaml.MappingNode):
        found = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        message = f"must be a mapping of sections ({sections}), not {found}"
        return tree, [ConfigProblem("", message, f"{file}:1")]
    reader = _Reader(file)
    root = reader.value(node, ())
    tree.root = root if isinstance(root, dict) else {}
    tree.sources = reader.sources
    return tree, reader.problems


def read_value(text: str, *, source: str) -> tuple[Value, list[ConfigProblem]]:
    """Read one YAML value from a flag or a variable, e.g. `8001`, `[1, 2]`, or nothing, which is null."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as exc:
        reason = getattr(exc, "problem", None) or "not readable"
        return None, [ConfigProblem("", f"the value is not YAML: {reason}", source, value=text)]
    if node is None:
        return None, []
    reader = _Reader(source, with_lines=False)
    return reader.value(node, ()), reader.problems


def write_value(value: Value) -> str:
    """Write a value as one line of YAML flow text that `read_value` reads back as the same value."""
    return _dump(value, flow=True).removesuffix("\n").removesuffix("\n...")


def write_yaml(root: dict[str, Value]) -> str:
    """Write a whole tree as block-style YAML that `read_yaml` reads back as the same tree."""
    return _dump(root, flow=False)


def _dump(value: Value, *, flow: bool) -> str:
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=flow,
        width=float("inf"),
        allow_unicode=True,
        sort_keys=False,
    )
    return str(text)


def _syntax_problem(exc: yaml.YAMLError, file: str) -> ConfigProblem:
    mark = getattr(exc, "problem_mark", None) or getattr(exc, "context_mark", None)
    source = f"{file}:{mark.line + 1}" if mark is not None else file
    reason = getattr(exc, "problem", None) or getattr(exc, "reason", None) or "cannot be read"
    where = f" (column {mark.column + 1})" if mark is not None else ""
    return ConfigProblem("", f"YAML syntax: {reason}{where}", source)


class _Refused(Exception):
    """The value at hand was reported and has no reading."""


class _Reader:
    """Turns nodes into values; collects sources and problems on the way."""

    def __init__(self, file: str, *, with_lines: bool = True) -> None:
        self.sources: dict[Path, str] = {}
        self.problems: list[ConfigProblem] = []
        self._file = file
        self._with_lines = with_lines
        self._count = 0
        self._depth = 0
        self._overflowed = False

    def value(self, node: yaml.Node, path: Path) -> Value:
        """Read `node`; null stands for a value that was refused at the root."""
        try:
            return self._value(node, path)
        except _Refused:
            return None

    def _value(self, node: yaml.Node, path: Path) -> Value:
        self._count += 1
        if self._count > _MAX_VALUES or self._depth >= _MAX_DEPTH:
            if not self._overflowed:
                self._report(node, path, "unfolds too deep or too far: do aliases refer to themselves?")
            self._overflowed = True
            raise _Refused
        self._depth += 1
        try:
            return self._by_kind(node, path)
        finally:
            self._depth -= 1

    def _by_kind(self, node: yaml.Node, path: Path) -> Value:
        self.sources[path] = self._source(node)
        tag = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and tag == "map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            return self._sequence(node, path)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, tag, path)
        self._report(node, path, f"the tag {node.tag} is not allowed here")
        raise _Refused

    def _sequence(self, node: yaml.SequenceNode, path: Path) -> list[Value]:
        items: list[Value] = []
        for child in node.value:
            try:
                items.append(self._value(child, (*path, len(items))))
            except _Refused:
                continue
        return items

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Value]:
        mapping: dict[str, Value] = {}
        first_seen: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                continue
            key = self._key(key_node, path)
            if key is None:
                continue
            if key in first_seen:
                first = self._source(first_seen[key])
                self._report(key_node, (*path, key), f"is given twice; first at {first}")
                continue
            first_seen[key] = key_node
            try:
                mapping[key] = self._value(value_node, (*path, key))
            except _Refused:
                continue
            self.sources[(*path, key)] = self._source(key_node)
        for merged in self._merges(node, path):
            for key, value in merged.items():
                mapping.setdefault(key, value)
        return mapping

    def _merges(self, node: yaml.MappingNode, path: Path) -> Iterator[dict[str, Value]]:
        """Yield what `<<: *anchor` brings in; explicit keys win over it, earlier anchors over later ones."""
        for key_node, value_node in node.value:
            if key_node.tag != _TAG + "merge":
                continue
            parts = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            for part in parts:
                if not isinstance(part, yaml.MappingNode):
                    self._report(part, (*path, "<<"), "only mappings can be merged")
                    continue
                outer, self.sources = self.sources, {}
                try:
                    merged = self.value(part, path)
                finally:
                    inner, self.sources = self.sources, outer
                for known, source in inner.items():
                    self.sources.setdefault(known, source)
                if isinstance(merged, dict):
                    yield merged

    def _key(self, node: yaml.Node, path: Path) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._report(node, path, "a key must be text, not a list or a mapping")
            return None
        if node.tag != _TAG + "str":
            self._report(node, path, f"the key {node.value} must be text: write '{node.value}' in quotes")
            return None
        return self._text(node, path)

    def _text(self, node: yaml.ScalarNode, path: Path) -> str | None:
        text = str(node.value)
        try:
            text.encode()
        except UnicodeEncodeError:
            self._report(node, path, "the text holds half a surrogate pair, which is no character")
            return None
        return text

    def _scalar(self, node: yaml.ScalarNode, tag: str, path: Path) -> Value:
        text = self._text(node, path)
        if text is None:
            raise _Refused
        if tag == "str":
            return text
        try:
            return _plain(tag, text)
        except ValueError as exc:
            self._report(node, path, f"{text[:40]!r} cannot be read as {tag}")
            raise _Refused from exc
        except LookupError as exc:
            self._report(node, path, f"the tag {node.tag} is not allowed here")
            raise _Refused from exc

    def _source(self, node: yaml.Node) -> str:
        if not self._with_lines or node.start_mark is None:
            return self._file
        return f"{self._file}:{node.start_mark.line + 1}"

    def _report(self, node: yaml.Node, path: Path, message: str) -> None:
        self.problems.append(ConfigProblem(dotted(path), message, self._source(node)))


def _plain(tag: str, text: str) -> bool | int | float | None:
    """Convert a scalar that is not text. Raises ValueError for bad text, LookupError for an unknown tag."""
    if tag == "null":
        return None
    if tag == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if tag == "int" and _INT.fullmatch(text):
        number = int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)
        if abs(number) >= _MAX_INT:
            raise ValueError(text)
        return number
    if tag == "float" and _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if tag in ("bool", "int", "float"):
        raise ValueError(text)
    raise LookupError(tag)
