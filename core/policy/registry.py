"""Policies by name.

Owns the table that maps the name in the configuration to a policy. Must not know what any policy does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from core.errors import ConfigError
from core.policy.least_work import LeastPredictedWork
from core.policy.protocol import Policy
from core.policy.spread import Spread

POLICIES: Final[Mapping[str, Callable[[], Policy]]] = MappingProxyType(
    {"least-predicted-work": LeastPredictedWork, "random": Spread}
)


def policy_named(name: str) -> Policy:
    """Make the policy called `name`.

    Raises ConfigError that lists the valid names.
    """
    factory = POLICIES.get(name)
    if factory is None:
        names = ", ".join(sorted(POLICIES))
        raise ConfigError(f"router.policy: no policy is called {name!r}; choose one of {names}")
    return factory()
