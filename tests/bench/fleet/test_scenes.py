"""The grid, and where its requests come from."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from bench.fleet.scenes import LARGE, MOONCAKE, SMALL, longest_of, scenes
from core.errors import ConfigError


def test_every_scene_has_a_name_of_its_own_and_each_kind_of_traffic_two_promises() -> None:
    names = [scene.name for scene in scenes()]
    assert len(set(names)) == len(names) == 24
    assert {scene.fleet.gpus for scene in scenes()} == {8, 64}


def test_scenes_are_chosen_by_a_part_of_their_name() -> None:
    chosen = list(scenes("64 x h200, llama-3.1-70b, azure code"))
    assert [str(scene.promise) for scene in chosen] == ["3000/35"]


@pytest.mark.parametrize("fleet", [*SMALL, *LARGE])
def test_every_size_of_worker_holds_the_longest_request(fleet) -> None:  # type: ignore[no-untyped-def]
    longest = longest_of(fleet)
    assert 100_000 < longest <= min(shape.kv_capacity_tokens for shape in fleet.profile().shapes)
    assert fleet.group().devices == fleet.gpus


def test_without_data_requests_are_made_by_the_recipe() -> None:
    made = MOONCAKE.workload(None, requests=50, longest=20_000)
    assert len(made) == 50
    assert len(made.prefix_start)
    assert (made.prompt_tokens + made.output_tokens <= 20_000).all()


def test_with_data_the_beginning_of_the_trace_is_read(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    rows = [{"timestamp": 100 * i, "input_length": 600, "output_length": 5, "hash_ids": [0, i]} for i in range(9)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "traces" / MOONCAKE.file).write_bytes(gzip.compress(text.encode()))
    assert len(MOONCAKE.workload(tmp_path, requests=4, longest=1_000)) == 4


def test_data_that_is_not_there_names_the_file_and_the_way_without(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mooncake-conversation.*leave --data out"):
        MOONCAKE.workload(tmp_path, requests=4, longest=1_000)
