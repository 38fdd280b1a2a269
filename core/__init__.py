"""The vocabulary, errors, configuration and policies of Baton.

Owns every word the other packages share. Must not know Ray, vLLM, gRPC, HTTP or the clock.
"""
