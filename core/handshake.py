"""What two ends say before the first message: each proves that it knows the cluster token, and names it never.

Owns those bytes and their order. Sans I/O. All of it has a fixed length, so that a stranger can make neither end keep
or read more than that.

    worker -> router   magic, nonce
    router -> worker   magic (at once, so that a worker that wants TLS says so), then nonce, proof over both nonces
    worker -> router   verdict, proof over both nonces
"""

from __future__ import annotations

import secrets
from typing import Final, Protocol

from core.cluster_token import is_proof, proof_of
from core.errors import Unauthorized, WorkerLost

MAGIC: Final = b"BATON/1\n"
NONCE_BYTES: Final = 32
PROOF_BYTES: Final = 32
GREETING_BYTES: Final = len(MAGIC) + NONCE_BYTES
REQUEST_BYTES: Final = GREETING_BYTES + PROOF_BYTES
VERDICT_BYTES: Final = 1 + PROOF_BYTES
_ADMITTED: Final = b"\x01"
_REFUSED: Final = b"\x00" * VERDICT_BYTES


class Handshake(Protocol):
    """One end's part."""

    needed: int  # bytes that `take` wants next; 0 once the other end is known

    def opening(self) -> bytes:
        """Say what is said without being asked."""
        ...

    def take(self, data: bytes) -> bytes:
        """Take exactly `needed` bytes and return the answer.

        Raises Unauthorized whose `reply` is the last that is said, or WorkerLost.
        """
        ...


class Refused(Unauthorized):
    """The other end does not know the token; `reply` tells it so."""

    def __init__(self, message: str, reply: bytes = b"") -> None:
        super().__init__(message)
        self.reply = reply


class WorkerHandshake:
    """The worker's part."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self.needed = REQUEST_BYTES

    def opening(self) -> bytes:
        """Greet."""
        return MAGIC + self._nonce

    def take(self, data: bytes) -> bytes:
        """Judge the router; raises Refused."""
        if not data.startswith(MAGIC):
            raise Refused("the peer does not speak Baton's protocol")
        nonces = self._nonce + data[len(MAGIC) : GREETING_BYTES]
        if not is_proof(data[GREETING_BYTES:], self._token, "router", nonces):
            raise Refused("the cluster token is missing or wrong", _REFUSED)
        self.needed = 0
        return _ADMITTED + proof_of(self._token, "worker", nonces)


class RouterHandshake:
    """The router's part."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._nonces = b""
        self.needed = GREETING_BYTES

    def opening(self) -> bytes:
        """Say what is spoken: a worker that wants TLS ends the connection at once, where it would wait in silence."""
        return MAGIC

    def take(self, data: bytes) -> bytes:
        """Answer the greeting, then judge the verdict; raises Refused, WorkerLost."""
        if not self._nonces:
            if not data.startswith(MAGIC):
                raise WorkerLost("what answers is no worker of this version")
            nonce = secrets.token_bytes(NONCE_BYTES)
            self._nonces = data[len(MAGIC) :] + nonce
            self.needed = VERDICT_BYTES
            return nonce + proof_of(self._token, "router", self._nonces)
        if not data.startswith(_ADMITTED):
            raise Refused("the cluster token is missing or wrong")
        if not is_proof(data[1:], self._token, "worker", self._nonces):
            raise Refused("the worker does not know the cluster token")
        self.needed = 0
        return b""
