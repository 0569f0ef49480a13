import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from chromium import Browser, Page
from programs import CHAT, lay_cable, run_chat, run_program

import trioswitch
from trioswitch.wire.messages import Gap

pytestmark = pytest.mark.browser

LOG = ".log:not([hidden])"


async def enter(browser: Browser, url: str, name: str) -> Page:
    """A page of a person who is in the lobby."""
    page = await browser.open(url)
    await sign_in(page, name)
    return page


async def sign_in(page: Page, name: str) -> None:
    await page.fill("#name", name)
    await page.press("Enter")
    await page.wait_for_text("#state", "connected")
    await page.wait_for_text(LOG, "You joined")


async def join(page: Page, room: str) -> None:
    await page.click("#add-room")
    await page.fill("#join-room", room)
    await page.press("Enter")
    await page.wait_for_text(LOG, "You joined")


async def say(page: Page, text: str) -> None:
    await page.fill("#text", text)
    await page.press("Enter")


def tab(title: str) -> str:
    return f"[data-title='{title}']"


async def lines(page: Page) -> list[str]:
    """What the open conversation says, without notes."""
    said = await page.evaluate(f"[...document.querySelectorAll('{LOG} .content')].map(line => line.innerText)")
    return list(said)


def run_chat_program(
    store: str = "memory", *, port: int | None = 0, end: signal.Signals = signal.SIGINT
) -> AbstractAsyncContextManager[str]:
    return run_program(CHAT / "chat.py", "--port", str(port), "--store", store, end=end)


async def test_two_people_talk(browser: Browser) -> None:
    async with run_chat_program() as url:
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

        await bo.click(".by button[title='Message ada']")
        await say(bo, "/msg ada And another thing")
        await ada.wait_for_text(LOG, "And another thing")

        (connection,) = switch.connections("bo")
        switch.kick(connection)
        await bo.wait_for_text("#state", "closed")
        await bo.wait_for_text(LOG, "kicked (4502). This page does not reconnect by itself.")
        await say(ada, "Still there?")
        await ada.wait_for_text(LOG, "Delivered when bo comes online")

        await bo.click("#retry")
        await bo.wait_for_text("#state", "connected")
        await bo.wait_for_text(LOG, "Still there?")


async def test_a_direct_message_waits_for_who_is_away_and_comes_once(browser: Browser) -> None:
    async with run_chat() as (_switch, url):
        ada, bo = await enter(browser, url, "ada"), await enter(browser, url, "bo")
        await ada.wait_for_text("#people", "2 here")
        await bo.click("#sign-out")
        await ada.wait_for_text(LOG, "bo left")  # at once: it was a goodbye
        await say(ada, "/msg bo Call me")
        await ada.wait_for_text(LOG, "Delivered when bo comes online")

        bo = await enter(browser, url, "bo")
        await bo.wait_for_text(f"{tab('@ada')} .unread", "1")
        await bo.click(tab("@ada"))
        assert await lines(bo) == ["Call me"]
        await say(ada, "Or write")
        await bo.wait_for_text(LOG, "Or write")

        await bo.click("#sign-out")
        await sign_in(bo, "bo")
        await say(ada, "Or come")
        await bo.click(tab("@ada"))
        assert await lines(bo) == ["Or come"]


