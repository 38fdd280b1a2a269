"""From a plan to the keys that `baton up` takes, and into a YAML file without touching the rest of it.

Owns which keys a plan sets. Must not know how a plan is found or shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from core.config.models import BatonConfig, PoolConfig, PoolsConfig
from core.config.specs import planned_worker
from core.errors import ConfigError
from sim.cluster import Admission, ClusterSpec, Mode, Order, PoolSpec

_MOST_BATCHED_TOKENS = 1 << 20  # what the key takes
_DECODE_BATCHED_TOKENS = 2048  # where no prompt runs: vLLM's default for serving, the least that is surely enough
_OF_OTHER_DEVICES = ("kv_cache_mb", "gpus")  # keys that suit the workers in the file, and no planned GPU worker
Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class PlannedKeys:
    """What the file has to say for `up` to start the plan."""

    pools: PoolsConfig
    policy: str | None  # router.policy; None: as configured
    whole_below_tokens: int  # router.whole_below_tokens

    def scalars(self, profile: str | None) -> dict[tuple[str, str], Scalar]:
        """List the keys outside `pools`, by section and name."""
        keys: dict[tuple[str, str], Scalar] = {("router", "whole_below_tokens"): self.whole_below_tokens}
        if self.policy is not None and profile is not None:
            keys |= {("router", "policy"): self.policy, ("plan", "profile"): profile}
        return keys


def planned_keys(cluster: ClusterSpec, config: BatonConfig) -> PlannedKeys:
    """Turn a placement into configuration; what a plan does not choose (cores, KV memory) stays as configured.

    But for GPUs: there memory and devices that were configured for other workers would wreck the plan, so `kv_cache_mb`
    and `gpus` are left to their defaults, the engine's own choice and as many as the parallel size takes. Raises
    ConfigError for a placement that `up` cannot start: pools that split the model in unlike ways.
    """
    pools = (cluster.prefill, cluster.decode) if cluster.prefill else (cluster.decode, cluster.decode)
    if len({(pool.tensor_parallel, pool.pipeline_parallel) for pool in pools}) > 1:
        raise ConfigError(
            "this placement splits the model in unlike ways in both pools, and `up` can hand KV over between "
            "equal ones only"
        )
    named = (planned_worker(config),) * 2 if config.pools == "auto" else (config.pools.prefill, config.pools.decode)
    prefill, decode = (_pool(p, base, cluster) for p, base in zip(pools, named, strict=True))
    if cluster.prefill is None:
        none = {"replicas": 0, "max_num_seqs": named[0].max_num_seqs}
        prefill = prefill.model_copy(update=none | {"max_num_batched_tokens": named[0].max_num_batched_tokens})
    else:
        decode = decode if cluster.mode is Mode.HYBRID else _without_prompts(decode)
    routing = cluster.routing
    predicts = routing.admission is not Admission.OFF or routing.overflow or routing.order is not Order.ARRIVAL
    return PlannedKeys(
        pools=PoolsConfig(prefill=prefill, decode=decode),
        policy="slo-aware" if predicts else None,
        whole_below_tokens=routing.whole_below_tokens if cluster.prefill else 0,
    )


def is_gpu(device: str) -> bool:
    """Say whether a profile's device is a GPU: `baton profile` calls processors cpu-NAME; no name says nothing."""
    return bool(device) and not device.lower().startswith("cpu")


def pools_yaml(pools: PoolsConfig) -> str:
    """Write the `pools:` block; keys at their default are left out, but for the numbers that were planned."""
    planned = ("replicas", "tensor_parallel", "max_num_seqs", "max_num_batched_tokens")
    block = {
        role: {key: value for key, value in pool.model_dump().items() if key in planned}
        | pool.model_dump(exclude_defaults=True)
        for role, pool in (("prefill", pools.prefill), ("decode", pools.decode))
    }
    if not pools.prefill.replicas:  # its limits were not planned
        block["prefill"] = {"replicas": 0} | pools.prefill.model_dump(exclude_defaults=True)
    return yaml.safe_dump({"pools": block}, sort_keys=False)


def with_plan(text: str, pools: PoolsConfig, scalars: Mapping[tuple[str, str], Scalar]) -> str:
    """Put a plan into the text of a configuration; every other key and comment stays.

    Raises ConfigError when the file is written in one line of braces, where nothing can be replaced safely.
    """
    text = _with_block(text, "pools", pools_yaml(pools))
    for (section, key), value in scalars.items():
        text = _with_scalar(text, section, key, yaml.safe_dump(value).split("\n")[0])
    return text if text.endswith("\n") else text + "\n"


def _pool(pool: PoolSpec, base: PoolConfig, cluster: ClusterSpec) -> PoolConfig:
    update: dict[str, int | None] = {
        "replicas": pool.replicas,
        "tensor_parallel": pool.tensor_parallel,
        "pipeline_parallel": pool.pipeline_parallel,
        "max_num_seqs": pool.max_num_seqs,
        "max_num_batched_tokens": max(pool.max_num_seqs, min(pool.max_num_batched_tokens, _MOST_BATCHED_TOKENS)),
    }
    if is_gpu(pool.device):
        update |= dict.fromkeys(_OF_OTHER_DEVICES)
    elif base.gpus:  # a number that fitted the former parallel size
        update["gpus"] = pool.tensor_parallel * pool.pipeline_parallel
    return base.model_copy(update=update)


def _without_prompts(pool: PoolConfig) -> PoolConfig:
    """Limit the steps of a pool that sees prompts only as KV; memory for larger ones would be kept in vain."""
    limit = max(pool.max_num_seqs, min(pool.max_num_batched_tokens, _DECODE_BATCHED_TOKENS))
    return pool.model_copy(update={"max_num_batched_tokens": limit})


def _sections(text: str) -> list[tuple[yaml.Node, yaml.Node]]:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise ConfigError(
            "the file is written in braces; write its sections on lines of their own to have the plan in it"
        )
    return list(root.value)


def _with_block(text: str, name: str, block: str) -> str:
    """Replace a whole section, or add it at the end."""
    for key, value in _sections(text):
        if key.value == name:
            begin, end = key.start_mark.index, _end(text, value)
            return text[:begin] + block.rstrip("\n") + text[end:]
    return _ended(text) + block


def _with_scalar(text: str, section: str, name: str, value: str) -> str:
    """Replace one value in a section, or add the key, or the section."""
    for key, node in _sections(text):
        if key.value != section:
            continue
        if not isinstance(node, yaml.MappingNode) or not node.value:
            return text[: key.start_mark.index] + f"{section}:\n  {name}: {value}" + text[_end(text, node) :]
        for inner, old in node.value:
            if inner.value == name:
                return text[: old.start_mark.index] + value + text[_end(text, old) :]
        first = node.value[0][0].start_mark
        between = ", " if node.flow_style else "\n" + " " * first.column
        return text[: first.index] + f"{name}: {value}{between}" + text[first.index :]
    return _ended(text) + f"{section}:\n  {name}: {value}\n"


def _end(text: str, node: yaml.Node) -> int:
    """Say where a value ends: PyYAML counts the blank lines and comments behind a block to it, we do not."""
    begin, end = node.start_mark.index, int(node.end_mark.index)
    if isinstance(node, yaml.ScalarNode) or getattr(node, "flow_style", False):
        return end
    lines = text[begin:end].splitlines(keepends=True)
    while lines and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        lines.pop()
    return int(begin) + len("".join(lines).rstrip("\n"))


def _ended(text: str) -> str:
    """End the text with a line end, and with a blank line if there is text."""
    return text.rstrip("\n") + "\n\n" if text.strip() else text
