"""What the prefill role does: compute a prompt's KV and hand it over.

Must not know Ray, vLLM, gRPC or the decode role.
"""
