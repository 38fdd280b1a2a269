"""Measuring: load generation, process accounting and the benchmarks that print ratios.

Owns what is reported in docs/benchmarks.md. Must not know the router's or the engine's insides.
"""
