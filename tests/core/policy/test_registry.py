from __future__ import annotations

import pytest

from core.errors import ConfigError
from core.policy.registry import policy_named


def test_unknown_policy_lists_the_valid_names() -> None:
    with pytest.raises(ConfigError, match=r"'best'.*least-predicted-work, power-of-two"):
        policy_named("best")


def test_slo_aware_says_where_its_profile_comes_from() -> None:
    with pytest.raises(ConfigError, match=r"baton profile.*plan\.profile"):
        policy_named("slo-aware")
