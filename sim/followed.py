"""What a simulated router learns of its predictions: each is compared with what came of it, when it has come.

Owns the predictions that are open. Must not decide, and looks at no output before it is there. Of decode steps that the
kernel reckons together it hears when it tells of them, at the latest when a sequence of the batch ends.
"""

from __future__ import annotations

import numpy as np

from core.policy.calibration import Calibration
from core.types import Forecast
from sim.cluster import ClusterSpec
from sim.kernel.state import NOBODY, State
from sim.outcome import End, Target


class FollowedForecasts:
    """Feeds a calibration."""

    def __init__(
        self, cluster: ClusterSpec, state: State, targets: tuple[Target, ...], calibration: Calibration
    ) -> None:
        """Take the state that the kernel writes on."""
        self._cluster, self._state, self._calibration = cluster, state, calibration
        self._names = [target.name for target in targets]
        self._given: dict[int, tuple[Forecast, float]] = {}  # with the time of the decision, of all and only the open
        self._unbegun: list[int] = []  # all and only the requests of these without a token
        self._begun: list[int] = []  # and those with one

    def given(self, request: int, forecast: Forecast | None, now_s: float) -> None:
        """Note what was predicted of a request that goes now."""
        if forecast is not None:
            self._given[request] = forecast, now_s
            self._unbegun.append(request)

    def learn(self) -> None:
        """Compare what has come since this was called last."""
        reqs = self._state.reqs
        if self._unbegun:
            came = reqs.made[np.array(self._unbegun)] > 0
            if came.any():
                for request in [r for r, has in zip(self._unbegun, came.tolist(), strict=True) if has]:
                    self._compare_first(request)
                self._begun += [r for r, has in zip(self._unbegun, came.tolist(), strict=True) if has]
                self._unbegun = [r for r, has in zip(self._unbegun, came.tolist(), strict=True) if not has]
        if self._begun:
            ended = (reqs.end[np.array(self._begun)] == End.DONE).tolist()
            for request in [r for r, has in zip(self._begun, ended, strict=True) if has]:
                self._compare_rest(request)
            self._begun = [r for r, has in zip(self._begun, ended, strict=True) if not has]

    def _compare_first(self, request: int) -> None:
        reqs, cluster = self._state.reqs, self._cluster
        forecast, decided_s = self._given[request]
        ttft_s = float(reqs.first_s[request]) - decided_s + cluster.request_overhead_s
        if reqs.prefill_on[request] != NOBODY:
            ttft_s += cluster.handover_overhead_s
        self._calibration.observe(self._names[reqs.slo[request]], forecast, ttft_s=ttft_s)

    def _compare_rest(self, request: int) -> None:
        reqs = self._state.reqs
        forecast, _ = self._given.pop(request)
        if (further := int(reqs.made[request]) - 1) > 0:
            tpot_s = float(reqs.last_s[request] - reqs.first_s[request]) / further
            self._calibration.observe(self._names[reqs.slo[request]], forecast, tpot_s=tpot_s)
