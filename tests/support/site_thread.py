"""A small cluster in a thread of its own, for tests that are not asynchronous themselves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from tests.support.router_site import Site

T = TypeVar("T")
WAIT_S = 60.0


class SiteThread:
    """A Site with one pair, and the loop that it runs in."""

    def __init__(self, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="site", daemon=True)
        self._thread.start()
        self.site = Site.__new__(Site)
        self.run(self._start(settings))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the site's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def close(self) -> None:
        """Stop everything."""
        self.run(self.site.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    async def _start(self, settings: dict[str, Any]) -> None:
        self.site = Site()
        await self.site.start_router(**settings)
        await self.site.add_worker("prefill-0")
        await self.site.add_worker("decode-0")
