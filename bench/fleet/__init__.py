"""Whole clusters of GPUs, simulated: `python -m bench.fleet` and `make bench-fleet`.

Owns the comparison of ways to run the same devices under the same traffic and promise: one pool, prefill and decode
apart as others place and route them, and as Baton plans and routes. Must not know how the simulator proceeds or how any
policy decides.
"""
