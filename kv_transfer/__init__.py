"""KV hand-over from engine to engine: wire format, leases, sender, receiver and the vLLM connector.

Owns whole KV blocks as opaque bytes. Must not know HTTP, Ray, roles or policies.
"""
