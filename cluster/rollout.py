"""What a changed configuration means for a cluster that runs: what is scaled, replaced, restarted, or cannot be done.

Owns the comparison. Pure but for the files of the model, which revisions digest. Must not act.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.cluster_status import StartOrder
from cluster.worker_specs import configured_sizes, revision
from core.config.models import BatonConfig, Section
from core.control.actions import PoolSizes
from core.errors import ConfigError
from core.types import Role

# What processes are bound to for life: addresses, trust, and the Ray underneath.
_FIXED = ("router.host", "router.port", "security", "ray.address", "ray.dashboard")


@dataclass(frozen=True, slots=True)
class Rollout:
    """What is to be done; `lines` say it for people, none: nothing."""

    sizes: PoolSizes | None  # None: as they are
    roles: tuple[Role, ...]  # pools whose workers are replaced, one pair after another
    restarts_router: bool
    lines: tuple[str, ...]


def plan_rollout(order: StartOrder, after: StartOrder, *, router_differs: bool, had: PoolSizes) -> Rollout:
    """Compare what runs by `order` with what is to run by `after`.

    `had` are the sizes in force, which may not be those configured. Raises ConfigError for what needs `down` and `up`.
    """
    fixed = [key for key in _FIXED if _at(order.config, key) != _at(after.config, key)]
    if fixed:
        raise ConfigError(f"{', '.join(fixed)}: cannot change while the cluster runs; use `down` and `up`")
    sizes = _changed_sizes(order, after, had)
    roles = tuple(role for role in Role if revision(order, role) != revision(after, role))
    return Rollout(sizes, roles, router_differs, tuple(_lines(sizes, had, roles, restarts_router=router_differs)))


def _changed_sizes(order: StartOrder, after: StartOrder, had: PoolSizes) -> PoolSizes | None:
    """Take sizes over that the file changed, so that one about something else does not undo what was scaled since."""
    before, wanted = configured_sizes(order), configured_sizes(after)
    if before == wanted:
        return None
    sizes = PoolSizes(
        wanted.prefill if wanted.prefill != before.prefill else had.prefill,
        wanted.decode if wanted.decode != before.decode else had.decode,
    )
    return None if sizes == had else sizes


def _lines(sizes: PoolSizes | None, had: PoolSizes, roles: tuple[Role, ...], *, restarts_router: bool) -> Iterator[str]:
    if sizes is not None:
        for role in Role:
            if sizes.of(role) != had.of(role):
                yield f"the {role} pool: {had.of(role)} -> {sizes.of(role)}"
    if roles:
        yield f"workers of {' and '.join(f'the {role} pool' for role in roles)} are replaced, pair by pair"
    if restarts_router:
        yield "the router starts again on its port; connections are refused for about a second"


def _at(config: BatonConfig, key: str) -> object:
    value: object = config
    for part in key.split("."):
        assert isinstance(value, Section)
        value = getattr(value, part)
    return value
