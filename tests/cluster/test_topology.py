"""GPUs and NVLinks, from readings of known machines."""

from __future__ import annotations

import pytest

from cluster.topology import Gpu, GpuReading, gpus_of, node_gpus, read_nvml

GIB = 1 << 30


def bus(number: int) -> str:
    return f"00000000:{number:02X}:00.0"


def test_no_readings_no_gpus() -> None:
    assert gpus_of(()) == ()


def test_a_machine_without_driver_has_no_gpus() -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert read_nvml() == ()
        assert node_gpus() == ()
        return
    pynvml.nvmlShutdown()
    pytest.skip("this machine has a driver")


@pytest.mark.gpu
def test_a_machine_with_driver_has_gpus() -> None:
    gpus = node_gpus()
    assert [gpu.index for gpu in gpus] == list(range(len(gpus)))
    assert all(gpu.name and gpu.memory_bytes > 0 for gpu in gpus)
    assert all(gpu.index in gpus[peer].nvlink_peers for gpu in gpus for peer in gpu.nvlink_peers)


def test_a_single_gpu_by_an_old_library_that_gives_bytes() -> None:
    reading = GpuReading(b"NVIDIA L4\0", 23 * GIB, b"00000000:00:03.0", ())
    assert gpus_of([reading]) == (Gpu(0, "NVIDIA L4", 23 * GIB, ()),)


def test_gpus_linked_in_pairs() -> None:
    """Two pairs with a bridge of four links each, as A100 PCIe cards have."""
    far = (bus(2), bus(1), bus(4), bus(3))
    readings = [GpuReading("NVIDIA A100-PCIE-40GB", 40 * GIB, bus(i + 1), (far[i],) * 4) for i in range(4)]
    assert [gpu.nvlink_peers for gpu in gpus_of(readings)] == [(1,), (0,), (3,), (2,)]


def test_gpus_behind_switches_reach_each_other() -> None:
    """Eight GPUs whose eighteen links end at four switches, as in an HGX H100 board, and one card without links."""
    switches = [bus(0xC0 + i) for i in range(4)]
    ends = tuple(switches[i % 4] for i in range(18))
    readings = [GpuReading("NVIDIA H100 80GB HBM3", 80 * GIB, bus(0x10 + i), ends) for i in range(8)]
    readings.append(GpuReading("NVIDIA L4", 23 * GIB, bus(0x40), ()))
    peers = [gpu.nvlink_peers for gpu in gpus_of(readings)]
    assert peers[3] == (0, 1, 2, 4, 5, 6, 7)
    assert peers[8] == ()