async def test_who_comes_later_sees_what_was_said(browser: Browser) -> None:
    async with run_chat() as (_switch, url):
        ada = await enter(browser, url, "ada")
        await say(ada, "one")
        await say(ada, "/roll 1d1")
        await say(ada, "two")
        await ada.wait_for_text(LOG, "two")
        bo = await enter(browser, url, "bo")
        await bo.wait_for_text(LOG, "two")
        assert await lines(bo) == ["one", "two"]
        log = await bo.text(LOG)
        assert log.index("one") < log.index("ada rolled 1d1: 1") < log.index("two") < log.index("You joined")
        assert await bo.evaluate("document.title") == "#lobby"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_a_restart_of_the_server_is_no_more_than_a_pause(
    browser: Browser, tmp_path: Path, end: signal.Signals
) -> None:
    store = f"sqlite:{tmp_path / 'chat.db'}"
    async with run_chat_program(store, end=end) as url:
        ada, bo = await enter(browser, url, "ada"), await enter(browser, url, "bo")
        for page in (ada, bo):
            await page.wait_for_text("#people", "2 here")
            await page.evaluate("document.loaded = 'once'")
        await join(bo, "music")
        await bo.click(tab("#lobby"))
        await say(ada, "one")
        await bo.wait_for_text(LOG, "one")
        await say(bo, "two")
        await ada.wait_for_text(LOG, "two")
    for page in (ada, bo):
        await page.wait_for_text("#state", "reconnecting")
        await page.wait_for_text("#pause", "sent as soon as the connection is back")
    await say(ada, "typed during the pause")
    await say(bo, "/roll 1d1")
    await say(bo, "/msg ada and this one is for you")
    await bo.click(tab("#lobby"))

    async with run_chat_program(store, port=urlsplit(url).port):
        for page in (ada, bo):
            await page.wait_for_text(LOG, "typed during the pause")
            await page.wait_for_text(LOG, "bo rolled 1d1: 1")
            await page.wait_for("!document.querySelector('.sending') && document.querySelector('#pause').hidden")
        await say(bo, "three")
        await ada.wait_for_text(LOG, "three")
        await say(ada, "four")
        await bo.wait_for_text(LOG, "four")
        for page in (ada, bo):
            assert await lines(page) == ["one", "two", "typed during the pause", "three", "four"]
            await page.wait_for_text("#people", "2 here")
            log = await page.text(LOG)
            assert " left" not in log
            assert "recovered" not in log
            assert log.count("joined") == (2 if page is ada else 1)
            assert await page.evaluate("document.loaded") == "once"
        await ada.click(tab("@bo"))
        assert await lines(ada) == ["and this one is for you"]
        await say(bo, "/roll 1d1")
        await bo.click(tab("#music"))
        await say(bo, "still in here")
        await bo.wait_for_text(LOG, "still in here")

        late = await enter(browser, url, "late")
        await late.wait_for_text(LOG, "four")
        assert await lines(late) == ["one", "two", "typed during the pause", "three", "four"]


async def test_who_was_expected_and_does_not_come_back_has_left(browser: Browser, tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'chat.db'}"
    async with run_chat_program(store, end=signal.SIGKILL) as url:
        ada, bo = await enter(browser, url, "ada"), await enter(browser, url, "bo")
        await ada.wait_for_text("#people", "2 here")
        await ada.evaluate("""{
            const setTimeoutLater = window.setTimeout;
            window.setTimeout = (call, delay) => setTimeoutLater(call, delay === 25000 ? 3000 : delay);
        }""")
    await bo.click("#sign-out")
    async with run_chat_program(store, port=urlsplit(url).port):
        await ada.wait_for_text("#state", "connected")
        await ada.wait_for_text("#people", "2 here")
        await ada.wait_for_text(LOG, "bo left")
        await ada.wait_for_text("#people", "1 here")


async def test_a_short_absence_is_noticed_by_nobody(browser: Browser) -> None:
    async with run_chat() as (switch, url), lay_cable(url) as cable:
        ada, bo = await enter(browser, cable.url, "ada"), await enter(browser, url, "bo")
        await join(bo, "music")
        await join(ada, "music")
        await ada.click("#leave")
        await ada.wait_for_text("#people", "2 here")
        await say(ada, "one")
        await bo.click(tab("#lobby"))
        await bo.wait_for_text(LOG, "one")
        for text in ("two", "three"):
            cable.cut()
            await say(bo, text)
            await ada.wait_for_text(LOG, text)
        for page in (ada, bo):
            assert await lines(page) == ["one", "two", "three"]
            assert " left" not in await page.text(LOG)
        assert (await bo.text(LOG)).count("joined") == 1
        assert switch.statistics().connections_opened == 4
        assert switch.users_in("lobby") == ["ada", "bo"]
        assert switch.users_in("music") == ["bo"]


async def test_a_page_notices_a_connection_that_went_silent(browser: Browser) -> None:
    options = trioswitch.Options(ping_interval=1.0)
    async with run_chat(options) as (_switch, url), lay_cable(url) as cable:
        ada, bo = await enter(browser, cable.url, "ada"), await enter(browser, url, "bo")
        cable.silence()
        await ada.wait_for_text("#state", "reconnecting")
        await ada.wait_for_text("#state", "connected")
        await say(bo, "Welcome back")
        await ada.wait_for_text(LOG, "Welcome back")
        assert " left" not in await bo.text(LOG)


