from __future__ import annotations

import pytest

from core.errors import ConfigError
from core.policy.registry import policy_named
from core.policy.slo_aware import SLOAware


def test_unknown_policy_lists_the_valid_names() -> None:
    with pytest.raises(ConfigError, match=r"'best'.*least-predicted-work, power-of-two"):
        policy_named("best")


def test_slo_aware_needs_no_profile() -> None:
    assert isinstance(policy_named("slo-aware"), SLOAware)
