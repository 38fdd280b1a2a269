"""Policies by name.

Owns the table that maps the name in the configuration to a policy. Must not know what any policy does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from core.errors import ConfigError
from core.policy.context import PolicyContext
from core.policy.least_loaded import LeastLoaded
from core.policy.least_work import LeastPredictedWork
from core.policy.power_of_two import PowerOfTwo
from core.policy.prefix_affinity import PrefixAffinity
from core.policy.protocol import Policy
from core.policy.slo_aware import SLOAware
from core.policy.spread import RoundRobin, Spread

POLICIES: Final[Mapping[str, Callable[[PolicyContext], Policy]]] = MappingProxyType(
    {
        "least-loaded": lambda _: LeastLoaded(),
        "least-predicted-work": lambda context: LeastPredictedWork(context.whole_below_tokens),
        "power-of-two": lambda _: PowerOfTwo(),
        "prefix-affinity": lambda _: PrefixAffinity(),
        "random": lambda _: Spread(),
        "round-robin": lambda _: RoundRobin(),
        "slo-aware": SLOAware,
    }
)


def policy_named(name: str, context: PolicyContext | None = None) -> Policy:
    """Make the policy called `name`.

    Raises ConfigError that lists the valid names.
    """
    factory = POLICIES.get(name)
    if factory is None:
        names = ", ".join(sorted(POLICIES))
        raise ConfigError(f"router.policy: no policy is called {name!r}; choose one of {names}")
    return factory(context or PolicyContext())
