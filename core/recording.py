"""What a router records of its traffic, so that the past can be simulated: the form of the file.

Owns the vocabulary and its JSON lines. Must not know who writes or reads them. Nothing of a prompt or an answer is in
them but lengths, times and keyed hashes of beginnings, which are equal where prompts begin alike and tell nothing else.

A recording is a sequence of lines. A line with the key `event` is a `setting`: the cluster and the policy from that
moment on. All others are requests, each written when it ended, with the fields of a Mooncake trace and some more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

from core.policy.context import PolicyContext
from core.types import Role

FORMAT: Final = 1
BLOCK_TOKENS: Final = 128  # of a prompt, for each hash
MAX_BLOCKS: Final = 256  # hashes of one prompt; what comes after is not told
SETTING: Final = "setting"

Fields = dict[str, Any]  # plain values, as JSON has them


@dataclass(frozen=True, slots=True)
class RecordedWorker:
    """One connected worker."""

    worker_id: str
    role: Role
    kv_blocks: int
    block_size: int  # tokens
    devices: int  # that it occupies: tensor x pipeline parallel


@dataclass(frozen=True, slots=True)
class Setting:
    """How requests were served from `at_s` on."""

    at_s: float  # since the epoch
    policy: str
    context: PolicyContext  # with the costs that were known or learnt by then
    workers: tuple[RecordedWorker, ...]  # by id


class Recorded(NamedTuple):  # one is made for every request
    """One request that ended."""

    arrived_s: float  # since the epoch
    prompt_tokens: int
    output_tokens: int
    slo_class: str
    outcome: str  # as in baton_requests_total
    kept: bool | None  # its SLO; None: its client is why it cannot be said
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float
    prefill: str | None
    decode: str | None
    is_guessed: bool  # `output_tokens` is what its class has in the mean: it was not answered
    hashes: tuple[int, ...] = ()


def setting_fields(setting: Setting) -> Fields:
    """Take a setting apart; `setting_of` gives back an equal one."""
    return {
        "event": SETTING,
        "format": FORMAT,
        "at_s": setting.at_s,
        "block_tokens": BLOCK_TOKENS,
        "policy": setting.policy,
        "context": json.loads(setting.context.to_json()),
        "workers": [asdict(worker) for worker in setting.workers],
    }


def setting_of(fields: Mapping[str, Any]) -> Setting:
    """Make the setting that `setting_fields` took apart. Raises ValueError that says what is wrong."""
    if fields.get("format") != FORMAT or fields.get("block_tokens") != BLOCK_TOKENS:
        raise ValueError(f"the recording has format {fields.get('format')!r}, this version reads {FORMAT}")
    try:
        workers = tuple(RecordedWorker(**{**w, "role": Role(w["role"])}) for w in fields["workers"])
        context = PolicyContext.from_json(json.dumps(fields["context"]))
        return Setting(float(fields["at_s"]), str(fields["policy"]), context, workers)
    except (KeyError, TypeError) as exc:
        raise ValueError(f"a setting does not look like this: {exc!r}") from exc


def request_fields(request: Recorded) -> Fields:
    """Take a request apart; `request_of` gives back an equal one, but for times, which are rounded to microseconds."""
    return {
        "timestamp": round(request.arrived_s * 1000, 3),
        "input_length": request.prompt_tokens,
        "output_length": request.output_tokens,
        "hash_ids": request.hashes,
        "slo_class": request.slo_class,
        "outcome": request.outcome,
        "kept": request.kept,
        "ttft_ms": None if request.ttft_s is None else round(request.ttft_s * 1000, 3),
        "tpot_ms": None if request.tpot_s is None else round(request.tpot_s * 1000, 3),
        "e2e_ms": round(request.e2e_s * 1000, 3),
        "prefill": request.prefill,
        "decode": request.decode,
        "guessed": request.is_guessed,
    }


def request_of(fields: Mapping[str, Any]) -> Recorded:
    """Make the request that `request_fields` took apart. Raises ValueError that says what is wrong."""
    try:
        return Recorded(
            fields["timestamp"] / 1000,
            int(fields["input_length"]),
            int(fields["output_length"]),
            str(fields["slo_class"]),
            str(fields["outcome"]),
            fields["kept"],
            _seconds(fields["ttft_ms"]),
            _seconds(fields["tpot_ms"]),
            fields["e2e_ms"] / 1000,
            fields["prefill"],
            fields["decode"],
            bool(fields["guessed"]),
            tuple(int(number) for number in fields["hash_ids"]),
        )
    except (KeyError, TypeError) as exc:
        raise ValueError(f"a recorded request does not look like this: {exc!r}") from exc


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000
