"""Benchmarks of any OpenAI-compatible endpoint over HTTP: load, metrics with intervals, comparison and proof.

Owns the client side only. Must not know the router's code: what Baton tells of itself comes over HTTP.
"""
