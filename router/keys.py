"""A fresh API key and what goes into the tenants file for it: `baton keys new TENANT`.

Owns the making of keys. A key is shown once and kept nowhere.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Final

from core.config.tenants import KEY_PREFIX, digest_of
from core.errors import ConfigError

_KEY_BYTES: Final = 32  # as many random bits as the hash has
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


@dataclass(frozen=True, slots=True)
class NewKey:
    """One key, to be told to its tenant and forgotten."""

    tenant: str
    key: str
    sha256: str

    def lines(self) -> tuple[str, ...]:
        """Say what to do with it, ready to print."""
        return (
            f"key for {self.tenant}, shown this once:",
            "",
            f"  {self.key}",
            "",
            "in the file that router.tenants names, where only its hash belongs:",
            "",
            "tenants:",
            f"  {self.tenant}:",
            f'    keys: ["{self.sha256}"]',
            "",
            "A tenant that has keys gets one more item in its list.",
        )


def new_key(tenant: str) -> NewKey:
    """Make a key for a tenant.

    Raises ConfigError when it cannot be the name of one.
    """
    if not _NAME.match(tenant):
        allowed = "letters, digits, '_', '.' and '-', beginning with a letter or digit, at most 64"
        raise ConfigError(f"TENANT: {tenant!r} is not a valid name; allowed: {allowed}")
    key = KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    return NewKey(tenant, key, digest_of(key).hex())
