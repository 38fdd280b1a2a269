"""The latency model of the simulated engine.

Owns the flags and the formula only. Must not know sequences or the clock.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SimulatedTiming:
    """How long the simulated work takes, and how many KV blocks there are; fields are named as their flags."""

    prefill_tokens_per_s: float
    step_ms: float
    step_ms_per_seq: float
    transfer_ms: float
    num_kv_blocks: int
    cached_blocks: int  # of prompts that ended, kept for others that begin alike

    @classmethod
    def parse(cls, flags: tuple[str, ...]) -> SimulatedTiming:
        """Read flags such as ("--prefill-tokens-per-s", "20000", "--step-ms", "5").

        Raises ConfigError for an unknown flag or a value that is no number.
        """
        parser = argparse.ArgumentParser(prog="simulated engine", add_help=False, exit_on_error=False)
        parser.add_argument("--prefill-tokens-per-s", type=float, default=20_000.0)
        parser.add_argument("--step-ms", type=float, default=5.0)
        parser.add_argument("--step-ms-per-seq", type=float, default=0.05)
        parser.add_argument("--transfer-ms", type=float, default=5.0)
        parser.add_argument("--num-kv-blocks", type=int, default=4096)
        parser.add_argument("--cached-blocks", type=int, default=0)
        try:
            values, unknown = parser.parse_known_args(flags)
        except argparse.ArgumentError as exc:
            raise ConfigError(f"simulated engine: {exc}") from exc
        if unknown:
            raise ConfigError(f"simulated engine: unknown flags {' '.join(unknown)}")
        return cls(**vars(values))

    def step_s(self, *, num_decoding: int, prefill_tokens: int) -> float:
        """Give the time of a step that decodes one token each for some sequences and prefills some tokens."""
        decode_s = (self.step_ms + self.step_ms_per_seq * num_decoding) / 1000
        return decode_s + prefill_tokens / self.prefill_tokens_per_s

    def handover_s(self, prompt_tokens: int) -> float:
        """Give the time until a prompt's KV has come from an idle prefill worker."""
        return prompt_tokens / self.prefill_tokens_per_s + self.transfer_ms / 1000
