"""How vLLM's engine core goes on with a request that another engine began: as with one that it had preempted itself.

vLLM computes a preempted request again from its prompt and the tokens it has made, which stay output tokens. So a
resumed request is given them as output when it comes in, in the scheduler and in the model runner. Limits on tokens,
penalties, stop tokens, banned words and grammars then see what they would have seen, and nothing in vLLM's parameters
changes. A seeded generator is wound forward by as many draws as tokens were made.

Owns the methods of vLLM 0.32 that are wrapped for it. Must not know the front, sessions or hand-overs.
"""

from __future__ import annotations

import importlib
from concurrent.futures import Future
from typing import Any, Final

from core.engine import RESUMED_TOKENS

_DRAWN_BELOW: Final = 2**31  # as forward_cpu of vLLM's v1/sample/ops/topk_topp_sampler.py


def resumed_tokens(params: Any) -> list[int]:
    """Read the output tokens that a request brought with it, from its sampling parameters."""
    extra = None if params is None else params.extra_args
    return list(extra.get(RESUMED_TOKENS) or ()) if extra else []


def take_up_resumed(scheduler: Any) -> None:
    """Make a scheduler take resumed requests in with their output."""
    add = scheduler.add_request

    def add_request(request: Any) -> None:
        token_ids = resumed_tokens(request.sampling_params)
        if token_ids and request.request_id not in scheduler.requests:
            request.append_output_token_ids(token_ids)
            # What is found in the prefix cache may be longer than the prompt, which this record of it cannot hold.
            request.prefill_stats = None
            _advance_grammar(request, token_ids)
        add(request)

    scheduler.add_request = add_request


def _advance_grammar(request: Any, token_ids: list[int]) -> None:
    """Have the request's grammar accept what was made, once it is compiled."""
    structured = request.structured_output_request
    if structured is None:
        return

    def advance(grammar: Any) -> Any:
        if not grammar.accept_tokens(request.request_id, token_ids):
            raise ValueError("the grammar does not accept the tokens that were made with it")
        return grammar

    compiled = structured._grammar  # the property would wait
    if not isinstance(compiled, Future):
        structured.grammar = advance(compiled)
        return
    advanced: Future[Any] = Future()

    def hand_on(done: Future[Any]) -> None:
        try:
            advanced.set_result(advance(done.result()))
        except Exception as exc:  # the boundary of the compiling thread: vLLM ends the request with it
            advanced.set_exception(exc)

    structured.grammar = advanced
    compiled.add_done_callback(hand_on)


def resume_in_runners() -> None:
    """Make model runners begin resumed requests with their output, and their generators where they were; call once."""
    state_class = importlib.import_module("vllm.v1.worker.gpu_input_batch").CachedRequestState
    runner_class = importlib.import_module("vllm.v1.worker.gpu_model_runner").GPUModelRunner
    begin, update = state_class.__post_init__, runner_class._update_states

    def __post_init__(self: Any) -> None:
        begin(self)
        if not self.output_token_ids:
            self.output_token_ids.extend(resumed_tokens(self.sampling_params))

    def _update_states(self: Any, scheduler_output: Any) -> Any:
        updated = update(self, scheduler_output)
        for new in scheduler_output.scheduled_new_reqs:
            if token_ids := resumed_tokens(new.sampling_params):
                _wind_forward(self, self.requests[new.req_id].generator, len(token_ids))
        return updated

    state_class.__post_init__, runner_class._update_states = __post_init__, _update_states


def _wind_forward(runner: Any, generator: Any, num_draws: int) -> None:
    """Draw from a request's generator what its tokens took."""
    if generator is None:
        return
    sampler = runner.sampler.topk_topp_sampler
    draw_on(
        generator,
        num_draws,
        vocab_size=runner.input_batch.vocab_size,
        by_number=sampler.forward == getattr(sampler, "forward_cpu", None) and not sampler.use_fp64_gumbel,
        in_fp64=sampler.use_fp64_gumbel,
    )


def draw_on(generator: Any, num_draws: int, *, vocab_size: int, by_number: bool, in_fp64: bool = False) -> None:
    """Bring a generator to where it is after `num_draws` tokens.

    vLLM draws one number for a token on CPUs (`by_number`), elsewhere one for each entry of the vocabulary. A GPU's
    generator counts what was drawn, so it is moved without drawing.
    """
    torch = importlib.import_module("torch")
    if by_number:
        torch.randint(0, _DRAWN_BELOW, (num_draws,), generator=generator, dtype=torch.long)
        return
    row = torch.empty(vocab_size, dtype=torch.float64 if in_fp64 else torch.float32, device=generator.device)
    if generator.device.type != "cuda":
        for _ in range(num_draws):
            row.exponential_(generator=generator)
        return
    begun_at = generator.get_offset()
    row.exponential_(generator=generator)
    generator.set_offset(begun_at + num_draws * (generator.get_offset() - begun_at))
