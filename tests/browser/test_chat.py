import itertools
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
        await ada.wait_for(
            "!document.querySelector('[data-text]')"
        )  # what is not acknowledged is sent again, to a server that forgot it
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
        ada, bo = await enter(browser, url, "ada"), await enter(browser, url, "bo")
        await ada.look(width=360, height=740)
        await say(bo, "Good evening")
        for room in ("music", "a-room-with-a-rather-long-name-to-see-where-it-ends", "lobby"):
            await join(ada, room)
        assert await ada.small_targets() == []
        assert await ada.evaluate("document.documentElement.scrollWidth") == 360
        assert await ada.evaluate("document.documentElement.scrollHeight") == 740
        await ada.click("#people-toggle")
        await ada.click("#names button[title='Message bo']")
        await ada.wait_for_text("#title", "@bo")


async def test_joining_a_room_takes_a_dialog_and_no_row_of_a_phone(browser: Browser) -> None:
    async with run_chat() as (_switch, url):
        ada = await enter(browser, url, "ada")
        await ada.look(width=390, height=844)
        assert not await ada.evaluate("document.querySelector('#join-room').checkVisibility()")
        await ada.click("#add-room")
        assert await ada.evaluate("document.activeElement.id") == "join-room"
        assert await ada.small_targets() == []
        await ada.press("Escape")
        assert await ada.evaluate("document.activeElement.id") == "add-room"
        await join(ada, "#music")
        assert await ada.text("#title") == "#music"
        assert await ada.evaluate("document.activeElement.id") == "text"
        await say(ada, "/join #books")
        await ada.wait_for_text("#title", "#books")
        await say(ada, "/leave")
        await ada.wait_for_text("#title", "#music")


@pytest.mark.parametrize("width", [1280, 390])
async def test_the_tab_of_the_open_conversation_is_in_view(browser: Browser, width: int) -> None:
    async with run_chat() as (_switch, url):
        ada = await enter(browser, url, "ada")
        for number in range(25):
            await say(ada, f"/join room-{number}")
        await ada.look(width=width, height=844)
        for title in ("#room-24", "#lobby"):
            await ada.evaluate(f'document.querySelector("{tab(title)}").click()')  # without scrolling to it first
            await ada.wait_for(f"""(() => {{
                const inner = document.querySelector("{tab(title)}").getBoundingClientRect();
                const outer = document.querySelector("#tabs").getBoundingClientRect();
                return inner.left > outer.left - 1 && inner.right < outer.right + 1
                    && inner.top > outer.top - 1 && inner.bottom < outer.bottom + 1;
            }})()""")


async def test_the_log_stays_at_its_end_when_the_window_changes(browser: Browser) -> None:
    async with run_chat() as (_switch, url):
        ada = await enter(browser, url, "ada")
        for number in range(40):
            await say(ada, f"{number}: " + "long enough to need more lines in a narrow window than in a wide one " * 2)
        await ada.wait_for_text(LOG, "39: long")
        for width in (390, 1280, 390):
            await ada.look(width=width, height=844)
            # Neither the size of the window nor the place in the log is part of the document, so no observer tells of a change.
            await ada.evaluate(f"""new Promise((resolve, reject) => {{
                const log = document.querySelector("{LOG}"), end = Date.now() + 15000;
                (function look() {{
                    const left = log.scrollHeight - log.scrollTop - log.clientHeight;
                    if (innerWidth === {width} && left < 2) resolve();
                    else if (Date.now() > end) reject(new Error(`${{innerWidth}} px wide, ${{left}} px above the end`));
                    else setTimeout(look, 20);
                }})();
            }})""")


async def test_an_unknown_command_is_not_published(browser: Browser) -> None:
    async with run_chat() as (switch, url):
        ada = await enter(browser, url, "ada")
        await say(ada, "/foo bar")
        await ada.wait_for_text("#hint", "There is no command /foo")
        for command in ("/join", "/leave", "/msg", "/roll", "/help"):
            assert command in await ada.text("#hint")
        assert await ada.evaluate("document.querySelector('#text').value") == "/foo bar"  # it can be corrected
        await ada.fill("#text", "/msg bo")
        assert await ada.text("#hint") == ""
        await ada.press("Enter")
        await ada.wait_for_text("#hint", "/msg NAME TEXT")
        await say(ada, "/help")
        await ada.wait_for_text("#hint", "/roll 2d6")
        assert (await switch.history("lobby")).messages == []

        await say(ada, "//foo is no command")
        await say(ada, "/etc/passwd is a path")
        await ada.wait_for_text(LOG, "/etc/passwd")
        await ada.wait_for("!document.querySelector('.sending')")
        assert await lines(ada) == ["/foo is no command", "/etc/passwd is a path"]
        assert len((await switch.history("lobby")).messages) == 2


async def test_links_and_line_breaks(browser: Browser) -> None:
    async with run_chat() as (_switch, url):
        ada, bo = await enter(browser, url, "ada"), await enter(browser, url, "bo")
        text = (
            "See https://example.org/a?b=1&c=<2>, (http://example.org/x_(y)).\n"
            "  Not javascript:alert(1) nor ftp://example.org/ or https://"
        )
        await say(ada, text)
        await bo.wait_for_text(LOG, "See")
        assert await lines(bo) == [text]
        links = await bo.evaluate(f"""[...document.querySelectorAll('{LOG} .content a')].map(
            (link) => [link.textContent, link.href, link.target, link.rel])""")
        new_window = ["_blank", "noopener noreferrer"]
        assert links == [
            ["https://example.org/a?b=1&c=", "https://example.org/a?b=1&c=", *new_window],
            ["http://example.org/x_(y)", "http://example.org/x_(y)", *new_window],
        ]
        await ada.fill("#text", "one")
        await ada.press("Enter", shift=True)
        await ada.insert("two")
        tall, low = (
            "document.querySelector('#text').clientHeight > 60",
            "document.querySelector('#text').clientHeight < 60",
        )
        assert await ada.evaluate(tall)
        await ada.press("Enter")
        await bo.wait_for_text(LOG, "one\ntwo")
        assert await ada.evaluate(low)


