"""The KV hand-over beside memcpy, plain sockets and the peers, in one run.

Every system moves the same scattered blocks of one process's cache to scattered blocks of another's.
"""
