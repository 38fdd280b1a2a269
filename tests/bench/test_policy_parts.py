"""The bench of the policy parts runs, and its soak reports memory and hits of every span."""

from __future__ import annotations

import re

from bench.policy_parts import cpu_us, other_costs, queue_costs, rss_mb, soak


def test_a_short_soak_tells_how_it_went() -> None:
    lines: list[str] = []
    soak(400, lines.append, lines=2)
    assert len(lines) == 3
    for line, requests in zip(lines[1:], ("200", "400"), strict=True):
        found = re.match(r" +(\S+) requests +([\d.]+) MiB +([\d,]+) pieces +([\d.]+)% hits +([\d.]+) us", line)
        assert found is not None
        assert found[1] == requests
        assert int(found[3].replace(",", "")) > 300
        assert 0 < float(found[4]) <= 100


def test_costs_are_of_the_action() -> None:
    assert 0.1 < cpu_us(lambda: sum(range(100)), calls=10) < 10_000
    for line in (*queue_costs(50)[1:], *other_costs()):
        assert float(re.findall(r"\d+\.\d+", line)[-1]) > 0


def test_memory_is_that_of_this_process() -> None:
    assert rss_mb() == 0.0 or rss_mb() > 5
