"""The GPUs of this node and the NVLinks between them, as the driver tells.

Owns the conversation with NVML and what its answers mean. A node without GPUs, driver or library has no GPUs; that is
no error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuReading:
    """What NVML says of one GPU."""

    name: str | bytes  # older libraries give bytes
    memory_bytes: int
    bus_id: str | bytes  # PCI address, e.g. "00000000:1A:00.0"
    link_ends: tuple[str | bytes, ...]  # PCI addresses at the far ends of its active NVLinks: GPUs or switches


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of this node."""

    index: int
    name: str
    memory_bytes: int
    nvlink_peers: tuple[int, ...]  # indices of the GPUs it reaches by NVLink, ascending


def node_gpus() -> tuple[Gpu, ...]:
    """List the GPUs of this node, ordered by index; none without a driver."""
    return gpus_of(read_nvml())


def gpus_of(readings: Sequence[GpuReading]) -> tuple[Gpu, ...]:
    """Make GPUs of what NVML says; those with links to anything but a GPU meet in the switches behind them."""
    index_of = {_text(reading.bus_id): index for index, reading in enumerate(readings)}
    ends = [{_text(end) for end in reading.link_ends} for reading in readings]
    switched = {index for index, far in enumerate(ends) if far - index_of.keys()}
    gpus: list[Gpu] = []
    for index, reading in enumerate(readings):
        direct = {index_of[end] for end in ends[index] if end in index_of}
        peers = (direct | switched if index in switched else direct) - {index}
        gpus.append(Gpu(index, _text(reading.name), reading.memory_bytes, tuple(sorted(peers))))
    return tuple(gpus)


def read_nvml() -> tuple[GpuReading, ...]:
    """Ask NVML for its GPUs; nothing when library or driver is missing."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(_read(index) for index in range(pynvml.nvmlDeviceGetCount()))
    finally:
        pynvml.nvmlShutdown()


def _read(index: int) -> GpuReading:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    ends: list[str | bytes] = []
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        with contextlib.suppress(pynvml.NVMLError):  # a link the model does not have
            if pynvml.nvmlDeviceGetNvLinkState(handle, link):
                ends.append(pynvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId)
    return GpuReading(
        name=pynvml.nvmlDeviceGetName(handle),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        bus_id=pynvml.nvmlDeviceGetPciInfo(handle).busId,
        link_ends=tuple(ends),
    )


def _text(value: str | bytes) -> str:
    return (value.decode() if isinstance(value, bytes) else value).rstrip("\0")
