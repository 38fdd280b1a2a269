"""What a client notes of one streamed answer: when each token came, how it ended, what the server counted.

Owns server-sent events and the definitions of TTFT, TPOT, ITL and E2EL, which are those of `vllm bench serve`
(vllm/benchmarks/serve.py and lib/endpoint_request_func.py of 0.32) with two differences, named where they are. Must not
know connections.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import orjson

RESERVATION: Final = "x-baton-reservation"
_CHOICES: Final = b'"choices":[{'
_MS: Final = 1e3


def _no_times() -> array[float]:
    return array("d")


@dataclass(slots=True)
class Timing:
    """One request as its client saw it; times are of time.perf_counter()."""

    sent_s: float
    tokens_s: array[float] = field(default_factory=_no_times)  # arrival of each event that carries tokens
    due_s: float = 0.0  # when it was to be sent; 0: whenever
    ended_s: float = 0.0  # when the answer was complete, or had failed
    error: str = ""
    is_refused: bool = False  # with 429
    is_cancelled: bool = False  # the client left on purpose
    earliest_ms: float | None = None  # that a refusal named: when an equal request would be admitted
    reservation: str = ""  # and the token that comes with it
    prompt_tokens: int = 0  # as the server counted, else as asked
    output_tokens: int = 0  # as the server counted, else events
    slo_class: str = ""
    request_id: str = ""  # that the server gave it
    text: str = ""  # only where it is asked for
    told: dict[str, object] = field(default_factory=dict)  # Baton's closing comment

    @property
    def is_complete(self) -> bool:
        """Whether a whole answer came."""
        return not self.error and not self.is_cancelled and bool(self.tokens_s)

    @property
    def ttft_ms(self) -> float:
        """Time to first token."""
        return (self.tokens_s[0] - self.sent_s) * _MS

    @property
    def e2el_ms(self) -> float:
        """Time to the last token."""
        return (self.tokens_s[-1] - self.sent_s) * _MS

    @property
    def tpot_ms(self) -> float:
        """Mean time per output token after the first; 0 with fewer than two.

        Several tokens may share an event, so it is counted by tokens, the server's count where it gives one.
        """
        count = (self.output_tokens or len(self.tokens_s)) - 1
        return (self.tokens_s[-1] - self.tokens_s[0]) / count * _MS if count > 0 else 0.0

    @property
    def itl_ms(self) -> list[float]:
        """Gaps between events with tokens."""
        return [(b - a) * _MS for a, b in zip(self.tokens_s, self.tokens_s[1:], strict=False)]

    def within(self, ttft_ms: float, tpot_ms: float) -> bool:
        """Say whether the request completed and met both targets."""
        return self.is_complete and self.ttft_ms <= ttft_ms and self.tpot_ms <= tpot_ms


class StreamedAnswer:
    """Reads one streamed answer into a Timing; implements bench.serving.connection.Answer."""

    __slots__ = ("_done", "_has_ended", "_keeps_text", "_leave_after", "_rest", "_status", "_tokens", "timing")

    def __init__(
        self,
        timing: Timing,
        done: Callable[[Timing], None],
        *,
        leave_after: int | None = None,
        keeps_text: bool = False,
    ) -> None:
        """Call `done` at the end, whatever it is; `leave_after` events with tokens the client hangs up."""
        self.timing = timing
        self._tokens = timing.tokens_s
        self._done = done
        self._leave_after = leave_after
        self._keeps_text = keeps_text
        self._rest = b""
        self._status = 0
        self._has_ended = False  # [DONE] came

    def header(self, name: bytes, value: bytes) -> None:
        """Note the id, and what refusals carry."""
        if name == b"x-request-id":
            self.timing.request_id = value.decode("latin-1")
        elif name == RESERVATION.encode():
            self.timing.reservation = value.decode("latin-1")

    def head(self, status: int) -> None:
        """Note the status."""
        self._status = status

    def body(self, data: bytes, now_s: float) -> bool:
        """Take the events that are complete."""
        if self._status != HTTPStatus.OK:
            self._rest += data
            return True
        if b"\r" in data:  # some servers end lines with both; JSON text holds no bare one
            data = data.replace(b"\r", b"")
        if self._rest:
            data = self._rest + data
        end = data.rfind(b"\n\n")
        if end < 0:
            self._rest = data
            return True
        self._rest = data[end + 2 :]
        for event in data[:end].split(b"\n\n"):
            self._take(event, now_s)
        if self._leave_after is not None and len(self._tokens) >= self._leave_after:
            self.timing.is_cancelled = True
            return False
        return True

    def ended(self, now_s: float) -> None:
        """Judge the whole answer."""
        timing = self.timing
        if self._status != HTTPStatus.OK:
            self._note_refusal()
        elif not (timing.is_cancelled or timing.error):
            # The first difference: a stream that is cut off looks complete to `vllm bench serve`.
            if not self._tokens:
                timing.error = "no token came"
            elif not self._has_ended:
                timing.error = "the stream ended without [DONE]"
        self._finish(now_s)

    def failed(self, why: str) -> None:
        """Note that no answer comes."""
        self.timing.error = self.timing.error or why
        self._finish(self._tokens[-1] if self._tokens else self.timing.sent_s)

    def _finish(self, now_s: float) -> None:
        timing = self.timing
        timing.ended_s = now_s
        timing.output_tokens = timing.output_tokens or len(self._tokens)
        self._done(timing)

    def _take(self, event: bytes, now_s: float) -> None:
        # An event in the middle of a stream is not parsed: it is known by what vLLM, SGLang and llama.cpp all write.
        if (
            self._tokens
            and not self._keeps_text
            and event.startswith(b"data: {")
            and _CHOICES in event
            and b'"usage":{' not in event
            and b'"error"' not in event
        ):
            self._tokens.append(now_s)
        else:
            for line in event.split(b"\n"):
                self._take_line(line, now_s)

    def _take_line(self, line: bytes, now_s: float) -> None:
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                self._has_ended = True
            else:
                self._take_data(data, now_s)
        elif line.startswith(b": baton {"):
            self.timing.told = orjson.loads(line[8:])

    def _take_data(self, data: bytes, now_s: float) -> None:
        timing = self.timing
        try:
            found = orjson.loads(data)
        except orjson.JSONDecodeError:
            timing.error = f"an event is no JSON: {data[:80]!r}"
            return
        if error := found.get("error"):
            timing.error = str(error)
        if usage := found.get("usage"):
            timing.prompt_tokens = usage.get("prompt_tokens") or timing.prompt_tokens
            timing.output_tokens = usage.get("completion_tokens") or 0
        choices = found.get("choices")
        # The second difference: the opening event of a chat, which has a role and nothing else, is no token.
        if choices and (self._tokens or not _only_opens(choices[0])):
            self._tokens.append(now_s)
            if self._keeps_text:
                timing.text += _text_of(choices[0])

    def _note_refusal(self) -> None:
        timing = self.timing
        timing.error = f"status {self._status}: {self._rest[:200].decode(errors='replace')}"
        timing.is_refused = self._status == HTTPStatus.TOO_MANY_REQUESTS
        if timing.is_refused:
            try:
                timing.earliest_ms = orjson.loads(self._rest)["error"].get("earliest_feasible_ms")
            except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
                timing.earliest_ms = None


def _only_opens(choice: dict[str, object]) -> bool:
    delta = choice.get("delta")
    if not isinstance(delta, dict) or choice.get("finish_reason"):
        return False
    return not any(value for name, value in delta.items() if name != "role")


def _text_of(choice: dict[str, object]) -> str:
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    return text if isinstance(text, str) else ""
