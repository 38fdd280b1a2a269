"""A headless Chromium driven by its DevTools protocol over two pipes: no driver, no port, no library.

`Browser.find()` says whether this machine has one; tests that need it skip where it has not.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

WAIT_S = 60.0
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--mute-audio",
    "--remote-debugging-pipe",
)
Told = dict[str, Any]


class Browser:
    """One page of one Chromium; `async with` starts and ends it."""

    def __init__(self, *, width: int = 1360, height: int = 900, dark: bool = False) -> None:
        self._size = width, height
        self._dark = dark
        self._answers: dict[int, asyncio.Future[Told]] = {}
        self._session: str | None = None
        self._loaded = asyncio.Event()
        self.problems: list[str] = []  # exceptions and errors that the page logged, what its policy refused among them

    @staticmethod
    def find() -> str | None:
        """Tell where a Chromium is; None: there is none."""
        return next(filter(None, map(shutil.which, NAMES)), None)

    async def __aenter__(self) -> Self:
        program = self.find()
        assert program is not None
        self._home = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        to_read, self._to_fd = os.pipe()
        from_fd, to_write = os.pipe()
        shell = f'exec 3<&{to_read} 4>&{to_write}; exec "$@"'
        self._process = await asyncio.create_subprocess_exec(
            *("/bin/bash", "-c", shell, "bash", program, *FLAGS, f"--user-data-dir={self._home.name}", "about:blank"),
            pass_fds=(to_read, to_write),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_read)
        os.close(to_write)
        self._stream = asyncio.StreamReader(limit=1 << 26)
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self._stream), os.fdopen(from_fd, "rb")
        )
        self._reading = asyncio.create_task(self._read())
        await self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._session = None
        try:
            async with asyncio.timeout(5):
                await self.ask("Browser.close")
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._transport.close()
        os.close(self._to_fd)
        self._home.cleanup()

    async def ask(self, method: str, **parameters: Any) -> Told:
        """Send one command and wait for its answer."""
        number = len(self._answers) + 1
        message: Told = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        os.write(self._to_fd, json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(WAIT_S):
            return await answer

    async def open(self, url: str) -> None:
        """Load a page, its modules included."""
        self._loaded.clear()
        await self.ask("Page.navigate", url=url)
        async with asyncio.timeout(WAIT_S):
            await self._loaded.wait()

    async def run(self, expression: str) -> Any:
        """Give the value of an expression in the page; promises are awaited."""
        found = await self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until an expression is true in the page, looking at each of its frames."""
        async with asyncio.timeout(WAIT_S):
            while not await self.run(
                f"new Promise(done => {{ const look = (n) => ({condition}) ? done(true) : n ? "
                "requestAnimationFrame(() => look(n - 1)) : done(false); look(50); })"
            ):
                pass

    async def press(self, key: str) -> None:
        """Press a named key, such as Tab, Enter or Escape."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            await self.ask(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                **(text if kind == "keyDown" else {}),
            )  # fmt: skip

    async def picture(self, file: Path) -> None:
        """Write what the whole page looks like."""
        size = (await self.ask("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = await self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        await asyncio.to_thread(file.write_bytes, base64.b64decode(found["data"]))

    async def _begin(self) -> None:
        targets = (await self.ask("Target.getTargets"))["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = (await self.ask("Target.attachToTarget", targetId=page, flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.ask(f"{domain}.enable")
        width, height = self._size
        await self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self._dark else "light"}
        await self.ask("Emulation.setEmulatedMedia", features=[scheme])

    async def _read(self) -> None:
        while True:
            message = json.loads((await self._stream.readuntil(b"\0"))[:-1])
            if "id" in message:
                answer = self._answers[message["id"]]
                if "error" in message:
                    answer.set_exception(RuntimeError(message["error"]["message"]))
                else:
                    answer.set_result(message["result"])
            elif message["method"] == "Page.loadEventFired":
                self._loaded.set()
            elif message["method"] == "Runtime.exceptionThrown":
                self.problems.append(str(message["params"]["exceptionDetails"]))
            elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.problems.append(message["params"]["entry"]["text"])
