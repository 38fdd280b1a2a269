"""The decider that a live controller makes for itself, by name: what it needs is loaded where it is made.

Owns nothing but that name: a function of a module travels to the controller's process as the name of it, and a process
that only passes it on loads neither the simulator nor its compiler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.config.models import BatonConfig
    from core.control.actions import Decider


def live_decider(config: BatonConfig) -> Decider:
    """Make the decider of a configuration; see sim.control_decider. Raises ConfigError."""
    from sim.control_decider import decider_of

    return decider_of(config)
