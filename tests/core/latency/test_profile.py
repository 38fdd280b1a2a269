"""The profile file. Invariant: what is written is read back equal, whatever the profile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.latency.profile import EngineProfile, ShapeProfile, profile_from_json, profile_to_json, read_profile, rounded
from core.latency.step import StepCost, Table

_positive = st.integers(1, 10**9)
_seconds = st.floats(0, 1e3)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Draw a table as profiles hold them."""
    at = sorted(draw(st.sets(st.floats(0, 1e6), min_size=1, max_size=5)))
    return Table(tuple(at), tuple(draw(st.lists(_seconds, min_size=len(at), max_size=len(at)))))


_costs = st.builds(StepCost, tables(), tables(), tables(), tables(), _seconds, st.none() | tables())


@st.composite
def profiles(draw: st.DrawFn) -> EngineProfile:
    """Draw a profile of some sizes."""
    sizes = sorted(draw(st.sets(st.tuples(st.integers(1, 64), st.integers(1, 64)), min_size=1, max_size=3)))
    shapes = tuple(
        ShapeProfile(tensor, pipeline, draw(_costs), draw(_positive), draw(_seconds), draw(_seconds))
        for tensor, pipeline in sizes
    )
    names = [draw(st.text(max_size=8)) for _ in range(4)]
    limit = draw(st.none() | _positive)
    return EngineProfile(*names, shapes, draw(_positive), draw(_positive), limit, draw(_seconds), draw(_seconds))


def _profile() -> EngineProfile:
    cost = StepCost(Table.line(0.01, 1e-4), Table.constant(1 / 3), Table.line(0.01, 1e-5), Table.constant(1e-7))
    return EngineProfile("m", "d", "e", "s", (ShapeProfile(1, 1, cost, 1000, 0.0123456, 0.02),), 4096)


@given(profiles())
def test_a_written_profile_is_read_back_equal(profile: EngineProfile) -> None:
    assert profile_from_json(profile_to_json(profile)) == profile


@given(profiles())
def test_rounding_twice_changes_nothing(profile: EngineProfile) -> None:
    once = rounded(profile, digits=5)
    assert rounded(once, digits=5) == once


def test_rounding_keeps_knots_and_shortens_values() -> None:
    cost = rounded(_profile()).shapes[0].cost
    assert cost.pair == Table.constant(0.3333333)
    assert rounded(_profile()).shapes[0].prefill_error == 0.0123


def test_a_file_says_its_format_first(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(profile_to_json(_profile()), encoding="utf-8")
    assert file.read_text(encoding="utf-8").splitlines()[1].strip() == '"format": "baton-profile/1",'
    assert read_profile(file) == _profile()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"block_size"', '"blocksize"', "blocksize: unknown key"),
        ('"kv_capacity_tokens": 1000', '"kv_capacity_tokens": 0', "shapes.0.kv_capacity_tokens"),
        ('"kv_capacity_tokens": 1000', '"kv_capacity_tokens": "1000"', "shapes.0.kv_capacity_tokens"),
        ('"dense": [[0.0', '"dense": [[2.0', "shapes.0.cost.dense: .*must rise"),
        ("baton-profile/1", "baton-profile/2", "format: Input should be 'baton-profile/1'"),
        ('"model": "m"', '"model": NaN', "model"),
        ('"dense": [[0.0, 0.01]', '"dense": [[0.0, -0.01]', "shapes.0.cost.dense.0.1"),
        ("{", "", "Invalid JSON"),
    ],
)
def test_a_wrong_file_is_refused_with_field_and_remedy(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = profile_to_json(_profile())
    assert old in text
    file = tmp_path / "wrong.json"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"wrong\.json: .*{said}.*baton\.py profile"):
        read_profile(file)


def test_sizes_must_differ_and_be_in_order() -> None:
    document = json.loads(profile_to_json(_profile()))
    document["shapes"] *= 2
    with pytest.raises(ConfigError, match=r"shapes: .*one entry for each size"):
        profile_from_json(json.dumps(document))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: the profile cannot be read"):
        read_profile(tmp_path / "none.json")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "bytes.json"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_profile(file)


def test_an_unknown_size_lists_the_known() -> None:
    assert _profile().shape(1).gpus == 1
    with pytest.raises(ConfigError, match="has no tp2 pp1; it has tp1 pp1"):
        _profile().shape(2)
