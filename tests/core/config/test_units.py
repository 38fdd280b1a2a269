"""Quantities that people write with their unit."""

from __future__ import annotations

import pytest

from core.config.units import convert, convert_text, stem_of, unit_of, units_like


@pytest.mark.parametrize(
    ("text", "key", "number"),
    [
        ("400ms", "ttft_ms", "400"),
        ("0.4 s", "ttft_ms", "400"),
        ("2 min", "lease_s", "120"),
        ("1 GiB", "staging_mb", "1024"),
        ("512M", "staging_mb", "512"),
        ("1048576 bytes", "staging_mb", "1"),
        ("400", "ttft_ms", None),
        ("fast", "ttft_ms", None),
        ("4 GiB", "ttft_ms", None),
        ("4 parsecs", "ttft_ms", None),
    ],
)
def test_text_with_a_unit_becomes_a_number_of_the_keys_unit(text: str, key: str, number: str | None) -> None:
    unit = unit_of(key)
    assert unit is not None
    assert convert_text(text, unit) == number


def test_the_unit_ends_the_key() -> None:
    assert [unit.words if (unit := unit_of(key)) else None for key in ("ttft_ms", "lease_s", "staging_mb")] == [
        "milliseconds",
        "seconds",
        "MiB",
    ]
    assert unit_of("port") is None
    assert unit_of("max_num_seqs") is None
    assert unit_of("ms") is None


def test_keys_that_differ_in_unit_share_their_stem() -> None:
    assert {stem_of(key) for key in ("ttft_ms", "ttft_s", "ttft")} == {"ttft"}
    assert stem_of("max_num_seqs") == "max_num_seqs"


def test_a_rate_is_no_time() -> None:
    rate, other = unit_of("network_gbit_s"), unit_of("network_mbit_s")
    assert rate is not None
    assert other is not None
    assert (rate.words, stem_of("network_gbit_s"), units_like(rate)) == ("gigabits per second", "network", (other,))
    assert convert(400, other, rate) == "0.4"


def test_time_and_memory_do_not_mix_and_nothing_infinite_converts() -> None:
    ms, s, mb = unit_of("a_ms"), unit_of("a_s"), unit_of("a_mb")
    assert ms is not None
    assert s is not None
    assert mb is not None
    assert convert(0.4, s, ms) == "400"
    assert convert(1, mb, ms) is None
    assert convert(float("inf"), s, ms) is None
    assert convert(float("nan"), s, ms) is None
    assert s in units_like(ms)
    assert mb not in units_like(ms)
    assert ms not in units_like(ms)
