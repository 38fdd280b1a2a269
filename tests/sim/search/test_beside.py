"""Two given clusters are compared over draws that both meet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.outcome import Target
from sim.plan import is_clear
from sim.search.beside import beside
from tests.sim.search.queue_model import group, question, queue_model, shape

ROUGH = replace(shape(), prefill_error=0.3, decode_error=0.3)


def together(replicas: int) -> ClusterSpec:
    return ClusterSpec(Mode.ONE_POOL_CHUNKED, PoolSpec(replicas, shape().cost, 60_000))


def test_what_errs_alike_is_compared_exactly() -> None:
    asked = question(group(4, shapes=(ROUGH,)))
    found = beside(asked, together(3), together(2), run=queue_model)
    assert found.first.low < found.second.high  # by their intervals alone nothing could be said
    assert found.ratio is not None
    assert found.ratio.mid == pytest.approx(found.first.mid / found.second.mid)
    assert is_clear(found.ratio)
    back = beside(asked, together(2), together(3), run=queue_model).ratio
    assert back is not None
    assert (back.low, back.mid, back.high) == pytest.approx(
        (1 / found.ratio.high, 1 / found.ratio.mid, 1 / found.ratio.low), rel=0.02
    )


def test_a_cluster_that_keeps_nothing_has_no_ratio() -> None:
    asked = question(group(4, shapes=(ROUGH,)), targets=(Target("chat", 0.4, 1e-6),))
    found = beside(asked, together(3), together(2), run=queue_model)
    assert (found.first.high, found.second.high, found.ratio) == (0.0, 0.0, None)
