"""Baton's whole hand-over between two KV endpoints, driven as an engine thread drives them.

From opening the transfer and copying the first block out of the prefill side's cache until the decode side's engine
thread hears that every block is in its own: what an engine waits for.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Final

from bench.kv.cache import LAYERS, Bytes, Job
from bench.kv.kv_thread import STAGING_BYTES, WAIT_S, block_io, frames_of, wait_for_layer, wait_for_staging
from bench.kv.side import Side, Span
from core.errors import TransferAborted
from kv_transfer.endpoint import EndpointConfig, KVEndpoint
from kv_transfer.frames import Offer
from kv_transfer.plan import ReceiveOpen, ReceiveParams
from kv_transfer.transport import Outgoing, Transport

_DIGEST: Final = "bench"


def sender(cache: Bytes, options: dict[str, str]) -> Side:
    """Build the prefill side."""
    return _Prefill(cache, options)


def receiver(cache: Bytes, options: dict[str, str]) -> Side:
    """Build the decode side."""
    return _Decode(cache, options)


async def _refuse(address: str, timeout_s: float) -> Outgoing:
    raise TransferAborted("this transport is not the one that is measured")


def _only(measured: str, transport: Transport) -> Transport:
    """Have a hand-over fail rather than go on over a transport that is not measured."""
    if transport.name != measured:
        transport.connect = _refuse  # type: ignore[method-assign]
    return transport


class _End:
    def __init__(self, cache: Bytes, options: dict[str, str], worker_id: str, staging_bytes: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="baton-bench-kv-")
        config = EndpointConfig(
            worker_id=worker_id,
            epoch=1,
            host="127.0.0.1",
            port=0,
            endpoint_file=str(Path(self._folder.name) / "endpoint.json"),
            fingerprint="bench",
            token="bench",
            lease_s=WAIT_S,
            staging_bytes=staging_bytes,
            transport=options["transport"],
            share_cache=bool(options.get("share_cache", "yes")),
        )
        self._endpoint = KVEndpoint(config, block_io(cache), wrap=partial(_only, options["transport"]))
        self.address = self._endpoint.start()
        self._peer = ""

    def meet(self, address: str) -> None:
        self._peer = address

    def close(self) -> None:
        self._endpoint.close()
        self._folder.cleanup()


class _Prefill(_End):
    def __init__(self, cache: Bytes, options: dict[str, str]) -> None:
        super().__init__(cache, options, "prefill", STAGING_BYTES)

    def prepare(self, job: Job) -> None:
        """Nothing is prepared: the offer is part of what is timed."""

    def run(self, job: Job) -> Span:
        ids, name = job.source.tolist(), str(job.number)
        io = self._endpoint.io
        offer = Offer(
            name, "prefill", 1, self._endpoint.fingerprint, _DIGEST, job.num_blocks, io.num_layers, io.block_bytes
        )
        began_s = time.monotonic()
        self._endpoint.sender.open(offer, request_id=name, peer=self._peer, lease_s=WAIT_S)
        for layer in range(LAYERS):
            wait_for_layer(began_s, layer, job.layer_ms)
            computed_s = time.monotonic()
            for first, count in frames_of(io, job.num_blocks):
                wait_for_staging(lambda: self._endpoint.sender.staged_bytes, count * io.block_bytes)
                self._endpoint.stage(name, layer, first, ids[first : first + count], stays=True)
        self._endpoint.finish(name)
        return Span(computed_s if job.layer_ms else began_s)


class _Decode(_End):
    def __init__(self, cache: Bytes, options: dict[str, str]) -> None:
        super().__init__(cache, options, "decode", 1 << 20)

    def prepare(self, job: Job) -> None:
        """Reserve the blocks, as decode does before prefill starts."""
        name = str(job.number)
        params = ReceiveParams(name, WAIT_S)
        self._endpoint.expect(ReceiveOpen(params, name, _DIGEST, 0, job.num_blocks, tuple(job.target.tolist())))

    def run(self, job: Job) -> Span:
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            self._endpoint.wait_results(WAIT_S)
            results = self._endpoint.take_results()
            if results.bad_blocks:
                raise RuntimeError(f"{len(results.bad_blocks)} blocks did not land")
            if str(job.number) in results.finished:
                return Span(ended_s=time.monotonic())
        raise TimeoutError("the hand-over did not end")
