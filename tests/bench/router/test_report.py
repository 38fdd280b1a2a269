"""The tables hold every system, say what was asked, and give ratios only where there are peers."""

from __future__ import annotations

from bench.core_wait import CoreTimes
from bench.router.figures import Results, Taken
from bench.router.report import report
from bench.router.site import BATON, DIRECT, Cores
from bench.router.window import Spread, Window


def window(router_s: float) -> Window:
    none, times = Spread(), {"router": CoreTimes(router_s, 0.0)} if router_s else {}
    return Window(
        1.0, 10_000, 0, 0, "", latency=Spread(1.0 + router_s, 2.0, 3.0), ttft=none, relay=none, gap=none, times=times
    )


def lines(*targets: tuple[str, float], notes: tuple[str, ...] = ()) -> str:
    taken = [Taken(name, "u32", index, window(s), 64.0) for name, s in targets for index in range(2)]
    return "\n".join(report(Results(taken), cores=Cores(), seconds=1.0, notes=notes))


def test_figures_and_ratios_of_all_systems() -> None:
    text = lines((BATON, 0.5), ("peer", 1.0), (DIRECT, 0.0))
    assert "| | Baton | peer | no router | asked |" in text
    assert "| 32: CPU, us a request | 50 | 100 |  | theirs |" in text
    assert "| 32: requests/s | 10,000 | 10,000 | 10,000 | 11,000 |" in text
    assert "| Baton over | peer | better is |" in text
    assert "| 32: CPU, us a request | 0.50 | less |" in text
    assert "| resident memory, MiB, at most (after requests) | 64 (20,000) | 64 (20,000) |  | |" in text
    assert "s32-1ms" not in text


def test_without_peers_there_are_no_ratios_and_the_reason_is_told() -> None:
    text = lines((BATON, 0.5), (DIRECT, 0.0), notes=("No peers, for they cannot be installed: no network",))
    assert "Baton over" not in text
    assert "- No peers, for they cannot be installed: no network" in text
