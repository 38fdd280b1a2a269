"""Workloads made from a seed, by name, with lengths and burstiness like those of public traces.

Owns the distributions and where their figures come from. Must not know files of traces or the planner.

| name | like | prompt tokens | output tokens | gaps |
|---|---|---|---|---|
| chat | ShareGPT as in the DistServe paper, cut at 2048 | 2048 * Beta(0.95, 1.30) | lognormal, median 135 | Poisson |
| code | Azure code completion 2023 | its percentiles | its percentiles | gamma, cv 4.7 |
| summarize | LongBench as in the DistServe paper, cut at 2048 | normal(1700, 165) | lognormal, median 54 | Poisson |
| agent | Mooncake tool and agent | sessions that grow; 59 % repeat a prefix | lognormal, median 120 | Poisson |
| mixed | one service for all | half chat, 30 % code, 20 % summarize | the same | gamma, cv 1.5 |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from core.errors import ConfigError
from sim.sessions import draw_sessions
from sim.workload import Floats, Ints, Workload

_Lengths: TypeAlias = tuple[Ints, Ints]  # prompt and output tokens, one entry for each request
_Draw: TypeAlias = Callable[[np.random.Generator, int], _Lengths]
_MOST_ROUNDS = 64  # of drawing again what did not fit: an acceptance under about 5 % is given up
_CONTEXT_TOKENS = 2048  # the limit of OPT, to which the DistServe paper cut its data sets


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one kind of workload is made."""

    like: str  # for people
    draw: _Draw | None  # None: sessions with shared prefixes
    max_total_tokens: int | None  # prompt and output together; what exceeds them is drawn again
    gap_cv: float  # standard deviation of the gaps between arrivals over their mean; 1 is Poisson


def _lognormal(rng: np.random.Generator, size: int, *, median: float, sigma: float) -> Ints:
    drawn: Floats = rng.lognormal(np.log(median), sigma, size)
    return np.rint(drawn).clip(1).astype(np.int64)


def _chat(rng: np.random.Generator, size: int) -> _Lengths:
    prompt = np.rint(_CONTEXT_TOKENS * rng.beta(0.95, 1.30, size)).clip(4).astype(np.int64)
    return prompt, _lognormal(rng, size, median=135, sigma=1.0)


def _summarize(rng: np.random.Generator, size: int) -> _Lengths:
    prompt = np.rint(rng.normal(1700, 165, size)).clip(1000).astype(np.int64)
    return prompt, _lognormal(rng, size, median=54, sigma=0.83)


# Percentiles of the first 2,400 s of AzureLLMInferenceTrace_code (2023-11-16; CC-BY; Patel et al., ISCA 2024).
_CODE_SHARES = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0)
_CODE_PROMPTS = (3, 17, 77, 150, 573, 1465, 2724, 5177, 7163, 7436, 7437)
_CODE_OUTPUTS = (6, 6, 6, 7, 9, 13, 23, 55, 88, 248, 1899)


def _code(rng: np.random.Generator, size: int) -> _Lengths:
    return _by_percentiles(rng, size, _CODE_PROMPTS), _by_percentiles(rng, size, _CODE_OUTPUTS)


def _by_percentiles(rng: np.random.Generator, size: int, tokens: Sequence[int]) -> Ints:
    """Draw lengths whose logarithm is straight between the known percentiles."""
    drawn: Floats = np.exp(np.interp(rng.random(size), _CODE_SHARES, np.log(tokens)))
    return np.rint(drawn).astype(np.int64)


def _mixed(rng: np.random.Generator, size: int) -> _Lengths:
    kind = rng.choice(3, size, p=(0.5, 0.3, 0.2))
    drawn = [draw(rng, size) for draw in (_chat, _code, _summarize)]
    return np.choose(kind, [prompt for prompt, _ in drawn]), np.choose(kind, [output for _, output in drawn])


# The cv of code's gaps is 12.6 in the trace, for a few silences of minutes. A gamma process of that cv would rather
# send hundreds at one instant; 4.7 gives the trace's variance of arrivals per second, 12.9 times their mean.
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "chat": Recipe("ShareGPT chats as in the DistServe paper", _chat, _CONTEXT_TOKENS, 1.0),
        "code": Recipe("Azure code completion, 2023", _code, None, 4.7),
        "summarize": Recipe("LongBench summaries as in the DistServe paper", _summarize, _CONTEXT_TOKENS, 1.0),
        "agent": Recipe("Mooncake tool and agent sessions with shared prefixes", None, None, 1.0),
        "mixed": Recipe("half chat, 30 % code, 20 % summarize", _mixed, None, 1.5),
    }
)


def generate(
    name: str,
    *,
    num_requests: int,
    rate: float,
    seed: int,
    gap_cv: float | None = None,
    max_total_tokens: int | None = None,
) -> Workload:
    """Make a workload; equal arguments make equal ones.

    `gap_cv` replaces the recipe's burstiness. No request exceeds `max_total_tokens`, prompt and output together: what
    does is drawn again. Raises ConfigError for an unknown name, or when hardly anything fits.
    """
    recipe = RECIPES.get(name)
    if recipe is None:
        raise ConfigError(f"there is no workload {name!r}; choose one of {', '.join(RECIPES)}, or give a trace file")
    rng = np.random.default_rng([seed, *name.encode()])
    arrived_s = _arrivals(rng, num_requests, rate=rate, gap_cv=recipe.gap_cv if gap_cv is None else gap_cv)
    if recipe.draw is None:
        return draw_sessions(rng, name, arrived_s, max_total_tokens=max_total_tokens)
    limits = [limit for limit in (recipe.max_total_tokens, max_total_tokens) if limit is not None]
    prompt, output = _fitting(recipe.draw, rng, num_requests, name, min(limits, default=None))
    return Workload(name=name, arrived_s=arrived_s, prompt_tokens=prompt, output_tokens=output)


def with_classes(workload: Workload, shares: Sequence[float], *, seed: int) -> Workload:
    """Give every request a class by chance; `shares` has one part for each class and adds up to 1."""
    classes = np.random.default_rng([seed, 0xC1A55]).choice(len(shares), len(workload), p=np.asarray(shares))
    return replace(workload, slo_class=classes.astype(np.int64))


def _arrivals(rng: np.random.Generator, size: int, *, rate: float, gap_cv: float) -> Floats:
    """Draw arrivals with gamma gaps, the first at 0; a cv of 1 is Poisson, of 0 a clock."""
    if gap_cv < 0:
        raise ConfigError(f"the burstiness (cv of the gaps between arrivals) is {gap_cv:g}; it must not be negative")
    gaps_s = rng.gamma(gap_cv**-2, gap_cv**2 / rate, size) if gap_cv else np.full(size, 1.0 / rate)
    if size:
        gaps_s[0] = 0.0
    return np.cumsum(gaps_s)


def _fitting(draw: _Draw, rng: np.random.Generator, size: int, name: str, max_total_tokens: int | None) -> _Lengths:
    """Draw until `size` requests fit."""
    prompts: list[Ints] = []
    outputs: list[Ints] = []
    have = 0
    for _ in range(_MOST_ROUNDS):
        prompt, output = draw(rng, size)
        fits = prompt + output <= (max_total_tokens or np.inf)
        prompts.append(prompt[fits])
        outputs.append(output[fits])
        have += int(fits.sum())
        if have >= size:
            return np.concatenate(prompts)[:size], np.concatenate(outputs)[:size]
    raise ConfigError(
        f"hardly any request of the workload {name!r} fits the model's {max_total_tokens:,} tokens; choose another "
        "workload, or a model with a longer context"
    )
