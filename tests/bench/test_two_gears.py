"""The comparison of the gears runs on the profile that is shipped, and its tables say what was found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.two_gears import PROFILE, Compared, cluster_of, compare, report, settings
from core.latency.profile import EngineProfile, read_profile
from sim.cluster import Mode, Routing


@pytest.fixture(scope="module")
def profile() -> EngineProfile:
    return read_profile(PROFILE)


def test_every_mode_is_compared(profile: EngineProfile) -> None:
    modes = {setting.cluster.mode for setting in settings(profile, 10)}
    assert modes == {Mode.DISAGGREGATED, Mode.HYBRID, Mode.ONE_POOL_CHUNKED}
    assert all(setting.cluster.gpus == 8 for setting in settings(profile, 10))


def test_routing_that_lets_decode_take_prompts_is_hybrid(profile: EngineProfile) -> None:
    assert cluster_of(profile, 1, 1).mode is Mode.DISAGGREGATED
    assert cluster_of(profile, 1, 1, Routing(overflow=True)).mode is Mode.HYBRID
    assert cluster_of(profile, 0, 1).prefill is None


def test_gears_are_near_each_other(profile: EngineProfile) -> None:
    found = compare(next(settings(profile, 400)))
    assert found.search_goodput > 0
    assert found.full_goodput == pytest.approx(found.search_goodput, rel=0.1)
    assert found.full_attainment == pytest.approx(found.search_attainment, abs=0.05)


def test_tables_name_speed_and_difference() -> None:
    def timed() -> Iterator[tuple[str, float]]:
        yield "search gear", 250_000.4

    def compared() -> Iterator[Compared]:
        yield Compared("4P4D", 10.0, 10.5, 10.0, 0.9, 0.92)
        yield Compared("none", 0.0, 0.0, 5.0, 0.1, 0.1)

    lines = list(report(timed(), compared()))
    assert "| search gear | 250,000 |" in lines
    assert "| 4P4D | 10.00 | 10.50 | +5.0% | 10.00 | 90.0% | 92.0% | +2.0 points |" in lines
    assert "| none | 0.00 | 0.00 | +nan% | 5.00 | 10.0% | 10.0% | +0.0 points |" in lines
