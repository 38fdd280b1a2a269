"""What requests ask for: how many a second, and the joint distribution of their lengths, from those that have ended.

Owns the memory of lengths. A request that was refused, or failed, had a prompt and no output: it is given the output of
an ended one of its class with about as long a prompt, or a service that refuses its long requests would seem to have
none. Must not know sizes or costs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from core.control.actions import RequestSample

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

_MOST_KEPT: Final = 4096  # samples; at the default window more than any estimate needs
_PER_LENGTH: Final = 64  # outputs remembered for prompts of about one length: of one class, between two powers of two
_GOOD: Final = "ok"
_MOST_UNSEEN: Final = 4.0  # a request that has ended stands for so many that have not, at most


@dataclass(frozen=True, slots=True)
class Traffic:
    """What pools have to do in a second."""

    requests: float
    prompt_tokens: float
    output_tokens: float

    def is_like(self, other: Traffic, noticed: float) -> bool:
        """Whether nothing of it differs by more than a share of itself."""
        pairs = (
            (self.requests, other.requests),
            (self.prompt_tokens, other.prompt_tokens),
            (self.output_tokens, other.output_tokens),
        )
        return all(abs(a - b) <= noticed * max(a, b) for a, b in pairs)


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """Requests a second, and a sample of them; one entry in each array for each, `weight` adds up to 1."""

    rate: float
    prompt_tokens: Floats
    cached_tokens: Floats
    output_tokens: Floats
    slo_class: Ints  # index into the names that the memory was made with
    weight: Floats
    decode_factor: float = 1.0  # outputs are so many times longer than the sample says, by the load that decodes

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    def at_rate(self, rate: float) -> Demand:
        """Ask for the same at another rate."""
        return replace(self, rate=rate)

    @property
    def mean_output(self) -> float:
        """Tokens of the mean output, at least 1."""
        return max(1.0, float(self.weight @ self.output_tokens) * self.decode_factor)

    @property
    def traffic(self) -> Traffic:
        """What two demands are compared by."""
        return Traffic(self.rate, self.rate * self.mean_prompt, self.rate * self.mean_output)

    @property
    def mean_prompt(self) -> float:
        """Tokens of the mean prompt."""
        return float(self.weight @ self.prompt_tokens)


@dataclass(frozen=True, slots=True)
class _Kept:
    arrived_s: float
    stay_s: float
    slo_class: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int  # 0: not known
    weight: float


class LengthMemory:
    """Remembers the requests that arrived last and have ended: of `window_s`, and further back if there are too few.

    One that stays for s seconds is seen if it arrived in the first `window_s` - s of the window, so it stands for
    `window_s` / (`window_s` - s) arrivals (Horvitz and Thompson, 1952): else a change to longer outputs would
    show late, and one to shorter outputs not before the last long one has ended.
    """

    def __init__(self, classes: tuple[str, ...], *, window_s: float, least: int, longest_s: float) -> None:
        self._number = {name: number for number, name in enumerate(classes)}
        self._window_s, self._least, self._longest_s = window_s, least, longest_s
        self._kept: deque[_Kept] = deque(maxlen=_MOST_KEPT)
        self._outputs: dict[tuple[int, int], deque[int]] = {}

    def observe(self, samples: Iterable[RequestSample], now_s: float, *, each: float) -> None:
        """Take in requests that ended by `now_s`; each stands for `each` of them."""
        for sample in samples:
            number = self._number.get(sample.slo_class)
            if number is None or sample.prompt_tokens < 1:
                continue
            output = sample.output_tokens if sample.outcome == _GOOD else 0
            if output:
                self._outputs_of(number, sample.prompt_tokens).append(output)
            cached = min(sample.cached_tokens, sample.prompt_tokens - 1)
            stay_s = (sample.ttft_s or 0.0) + (sample.tpot_s or 0.0) * max(0, output - 1)
            self._kept.append(_Kept(sample.arrived_s, stay_s, number, sample.prompt_tokens, cached, output, each))
        # After a pause the last ones known still tell more than nothing.
        while len(self._kept) > self._least and now_s - self._kept[0].arrived_s > self._longest_s:
            self._kept.popleft()

    def demand(self, rate: float, now_s: float) -> Demand | None:
        """Describe the requests of late at `rate` a second; None: none are known."""
        chosen, window_s = self._latest(now_s)
        if not chosen:
            return None
        seen = np.array([max(1.0 / _MOST_UNSEEN, 1.0 - kept.stay_s / window_s) for kept in chosen])
        weight = np.array([kept.weight for kept in chosen]) / seen
        outputs = [kept.output_tokens or self._imputed(kept, turn) for turn, kept in enumerate(chosen)]
        return Demand(
            rate=rate,
            prompt_tokens=np.array([kept.prompt_tokens for kept in chosen], np.float64),
            cached_tokens=np.array([kept.cached_tokens for kept in chosen], np.float64),
            output_tokens=np.array(outputs, np.float64),
            slo_class=np.array([kept.slo_class for kept in chosen], np.int64),
            weight=weight / weight.sum(),
        )

    def _latest(self, now_s: float) -> tuple[list[_Kept], float]:
        """Choose the requests of the window, or of a longer one that has enough of them."""
        chosen = [kept for kept in self._kept if now_s - kept.arrived_s <= self._window_s]
        if len(chosen) >= self._least or len(chosen) == len(self._kept):
            return chosen, self._window_s
        latest = sorted(self._kept, key=lambda kept: -kept.arrived_s)[: self._least]
        return latest, max(self._window_s, now_s - latest[-1].arrived_s)

    def _outputs_of(self, slo_class: int, prompt_tokens: int) -> deque[int]:
        key = (slo_class, prompt_tokens.bit_length())
        if key not in self._outputs:
            self._outputs[key] = deque(maxlen=_PER_LENGTH)
        return self._outputs[key]

    def _imputed(self, kept: _Kept, turn: int) -> int:
        """Choose an output of the class seen at about this prompt length, in turn; else at the nearest length seen."""
        length = kept.prompt_tokens.bit_length()
        near = sorted((abs(size - length), size) for number, size in self._outputs if number == kept.slo_class)
        if not near:
            return 1
        outputs = self._outputs[kept.slo_class, near[0][1]]
        return outputs[turn % len(outputs)]
