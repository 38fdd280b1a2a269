"""A bound on a wait. Owns nothing.

It is a module of its own because modules that are compiled must not wait inside `async with`; this one never is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(timeout_s: float, awaitable: Awaitable[T]) -> T:
    """Wait for the result, which is cancelled when the time is over. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        return await awaitable