async def test_a_reload_keeps_rooms_and_direct_messages_until_the_person_signs_out(browser: Browser) -> None:
    async with run_chat() as (_switch, url):
        ada, bo = await enter(browser, url, "ada"), await enter(browser, url, "bo")
        await join(ada, "music")
        await say(bo, "/msg ada Between us")
        await ada.wait_for_text(f"{tab('@bo')} .unread", "1")
        await ada.click(tab("@bo"))
        await ada.wait_for_text(LOG, "This tab keeps direct messages until you sign out or close it")
        await say(ada, "Of course")
        await ada.wait_for("!document.querySelector('.sending')")

        await ada.load(url)
        await ada.wait_for_text("#state", "connected")
        assert await ada.text("#title") == "@bo"
        assert await lines(ada) == ["Between us", "Of course"]
        assert await ada.evaluate("document.querySelectorAll('.tab').length") == 3
        assert await ada.evaluate("document.title") == "@bo"  # nothing is unread
        await say(bo, "Once more")
        await ada.wait_for_text(LOG, "Once more")
        assert await lines(ada) == ["Between us", "Of course", "Once more"]

        await ada.click("#leave")
        await ada.load(url)
        await ada.wait_for_text(LOG, "You joined")
        assert await ada.evaluate("document.querySelectorAll('.tab').length") == 2
        await ada.click("#sign-out")
        assert await ada.evaluate("sessionStorage.length") == 0
        await ada.load(url)
        assert await ada.evaluate("document.querySelector('#welcome').checkVisibility()")


async def test_a_full_session_storage_drops_the_oldest_direct_messages(browser: Browser) -> None:
    async with run_chat() as (_switch, url):
        ada, bo = await enter(browser, url, "ada"), await enter(browser, url, "bo")
        await ada.evaluate("sessionStorage.setItem('other', 'x'.repeat(5 * 1024 * 1024 - 7000))")
        for number in range(3):
            await say(bo, f"/msg ada {number}" + "y" * 3000)
            await ada.wait_for_text(f"{tab('@bo')} .unread", str(number + 1))
        await ada.load(url)
        await ada.wait_for_text("#state", "connected")
        await ada.click(tab("@bo"))
        assert [line[0] for line in await lines(ada)] == ["2"]


async def test_the_colours_of_names_differ_and_can_be_read(browser: Browser) -> None:
    async with run_chat() as (_switch, url):
        ada = await enter(browser, url, "ada")
        similar = [f"guest-{number}" for number in range(10)]
        others = ["ada", "adb", "bda", "anna", "annb", "hanna", "hannah", "bo", "bob", "ob"]
        await ada.evaluate("""window.colours = (names) => names.map((name) => {
            const hue = document.querySelector(`[data-author="${CSS.escape(name)}"]`).style.getPropertyValue("--hue");
            return Number(hue);
        })""")
        for name in [*similar, *others]:
            page = await enter(browser, url, name) if name != "ada" else ada
            await say(page, name)
            await ada.wait_for(f"document.querySelector('[data-author=\"{name}\"]')")
            if page is not ada:
                await page.click("#sign-out")
        hues = await ada.evaluate(f"colours({similar})")
        apart = [min((one - other) % 360, (other - one) % 360) for one in hues for other in hues if one is not other]
        assert min(gap for gap in apart if gap) > 19
        assert all(abs((one - other + 180) % 360 - 180) > 100 for one, other in itertools.pairwise(hues))
        hues = await ada.evaluate(f"colours({others})")
        assert len({hue // 20 for hue in hues}) >= 7
        for dark in (False, True):
            await ada.look(dark=dark)
            assert await ada.evaluate(CONTRAST) >= 4.5


CONTRAST = """(() => {  // the least contrast of a name on the card, and of the letter on a face, over all hues
    const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const luminance = (colour) => {
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        const [red, green, blue] = [...context.getImageData(0, 0, 1, 1).data].map((value) => value / 255)
            .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const contrast = (one, other) => {
        const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
        return (light + 0.05) / (dark + 0.05);
    };
    const line = document.querySelector(".message"), style = (selector) => getComputedStyle(line.querySelector(selector));
    const card = getComputedStyle(document.querySelector("#main")).backgroundColor;
    let least = Infinity;
    for (let hue = 0; hue < 360; hue += 5) {
        line.style.setProperty("--hue", hue);
        line.querySelector(".face").style.setProperty("--hue", hue);
        least = Math.min(least, contrast(style(".by b, .by button").color, card),
            contrast(style(".face").color, style(".face").backgroundColor));
    }
    return least;
})()"""


async def test_inline_scripts_and_styles_do_not_run(browser: Browser) -> None:
    """The security policy is that of the page; a script that somebody slips in is refused."""
    async with run_chat() as (_switch, url):
        page = await browser.open(url)
        await page.evaluate("""{
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.addEventListener("securitypolicyviolation", ({ effectiveDirective }) => {
                window.violated = effectiveDirective;
                document.title = "violated";
            });
            document.body.append(script);
        }""")
        await page.wait_for("window.violated === 'script-src-elem'")
        assert not await page.evaluate("window.ran")
        page.problems.clear()  # the browser reports it on the console
