import pytest
from chromium import Browser, Page
from programs import lay_cable, run_landing, run_program

pytestmark = pytest.mark.browser


async def join(page: Page, name: str, room: str = "lobby") -> None:
    await page.wait_for_text("#state", "connected")
    await page.fill("#name", name)
    await page.fill("#room", room)
    await page.click("#join")
    await page.wait_for_text("#online", "online")


async def test_a_visitor_joins_a_room_talks_and_leaves(browser: Browser) -> None:
    async with run_program("-m", "trioswitch", "serve", "--port", "0") as url:
        ada, bo = await browser.open(url), await browser.open(url)
        assert await ada.text("#url") == url.replace("http", "ws") + "ws"
        await join(ada, "ada")
        await join(bo, "bo")
        await ada.wait_for_text("#online", "2 online")
        await ada.wait_for_text("#log", "bo joined")

        await ada.fill("#text", "Good <b>evening</b>!")
        await ada.press("Enter")
        for page in (ada, bo):
            await page.wait_for_text("#log", "ada: Good <b>evening</b>!")
        assert '"content": "Good <b>evening</b>!"' in await bo.text("#wire")

        await bo.click("#leave")
        await ada.wait_for_text("#log", "bo left")
        await ada.wait_for_text("#online", "1 online")
    await ada.wait_for_text("#state", "reconnecting in")


async def test_what_the_server_refuses_is_shown(browser: Browser) -> None:
    async with run_landing() as (switch, url):
        page = await browser.open(url)
        await join(page, "ada")
        (connection,) = switch.connections()
        switch.leave(connection, "lobby")
        await page.fill("#text", "Hello?")
        await page.press("Enter")
        await page.wait_for_text("#problem", "join 'lobby' before you publish to it")


async def test_a_visitor_is_in_the_room_again_after_a_reconnect_but_not_after_a_kick(browser: Browser) -> None:
    async with run_landing() as (switch, url), lay_cable(url) as cable:
        page = await browser.open(cable.url)
        await join(page, "ada")
        cable.cut()
        await page.wait_for_text("#log", "connection lost")
        await page.wait_for_text("#online", "1 online")
        await page.fill("#text", "I am back")
        await page.press("Enter")
        await page.wait_for_text("#log", "ada: I am back")

        (connection,) = switch.connections()
        switch.kick(connection, "that was rude")
        await page.wait_for_text("#problem", "that was rude (4502). This page does not reconnect by itself.")
        assert await page.text("#state") == "closed"
        await page.click("#connect")
        await page.wait_for_text("#online", "1 online")


async def test_it_fits_on_a_phone_and_follows_the_colour_scheme(browser: Browser) -> None:
    async with run_landing() as (_switch, url):
        page = await browser.open(url)
        await join(page, "ada")
        await page.look(width=360, height=740)
        assert await page.evaluate("document.documentElement.scrollWidth") == 360
        assert await page.small_targets() == []
        light = await page.screenshot()
        await page.look(width=360, height=740, dark=True)
        assert await page.screenshot() != light