async def test_what_is_sent_again_is_there_once(browser: Browser) -> None:
    """The server heard it, and its answer did not arrive: the page cannot know, and sends it on the next connection."""
    async with run_chat() as (_switch, url), lay_cable(url) as cable:
        ada, bo = await enter(browser, cable.url, "ada"), await enter(browser, url, "bo")
        cable.deafen()
        await say(ada, "once")
        await say(ada, "/roll 1d1")
        await say(ada, "/msg bo you, too")
        await bo.wait_for_text(f"{tab('@ada')} .unread", "1")
        assert await ada.evaluate("document.querySelectorAll('.sending').length") == 3
        cable.cut()
        await ada.wait_for("!document.querySelector('.sending')")
        await ada.click(tab("#lobby"))
        await say(ada, "twice")
        await bo.wait_for_text(LOG, "twice")
        for page in (ada, bo):
            assert await lines(page) == ["once", "twice"]
            assert (await page.text(LOG)).count("ada rolled") == 1
            assert " left" not in await page.text(LOG)
        await bo.click(tab("@ada"))
        assert await lines(bo) == ["you, too"]


async def test_the_count_of_a_big_room_is_shown(browser: Browser) -> None:
    options = trioswitch.Options(policies=(trioswitch.RoomPolicy(pattern="big", announce_limit=1, history="stored"),))
    async with run_chat(options) as (_switch, url):
        ada, bo = await enter(browser, url, "ada"), await enter(browser, url, "bo")
        for page in (ada, bo):
            await join(page, "big")
        await ada.wait_for_text("#people", "2 here")
        assert "bo joined" not in await ada.text(LOG)


async def test_gaps_are_filled_and_what_is_lost_is_said(browser: Browser) -> None:
    async with run_chat() as (switch, url):
        ada, bo = await enter(browser, url, "ada"), await enter(browser, url, "bo")
        (connection,) = switch.connections("ada")
        await say(bo, "one")
        await ada.wait_for_text(LOG, "one")
        for text in ("two", "three"):
            event = trioswitch.messages.ChatMessage(room="lobby", content=text, user_id="bo")
            receipt = await switch.publish("lobby", event, exclude=[connection])
        assert receipt.epoch is not None
        await switch.send(connection, Gap(dropped=2, room="lobby", epoch=receipt.epoch, start=2, to=3))
        await say(bo, "four")
        await ada.wait_for_text(LOG, "four")
        assert await lines(ada) == ["one", "two", "three", "four"]
        assert "missed" not in await ada.text(LOG)

        await switch.send(connection, Gap(room="lobby", epoch=receipt.epoch, start=5, to=6, lost=True))
        for text in ("five", "six", "seven"):
            await say(bo, text)
        await ada.wait_for_text(LOG, "seven")
        assert await lines(ada) == ["one", "two", "three", "four", "seven"]
        log = await ada.text(LOG)
        assert log.index("four") < log.index("2 messages missed") < log.index("seven")
        await switch.send(connection, Gap(dropped=3))
        await ada.wait_for_text(LOG, "3 messages missed")


async def test_a_server_that_forgets_everything(browser: Browser) -> None:
    """With the store in memory a restart loses the history: the page says so, keeps what it shows, and goes on."""
    async with run_chat_program(end=signal.SIGKILL) as url:
        ada, bo = await enter(browser, url, "ada"), await enter(browser, url, "bo")
        await say(ada, "/msg bo before")
        await bo.click(tab("@ada"))
        await bo.wait_for_text(LOG, "before")
        await bo.click(tab("#lobby"))
        await ada.click(tab("#lobby"))
        for text in ("one", "two", "three"):
            await say(ada, text)
        await bo.wait_for_text(LOG, "three")
    await ada.wait_for_text("#state", "reconnecting")
    await say(ada, "four")
    async with run_chat_program(port=urlsplit(url).port):
        await bo.wait_for_text(LOG, "four")
        await say(bo, "five")
        await ada.wait_for_text(LOG, "five")
        await ada.wait_for("!document.querySelector('.sending')")
        for page in (ada, bo):
            assert await lines(page) == ["one", "two", "three", "four", "five"]
            assert (await page.text(LOG)).count("Not everything could be recovered") == 1
        await say(ada, "/msg bo after")
        await bo.click(tab("@ada"))
        await bo.wait_for_text(LOG, "after")
        assert await lines(bo) == ["before", "after"]


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
