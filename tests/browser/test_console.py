"""The console in a browser: logging in, looking, searching, following, acting; by keyboard, and on a phone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from chromium import Browser, Page
from programs import serve_pages

import trioswitch
from trioswitch.client import Rejected, open_client
from trioswitch.console import Console
from trioswitch.monitoring import Monitor

pytestmark = pytest.mark.browser

PASSWORD = "a long password"


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[trioswitch.Switch, str]]:
    options = trioswitch.Options(policies=(trioswitch.RoomPolicy(history="memory"),))
    async with trioswitch.open_switch(options) as switch:
        monitor = Monitor(switch)
        for _ in range(3):
            monitor.take_sample()
        async with serve_pages(switch, Console(switch, monitor, PASSWORD).pages) as url:
            yield switch, url


async def log_in(browser: Browser, url: str) -> Page:
    page = await browser.open(f"{url}admin")
    await page.wait_for("!document.getElementById('login').hidden")
    await page.fill("#password", PASSWORD)
    await page.press("Enter")
    await page.wait_for_text("#state", "live")
    return page


async def _act(page: Page, switch: trioswitch.Switch, url: str) -> None:
    """Look for a client, follow its room, publish to it, and disconnect it: this ends with Rejected."""
    async with (
        open_client(f"{url.replace('http', 'ws')}ws", user_id="ada <b>") as ada,
        ada.room("lobby") as lobby,
    ):
        await lobby.chat("hello")
        await page.wait_for_text("#rooms", "lobby")
        assert "Connections" in await page.text("#figures")
        await page.fill("#search", "ada <b>")
        await page.press("Enter")
        await page.wait_for_text("#found", "ada <b>")
        await page.fill("#room", "lobby")
        await page.press("Enter")
        await page.wait_for("!document.getElementById('stop').hidden")
        with trio.fail_after(10):
            while (followed := switch.room_statistics("lobby")) is None or followed.members < 2:
                await trio.sleep(0.02)
        await page.fill("#data", '{"price": 17.5}')
        await page.press("Enter")
        await page.wait_for_text("#published", "delivered")
        await page.wait_for_text("#events", '"price":17.5')
        await lobby.chat("<img src=x onerror=alert(1)>")
        await page.wait_for_text("#events", "<img src=x onerror=alert(1)>")
        await page.evaluate("window.confirm = () => true; null")
        await page.click("#found button")
        await trio.sleep_forever()


async def test_an_operator_looks_searches_and_acts(browser: Browser) -> None:
    async with serving() as (switch, url):
        page = await log_in(browser, url)
        with trio.fail_after(60), pytest.raises(Rejected, match="disconnected by an operator"):
            await _act(page, switch, url)
        await page.wait_for_text("#found", "disconnected")
        await page.click("#logout")
        await page.wait_for("document.getElementById('console').hidden")
        assert (await switch.history("lobby")).position.offset == 3
        with trio.fail_after(10):
            while (room := switch.room_statistics("lobby")) is not None and room.members:  # it is not followed any more
                await switch.publish("lobby", "is anybody there?")
                await trio.sleep(0.05)


async def test_it_is_usable_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    async with serving() as (switch, url):
        page = await log_in(browser, url)
        await switch.publish("a-room-with-quite-a-long-name-that-has-to-be-broken-somewhere", 1)
        await page.wait_for_text("#rooms", "a-room")
        await page.fill("#search", "a-room*")
        await page.press("Enter")
        await page.wait_for_text("#found", "0 members")
        await page.look(width=360, height=780)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        assert await page.small_targets() == []
        headings = "[...document.querySelectorAll('th')].filter((th) => th.scrollWidth > th.clientWidth).length"
        assert await page.evaluate(headings) == 0, "each heading fits into its column"
        (tmp_path / "console.png").write_bytes(await page.screenshot())
