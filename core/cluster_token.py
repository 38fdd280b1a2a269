"""The shared secret of a cluster as it travels in call metadata; the same on every stream between processes."""

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
