"""The flags of `plan` become what the planner takes; wrong numbers are refused in plain words."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from core.config.models import PlanConfig
from sim.device_groups import DeviceFlags
from sim.plan_flags import MOST_GPUS, MOST_PRICE, MOST_RATE, add_plan_flags, plan_flags
from sim.questions import PlanFlags


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_plan_flags(parser)
    return parser.parse_args(words)


def test_nothing_given_is_nothing_said() -> None:
    assert plan_flags(parsed()) == PlanFlags()


def test_every_flag_arrives() -> None:
    words = "--gpu a --gpu b --gpus 8 --gpus 4 --gpus-per-node 4 --price 2.5 --price 1 --bandwidth 100"
    words += " --inner-bandwidth 900 --trace t --workload w --rate 3 --requests 500 --burstiness 2 --share x=1"
    words += " --what-if decode=3 --seed 9 --write f --profile p"
    options = parsed(*words.split())
    assert options.write == Path("f")
    assert plan_flags(options) == PlanFlags(
        devices=DeviceFlags(("p",), ("a", "b"), (8, 4), (2.5, 1.0), 4, 900.0, 100.0),
        trace="t",
        workload="w",
        rate=3.0,
        num_requests=500,
        gap_cv=2.0,
        shares=("x=1",),
        what_if=("decode=3",),
        seed=9,
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--rate x", "invalid number value: 'x'"),
        ("--rate 0", "0 is not above 0"),
        ("--rate nan", "nan is not above 0"),
        ("--price inf", "inf is not above 0"),
        ("--gpus 0", "0 is not 1 or more"),
        ("--gpus 65537", "65537 is more than 65,536"),
        ("--requests 1000001", "1000001 is more than 1,000,000"),
        ("--rate 1e308", "1e308 is more than 10,000,000"),
        ("--price 1e300", "1e300 is more than 1,000,000"),
        ("--seed -1", "-1 is not 0 or more"),
        ("--seed x", "invalid whole number value: 'x'"),
        ("--gpus 1.5", "invalid whole number value: '1.5'"),
    ],
)
def test_wrong_numbers_are_refused(words: str, text: str) -> None:
    with pytest.raises(argparse.ArgumentError) as caught:
        parsed(*words.split())
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "key", "most"),
    [("--gpus", "gpus", MOST_GPUS), ("--rate", "rate", MOST_RATE), ("--price", "price_per_hour", MOST_PRICE)],
)
def test_flags_take_as_much_as_the_keys_of_the_file(flag: str, key: str, most: float) -> None:
    assert PlanConfig.model_validate({key: most}) == PlanConfig.model_validate({key: int(most)})
    parsed(flag, f"{most:.0f}")
    with pytest.raises(ValueError, match="less than or equal"):
        PlanConfig.model_validate({key: most + 1})


def test_to_know_the_flags_loads_nothing_heavy() -> None:
    code = "import sys, sim.plan_flags; print([m for m in ('numpy', 'pydantic', 'numba') if m in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
