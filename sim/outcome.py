"""What a simulation says of each request, and the shares and rates that follow.

Owns the definitions of attainment and TPOT used everywhere in the planner.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.workload import Floats, Ints


class End(enum.IntEnum):
    """How a request ended. The numbers are those of the compiled code."""

    RUNNING = 0  # only before the end of a simulation
    DONE = 1
    REFUSED = 2  # by admission, at arrival
    TOO_LONG = 3  # needs more KV than a worker has
    UNSERVED = 4  # no worker came back to take it


@dataclass(frozen=True, slots=True)
class Target:
    """The promise to one class: at least `attainment` of its requests within both times."""

    name: str
    ttft_s: float
    tpot_s: float
    attainment: float = 0.9


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One entry for each request, in order of arrival; times of requests that did not run are inf."""

    arrived_s: Floats
    ttft_s: Floats  # arrival to first token
    tpot_s: Floats  # mean time per output token after the first; 0 with one output token
    e2e_s: Floats  # arrival to last token
    max_itl_s: Floats  # longest gap between two tokens
    end: NDArray[np.int8]  # End
    prefill_worker: NDArray[np.int32]  # -1: served whole on its decode worker
    decode_worker: NDArray[np.int32]
    slo_class: Ints
    num_preemptions: int
    num_steps: int  # engine steps simulated
    blocks_held: int  # KV blocks held at the end; 0 when all is well
    max_queue: int  # most requests waiting at one time on one worker
    makespan_s: float  # first arrival to last token

    def met(self, targets: tuple[Target, ...]) -> NDArray[np.bool_]:
        """Say which requests met both targets of their class."""
        ttft = np.array([t.ttft_s for t in targets])[self.slo_class]
        tpot = np.array([t.tpot_s for t in targets])[self.slo_class]
        kept: NDArray[np.bool_] = (self.end == End.DONE) & (self.ttft_s <= ttft) & (self.tpot_s <= tpot)
        return kept

    def attainment(self, targets: tuple[Target, ...], skip: int = 0) -> tuple[float, ...]:
        """Return, by class, the share of all offered requests that met both; the first `skip` requests do not count.

        A class without requests counts as kept (1.0).
        """
        met, classes = self.met(targets)[skip:], self.slo_class[skip:]
        return tuple(float(met[classes == i].mean()) if (classes == i).any() else 1.0 for i in range(len(targets)))
