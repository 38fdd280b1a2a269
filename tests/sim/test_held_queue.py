"""The queue of held requests, against a sorted list: any mix of puts and takes, equal keys in order of the request."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.types import HeldWork
from sim.held_queue import HeldQueue


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 9), st.sampled_from((-1.0, 0.0, 2.5)), st.integers(1, 500)), max_size=40
    )
)
def test_the_queue_is_a_sorted_list(steps: list[tuple[bool, int, float, int]]) -> None:
    queue, held = HeldQueue(), dict[int, tuple[float, int]]()
    for is_put, request, key_s, tokens in steps:
        if is_put and request not in held:
            queue.put(request, key_s=key_s, prompt_tokens=tokens)
            held[request] = (key_s, tokens)
        elif not is_put and request in held:
            queue.take(request)
            del held[request]
        order = sorted(held, key=lambda name: (held[name][0], name))
        before = [0]
        for name in order:
            before.append(before[-1] + held[name][1])
        assert queue.work() == HeldWork(tuple(held[name][0] for name in order), tuple(before))
        assert (queue.first(), len(queue)) == (order[0] if order else None, len(order))
        assert all(name in queue for name in order)
