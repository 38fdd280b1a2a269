"""gRPC as others use it for KV: the receiver asks, the sender answers with a stream of 1 MiB messages.

Plain: a protobuf message with a bytes field, gRPC's own settings. Tuned: raw bytes without protobuf, large HTTP/2
frames and buffers; the pair runs with malloc told to keep its memory (see bench.kv.systems). No checksum in either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any, Final

import grpc
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from bench.kv.cache import BLOCK_BYTES, LAYERS, Bytes, Ids, Job
from bench.kv.side import Side, Span

_SERVICE: Final = "bench.KV"
_ROWS: Final = (1 << 20) // BLOCK_BYTES  # of a message
_UNLIMITED: Final = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
_TUNED: Final = (
    *_UNLIMITED,
    ("grpc.http2.max_frame_size", (16 << 20) - 1),
    ("grpc.http2.lookahead_bytes", 64 << 20),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.write_buffer_size", 8 << 20),
)
_TIMEOUT_S: Final = 120.0


def sender(cache: Bytes, options: dict[str, str]) -> Side:
    """Build the end that serves blocks."""
    return _Server(cache, tuned=options["style"] == "tuned")


def receiver(cache: Bytes, options: dict[str, str]) -> Side:
    """Build the end that asks for them."""
    return _Client(cache, tuned=options["style"] == "tuned")


class _Server:
    def __init__(self, cache: Bytes, *, tuned: bool) -> None:
        self._cache = cache
        encode = None if tuned else _encoder()
        self._server = grpc.server(ThreadPoolExecutor(4), options=_TUNED if tuned else _UNLIMITED)
        handlers = {"Pull": grpc.unary_stream_rpc_method_handler(self._pull, None, encode)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def meet(self, address: str) -> None:
        """The receiver comes."""

    def prepare(self, job: Job) -> None:
        """Nothing is prepared."""

    def run(self, job: Job) -> Span:
        """Leave it to the threads that serve."""
        return Span()

    def close(self) -> None:
        self._server.stop(None)

    def _pull(self, request: bytes, context: object) -> Iterator[bytes]:
        rows: list[memoryview] = []
        for layer, block in _places(np.frombuffer(request, np.int64)):
            rows.append(self._cache[layer, block].data)
            if len(rows) == _ROWS:
                yield b"".join(rows)
                rows = []
        if rows:
            yield b"".join(rows)


class _Client:
    address = ""

    def __init__(self, cache: Bytes, *, tuned: bool) -> None:
        self._cache = cache
        self._options = _TUNED if tuned else _UNLIMITED
        self._decode = None if tuned else _decoder()
        self._channel: Any = None
        self._call: Any = None

    def meet(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=self._options)
        self._call = self._channel.unary_stream(f"/{_SERVICE}/Pull", None, self._decode)

    def prepare(self, job: Job) -> None:
        """Nothing is prepared."""

    def run(self, job: Job) -> Span:
        began_s = monotonic()
        places = _places(job.target)
        for message in self._call(job.source.tobytes(), timeout=_TIMEOUT_S):
            for row in np.frombuffer(message, np.uint8).reshape(-1, BLOCK_BYTES):
                self._cache[next(places)] = row
        return Span(began_s, monotonic())

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()


def _places(blocks: Ids) -> Iterator[tuple[int, int]]:
    for block in blocks.tolist():
        for layer in range(LAYERS):
            yield layer, block


def _message() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="bench_kv.proto", package="bench", syntax="proto3")
    file.message_type.add(name="Chunk").field.add(name="data", number=1, type=12, label=1)  # bytes
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bench.Chunk"))


def _encoder() -> Callable[[bytes], bytes]:
    chunk = _message()
    return lambda data: chunk(data=data).SerializeToString()


def _decoder() -> Callable[[bytes], bytes]:
    chunk = _message()
    return lambda data: chunk.FromString(data).data
