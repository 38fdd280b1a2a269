"""The YAML dialect: scalars, lines, and everything of form that is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config.tree import Value
from core.config.yaml_text import read_value, read_yaml, write_value, write_yaml

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
VALUES: st.SearchStrategy[Value] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False)
    | TEXTS
    | st.sampled_from(["1e3", "no", "true", "1:30", "0x1f", "<<", "=", "~", "2024-01-01", ".inf", "- a", "# c"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)


def messages(text: str) -> list[str]:
    """Read a file called a.yaml and list its problems as text."""
    return [str(problem) for problem in read_yaml(text, file="a.yaml")[1]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-7", -7),
        ("0x1f", 31),
        ("0o17", 15),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("true", True),
        ("no", "no"),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("", None),
        ("~", None),
        ("'8001'", "8001"),
        ("[1, a]", [1, "a"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("!!int '5'", 5),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: Value) -> None:
    read, problems = read_value(text, source="flag")
    assert (read, problems) == (value, [])
    assert type(read) is type(value)


@given(VALUES)
def test_one_line_values_read_back_equal(value: Value) -> None:
    text = write_value(value)
    assert text.splitlines() == [text] or text == ""
    assert read_value(text, source="flag") == (value, [])


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_whole_files_read_back_equal(root: dict[str, Value]) -> None:
    tree, problems = read_yaml(write_yaml(root), file="a.yaml")
    assert (tree.root, problems) == (root, [])


def test_every_value_knows_its_line() -> None:
    tree, problems = read_yaml("model:\n  path: x\n\n  lora:\n    - name: a\n      path: b\n", file="a.yaml")
    assert problems == []
    assert tree.source_of(("model",)) == "a.yaml:1"
    assert tree.source_of(("model", "path")) == "a.yaml:2"
    assert tree.source_of(("model", "lora", 0, "path")) == "a.yaml:6"
    assert tree.source_of(("model", "name")) == "a.yaml:1", "an absent key is where its section is"


def test_merged_keys_yield_to_explicit_ones_and_keep_their_own_line() -> None:
    tree, problems = read_yaml("a: &a\n  x: 1\n  y: 2\nb:\n  <<: *a\n  y: 3\n", file="a.yaml")
    assert problems == []
    assert tree.root == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}
    assert tree.source_of(("b", "x")) == "a.yaml:2"
    assert tree.source_of(("b", "y")) == "a.yaml:6"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.yaml: is empty; `{}` stands for all defaults"),
        ("# only a comment\n", "a.yaml: is empty; `{}` stands for all defaults"),
        ("- a\n", "a.yaml:1: must be a mapping of sections (model, slo, pools, ...), not a list"),
        ("hello", "a.yaml:1: must be a mapping of sections (model, slo, pools, ...), not a single value"),
        ("a: 1\nb: [1\n", "a.yaml:3: YAML syntax: "),
        ("a: 1\n\tb: 2\n", "a.yaml:2: YAML syntax: found character '\\t'"),
        ("a: b: c", "a.yaml:1: YAML syntax: mapping values are not allowed here (column 5)"),
        ("a: 1\n--- \nb: 2\n", "a.yaml:2: YAML syntax: but found another document"),
        ("a: \x00", "a.yaml: YAML syntax: special characters are not allowed"),
        ("a: 1\nb: 2\na: 3\n", "a.yaml:3: a: is given twice; first at a.yaml:1"),
        ("a: {b: 1, b: 2}", "a.yaml:1: a.b: is given twice; first at a.yaml:1"),
        ("8: 1", "a.yaml:1: the key 8 must be text: write '8' in quotes"),
        ("? [1]\n: 2", "a.yaml:1: a key must be text, not a list or a mapping"),
        ("a: !!python/object/apply:os.system [ls]", "a.yaml:1: a: the tag tag:yaml.org,2002:python/"),
        ("a: !secret b", "a.yaml:1: a: the tag !secret is not allowed here"),
        ("a: !!int abc", "a.yaml:1: a: 'abc' cannot be read as int"),
        ("a: " + "9" * 5000, "cannot be read as int"),
        ('a: "\\ud800"', "a.yaml:1: a: the text holds half a surrogate pair"),
        ("a: {<<: 3}", "a.yaml:1: a.<<: only mappings can be merged"),
        ("a: &a {b: *a}", "do aliases refer to themselves?"),
        ("a: &a {<<: *a}", "do aliases refer to themselves?"),
        ("a: " + "[" * 5000, "a.yaml: is nested too deeply"),
    ],
)
def test_bad_form_is_one_clear_problem(text: str, message: str) -> None:
    found = messages(text)
    assert len(found) == 1, found
    assert message in found[0]


def test_all_problems_of_form_are_found_at_once() -> None:
    found = messages("a: 1\na: 2\n3: x\nb: !x y\nc: {d: 1, d: 2}\n")
    assert [problem.partition(": ")[0] for problem in found] == ["a.yaml:2", "a.yaml:3", "a.yaml:4", "a.yaml:5"]


def test_aliases_cannot_unfold_without_bound() -> None:
    lines = ["a0: &a0 [" + ", ".join("x" * 10) + "]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    found = messages("\n".join(lines))
    assert len(found) == 1
    assert "unfolds too deep or too far" in found[0]


@pytest.mark.parametrize("text", ["[1", "a: b: c", "\x00", "[" * 5000])
def test_a_flag_with_bad_yaml_names_itself(text: str) -> None:
    value, problems = read_value(text, source="--set a=[1")
    assert value is None
    assert [problem.source for problem in problems] == ["--set a=[1"]
