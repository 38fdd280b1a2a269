"""Prefill and decode apart, or one pool? Measured on real engines of this machine, beside what the planner says.

Owns the three workloads, the promises, the order of measuring and both verdicts. Must not know engines or HTTP.
"""
