"""The profiles that ship: each can be read, is documented and says what an engine could really do."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.latency.profile import profile_to_json, read_profile, rounded

_FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "profiles"
_FILES = sorted(_FOLDER.glob("*.json"))


def test_there_are_profiles() -> None:
    assert {file.stem for file in _FILES} >= {"opt-13b-a100", "opt-66b-a100", "llama-2-70b-a100", "llama-2-70b-h100"}


@pytest.mark.parametrize("file", _FILES, ids=lambda file: file.stem)
def test_a_profile_is_written_as_the_program_writes_it(file: Path) -> None:
    profile = read_profile(file)
    assert profile_to_json(rounded(profile)) == file.read_text(encoding="utf-8")
    assert f"`{file.name}`" in (_FOLDER / "README.md").read_text(encoding="utf-8")
    assert profile.source


@pytest.mark.parametrize("file", _FILES, ids=lambda file: file.stem)
def test_longer_prompts_and_larger_batches_take_longer(file: Path) -> None:
    for shape in read_profile(file).shapes:
        prefill = [shape.cost.prefill_s(n) for n in (1, 16, 128, 512, 2048, 4096)]
        assert prefill == sorted(prefill)
        # DistServe has two decode fits that do not meet, under and from 95 sequences: each rises for itself.
        for batches in ((1, 8, 32, 64, 94), (95, 128, 256)):
            decode = [shape.cost.decode_s(batch, 512 * batch) for batch in batches]
            assert decode == sorted(decode)
            assert decode[0] > 0.001
        assert prefill[0] > 0.001


def test_more_devices_decode_faster() -> None:
    profile = read_profile(_FOLDER / "opt-13b-a100.json")
    times = [profile.shape(size).cost.decode_s(1, 512) for size in (1, 2, 4)]
    assert times == sorted(times, reverse=True)
