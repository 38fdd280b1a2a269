"""The comparison as Markdown and as a picture.

Owns wording. Must not simulate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from bench.fleet.goodput import interval, ratio
from bench.fleet.record import SceneFound
from bench.fleet.systems import BATON, DISTSERVE, ONE_POOL, ONE_POOL_BATON, PEERS
from bench.goodput_plot import Curve, Panel, plotted
from sim.plan import Interval

_OTHERS: Final = (ONE_POOL, DISTSERVE, *PEERS)
_PROMISED: Final = 90.0  # percent
_COLUMNS: Final = 4  # panels in a row


def report(found: Sequence[SceneFound]) -> Iterator[str]:
    """Write the tables of every fleet, and what they come to."""
    for fleet in dict.fromkeys(scene.fleet for scene in found):
        scenes = [scene for scene in found if scene.fleet == fleet]
        yield f"**{fleet}**: goodput, requests/s for each GPU"
        yield ""
        yield from _goodputs(scenes)
        yield ""
        yield from _routings(scenes)
        yield ""
    yield from _summary(found)


def picture(found: Sequence[SceneFound]) -> str:
    """Draw attainment against the rate for each GPU, a panel for every scene."""
    return plotted([_panel(scene) for scene in found], columns=_COLUMNS)


def _goodputs(scenes: Sequence[SceneFound]) -> Iterator[str]:
    yield (
        f"| traffic, TTFT/TPOT ms | {ONE_POOL} | {DISTSERVE} | P/D, best of the peers' routing | {ONE_POOL_BATON} "
        f"| {BATON} | planned | planned / {ONE_POOL} | planned / best of the others |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for scene in scenes:
        peer = best_peer(scene)
        cells = [
            f"{scene.traffic}, {scene.promise}",
            _cell(scene, ONE_POOL),
            _cell(scene, DISTSERVE),
            f"{_cell(scene, peer)} ({peer.removeprefix('P/D, ')})",
            _cell(scene, ONE_POOL_BATON),
            _cell(scene, BATON),
            {ONE_POOL_BATON: "one pool", BATON: "P/D"}.get(scene.planned, "none"),
            _ratio_cell(scene, ONE_POOL),
            _ratio_cell(scene, best_other(scene)),
        ]
        yield f"| {' | '.join(cells)} |"


def _routings(scenes: Sequence[SceneFound]) -> Iterator[str]:
    names = [name for name in PEERS if any(scene.of(name) for scene in scenes)]
    heads = [name.removeprefix("P/D, ") for name in names]
    heads += ["their pools", "one pool's", "DistServe's", "as planned", "the planner foresees: one pool, P/D"]
    yield f"| traffic, TTFT/TPOT ms | {' | '.join(heads)} |"
    yield "|---" * (len(names) + 6) + "|"
    for scene in scenes:
        pools = [_pools(scene, name) for name in (names[0], ONE_POOL, DISTSERVE, scene.planned or BATON)]
        cells = [_cell(scene, name) for name in names]
        pools.append(", ".join(f"{rate / scene.gpus:.3g}" for rate in scene.foreseen) or "-")
        yield f"| {scene.traffic}, {scene.promise} | {' | '.join([*cells, *pools])} |"


def _summary(found: Sequence[SceneFound]) -> Iterator[str]:
    one_pool = [scene for scene in found if _apart(scene, ONE_POOL_BATON, BATON)]
    apart = [scene for scene in found if _apart(scene, BATON, ONE_POOL_BATON)]
    right = [scene for scene in (*one_pool, *apart) if scene.planned == _better(scene)]
    yield f"One pool clearly better than P/D, both with Baton's routing: {_names(one_pool)}."
    yield ""
    yield f"P/D clearly better: {_names(apart)}."
    yield ""
    clear = len(one_pool) + len(apart)
    yield f"Of these {clear} the planner chose the better in {len(right)}; {_wrong(one_pool, apart)}."
    yield ""
    yield (
        f"As planned against the best of the others ({ONE_POOL}, {DISTSERVE}, P/D with the peers' routing): "
        f"clearly more in {sum(_over(s).low > 1 for s in found)} of {len(found)}, "
        f"clearly less in {sum(_over(s).high < 1 for s in found)}."
    )


def best_peer(scene: SceneFound) -> str:
    """Name the routing of others that keeps the most on prefill and decode apart."""
    return max((name for name in PEERS if scene.of(name)), key=lambda name: scene.goodput(name)[0])


def best_other(scene: SceneFound) -> str:
    """Name the best of what others run."""
    return max((name for name in _OTHERS if scene.of(name)), key=lambda name: scene.goodput(name)[0])


def _over(scene: SceneFound) -> Interval:
    if not scene.planned:
        return Interval(0.0, 0.0, 0.0)
    return ratio(scene.goodput(scene.planned), scene.goodput(best_other(scene)))


def _apart(scene: SceneFound, better: str, worse: str) -> bool:
    return ratio(scene.goodput(better), scene.goodput(worse)).low > 1


def _better(scene: SceneFound) -> str:
    return max((ONE_POOL_BATON, BATON), key=lambda name: scene.goodput(name)[0])


def _wrong(*groups: Sequence[SceneFound]) -> str:
    wrong = [scene for group in groups for scene in group if scene.planned != _better(scene)]
    return f"not in {_names(wrong)}" if wrong else "in all of them"


def _names(scenes: Sequence[SceneFound]) -> str:
    return "; ".join(scene.name for scene in scenes) or "none"


def _cell(scene: SceneFound, name: str) -> str:
    values = scene.goodput(name)
    if not values:
        return "-"
    if not values[0]:
        return "0"
    found = interval(values)
    return f"{found.mid:.3g} [{found.low:.3g}..{found.high:.3g}]"


def _ratio_cell(scene: SceneFound, other: str) -> str:
    if not scene.planned:
        return "-"
    found = ratio(scene.goodput(scene.planned), scene.goodput(other))
    return (
        f"{found.mid:.2f} [{found.low:.2f}..{found.high:.2f}]" if math.isfinite(found.mid) else "the others keep none"
    )


def _pools(scene: SceneFound, name: str) -> str:
    system = scene.of(name)
    return (system.pools if system else "") or "none"


def _panel(scene: SceneFound) -> Panel:
    curves = []
    for name in (BATON, ONE_POOL_BATON, ONE_POOL, DISTSERVE, best_peer(scene)):
        label = "P/D, best of the peers" if name in PEERS else name
        system = scene.of(name)
        if system is not None and system.measured.curve:
            points = [(rate / scene.gpus, 100 * share) for rate, share in system.measured.curve]
            curves.append(Curve(label, _seen(points), is_ours=name == BATON))
    title = f"{scene.fleet.replace('Llama-3.1-', '')}: {scene.traffic} {scene.promise}"
    return Panel(title, tuple(curves), "requests/s for each GPU", (_PROMISED,))


def _seen(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Leave out what lies far beyond, where nothing is kept any more."""
    kept = [point for point in points if point[1] > 1]
    return kept or list(points[:1])
