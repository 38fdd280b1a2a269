"""What keeps a worker's processes from outliving it, and a forked engine core clean of its parent's state.

Owns Linux process attributes only. Must not know vLLM, specs or sockets.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; exit at once if it already has.

    The kernel forgets the request across fork, not across exec. Does nothing on systems other than Linux.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os._exit(1)


def guard_forks(*, close_fds: Sequence[int], in_child: Callable[[], None]) -> None:
    """Make every later fork of this process die with it, deaf to its signals and without `close_fds`.

    `in_child` runs last in the child. Children that exec at once (subprocess, spawn) are not reached.
    """

    def after_fork() -> None:
        die_with_parent(os.getppid())
        # The event loop's wake-up socket is shared with the parent: a signal to the child would look like its own.
        signal.set_wakeup_fd(-1)
        for fd in close_fds:
            os.close(fd)
        in_child()

    os.register_at_fork(after_in_child=after_fork)


def share_heap_with_fork() -> None:
    """Keep the collector off everything allocated so far, here and in children forked from now on.

    A collection writes to the header of each object it visits, which gives parent and child their own copy of every
    page they shared.
    """
    gc.collect()
    gc.freeze()
