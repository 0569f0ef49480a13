"""The browser client, `trioswitch.js`, in a page that does nothing else."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from chromium import PATIENCE, Browser, Page
from programs import lay_cable, serve_pages

import trioswitch
from trioswitch.wire.messages import Gap

pytestmark = pytest.mark.browser

STORED = (trioswitch.RoomPolicy(pattern="*", history="memory"),)
BLANK = {"/": trioswitch.Page(b"<!doctype html><title>a test</title><link rel=icon href=data:,>")}
PREPARE = """import("./trioswitch.js").then((module) => {
    window.trioswitch = module;
    window.seen = [];
    window.frames = { in: [], out: [] };
    window.note = (...what) => { seen.push(what); document.title = String(seen.length); };
    window.watch = (emitter, ...events) => events.forEach((event) => emitter.on(event, (details) => note(event, details)));
    window.texts = () => seen.filter(([event]) => event === "message").map(([, { content, data }]) => content ?? data);
    window.states = () => seen.filter(([event]) => event === "state").map(([, { state }]) => state)
        .filter((state, index, all) => state !== all[index - 1]);  // `waiting` is told each second
    window.count = (wanted) => seen.filter(([event]) => event === wanted).length;
})"""


@asynccontextmanager
async def serving(
    options: trioswitch.Options | None = None, **hooks: Any
) -> AsyncIterator[tuple[trioswitch.Switch, str]]:
    async with trioswitch.open_switch(options, **hooks) as switch, serve_pages(switch, BLANK) as url:
        yield switch, url


async def open_page(browser: Browser, url: str) -> Page:
    page = await browser.open(url)
    await page.evaluate(PREPARE)
    return page


async def connect(browser: Browser, url: str, user: str | None = None) -> Page:
    """A page with a connected client, in the global variable `client`."""
    page = await open_page(browser, url)
    await page.evaluate(f"""{{
        window.client = trioswitch.connect("ws", {{ userId: {json.dumps(user)} }});
        watch(client, "state", "direct", "group", "message", "gap", "error");
        client.on("frame", ({{ direction, text }}) => frames[direction].push(JSON.parse(text)));
    }}""")
    await page.wait_for("client.state === 'connected'")
    return page


async def join(page: Page, room: str = "lobby", options: str = "{}") -> None:
    await page.evaluate(f"""{{
        window.room = client.join({json.dumps(room)}, {options});
        watch(room, "joined", "message", "announcement", "gap", "refused");
    }}""")


async def failure(page: Page, promise: str) -> Any:
    """The code of the error with which a promise is rejected."""
    return await page.evaluate(f"{promise}.then(() => 'it did not fail', (error) => error.code)")


async def events(page: Page, event: str) -> list[Any]:
    return list(
        await page.evaluate(f"seen.filter(([name]) => name === {json.dumps(event)}).map(([, details]) => details)")
    )


# --- rooms, and what is published


async def test_a_page_joins_publishes_and_leaves(browser: Browser) -> None:
    async with serving(trioswitch.Options(policies=STORED)) as (switch, url):
        page = await connect(browser, url, "ada")
        await join(page)
        await page.wait_for("room.joined")
        assert await page.evaluate("[client.user, client.rooms, room.name, room.onlineCount]") == [
            "ada",
            ["lobby"],
            "lobby",
            1,
        ]
        receipt = await page.evaluate("room.chat('Hello!')")
        assert (receipt["delivered"] + receipt["queued"], receipt["offset"]) == (1, 1)
        await page.evaluate("room.publish({ price: 17.5 }, { key: 'ACME' })")
        await page.wait_for("texts().length === 2")
        assert await page.evaluate("texts()") == ["Hello!", {"price": 17.5}]
        assert (await events(page, "message"))[1]["key"] == "ACME"
        assert (await page.evaluate("room.position"))["offset"] == 2
        assert (await page.evaluate("room.presence()"))["users"] == ["ada"]
        assert len((await page.evaluate("room.history({ limit: 1 })"))["messages"]) == 1
        await page.evaluate("room.leave()")
        assert await page.evaluate("[client.rooms, room.joined]") == [[], False]
        await page.evaluate("client.request('presence', { room: 'lobby' })")  # commands are carried out in their order
        assert switch.users_in("lobby") == []


async def test_a_room_can_be_joined_and_published_to_before_there_is_a_connection(browser: Browser) -> None:
    async with serving(trioswitch.Options(policies=STORED)) as (switch, url):
        await switch.publish("lobby", "one")
        await switch.publish("lobby", "two")
        page = await open_page(browser, url)
        await page.evaluate("""{
            window.client = trioswitch.connect("ws", { userId: "ada" });
            watch(client, "state");
            window.room = client.join("lobby", { history: 1 });
            watch(room, "message");
            room.chat("three");
        }""")
        await page.wait_for("texts().length === 2")
        assert await page.evaluate("texts()") == ["two", "three"]
        assert await page.evaluate("states()") == ["connecting", "connected"]
        assert await page.evaluate("client.join('lobby') === room")


async def test_errors_have_the_code_of_the_server(browser: Browser) -> None:
    async with serving(trioswitch.Options(max_rooms=1)) as (_switch, url):
        page = await connect(browser, url)
        assert await failure(page, "client.request('nonsense')") == "unknown_type"
        assert await failure(page, "client.sendGroup('staff', { content: 'Hi' })") == "forbidden"
        await join(page)
        await join(page, "second")
        await page.wait_for("count('refused') === 1")
        (refused,) = await events(page, "refused")
        assert refused["code"] == "too_many_rooms"
        assert "too many" in refused["message"] or "rooms" in refused["message"]
        await page.evaluate("room.leave()")  # it was never a member: the server is told nothing, and reports no error
        await page.evaluate("client.request('presence', { room: 'lobby' })")
        assert await events(page, "error") == []
        assert "TypeError" in await page.evaluate(
            "{ try { client.on('mesage', note) } catch (error) { String(error) } }"
        )


async def test_a_callback_that_fails_does_not_stop_the_others(browser: Browser) -> None:
    async with serving() as (_switch, url):
        page = await connect(browser, url)
        await page.evaluate("""{
            window.onerror = (message) => { note("uncaught", message); return true; };
            window.room = client.join("lobby");
            window.end = room.on("message", () => { throw new Error("on purpose"); });
            watch(room, "message");
            room.chat("one");
        }""")
        await page.wait_for("count('message') === 1")
        assert "on purpose" in (await events(page, "uncaught"))[0]
        await page.evaluate("end(); room.chat('two')")
        await page.wait_for("count('message') === 2")
        assert await page.evaluate("count('uncaught')") == 1


# --- direct messages


async def test_direct_messages_are_acknowledged_and_come_once(browser: Browser) -> None:
    async with serving() as (switch, url), lay_cable(url) as cable:
        await switch.send_to_user("ada", "while offline")
        page = await connect(browser, cable.url, "ada")
        await join(page)
        await page.wait_for("count('direct') === 1")
        receipt = await switch.send_to_user("ada", "now")
        assert receipt.kept == 1  # because the client acknowledges
        await page.wait_for("count('direct') === 2")
        cable.cut()
        await page.wait_for("states().at(-1) === 'connected' && states().includes('waiting')")
        await page.evaluate("client.send('ada', { content: 'to myself' })")
        await page.wait_for("count('direct') === 3")
        assert [event.get("content", event.get("data")) for event in await events(page, "direct")] == [
            "while offline",
            "now",
            "to myself",
        ]


# --- reconnecting


async def test_a_lost_connection_is_resumed_and_what_was_missed_comes_once(browser: Browser) -> None:
    async with serving(trioswitch.Options(policies=STORED)) as (switch, url), lay_cable(url) as cable:
        page = await connect(browser, cable.url, "ada")
        await join(page)
        await page.evaluate("room.chat('one')")
        cable.cut()
        await switch.publish("lobby", "two")
        await page.wait_for("texts().length === 2")
        await page.evaluate("room.chat('three')")
        await page.wait_for("texts().length === 3")
        assert await page.evaluate("texts()") == ["one", "two", "three"]
        assert await page.evaluate("states()") == ["connecting", "connected", "waiting", "connecting", "connected"]
        again = (await events(page, "joined"))[-1]
        assert (again["again"], again["resumed"], again["recovered"]) == (True, True, True)
        assert (await page.evaluate("client.user"), switch.users_in("lobby")) == ("ada", ["ada"])
        assert await events(page, "gap") == []


async def test_a_lost_connection_is_told_even_if_the_next_attempt_is_due_at_once(browser: Browser) -> None:
    async with serving(trioswitch.Options(policies=STORED)) as (_, url), lay_cable(url) as cable:
        page = await connect(browser, cable.url, "ada")
        await join(page)
        await page.wait_for("room.joined")
        await page.evaluate("Math.random = () => 0; null")
        cable.deafen()
        await page.evaluate("room.presence().then((answer) => note('answer', answer.users)); null")
        cable.cut()
        await page.wait_for("count('answer') === 1")
        assert await page.evaluate("states()") == ["connecting", "connected", "waiting", "connecting", "connected"]


async def test_a_publish_whose_answer_was_lost_is_sent_again_and_published_once(browser: Browser) -> None:
    async with serving(trioswitch.Options(policies=STORED)) as (switch, url), lay_cable(url) as cable:
        page = await connect(browser, cable.url, "ada")
        await join(page)
        await page.wait_for("room.joined")
        cable.deafen()
        await page.evaluate("room.chat('once').then((receipt) => note('receipt', receipt)); null")
        with trio.fail_after(PATIENCE):
            while not (await switch.history("lobby")).messages:
                await trio.sleep(0.01)
        cable.cut()
        await page.wait_for("count('receipt') === 1")
        assert (await events(page, "receipt"))[0]["duplicate"] is True
        assert await page.evaluate("texts()") == ["once"]
        assert len((await switch.history("lobby")).messages) == 1


async def test_a_request_is_sent_once_unless_it_may_be_repeated(browser: Browser) -> None:
    async with serving() as (_switch, url), lay_cable(url) as cable:
        page = await connect(browser, cable.url, "ada")
        cable.deafen()
        await page.evaluate("""{
            client.request("presence", { room: "lobby" }).catch(({ code }) => note("lost", code));
            client.request("presence", { room: "lobby" }, { repeat: true }).then(({ users }) => note("answer", users));
            null;
        }""")
        cable.cut()
        await page.wait_for("count('answer') === 1 && count('lost') === 1")
        assert await events(page, "lost") == ["connection_lost"]


async def test_after_a_restart_rooms_are_joined_again_and_what_is_lost_is_a_gap(browser: Browser) -> None:
    """The second server knows neither the session nor the history: its first `seq` and offset are 1 again."""
    async with lay_cable() as cable:
        async with serving(trioswitch.Options(policies=STORED)) as (switch, url):
            cable.lead_to(url)
            page = await connect(browser, cable.url, "ada")
            await join(page)
            await page.evaluate("room.chat('one')")
            await switch.send_to_user("ada", "first")
            await page.wait_for("count('direct') === 1")
        cable.cut()
        await page.wait_for("states().at(-1) === 'waiting'")
        async with serving(trioswitch.Options(policies=STORED)) as (switch, url):
            await switch.publish("lobby", "two")
            await switch.send_to_user("ada", "second")
            cable.lead_to(url)
            await page.wait_for("texts().length === 2 && count('direct') === 2")
            assert await page.evaluate("texts()") == ["one", "two"]
            assert await events(page, "gap") == [{"dropped": None}]
            again = (await events(page, "joined"))[-1]
            assert (again["again"], again["resumed"]) == (True, False)


async def test_a_gap_is_fetched_and_messages_stay_in_order(browser: Browser) -> None:
    async with serving(trioswitch.Options(policies=STORED)) as (switch, url):
        page = await connect(browser, url, "ada")
        await join(page)
        await page.evaluate("room.chat('one')")
        (connection,) = switch.connections("ada")
        for text in ("two", "three"):
            receipt = await switch.publish("lobby", text, exclude=[connection])
        assert receipt.epoch is not None
        await switch.send(connection, Gap(dropped=2, room="lobby", epoch=receipt.epoch, start=2, to=3))
        await switch.publish("lobby", "four")
        await page.wait_for("texts().length === 4")
        await switch.send(
            connection, Gap(dropped=2, room="lobby", epoch=receipt.epoch, start=2, to=3)
        )  # nothing is missing
        await switch.send(connection, Gap(room="lobby", epoch=receipt.epoch, start=5, to=6, lost=True))
        for text in ("five", "six", "seven"):
            await switch.publish("lobby", text)
        await page.wait_for("texts().length === 5")
        assert await page.evaluate("texts()") == ["one", "two", "three", "four", "seven"]
        assert await events(page, "gap") == [{"dropped": 2}]


async def test_a_long_absence_is_fetched_in_pages(browser: Browser) -> None:
    many = 2300
    policies = (trioswitch.RoomPolicy(pattern="*", history="memory", history_size=many),)
    async with serving(trioswitch.Options(policies=policies)) as (switch, url):
        page = await connect(browser, url, "ada")
        await join(page)
        await page.wait_for("room.joined")
        (connection,) = switch.connections("ada")
        for number in range(many):
            receipt = await switch.publish("lobby", number, exclude=[connection])
        assert receipt.epoch is not None
        await switch.send(connection, Gap(dropped=many, room="lobby", epoch=receipt.epoch, start=1, to=many))
        await page.wait_for(f"texts().length === {many}")
        assert await page.evaluate("texts().every((number, index) => number === index)")
        assert await events(page, "gap") == []


async def test_a_room_without_history_reports_a_gap_after_a_lost_connection(browser: Browser) -> None:
    async with serving() as (switch, url), lay_cable(url) as cable:
        page = await connect(browser, cable.url, "ada")
        await join(page)
        await page.wait_for("room.joined")
        assert await page.evaluate("room.position") is None
        cable.cut()
        await page.wait_for("count('joined') === 2")
        assert await events(page, "gap") == [{"dropped": None}]
        (connection,) = switch.connections("ada")
        await switch.send(connection, Gap(room="lobby", dropped=17))
        await switch.send(connection, Gap(dropped=2))
        await page.wait_for("count('gap') === 3")
        assert await events(page, "gap") == [{"dropped": None}, {"dropped": 17}, {"dropped": 2}]


async def test_a_room_that_was_left_during_the_absence_is_left_at_the_server_too(browser: Browser) -> None:
    async with serving() as (switch, url), lay_cable() as cable:
        cable.lead_to(url)
        page = await connect(browser, cable.url, "ada")
        await join(page, "kept")
        await join(page, "left")
        await page.wait_for("room.joined")
        cable.lead_to(None)
        cable.cut()
        await page.wait_for("states().at(-1) === 'waiting'")
        assert (
            await failure(page, "(() => { const sent = room.chat('never'); room.leave(); return sent; })()") == "left"
        )
        cable.lead_to(url)
        await page.wait_for("states().at(-1) === 'connected'")
        await page.evaluate("client.request('presence', { room: 'kept' })")
        assert (switch.users_in("kept"), switch.users_in("left")) == (["ada"], [])


async def test_a_silent_connection_is_given_up_and_its_session_goes_on(browser: Browser) -> None:
    async with serving(trioswitch.Options(ping_interval=0.5)) as (switch, url), lay_cable(url) as cable:
        page = await connect(browser, cable.url, "ada")
        await join(page)
        await page.wait_for("room.joined")
        cable.silence()
        await page.wait_for("count('joined') === 2")
        (lost,) = {state["reason"] for state in await events(page, "state") if state["state"] == "waiting"}
        assert lost == "the server did not answer a heartbeat"
        assert (await events(page, "joined"))[-1]["resumed"] is True
        assert switch.users_in("lobby") == ["ada"]


# --- the end of a connection


async def test_a_close_code_from_4500_on_ends_it_until_the_page_connects_again(browser: Browser) -> None:
    async with serving() as (switch, url):
        page = await connect(browser, url, "ada")
        await join(page)
        await page.wait_for("room.joined")
        (connection,) = switch.connections()
        switch.kick(connection, "that was rude")
        await page.wait_for("client.state === 'ended'")
        assert (await events(page, "state"))[-1] == {"state": "ended", "code": 4502, "reason": "that was rude"}
        await page.evaluate("room.chat('later').then(() => note('sent')); null")
        await page.evaluate("client.connect()")
        await page.wait_for("count('sent') === 1 && room.joined")
        await page.evaluate("client.connect()")  # it is connected: nothing happens
        assert await page.evaluate("client.state") == "connected"


async def test_the_advice_of_a_server_that_shuts_down_is_followed(browser: Browser) -> None:
    async with lay_cable() as cable:
        async with serving() as (switch, url):
            cable.lead_to(url)
            page = await connect(browser, cable.url)
            assert await switch.drain(5)
            await page.wait_for("states().includes('waiting')")
        advice = await page.evaluate("frames.in.find(({ type }) => type === 'reconnect').after")
        waiting = next(state for state in await events(page, "state") if state["state"] == "waiting")
        assert waiting["seconds"] == max(1, -(-advice // 1))
        assert waiting["code"] == 1001
        async with serving() as (switch, url):
            cable.lead_to(url)
            await page.wait_for("states().at(-1) === 'connected'")


async def test_close_says_goodbye_for_good(browser: Browser) -> None:
    async with serving() as (switch, url):
        page = await connect(browser, url, "ada")
        await join(page)
        await page.wait_for("room.joined")
        assert (
            await failure(page, "(() => { const sent = room.chat('x'); client.close(); return sent; })()") == "closed"
        )
        assert await page.evaluate("[client.state, client.rooms]") == ["closed", []]
        with trio.fail_after(PATIENCE):
            while switch.connections():
                await trio.sleep(0.01)
        assert switch.statistics().closes == {"client_left": 1}
        assert await failure(page, "room.chat('x')") == "closed"
        assert "has been closed" in await page.evaluate("{ try { client.connect() } catch (error) { String(error) } }")
        await page.evaluate("client.close()")


async def test_a_session_that_another_connection_took_over_is_not_taken_back(browser: Browser) -> None:
    async with serving() as (_switch, url):
        page = await connect(browser, url, "ada")
        await join(page)
        await page.wait_for("room.joined")
        await page.evaluate("""{
            const { session } = frames.in.find(({ type }) => type === "connected");
            window.other = new WebSocket(client.url);
            other.onmessage = ({ data }) => {
                const { type } = JSON.parse(data);
                if (type === "connected") other.send(JSON.stringify({ type: "resume", session, id: 1 }));
            };
        }""")
        await page.wait_for("count('joined') === 2")
        assert 4002 in {state.get("code") for state in await events(page, "state")}
        assert (await events(page, "joined"))[-1]["resumed"] is False
        assert await page.evaluate("other.readyState === WebSocket.OPEN")
        assert "resume" not in await page.evaluate("frames.out.map(({ type }) => type)")


# --- tokens


def checked(tokens: dict[str, str]) -> Any:
    async def authenticate(token: str) -> trioswitch.Identity:
        if token not in tokens:
            raise trioswitch.Refused(f"{token!r} is not a valid token")
        return trioswitch.Identity(user=tokens[token])

    return authenticate


async def test_a_token_is_sent_on_each_connection(browser: Browser) -> None:
    async with serving(authenticate=checked({"t1": "ada", "t2": "ada"})) as (_switch, url), lay_cable(url) as cable:
        page = await open_page(browser, cable.url)
        await page.evaluate("""{
            let number = 0;
            const token = async () => {
                number += 1;
                if (number === 2) throw new Error("try again");
                return number === 1 ? "t1" : "t2";
            };
            window.client = trioswitch.connect("ws", { token });
            watch(client, "state");
            window.room = client.join("lobby");
            watch(room, "joined");
        }""")
        await page.wait_for("room.joined")
        assert await page.evaluate("client.user") == "ada"
        cable.cut()
        await page.wait_for("states().filter((state) => state === 'connected').length === 2")
        reasons = {state.get("reason") for state in await events(page, "state")}
        assert "there is no token: try again" in reasons


async def test_a_wrong_token_ends_it(browser: Browser) -> None:
    async with serving(authenticate=checked({})) as (_switch, url):
        page = await open_page(browser, url)
        await page.evaluate("window.client = trioswitch.connect('ws', { token: 'wrong' }); watch(client, 'state')")
        await page.wait_for("client.state === 'ended'")
        assert (await events(page, "state"))[-1]["code"] == 4500
        assert "connected" not in await page.evaluate("states()")


COUNT = """{
    let number = 0;
    window.client = trioswitch.connect("ws", { token: async () => `token ${++number}` });
    watch(client, "state");
}"""
"""A client whose function gives another token at each call."""


async def test_who_is_refused_before_it_has_signed_in_again_does_not_come_back(browser: Browser) -> None:
    opened = []

    async def on_connect(request: trioswitch.ConnectRequest) -> None:
        opened.append(request)
        if len(opened) > 1:
            raise trioswitch.Refused("you are not wanted any more", code="unauthorised")

    async def authenticate(_token: str) -> trioswitch.Identity:
        return trioswitch.Identity(user="ada", expires_at=time.time() + 0.4)

    async with serving(authenticate=authenticate, on_connect=on_connect) as (_, url):
        page = await open_page(browser, url)
        await page.evaluate(COUNT)
        await page.wait_for("client.state === 'ended'")
        assert (await events(page, "state"))[-1]["code"] == 4500


async def test_a_token_that_ran_out_is_replaced_when_there_is_another_one(browser: Browser) -> None:
    async def authenticate(token: str) -> trioswitch.Identity:
        if int(token.removeprefix("token ")) >= 4:
            raise trioswitch.Refused("not any more", code="unauthorised")
        return trioswitch.Identity(user="ada", expires_at=time.time() + 0.4)  # before the client would send another

    async with serving(authenticate=authenticate) as (_, url):
        page = await open_page(browser, url)
        await page.evaluate(COUNT)
        await page.wait_for("client.state === 'ended'")
        states = await page.evaluate("states()")
        assert states.count("connected") >= 2, states
        assert [event["code"] for event in await events(page, "state") if "code" in event][-1] == 4500


async def test_a_function_gives_a_new_token_before_the_old_one_runs_out(browser: Browser) -> None:
    tokens: list[str] = []

    async def authenticate(token: str) -> trioswitch.Identity:
        tokens.append(token)
        return trioswitch.Identity(user="ada", expires_at=time.time() + 2.5)

    async with serving(authenticate=authenticate) as (_, url):
        page = await open_page(browser, url)
        await page.evaluate(COUNT)
        with trio.fail_after(PATIENCE):
            while len(tokens) < 4:
                await trio.sleep(0.05)
        assert tokens[:4] == ["token 1", "token 2", "token 3", "token 4"]
        assert await page.evaluate("states()") == ["connecting", "connected"]
