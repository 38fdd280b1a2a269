"""A race leaves out only what cannot win."""

from __future__ import annotations

from dataclasses import replace

from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.outcome import Outcome, Target
from sim.search.bounds import Bounds, Demand
from sim.search.estimate import Estimates
from sim.search.goodput import Judge, Scenario, Simulate
from sim.search.placements import Placement, fits_of, one_pools, size_pairs, split, splits
from sim.search.race import Found, Race
from sim.workload import Workload
from tests.sim.search.queue_model import group, question, queue_model, shape


def race_of(run: Simulate, heard: list[Found | None]) -> Race:
    asked = question(group(6), count=200)
    demand = Demand.of(asked.workload, asked.targets)
    judge = Judge(Scenario((asked.workload,), asked.targets), run)
    return Race(asked, judge, Bounds(demand), Estimates(demand), heard.append)


def all_placements(race: Race) -> list[Placement]:
    asked = race.question
    fits = fits_of(asked)
    pairs = size_pairs(asked, fits)
    paired = (
        p
        for pair in pairs
        for x, y in splits(asked, pair, 6, above=0)
        for p in split(asked, Mode.DISAGGREGATED, pair, x, y)
    )
    return [*one_pools(asked, fits, 6, above=0), *paired]


def test_the_winner_keeps_what_judging_every_placement_alone_finds() -> None:
    heard: list[Found | None] = []
    race = race_of(queue_model, heard)
    placements = all_placements(race)
    winner = race.confirmed(race.nearby(placements, None), None, thorough=True)
    alone = [race_of(queue_model, []).judged(p) for p in placements]
    assert winner is not None
    # Only the winner is confirmed, by strides that grow: another could end up to a few steps higher.
    assert abs(winner.step - max(found.step for found in alone if found is not None)) <= 4
    assert len(heard) == len(placements) + 1  # and what was confirmed
    assert heard[-1] == winner
    assert len(race.simulated) < len(race.considered) == len(placements)


def test_the_order_of_placements_does_not_matter() -> None:
    one, other = race_of(queue_model, []), race_of(queue_model, [])
    placements = all_placements(one)
    first = one.confirmed(one.nearby(placements, None), None, thorough=True)
    second = other.confirmed(other.nearby(placements[::-1], None), None, thorough=True)
    assert first is not None
    assert second is not None
    assert first.step == second.step


def test_better_settings_are_found_and_carried_to_other_placements() -> None:
    def likes_slack(cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0) -> Outcome:
        helped = 1.0 + 0.3 * int(cluster.routing.order) + 0.2 * int(cluster.routing.admission)
        decode = replace(cluster.decode, cost=cluster.decode.cost.scaled(prefill=1 / helped, decode=1 / helped))
        return queue_model(replace(cluster, decode=decode), workload, targets, seed=seed)

    race = race_of(likes_slack, [])
    race.bounds = Bounds(
        replace(race.bounds.demand, output=race.bounds.demand.output / 3)
    )  # costs are lower than stated
    pools = [
        Placement(ClusterSpec(Mode.ONE_POOL, PoolSpec(count, shape().cost, 60_000)), (0,), float(count))
        for count in (1, 3)
    ]
    best = race.best(pools, None, thorough=True)
    assert best is not None
    routing = best.placement.cluster.routing
    assert (int(routing.order), int(routing.admission)) == (1, 2)
    assert best.placement.cluster.decode.replicas == 3
