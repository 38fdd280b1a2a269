"""The control client of an engine's KV endpoint, under the name callers import."""

from kv_transfer.grpc_transport import KVControlClient

__all__ = ["KVControlClient"]
