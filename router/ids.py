"""Names that nobody can guess, for requests and transfers.

Owns the randomness: the system's own, fetched for many names at once, since each fetch costs more than a name.
"""

from __future__ import annotations

import os
from typing import Final

ID_BYTES: Final = 16
_BATCH: Final = 256


class SecretIds:
    """Makes names of 32 hexadecimal digits."""

    def __init__(self) -> None:
        self._ready: list[str] = []  # fetched and not given out

    def new(self) -> str:
        """Make a name that was never made before."""
        if not self._ready:
            digits = os.urandom(ID_BYTES * _BATCH).hex()
            self._ready = [digits[i : i + 2 * ID_BYTES] for i in range(0, len(digits), 2 * ID_BYTES)]
        return self._ready.pop()
