"""Model engines behind the one Protocol of core.engine: vLLM, and a simulated one that only keeps time.

Must not know Ray, gRPC, the router or the roles of workers.
"""
