"""What a resumed request looks like inside vLLM: as one that was preempted, with its generator where it was."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from core.engine import RESUMED_TOKENS
from engine.vllm_resume import draw_on, resumed_tokens, take_up_resumed


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", exc_type=ImportError)


class Grammar:
    def __init__(self, language: list[int]) -> None:
        self.language, self.at = language, 0

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        expected = self.language[self.at : self.at + len(tokens)]
        self.at += len(tokens)
        return expected == tokens


class Structured:
    def __init__(self, grammar: object) -> None:
        self._grammar = grammar

    @property
    def grammar(self) -> object:
        return self._grammar

    @grammar.setter
    def grammar(self, grammar: object) -> None:
        self._grammar = grammar


class Scheduler:
    """Takes requests in, as vLLM's does."""

    def __init__(self) -> None:
        self.requests: dict[str, Any] = {}

    def add_request(self, request: Any) -> None:
        self.requests[request.request_id] = request


def request(tokens: list[int] | None, structured: Structured | None = None) -> Any:
    extra = None if tokens is None else {RESUMED_TOKENS: tokens}
    output: list[int] = []
    return SimpleNamespace(
        request_id="a",
        sampling_params=SimpleNamespace(extra_args=extra),
        structured_output_request=structured,
        prefill_stats=object(),
        output=output,
        append_output_token_ids=output.extend,
    )


def taken_up(one: Any) -> Any:
    scheduler = Scheduler()
    take_up_resumed(scheduler)
    scheduler.add_request(one)
    assert scheduler.requests == {"a": one}
    return one


def test_a_resumed_request_comes_in_with_its_output() -> None:
    one = taken_up(request([5, 6, 7]))
    assert (one.output, one.prefill_stats) == ([5, 6, 7], None)


def test_others_come_in_as_they_are() -> None:
    for tokens in (None, []):
        one = taken_up(request(tokens))
        assert one.output == []
        assert one.prefill_stats is not None


def test_a_grammar_has_accepted_what_was_made() -> None:
    one = taken_up(request([5, 6], Structured(Grammar([5, 6, 7]))))
    assert one.structured_output_request.grammar.at == 2


def test_a_grammar_that_is_being_compiled_accepts_when_it_is_ready() -> None:
    compiled: Future[Grammar] = Future()
    one = taken_up(request([5, 6], Structured(compiled)))
    ready = one.structured_output_request.grammar
    assert not ready.done()
    compiled.set_result(Grammar([5, 6, 7]))
    assert ready.result(timeout=0).at == 2


@pytest.mark.parametrize("outcome", [Grammar([9, 9]), RuntimeError("no grammar")], ids=["refused", "not compiled"])
def test_a_grammar_that_does_not_accept_ends_the_request(outcome: object) -> None:
    compiled: Future[Any] = Future()
    one = taken_up(request([5, 6], Structured(compiled)))
    if isinstance(outcome, Exception):
        compiled.set_exception(outcome)
    else:
        compiled.set_result(outcome)
    assert one.structured_output_request.grammar.exception(timeout=0) is not None


def test_tokens_are_read_from_the_parameters() -> None:
    assert resumed_tokens(None) == []
    assert resumed_tokens(SimpleNamespace(extra_args={"kv_transfer_params": {}})) == []
    assert resumed_tokens(SimpleNamespace(extra_args={RESUMED_TOKENS: [5, 6]})) == [5, 6]


@pytest.mark.parametrize("by_number", [True, False], ids=["a number a token", "a row a token"])
@pytest.mark.parametrize("num_draws", [1, 2, 17, 300])
def test_a_generator_is_wound_forward_by_what_tokens_draw(torch: Any, num_draws: int, by_number: bool) -> None:
    vocab_size = 33

    def draw(generator: Any) -> Any:  # as vLLM does for one token
        if by_number:
            return torch.randint(0, 2**31, (1,), generator=generator, dtype=torch.long).item()
        return torch.empty(vocab_size).exponential_(generator=generator).tolist()

    whole, wound = (torch.Generator().manual_seed(7) for _ in range(2))
    for _ in range(num_draws):
        draw(whole)
    draw_on(wound, num_draws, vocab_size=vocab_size, by_number=by_number)
    assert draw(wound) == draw(whole)


@pytest.mark.gpu
def test_a_generator_of_a_gpu_is_moved_without_drawing(torch: Any) -> None:
    vocab_size = 151_936
    whole, wound = (torch.Generator(device="cuda").manual_seed(7) for _ in range(2))
    row = torch.empty(vocab_size, device="cuda")
    for _ in range(5):
        row.exponential_(generator=whole)
    draw_on(wound, 5, vocab_size=vocab_size, by_number=False)
    assert wound.get_offset() == whole.get_offset()
    assert torch.equal(row.clone().exponential_(generator=wound), row.exponential_(generator=whole))
