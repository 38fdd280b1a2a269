"""What the decode role does: take KV over, or compute it, and make every output token.

Must not know Ray, vLLM, gRPC or the prefill role.
"""
