from __future__ import annotations

from bench.kv.figures import Results
from bench.kv.pair import Taken
from bench.kv.report import report
from bench.kv.systems import MEMCPY, whole


def test_every_row_stands_beside_what_it_is_measured_by() -> None:
    taken = [
        Taken(MEMCPY, 512, 0, 64 << 20, (0.004,), 0.06, 0.0),
        Taken(MEMCPY, 512, 1, 64 << 20, (0.005,), 0.06, 0.5),
        Taken(whole("shm"), 512, 0, 64 << 20, (0.005,), 0.12, 0.0),
        Taken(whole("shm"), 512, 0, 64 << 20, (0.002,), 0.12, 0.0, 4.0),
    ]
    lines = list(report(Results(taken), rounds=2, notes=["Left out: something"]))
    assert "\n512 tokens, 64 MiB\n" in lines
    assert f"| {MEMCPY} | 4.50 [4.00..5.00] | 15.10 [13.42..16.78] | 0.06 | 1.00 |  |  | 0.25 [0.00..0.50] |" in lines
    assert f"| {whole('shm')} | 5.00 | 13.42 | 0.12 | 0.80 |  |  | 0.00 |" in lines
    assert f"| {whole('shm')} | 512 | 4 | 2.00 | 2.16 | 5.0 | 0.00 |" in lines
    assert f"| {whole('shm')} / {MEMCPY}, 512 tokens | at least 0.7 | 0.80 | holds |" in lines
    assert lines[-1] == "- Left out: something"
