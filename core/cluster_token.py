"""The shared secret of a cluster: as it travels in the metadata of gRPC calls, and as proofs that do not reveal it.

Owns what is derived from it, too: the key by which a cluster's own commands ask its router.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable


def token_metadata(token: str) -> tuple[tuple[str, str], ...]:
    """Make the metadata that presents `token`; none when it is empty."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def token_presented(metadata: Iterable[tuple[str, str | bytes]] | None, token: str) -> bool:
    """Tell whether `metadata` presents `token`, in constant time; an empty token admits everyone."""
    if not token:
        return True
    expected = f"Bearer {token}".encode()
    given = next((value for name, value in metadata or () if name == "authorization"), "")
    return hmac.compare_digest(given.encode() if isinstance(given, str) else given, expected)


def operator_key(token: str) -> str:
    """Make the API key of whoever started the cluster; it reveals nothing of `token`. Empty for an empty token."""
    return "baton-operator-" + hmac.digest(token.encode(), b"operator's API key", "sha256").hex() if token else ""


def proof_of(token: str, speaker: str, nonces: bytes) -> bytes:
    """Make the 32 bytes by which `speaker` shows that it knows `token`, good for these nonces only."""
    return hmac.digest(token.encode(), speaker.encode() + b"\0" + nonces, "sha256")


def is_proof(given: bytes, token: str, speaker: str, nonces: bytes) -> bool:
    """Tell whether `given` shows that `speaker` knows `token`, in constant time; an empty token admits everyone."""
    return not token or hmac.compare_digest(given, proof_of(token, speaker, nonces))
