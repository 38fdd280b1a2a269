"""What is compiled together is what the gears call: with other types they would compile all of it again."""

from __future__ import annotations

from dataclasses import replace

import numba
import pytest

from core.control.actions import Decision, Observation, PoolSizes
from core.policy.registry import policy_named
from sim import entries
from sim.cluster import ClusterSpec, Mode, Outage
from sim.elastic import Fleet
from sim.elastic_run import run_elastic, run_elastic_with_policy
from sim.entries import ENTRIES, compile_together
from sim.outcome import Target
from sim.policy_gear import Refused, context_of, simulate_with_policy
from sim.simulate import simulate, start
from tests.support.small_clusters import arrivals, pool

TARGETS = (Target("any", 2.0, 0.05),)
CLUSTER = ClusterSpec(Mode.DISAGGREGATED, pool(), pool())
WORK = arrivals(*((0.1 * i, 50, 40) for i in range(60)))


class _Breathing:
    """Wants one decode worker more, then one less."""

    def decide(self, observation: Observation) -> Decision | None:
        now = observation.wanted
        return Decision(PoolSizes(now.prefill, 3 - now.decode), "in and out") if now.decode in (1, 2) else None


def test_every_gear_calls_with_the_types_that_are_compiled_together() -> None:
    fleet = Fleet(CLUSTER, 3, 1, 1, start_s=(1.0, 1.0), switch_s=1.0)
    policy = policy_named("slo-aware", context_of(CLUSTER, TARGETS, may_hold=True))
    simulate(replace(CLUSTER, outages=(Outage(1, 1.0, 2.0),)), WORK, TARGETS)
    simulate_with_policy(CLUSTER, WORK, TARGETS, policy, refused=Refused.GIVE_UP)
    run_elastic(fleet, WORK, TARGETS, _Breathing(), every_s=1.0)
    run_elastic_with_policy(fleet, WORK, TARGETS, policy, _Breathing(), every_s=1.0)
    state = numba.typeof(start(CLUSTER, WORK, TARGETS))
    found = {function.__name__: function.signatures for function, _ in ENTRIES if function.signatures}
    assert found == {f.__name__: [(state, *others)] for f, others in ENTRIES if f.__name__ in found}
    assert {"run_all", "run_part", "place_and_advance", "push_outage", "admit", "retire"} <= set(found)


class _Compiled:
    """Stands for an entry, without a compiler."""

    def __init__(self, misses: int) -> None:
        self.signatures: list[tuple[object, ...]] = []
        self.stats = type("Stats", (), {"cache_misses": {"state": misses} if misses else {}})

    def compile(self, signature: tuple[object, ...]) -> None:
        self.signatures.append(signature)


@pytest.mark.parametrize("misses", [0, 1])
def test_others_are_compiled_only_where_the_first_had_to_be(misses: int, monkeypatch: pytest.MonkeyPatch) -> None:
    state = start(CLUSTER, WORK, TARGETS)
    first, other = _Compiled(misses), _Compiled(misses)
    monkeypatch.setattr(entries, "run_all", first)
    monkeypatch.setattr(entries, "ENTRIES", ((other, (numba.int64,)),))
    compile_together(state)
    compile_together(state)
    assert first.signatures == [(numba.typeof(state),)]
    assert other.signatures == [(numba.typeof(state), numba.int64)] * misses
