"""Where the estimate and what is measured part: outputs longer than the sample says, promises missed in spite of it.

Owns two factors that make a demand greater, never less than it was estimated. A stateful accountant.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from core.control.actions import Observation
from core.control.capacity import ServiceModel
from core.control.demand import Demand
from core.control.judging import Attainment
from core.types import Role

_MOST_LONGER: Final = 3.0
_MOST_MISSED: Final = 1.5
_GAIN: Final = 0.3  # of the latest interval beside those before
_RISE: Final = 1.05  # an interval in which a promise is missed that should be kept
_FALL: Final = 0.99
_LEAST_ENDED: Final = 50  # requests, to say that a promise is missed
_MISSED_BY: Final = 0.02


class Pressure:
    """Follows what is measured beside what was estimated."""

    def __init__(self, model: ServiceModel) -> None:
        self._model = model
        self._longer = 1.0
        self._missed = 1.0

    def use(self, model: ServiceModel) -> None:
        """Estimate with other costs from now on."""
        self._model = model

    @property
    def missed(self) -> float:
        """So many times the estimated load is provided for."""
        return self._missed

    def adjusted(self, demand: Demand, seen: Observation, rate: float) -> Demand:
        """Make outputs as long as the sequences that decode say, by Little's law; `rate` is that of now.

        A change of traffic shows there first: long outputs are in no sample until they have ended.
        """
        workers = [worker for worker in seen.workers if worker.role is Role.DECODE and worker.num_running]
        if workers and rate > 0:
            cost, running = self._model.decode.cost, sum(worker.num_running for worker in workers)
            context = sum(worker.context_tokens for worker in workers)
            step_s = cost.decode_s(max(1, running // len(workers)), context // len(workers))
            ratio = running / (rate * demand.mean_output * step_s)
            self._longer += _GAIN * (min(_MOST_LONGER, max(1.0, ratio)) - self._longer)
        return replace(demand, decode_factor=self._longer)

    def observe(self, attained: Attainment, *, should_keep: bool) -> None:
        """Take in whether the promise was kept where the estimate says that it should be."""
        if should_keep and attained.ended >= _LEAST_ENDED and attained.margin < -_MISSED_BY:
            self._missed = min(_MOST_MISSED, self._missed * _RISE)
        else:
            self._missed = max(1.0, self._missed * _FALL)
