"""What a router in a process of its own decided over real engines, its log and the policy decide again.

The log begins with the stack, so it also holds what the tests before did to it: workers killed, clients gone.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from sim.replay import replay
from tests.integration.test_parity import COMPLETIONS, completion
from tests.support.openai_http import post
from tests.support.stack import EVENT_LOG, TOKEN, Stack

pytestmark = pytest.mark.engine

NUM_REQUESTS = 40


def test_a_live_run_over_real_engines_is_decided_again(stack: Stack) -> None:
    log = stack.run_dir / EVENT_LOG
    before = replay(log).decisions
    with ThreadPoolExecutor(8) as pool:
        bodies = [completion(20 + 13 * i % 400, of=900 + i) for i in range(NUM_REQUESTS)]
        answers = list(pool.map(lambda body: post(stack.url, COMPLETIONS, body), bodies))
    assert [status for status, _ in answers] == [200] * NUM_REQUESTS
    stack.wait(lambda: replay(log).decisions >= before + NUM_REQUESTS)
    found = replay(log)
    assert found.differing == ()
    assert found.agrees
    assert TOKEN not in log.read_text()
