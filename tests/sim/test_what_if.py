"""What-if: words over the pools of the file, refused when they cannot be meant."""

from __future__ import annotations

import pytest

from core.config.models import BatonConfig
from core.errors import ConfigError
from sim.cluster import Admission, ClusterSpec, Mode
from sim.what_if import fixed_cluster
from tests.support.plans import question

POOLS = {
    "prefill": {"replicas": 2, "max_num_seqs": 40, "max_num_batched_tokens": 4096},
    "decode": {"replicas": 4, "max_num_seqs": 40, "max_num_batched_tokens": 4096},
}


def cluster(*words: str, pools: object = POOLS) -> ClusterSpec:
    return fixed_cluster(BatonConfig.model_validate({"pools": pools}), question(), words)


def test_what_is_left_out_is_as_in_the_file() -> None:
    fixed = cluster("decode=3")
    assert fixed.prefill is not None
    assert (fixed.mode, fixed.prefill.replicas, fixed.decode.replicas) == (Mode.DISAGGREGATED, 2, 3)
    assert (fixed.decode.max_num_batched_tokens, fixed.decode.max_num_seqs) == (4096, 40)
    assert fixed.link.kv_bytes_per_token == 1000


def test_words_may_be_given_together_or_apart() -> None:
    words = "prefill=1", "decode=2,chunk=512,seqs=7", "mode=hybrid,whole_below=99,admission=ttft"
    fixed = cluster(*words, pools="auto")
    assert (fixed.mode, fixed.gpus) == (Mode.HYBRID, 3)
    assert (fixed.decode.max_num_batched_tokens, fixed.decode.max_num_seqs) == (512, 7)
    assert (fixed.routing.whole_below_tokens, fixed.routing.admission) == (99, Admission.TTFT)
    assert fixed.routing.overflow


def test_no_prefill_workers_are_one_pool() -> None:
    assert (cluster("prefill=0").mode, cluster("prefill=0").prefill) == (Mode.ONE_POOL_CHUNKED, None)
    assert cluster("mode=one-pool,decode=8").gpus == 8


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("decode", "decode is a whole number, e.g. decode=3"),
        ("decode=0", "decode is a whole number"),
        ("decode=-1", "decode is a whole number"),
        ("workers=3", "write KEY=VALUE with a key of prefill, decode, tp"),
        ("mode=both", "mode is one of one-pool, one-pool-chunked, disaggregated, hybrid"),
        ("mode=hybrid,prefill=0", "mode hybrid needs prefill workers"),
        ("tp=4", "the profile of m on gpu-a has no tp4 pp1; it has tp1 pp1"),
        ("decode=9", "--what-if needs 11 devices and there are 8"),
    ],
)
def test_wrong_words_are_refused(words: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cluster(words)
    assert text in str(caught.value)
