"""Why a promise cannot be kept, and the nearest that can.

Owns the search over loosened targets. Must not change the promise of the plan itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sim.outcome import Target
from sim.plan import Shortfall
from sim.search.goodput import Judge, Scenario, Simulate
from sim.search.placements import Placement

_FINEST = 1.01  # factors are found to 1 %
_LOOSEST = 1000.0


@dataclass(slots=True, eq=False)
class Loosening:
    """Looks for factors at one rate, over the placements that did best."""

    scenario: Scenario
    placements: Sequence[Placement]
    rate: float
    run: Simulate
    simulated_requests: int = 0

    def shortfall(self, feasible_rate: float | None) -> Shortfall:
        """Say what binds and which promise is kept at the rate: one of the two times loosened, else both."""
        failing = self._failing()
        ways: tuple[tuple[str, Callable[[Target, float], Target]], ...] = (
            ("ttft_ms", lambda t, f: replace(t, ttft_s=t.ttft_s * f)),
            ("tpot_ms", lambda t, f: replace(t, tpot_s=t.tpot_s * f)),
            ("both", lambda t, f: replace(t, ttft_s=t.ttft_s * f, tpot_s=t.tpot_s * f)),
        )
        for_one = [(f, n, loosen) for n, loosen in ways[:2] if (f := self._factor(failing, loosen)) is not None]
        name = self.scenario.targets[failing[0]].name
        if for_one:
            factor, which, loosen = min(for_one, key=lambda found: found[0])
            reason = f"{which} of {name} would have to be {factor:.2f} times as long"
            return Shortfall(f"{name}.{which}", self._loosened(failing, loosen, factor), feasible_rate, reason)
        both = self._factor(failing, ways[2][1])
        if both is not None:
            reason = f"both times of {name} would have to be {both:.2f} times as long; one alone does not help"
            return Shortfall(f"{name}.ttft_ms", self._loosened(failing, ways[2][1], both), feasible_rate, reason)
        reason = "the devices cannot carry the rate, however loose the targets"
        return Shortfall("rate", self.scenario.targets, feasible_rate, reason)

    def _failing(self) -> list[int]:
        """List the classes that miss their share on the best placement, worst first; all when each is kept alone."""
        targets = self.scenario.targets
        attained = self._judge(targets).attainment(self.placements[0], self.rate)
        short = sorted((attained[i] - targets[i].attainment, i) for i in range(len(targets)))
        return [i for gap, i in short if gap < 0] or [i for _, i in short]

    def _factor(self, failing: Sequence[int], loosen: Callable[[Target, float], Target]) -> float | None:
        """Find the least factor with which some placement keeps every class, by bisection."""
        if not self._kept(self._loosened(failing, loosen, _LOOSEST)):
            return None
        low, high = 1.0, _LOOSEST
        while high / low > _FINEST:
            middle = (low * high) ** 0.5
            if self._kept(self._loosened(failing, loosen, middle)):
                high = middle
            else:
                low = middle
        return high

    def _loosened(
        self, failing: Sequence[int], loosen: Callable[[Target, float], Target], factor: float
    ) -> tuple[Target, ...]:
        return tuple(loosen(t, factor) if i in failing else t for i, t in enumerate(self.scenario.targets))

    def _kept(self, targets: tuple[Target, ...]) -> bool:
        judge = self._judge(targets)
        kept = False
        for placement in self.placements:
            attained = judge.attainment(placement, self.rate)
            if all(a >= t.attainment - 1e-9 for a, t in zip(attained, targets, strict=True)):
                kept = True
                break
        self.simulated_requests += judge.simulated_requests
        return kept

    def _judge(self, targets: tuple[Target, ...]) -> Judge:
        return Judge(replace(self.scenario, targets=targets), self.run)
