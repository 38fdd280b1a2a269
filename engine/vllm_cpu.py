"""Mends two faults of vLLM's CPU build (seen in 0.32) that let one request harm others.

Owns the functions it replaces. Must not know workers or specs. Engine cores forked later inherit what is mended here.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch

logger = logging.getLogger(__name__)

Sample = Callable[[Any, Any], Any]
Shrink = Callable[..., None]

MENDED_VERSIONS = ("0.32.",)  # the faults were seen in these, and the repairs are written against them


def mend_cpu_build() -> None:
    """Replace the faulty functions; call once, after vLLM is imported and before an engine core is made.

    Leaves a version that nobody looked at as it is, and says so in the log.
    """
    version = str(importlib.import_module("vllm").__version__)
    if not version.startswith(MENDED_VERSIONS):
        logger.warning("vLLM %s: seeded requests with chunked prompts, and LoRA beside base, are untested", version)
        return
    runner = importlib.import_module("vllm.v1.worker.gpu_model_runner").GPUModelRunner
    runner.sample_tokens = _sparing_seeds(runner.sample_tokens)
    operations = importlib.import_module("vllm.lora.ops.torch_ops.lora_ops")
    shrink = _only_where_adapted(operations.bgmv_shrink)
    users: tuple[Any, ...] = (operations, importlib.import_module("vllm.lora.punica_wrapper.punica_cpu"))
    for user in users:
        user.bgmv_shrink = shrink


def _sparing_seeds(sample: Sample) -> Sample:
    """Sample unfinished prompts without their seeded generators.

    vLLM draws a token for every row, throws away those of prompts that are not yet computed to their end, and winds
    their generators back by an offset, which a generator on a CPU has not: the engine core dies of it.
    """

    def sample_tokens(runner: Any, grammar_output: Any) -> Any:
        generators = runner.input_batch.generators  # by row; the sampler reads this very dict
        unfinished = runner.discard_request_mask.np[: runner.input_batch.num_reqs].nonzero()[0].tolist()
        spared = {row: generators.pop(row) for row in unfinished if row in generators}
        try:
            return sample(runner, grammar_output)
        finally:
            generators.update(spared)

    return sample_tokens


def _only_where_adapted(shrink: Shrink) -> Shrink:
    """Let an adapter act on its own tokens only.

    vLLM gives tokens without an adapter the index -1, which torch takes for the last adapter: requests for the base
    model that share a batch with an adapter's get that adapter's output.
    """

    def bgmv_shrink(
        inputs: torch.Tensor,
        weights: torch.Tensor,
        output: torch.Tensor,
        adapters: torch.Tensor,  # index of each token's adapter, -1 for none
        scaling: float = 1.0,
    ) -> None:
        shrink(inputs, weights, output, adapters, scaling)
        output[: len(adapters)][adapters < 0] = 0

    return bgmv_shrink
