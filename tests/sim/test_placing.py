from __future__ import annotations

import numpy as np

from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.kernel.state import NOBODY
from sim.outcome import End, Target
from sim.placing import place_and_advance
from sim.simulate import FOREVER_S, start
from sim.workload import Workload
from tests.support.contexts import COST


def test_a_decision_is_acted_on_and_time_passes_no_further_than_asked() -> None:
    pool = PoolSpec(1, COST, kv_capacity_tokens=10_000)
    load = Workload("three", np.array([0.0, 1.0, 2.0]), np.array([1000] * 3), np.array([1, 1, 1]))
    state = start(ClusterSpec(Mode.DISAGGREGATED, pool, pool), load, (Target("interactive", 1.0, 0.1),))
    place_and_advance(state, 0, 0, 1, 0.0, 0.1, False)
    assert state.reqs.end[0] == End.RUNNING
    place_and_advance(state, 1, NOBODY, NOBODY, 1.0, 1.0, False)
    assert state.reqs.end[:2].tolist() == [End.DONE, End.REFUSED]
    place_and_advance(state, 2, NOBODY, 1, 2.0, FOREVER_S, False)
    assert state.reqs.end[2] == End.DONE
    assert state.reqs.prefill_on.tolist() == [0, NOBODY, NOBODY]
    assert state.reqs.first_s[2] == 2.0 + COST.prefill_s(1000)
