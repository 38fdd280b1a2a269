"""From a question to a plan: which placement keeps the promise, at what goodput, how surely.

Owns enumeration, bounds, races and intervals over sim.simulate. Must not know files, flags, reports or Ray.
"""

from sim.search.planner import search

__all__ = ["search"]
