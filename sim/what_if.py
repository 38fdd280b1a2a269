"""One placement that the user names: `decode=3,chunk=1024` over the pools of the file.

Owns the words and what they leave out. Must not judge whether it is good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from core.config.models import BatonConfig
from core.errors import ConfigError
from core.latency.profile import EngineProfile
from sim.cluster import Admission, ClusterSpec, Mode, PoolSpec, Routing
from sim.plan import PlanQuestion

# From and to, as the keys of the configuration that `up` would take them in (core.config.models).
RANGES: Mapping[str, tuple[int, int]] = {
    "prefill": (0, 4096),
    "decode": (1, 4096),
    "tp": (1, 64),
    "pp": (1, 64),
    "chunk": (32, 1 << 20),
    "seqs": (1, 65536),
    "whole_below": (0, 1 << 24),
}
_WORDS: Mapping[str, tuple[str, ...]] = {
    "mode": tuple(mode.value for mode in Mode),
    "admission": tuple(admission.name.lower() for admission in Admission),
}
_ONE_POOL = (Mode.ONE_POOL, Mode.ONE_POOL_CHUNKED)
_CHUNK_TOKENS = 2048  # vLLM's default of max_num_batched_tokens for serving (vllm/engine/arg_utils.py)


def fixed_cluster(config: BatonConfig, question: PlanQuestion, texts: Sequence[str]) -> ClusterSpec:
    """Build the cluster of `texts`, each `key=value[,key=value]`; what they leave out is as in the pools of the file.

    Raises ConfigError for an unknown key or value, for words that contradict each other, for devices of several kinds,
    and when it needs more devices than there are.
    """
    if len(question.groups) > 1:
        raise ConfigError("--what-if judges workers on one kind of device; name one with --gpu or --profile")
    numbers, words = _parse(texts)
    base = _base(config) | numbers
    mode = _mode(numbers, words, base)
    group = question.groups[0]
    decode = _pool(group.profile, base, "decode", question)
    prefill = None
    if mode not in _ONE_POOL:
        prefill = _pool(group.profile, base | _prefill_limits(config) | numbers, "prefill", question)
    admission = Admission[words["admission"].upper()] if "admission" in words else Admission.OFF
    cluster = ClusterSpec(
        mode=mode,
        decode=decode,
        prefill=prefill,
        link=replace(group.inner_link, kv_bytes_per_token=group.profile.kv_bytes_per_token),
        routing=Routing(admission=admission, whole_below_tokens=base["whole_below"], overflow=mode is Mode.HYBRID),
        block_size=group.profile.block_size,
        prefix_cache=bool(len(question.workload.prefix_start)),
        request_overhead_s=group.profile.request_overhead_s,
        handover_overhead_s=group.profile.handover_overhead_s if prefill else 0.0,
    )
    if cluster.gpus > group.devices:
        raise ConfigError(f"--what-if needs {cluster.gpus} devices and there are {group.devices}; give --gpus N")
    spans = cluster.gpus > group.devices_per_node
    return replace(cluster, link=replace(cluster.link, bytes_per_s=group.outer_link.bytes_per_s)) if spans else cluster


def _parse(texts: Sequence[str]) -> tuple[dict[str, int], dict[str, str]]:
    numbers: dict[str, int] = {}
    words: dict[str, str] = {}
    for part in (part.strip() for text in texts for part in text.split(",") if part.strip()):
        key, _, value = part.partition("=")
        if key in RANGES:
            least, most = RANGES[key]
            number = int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else -1
            if not least <= number <= most:
                raise ConfigError(
                    f"--what-if {part}: {key} is a whole number from {least} to {most}, e.g. {key}={max(3, least)}"
                )
            numbers[key] = number
        elif key in _WORDS and value in _WORDS[key]:
            words[key] = value
        elif key in _WORDS:
            raise ConfigError(f"--what-if {part}: {key} is one of {', '.join(_WORDS[key])}")
        else:
            known = ", ".join((*RANGES, *_WORDS))
            raise ConfigError(f"--what-if {part}: write KEY=VALUE with a key of {known}, e.g. decode=3")
    return numbers, words


def _mode(numbers: Mapping[str, int], words: Mapping[str, str], base: Mapping[str, int]) -> Mode:
    mode = Mode(words["mode"]) if "mode" in words else Mode.DISAGGREGATED
    if base["prefill"] == 0 and "mode" not in words:
        return Mode.ONE_POOL_CHUNKED
    if mode not in _ONE_POOL and base["prefill"] == 0:
        raise ConfigError(f"--what-if: mode {mode.value} needs prefill workers; add prefill=1")
    if mode in _ONE_POOL and numbers.get("prefill"):
        raise ConfigError(f"--what-if: mode {mode.value} has no prefill workers; leave prefill or mode out")
    return mode


def _base(config: BatonConfig) -> dict[str, int]:
    """Take from the file what the words may replace; 0: nothing is said."""
    if config.pools == "auto":
        return {"prefill": 1, "decode": 1, "tp": 0, "pp": 1, "chunk": 0, "seqs": 0, "whole_below": 0}
    prefill, decode = config.pools.prefill, config.pools.decode
    return {
        "prefill": prefill.replicas,
        "decode": decode.replicas,
        "tp": decode.tensor_parallel,
        "pp": decode.pipeline_parallel,
        "chunk": decode.max_num_batched_tokens,
        "seqs": decode.max_num_seqs,
        "whole_below": config.router.whole_below_tokens,
    }


def _prefill_limits(config: BatonConfig) -> dict[str, int]:
    """Take the limits of a prefill worker's step from the file."""
    if config.pools == "auto" or not config.pools.prefill.replicas:
        return {}
    pool = config.pools.prefill
    return {"chunk": pool.max_num_batched_tokens, "seqs": pool.max_num_seqs}


def _pool(profile: EngineProfile, base: Mapping[str, int], role: str, question: PlanQuestion) -> PoolSpec:
    smallest = next((s.tensor_parallel for s in profile.shapes if s.pipeline_parallel == base["pp"]), 1)
    shape = profile.shape(base["tp"] or smallest, base["pp"])
    seqs, chunk = base["seqs"] or question.max_num_seqs, base["chunk"] or _CHUNK_TOKENS
    if chunk < seqs:  # vLLM refuses it (vllm/config/scheduler.py)
        raise ConfigError(f"--what-if: a step of {chunk} tokens has no room for {seqs} requests; add seqs={chunk}")
    return PoolSpec(
        replicas=base[role],
        cost=shape.cost,
        kv_capacity_tokens=shape.kv_capacity_tokens,
        tensor_parallel=shape.tensor_parallel,
        pipeline_parallel=shape.pipeline_parallel,
        max_num_seqs=seqs,
        max_num_batched_tokens=chunk,
        device=profile.device,
    )
