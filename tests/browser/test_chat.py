from urllib.parse import urlsplit

from chromium import Browser, Page
from programs import CHAT, lay_cable, run_chat, run_program

import trioswitch
from trioswitch.wire.messages import Gap

LOG = ".log:not([hidden])"


async def enter(browser: Browser, url: str, name: str) -> Page:
    """A page of a person who is in the lobby."""
    page = await browser.open(url)
    await page.fill("#name", name)
    await page.press("Enter")
    await page.wait_for_text("#state", "connected")
    await page.wait_for_text(LOG, "You joined")
    return page


async def join(page: Page, room: str) -> None:
    await page.fill("#join-room", room)
    await page.press("Enter")
    await page.wait_for_text(LOG, "You joined")


async def say(page: Page, text: str) -> None:
    await page.fill("#text", text)
    await page.press("Enter")


def tab(title: str) -> str:
    return f"[data-title='{title}']"


async def test_two_people_talk(browser: Browser) -> None:
    async with run_program(CHAT / "chat.py", "--port", "0") as url:
        ada = await enter(browser, url, "ada")
        bo = await enter(browser, url, "<i>bo</i>")
        await ada.wait_for_text(LOG, "<i>bo</i> joined")
        for page in (ada, bo):
            await page.wait_for_text("#people", "2 here")
            await page.wait_for_text("#names", "ada")
            await page.wait_for_text("#names", "<i>bo</i>")

        await say(ada, "<img src=x onerror=alert(1)> & good evening")
        for page in (ada, bo):
            await page.wait_for_text(LOG, "<img src=x onerror=alert(1)> & good evening")

        await say(bo, "/roll 2d6")
        await ada.wait_for_text(LOG, "<i>bo</i> rolled 2d6: ")
        await say(bo, "/roll the dice")
        await bo.wait_for_text(LOG, "dice look like 2d6")

        await bo.click("#leave")
        await ada.wait_for_text(LOG, "<i>bo</i> left")
        await ada.wait_for_text("#people", "1 here")
        assert "bo" not in await ada.text("#names")


async def test_unread_messages_of_other_rooms_are_counted(browser: Browser) -> None:
    async with run_chat() as (_switch, url):
        ada, bo = await enter(browser, url, "ada"), await enter(browser, url, "bo")
        await join(ada, "music")
        assert "bo joined" not in await ada.text(LOG)
        await say(bo, "one")
        await say(bo, "two")
        await ada.wait_for_text(f"{tab('#lobby')} .unread", "2")
        assert await ada.evaluate("document.title") == "(2) #music"
        await ada.click(tab("#lobby"))
        await ada.wait_for_text(LOG, "two")
        assert await ada.text(f"{tab('#lobby')} .unread") == ""


async def test_direct_messages(browser: Browser) -> None:
    async with run_chat() as (switch, url):
        ada, bo = await enter(browser, url, "ada"), await enter(browser, url, "bo")
        await ada.click("#names button[title='Message bo']")
        await say(ada, "Between us")
        await bo.wait_for_text(f"{tab('@ada')} .unread", "1")
        await bo.click(tab("@ada"))
        await bo.wait_for_text(LOG, "Between us")
        await say(bo, "Of course")
        await ada.wait_for_text(LOG, "Of course")

        (connection,) = switch.connections("bo")
        switch.kick(connection)
        await bo.wait_for_text("#state", "closed")
        await bo.wait_for_text(LOG, "kicked (4502). This page does not come back by itself.")
        await say(ada, "Still there?")
        await ada.wait_for_text(LOG, "Not delivered: 'bo' is not here")

        await bo.click("#retry")
        await bo.wait_for_text("#state", "connected")
        await say(ada, "And now?")
        await bo.wait_for_text(LOG, "And now?")


async def test_a_page_comes_back_to_its_rooms_when_the_server_has_been_started_again(browser: Browser) -> None:
    async with run_program(CHAT / "chat.py", "--port", "0") as url:
        ada, bo = await enter(browser, url, "ada"), await enter(browser, url, "bo")
        for page in (ada, bo):
            await join(page, "music")
    for page in (ada, bo):
        await page.wait_for_text(LOG, "Connection lost")
        await page.wait_for_text("#state", "reconnecting in")

    async with run_program(CHAT / "chat.py", "--port", str(urlsplit(url).port)):
        for page in (ada, bo):
            await page.wait_for_text("#state", "connected")
            await page.wait_for_text("#people", "2 here")
        await say(bo, "Back in the music room")
        await ada.wait_for_text(LOG, "Back in the music room")
        for page in (ada, bo):
            await page.click(tab("#lobby"))
            await page.wait_for_text("#people", "2 here")
        await say(ada, "Back in the lobby")
        await bo.wait_for_text(LOG, "Back in the lobby")
    for page in (ada, bo):
        page.forgive("ERR_CONNECTION_REFUSED")


async def test_a_page_notices_a_connection_that_went_silent(browser: Browser) -> None:
    options = trioswitch.Options(ping_interval=1.0)
    async with run_chat(options) as (_switch, url), lay_cable(url) as cable:
        ada, bo = await enter(browser, cable.url, "ada"), await enter(browser, url, "bo")
        cable.silence()
        await ada.wait_for_text(LOG, "Connection lost")
        await ada.wait_for_text("#state", "connected")
        await say(bo, "Welcome back")
        await ada.wait_for_text(LOG, "Welcome back")


async def test_gaps_and_the_count_of_a_big_room_are_shown(browser: Browser) -> None:
    options = trioswitch.Options(policies=(trioswitch.RoomPolicy(pattern="big", announce_limit=1),))
    async with run_chat(options) as (switch, url):
        ada, bo = await enter(browser, url, "ada"), await enter(browser, url, "bo")
        for page in (ada, bo):
            await join(page, "big")
        await ada.wait_for_text("#people", "2 here")
        assert "bo joined" not in await ada.text(LOG)

        (connection,) = switch.connections("ada")
        await switch.send(connection, Gap(dropped=3, room="big"))
        await ada.wait_for_text(LOG, "3 messages missed")


async def test_it_fits_on_a_phone(browser: Browser) -> None:
    async with run_chat() as (_switch, url):
        ada, _bo = await enter(browser, url, "ada"), await enter(browser, url, "bo")
        await ada.look(width=360, height=740)
        for room in ("music", "a-room-with-a-rather-long-name-to-see-where-it-ends", "lobby"):
            await join(ada, room)
        assert await ada.evaluate("document.documentElement.scrollWidth") == 360
        assert await ada.evaluate("document.documentElement.scrollHeight") == 740
        await ada.click("#people-toggle")
        await ada.click("#names button[title='Message bo']")
        await ada.wait_for_text("#title", "@bo")
