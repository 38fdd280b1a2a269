"""Which loads a profile puts on an engine: what steps they bring about, and how to keep within a time.

Owns the design and the reduction of measured steps to samples. Pure; must not know processes.

The design asks for prompts alone, together and behind cached tokens, decoding by batch and context, and prompts that
join a decoding batch. What a step then really computed is read from the engine, so a load that falls into other
steps than hoped (prompts that arrive a millisecond apart) is no error, only a sample at another place.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from core.latency.fit import Sample
from core.latency.step import Step

DECODE_STEPS = 16  # in which the whole batch of a decoding load runs
_JOIN_STEPS = 6  # decode steps between prompts that join a running batch
_LONGEST_SHARE = 0.25  # of the time for a kind that one load may take
_LEAST_LOADS = 5  # of each kind
_NEAR = 1.08  # steps whose pairs or context differ by less are one measuring point


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine takes."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    kv_capacity_tokens: int
    prefix_caching: bool = True


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast an engine is, roughly, from the first loads it ran."""

    prompt_token_s: float
    decode_step_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """Prompts that are submitted together."""

    prompts: tuple[int, ...]  # tokens of each, cached ones not among them
    output_tokens: int = 1  # of each
    cached_tokens: int = 0  # in front of each, computed by an earlier request
    joining: tuple[int, ...] = ()  # tokens of prompts that come one after the other while the first decode

    @property
    def tokens(self) -> int:
        """Tokens that the engine computes for the prompts."""
        return sum(self.prompts) + sum(self.joining) + self.cached_tokens

    def seconds(self, pace: Pace) -> float:
        """Estimate how long it takes; decode steps of large batches are taken to be up to three times as long."""
        batch = 1.0 + 2.0 * min(len(self.prompts) / 32, 1.0)
        return self.tokens * pace.prompt_token_s + self.output_tokens * pace.decode_step_s * batch


def design(limits: Limits) -> tuple[tuple[Load, ...], ...]:
    """List every load worth measuring, regardless of time: prompts, decoding batches, prompts joining a batch."""
    kinds = (_prompts(limits), _decoding(limits), _joined(limits))
    return tuple(tuple(dict.fromkeys(load for load in kind if fits(load, limits))) for kind in kinds)


def within(kinds: Sequence[Sequence[Load]], pace: Pace, round_s: float) -> tuple[Load, ...]:
    """Choose loads that can be run once in `round_s`: each kind has an equal share of it.

    Of too many, some all along the scale stay, and of each kind the shortest few in any case, for without all kinds
    there is no fit.
    """
    chosen: list[Load] = []
    for kind in kinds:
        chosen += _thinned(sorted(kind, key=lambda load: load.seconds(pace)), pace, round_s / len(kinds))
    return tuple(chosen)


def _thinned(loads: Sequence[Load], pace: Pace, time_s: float) -> list[Load]:
    kept = [load for load in loads if load.seconds(pace) <= _LONGEST_SHARE * time_s]
    while sum(load.seconds(pace) for load in kept) > time_s and len(kept) > _LEAST_LOADS:
        kept = kept[::-1][::2][::-1]  # every second one, the longest among them
    return list(dict.fromkeys([*loads[:_LEAST_LOADS], *kept]))


def samples_of(steps: Iterable[tuple[Step, float]]) -> tuple[Sample, ...]:
    """Reduce steps and their seconds to one sample for each measuring point: medians of what was computed and of time.

    Steps are of one point when prompts, prompt tokens and batch are equal, and pairs and context nearly so.
    """
    points: dict[tuple[int, ...], list[tuple[Step, float]]] = defaultdict(list)
    for step, seconds in steps:
        key = (step.prefill_tokens, step.prefill_seqs, _near(step.attention_pairs), step.decode_seqs)
        points[(*key, _near(step.context_tokens))].append((step, seconds))
    return tuple(_median(found) for _, found in sorted(points.items()))


def _median(found: Sequence[tuple[Step, float]]) -> Sample:
    step = found[0][0]
    pairs = statistics.median(each.attention_pairs for each, _ in found)
    context = round(statistics.median(each.context_tokens for each, _ in found))
    middle = Step(step.prefill_tokens, step.prefill_seqs, pairs, step.decode_seqs, context)
    return Sample(middle, statistics.median(seconds for _, seconds in found))


def _near(value: float) -> int:
    return round(math.log(value) / math.log(_NEAR)) if value >= 1 else -1


def _prompts(limits: Limits) -> Iterator[Load]:
    longest = limits.max_model_len - 1
    lengths = [*_powers(16, min(longest, 2 * limits.max_num_batched_tokens)), limits.max_num_batched_tokens]
    yield from (Load((length,)) for length in lengths)
    yield from (Load((length + length // 2,)) for length in lengths)
    for count in (2, 4, 8):
        yield from (Load((length,) * count) for length in (16, 64, 256, 512))
    if limits.prefix_caching:
        for cached in _powers(256, longest // 2):
            yield from (Load((length,), cached_tokens=cached) for length in (32, 128, 512, 1024))


def _decoding(limits: Limits) -> Iterator[Load]:
    for batch in [*_powers(1, limits.max_num_seqs), *_powers(3, limits.max_num_seqs), limits.max_num_seqs]:
        for context in (16, 128, 512, 1024, *_powers(2048, limits.max_model_len // 2)):
            # While the later prompts are computed the earlier ones decode on.
            ramp = math.ceil(batch * context / limits.max_num_batched_tokens)
            yield Load((context,) * batch, output_tokens=ramp + DECODE_STEPS)


def _joined(limits: Limits) -> Iterator[Load]:
    joining = tuple(length for length in (32, 128, 512, 256) if length <= limits.max_num_batched_tokens)
    for batch in _powers(2, limits.max_num_seqs - 1):
        yield Load((64,) * batch, output_tokens=(len(joining) + 2) * _JOIN_STEPS, joining=joining)


def join_after_s(position: int, pace: Pace) -> float:
    """Say when the prompt at `position` of a load's joining ones is sent: a few decode steps after the one before."""
    return (position + 1) * _JOIN_STEPS * pace.decode_step_s


def fits(load: Load, limits: Limits) -> bool:
    """Say whether an engine can run a load, all of it at the same time."""
    longest = load.cached_tokens + max((*load.prompts, *load.joining)) + load.output_tokens
    room = sum(load.prompts) + load.cached_tokens + len(load.prompts) * (load.output_tokens + 64)
    fits_kv = room + sum(load.joining) <= 0.9 * limits.kv_capacity_tokens
    return longest < limits.max_model_len and len(load.prompts) <= limits.max_num_seqs and fits_kv


def _powers(first: int, last: int) -> list[int]:
    """List first, 2 * first, 4 * first and so on up to `last`."""
    return [first << i for i in range(max(last // first, 0).bit_length())]
