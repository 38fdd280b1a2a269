"""Discrete-event driver of the policies in core, for placement search and replay.

Owns simulated time. Must not know Ray, vLLM, gRPC or HTTP.
"""
