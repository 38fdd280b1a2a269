"""What the mock workers answer, the same bytes for every system.

Owns bodies and events only. Each event of a stream carries the time of the step that made it, so that a client on the
same machine can tell how long it was on its way.
"""

from __future__ import annotations

from typing import Final

MODEL: Final = "mock"
JSON_TYPE: Final = "application/json"
STREAM_TYPE: Final = "text/event-stream; charset=utf-8"
DONE: Final = b"data: [DONE]\n\n"
STAMP: Final = b'" t='  # before the time, which a semicolon ends

_HEAD: Final = (
    b'{"id":"cmpl-0123456789abcdef","object":"text_completion","created":1763700000,"model":"mock",'
    b'"choices":[{"index":0,'
)
_EVENT: Final = b"data: " + _HEAD + b'"text":" t=%d;","logprobs":null,"finish_reason":%b}]}\n\n'
_TEXT: Final = b"the quick brown fox jumps over the lazy dog and then some more words"
_COMPLETION: Final = (
    _HEAD
    + b'"text":"'
    + _TEXT
    + b'","logprobs":null,"finish_reason":"length"}],'
    + b'"usage":{"prompt_tokens":100,"completion_tokens":%d,"total_tokens":%d}%b}'
)
# What a vLLM prefill engine with the NIXL connector adds for the decode engine.
_HANDED_OVER: Final = (
    b',"kv_transfer_params":{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[1,2,3,4,5,6,7,8],'
    b'"remote_engine_id":"3f0e9a8e-0000-4000-8000-000000000001","remote_host":"127.0.0.1","remote_port":5600,"tp_size":1}'
)


def token_event(stamp_ns: int, *, is_last: bool = False) -> bytes:
    """Make the event of one token that was made at `stamp_ns` of the monotonic clock."""
    return _EVENT % (stamp_ns, b'"length"' if is_last else b"null")


def completion(tokens: int, *, hands_over: bool = False) -> bytes:
    """Make a whole answer of `tokens` output tokens; with the parameters of a hand-over if it is a prefill engine's."""
    return _COMPLETION % (tokens, 100 + tokens, _HANDED_OVER if hands_over else b"")
