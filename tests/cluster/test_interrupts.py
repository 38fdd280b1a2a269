"""Signals, counted."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from cluster.interrupts import Interrupted, Interrupts


def test_signals_are_counted_and_told() -> None:
    with Interrupts() as interrupts:
        interrupts.check()
        assert not interrupts.wait(0)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.wait(5)
        assert interrupts.count == 2
        with pytest.raises(Interrupted):
            interrupts.check()


def test_a_signal_ends_the_wait() -> None:
    with Interrupts() as interrupts:
        sender = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        sender.start()
        begin_s = time.monotonic()
        assert interrupts.wait(30)
        assert time.monotonic() - begin_s < 10
        sender.join()


def test_handlers_of_others_give_way_and_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a library may
        interrupts.install()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.count == 1
    assert signal.getsignal(signal.SIGTERM) == before
