"""What a live controller would know of a simulated fleet: no output length of a request that has not ended.

Owns the making of observations. Must not decide.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from core.control.actions import ClassReport, Observation, RequestSample, SizeLimits
from sim.elastic import ElasticFleet, Fleet
from sim.kernel.state import ENDED, FUTURE, HELD, NOBODY, QUEUED, State
from sim.outcome import End, Target
from sim.workload import Floats, Ints

MOST_SAMPLED: Final = 512  # ended requests of one observation
_OUTCOMES: Final = {End.DONE: "ok", End.REFUSED: "rejected", End.TOO_LONG: "rejected", End.UNSERVED: "failed"}


class ElasticView:
    """Watches one run; each observation is of the time since the one before."""

    def __init__(self, fleet: Fleet, state: State, targets: tuple[Target, ...]) -> None:
        self._fleet, self._state, self._targets = fleet, state, targets
        self._ttft_s = np.array([target.ttft_s for target in targets])
        self._tpot_s = np.array([target.tpot_s for target in targets])
        self._open: Ints = np.zeros(0, np.int64)  # all and only the requests that have arrived and not ended
        self._arrived = 0
        self._at_s = 0.0

    def observe(self, now_s: float, arrived: int, devices: ElasticFleet, limits: SizeLimits) -> Observation:
        """Describe the time from the last observation to now, `arrived` requests having come in all."""
        reqs = self._state.reqs
        new = np.arange(self._arrived, arrived)
        known = np.concatenate((self._open, new))
        is_ended = reqs.stage[known] == ENDED
        ended, self._open = known[is_ended], known[~is_ended]
        waiting = self._open[(reqs.stage[self._open] == QUEUED) & (reqs.made[self._open] == 0)]
        stage = reqs.stage[self._open]
        held = self._open[(stage == HELD) | (stage == FUTURE)]  # the full gear holds what it has not sent
        ttft_s, tpot_s, kept = self._measured(ended)
        seen = Observation(
            now_s=now_s,
            window_s=now_s - self._at_s,
            wanted=devices.wanted,
            limits=limits,
            workers=devices.reports(),
            classes=tuple(self._class(number, new, ended, kept) for number in range(len(self._targets))),
            samples=self._samples(ended, ttft_s, tpot_s, kept),
            num_ended=len(ended),
            num_held=len(held),
            held_tokens=int(reqs.prompt[held].sum()),
            least_slack_s=self._slack_s(waiting, now_s),
            start_s=sum(self._fleet.start_s) / 2,
            flip_s=self._fleet.switch_s,
            is_changing=devices.is_changing,
        )
        self._arrived, self._at_s = arrived, now_s
        return seen

    def _measured(self, ended: Ints) -> tuple[Floats, Floats, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]:
        """Return TTFT, TPOT and whether both were kept; times of refused requests are infinite."""
        reqs, cluster = self._state.reqs, self._fleet.worker
        done = reqs.end[ended] == End.DONE
        first_s, last_s = np.where(done, reqs.first_s[ended], 0.0), np.where(done, reqs.last_s[ended], 0.0)
        handed_s = cluster.handover_overhead_s * (reqs.prefill_on[ended] != NOBODY)
        ttft_s = np.where(done, first_s - reqs.arrived[ended] + cluster.request_overhead_s + handed_s, np.inf)
        tpot_s = np.where(done, (last_s - first_s) / np.maximum(1, reqs.made[ended] - 1), np.inf)
        slo = reqs.slo[ended]
        return ttft_s, tpot_s, (ttft_s <= self._ttft_s[slo]) & (tpot_s <= self._tpot_s[slo])

    def _class(
        self, number: int, new: Ints, ended: Ints, kept: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    ) -> ClassReport:
        reqs, target = self._state.reqs, self._targets[number]
        of_class = reqs.slo[ended] == number
        return ClassReport(
            slo_class=target.name,
            ttft_s=target.ttft_s,
            tpot_s=target.tpot_s,
            attainment=target.attainment,
            num_arrived=int((reqs.slo[new] == number).sum()),
            num_ended=int(of_class.sum()),
            num_kept=int(kept[of_class].sum()),
            num_refused=int((reqs.end[ended[of_class]] == End.REFUSED).sum()),
        )

    def _slack_s(self, waiting: Ints, now_s: float) -> float | None:
        if not len(waiting):
            return None
        reqs = self._state.reqs
        return float((reqs.arrived[waiting] + self._ttft_s[reqs.slo[waiting]]).min() - now_s)

    def _samples(
        self, ended: Ints, ttft_s: Floats, tpot_s: Floats, kept: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    ) -> tuple[RequestSample, ...]:
        """Take an even choice of what ended, by time of arrival."""
        reqs = self._state.reqs
        if len(ended) > MOST_SAMPLED:
            places = np.linspace(0, len(ended) - 1, MOST_SAMPLED).astype(np.int64)
            ended, ttft_s, tpot_s, kept = ended[places], ttft_s[places], tpot_s[places], kept[places]
        columns = zip(
            reqs.arrived[ended].tolist(),
            reqs.slo[ended].tolist(),
            reqs.prompt[ended].tolist(),
            reqs.made[ended].tolist(),
            ttft_s.tolist(),
            tpot_s.tolist(),
            kept.tolist(),
            reqs.end[ended].tolist(),
            strict=True,
        )
        return tuple(
            RequestSample(
                arrived_s=arrived_s,
                slo_class=self._targets[number].name,
                prompt_tokens=prompt,
                cached_tokens=0,
                output_tokens=made,
                ttft_s=ttft if made else None,
                tpot_s=tpot if made else None,
                waited_s=0.0,
                kept=is_kept,
                outcome=_OUTCOMES[End(end)],
            )
            for arrived_s, number, prompt, made, ttft, tpot, is_kept, end in columns
        )
