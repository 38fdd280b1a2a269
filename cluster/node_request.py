"""What Ray's autoscaler is asked for, and how long a start waits for it.

Owns the request and its withdrawal: to Ray there is one at a time, whoever makes it, and it holds until the next. Must
not know how nodes are made. Requires a joined Ray.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from core.errors import ConfigError

Bundle = Mapping[str, float]

POLL_S: Final = 1.0


def request_nodes(bundles: Sequence[Bundle]) -> None:
    """Ask for nodes that hold these resources all at a time, in place of what was asked for before."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(bundle) for bundle in bundles])


def withdraw_request() -> None:
    """Ask for nothing any more: nodes that idle may go."""
    request_nodes(())


def describe_request(bundles: Sequence[Bundle]) -> str:
    """Write a request in a few words: `2 x (1 CPU, 1 GPU)`."""
    counts = Counter(", ".join(f"{amount:g} {name}" for name, amount in bundle.items()) for bundle in bundles)
    return ", ".join(f"{count} x ({what})" for what, count in counts.items())


def wait_for_room(
    find: Callable[[], object],
    bundles: Sequence[Bundle],
    *,
    wait_s: float,
    check: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Return once `find`, asked again and again, raises no ConfigError; nodes are asked for if it does at first.

    `check` is called while waiting and may raise to give up. Raises the ConfigError of `find`, with what was tried,
    after `wait_s`; 0 asks for nothing. The request stands afterwards if there is room, else it is withdrawn.
    """
    try:
        find()
        return
    except ConfigError as exc:
        if not wait_s:
            raise ConfigError(f"{exc}, or have Ray's autoscaler make one: ray.wait_for_nodes_s") from None
    say(f"asked Ray's autoscaler for {describe_request(bundles)}; waits for {wait_s:g} s at most")
    request_nodes(bundles)
    try:
        _poll(find, wait_s, check)
    except BaseException:
        withdraw_request()
        raise


def _poll(find: Callable[[], object], wait_s: float, check: Callable[[], None]) -> None:
    deadline_s = time.monotonic() + wait_s
    while True:
        check()
        try:
            find()
            return
        except ConfigError as exc:
            if time.monotonic() > deadline_s:
                waited = f"Ray's autoscaler was asked and made no node for it in {wait_s:g} s (ray.wait_for_nodes_s)"
                raise ConfigError(f"{exc}\n  {waited}; see `ray status`") from None
        time.sleep(POLL_S)  # no event of Ray's tells of a node
