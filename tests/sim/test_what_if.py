"""What-if: words over the pools of the file, refused when they cannot be meant."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.config.models import BatonConfig, PoolConfig, RouterConfig
from core.errors import ConfigError
from sim.cluster import Admission, ClusterSpec, Mode
from sim.what_if import RANGES, fixed_cluster
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
        ("decode", "decode is a whole number from 1 to 4096, e.g. decode=3"),
        ("decode=0", "decode is a whole number"),
        ("decode=-1", "decode is a whole number"),
        ("decode=٣", "decode is a whole number"),
        ("decode=9999999999999999999", "decode is a whole number"),
        ("seqs=100000000", "seqs is a whole number from 1 to 65536"),
        ("chunk=99999999999", "chunk is a whole number from 32 to 1048576"),
        ("chunk=1", "e.g. chunk=32"),
        ("chunk=512,seqs=513", "a step of 512 tokens has no room for 513 requests; add seqs=512"),
        ("mode=one-pool,prefill=1", "mode one-pool has no prefill workers"),
        ("pp=2", "has no tp1 pp2"),
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


def test_prefill_workers_keep_their_own_limits_unless_words_replace_them() -> None:
    pools = POOLS | {"prefill": {"max_num_seqs": 8, "max_num_batched_tokens": 8192}}
    prefill, replaced = cluster("decode=3", pools=pools).prefill, cluster("seqs=9", pools=pools).prefill
    assert prefill is not None
    assert replaced is not None
    assert (prefill.max_num_seqs, prefill.max_num_batched_tokens) == (8, 8192)
    assert (replaced.max_num_seqs, replaced.max_num_batched_tokens) == (9, 8192)


def test_stages_alone_take_the_smallest_tensor_size_that_has_them() -> None:
    asked = question()
    shape = replace(asked.groups[0].profile.shapes[0], tensor_parallel=2, pipeline_parallel=2)
    shapes = (*asked.groups[0].profile.shapes, shape)
    group = replace(asked.groups[0], profile=replace(asked.groups[0].profile, shapes=shapes))
    fixed = fixed_cluster(BatonConfig(pools="auto"), replace(asked, groups=(group,)), ["pp=2"])
    assert (fixed.decode.tensor_parallel, fixed.decode.pipeline_parallel) == (2, 2)


def test_one_kind_of_device_is_judged() -> None:
    with pytest.raises(ConfigError, match="on one kind of device"):
        fixed_cluster(BatonConfig(), question(groups=2), ["decode=3"])


@pytest.mark.parametrize(
    ("word", "section", "key"),
    [
        ("prefill", PoolConfig, "replicas"),
        ("decode", PoolConfig, "replicas"),
        ("tp", PoolConfig, "tensor_parallel"),
        ("pp", PoolConfig, "pipeline_parallel"),
        ("chunk", PoolConfig, "max_num_batched_tokens"),
        ("seqs", PoolConfig, "max_num_seqs"),
        ("whole_below", RouterConfig, "whole_below_tokens"),
    ],
)
def test_the_ranges_are_those_of_the_keys_that_up_takes(
    word: str, section: type[PoolConfig] | type[RouterConfig], key: str
) -> None:
    schema = section.model_json_schema()["properties"][key]
    least = 1 if word == "decode" else schema["minimum"]  # no pool decodes nothing
    assert RANGES[word] == (least, schema["maximum"])
