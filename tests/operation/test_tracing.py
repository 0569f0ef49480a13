"""Why did it not arrive? A trace shows what becomes of each message at each receiver, on all nodes, while somebody asks."""

import os
import signal
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import trio
from servers import PATIENCE, run
from trio.testing import MockClock

from trioswitch import Options, RoomPolicy, open_switch, serve
from trioswitch.api import Api, ApiKey
from trioswitch.client import open_client
from trioswitch.testing import TestSwitch, open_test_cluster, open_test_switch
from trioswitch.web import Page, Request, Route


def _seen(found: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(each["user"], each["what"], each.get("message", {}).get("from")) for each in found["events"]]


async def test_a_user_is_followed(autojump_clock: MockClock) -> None:
    async with open_test_switch() as app:
        admin = app.switch.administration
        ada, bob = await app.connect(), await app.connect()
        await ada.join("hall", user_id="ada")
        await bob.join("hall", user_id="bob")
        assert (await admin.trace("t", user="ada"))["connections"] == 1
        await bob.send("chat_message", room="hall", content="hello")
        await ada.receive_until(content="hello")
        found = await admin.trace("t", user="ada")
        assert _seen(found) == [("ada", "queued", "bob"), ("ada", "written", "bob")]
        written = found["events"][1]
        assert (written["room"], written["message"]["type"], found["missed"]) == ("hall", "chat_message", 0)
        assert written["waited"] >= 0
        assert "hello" not in str(found)
        await ada.join("other")
        second = await app.connect()
        await second.join("hall", user_id="ada")
        found = await admin.trace("t", user="ada")
        assert [(each["what"], each.get("room")) for each in found["events"] if "message" not in each] == [
            ("joined", "other"),
            ("connected", None),
            ("joined", "hall"),
        ]
        assert found["connections"] == 2


async def test_a_room_is_followed_with_who_joins_and_leaves(autojump_clock: MockClock) -> None:
    async with open_test_switch() as app:
        admin = app.switch.administration
        ada, bob = await app.connect(), await app.connect()
        await ada.join("hall", user_id="ada")
        await admin.trace("t", room="hall")
        await bob.join("hall", user_id="bob")
        await ada.join("other")
        await app.switch.publish("hall", 1)
        await app.switch.publish("other", 2)
        await bob.send("leave_room", room="hall")
        await bob.ask("heartbeat")
        await app.switch.publish("hall", 3)
        await ada.receive_until(data=3)
        events = (await admin.trace("t", room="hall"))["events"]
        assert {each["room"] for each in events} == {"hall"}
        assert [each["user"] for each in events if each["what"] == "joined"] == ["bob"]
        assert [each["user"] for each in events if each["what"] == "left"] == ["bob"]
        written = [
            each["user"] for each in events if each["what"] == "written" and each["message"]["type"] == "message"
        ]
        assert sorted(written) == ["ada", "ada", "bob"]


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest", "resync", "disconnect"])
async def test_what_a_slow_consumer_misses_is_shown_with_the_policy(overflow: str, autojump_clock: MockClock) -> None:
    policy = RoomPolicy(pattern="hall", overflow=overflow)
    async with open_test_switch(Options(outbox_messages=2, policies=(policy,))) as app:
        await _fill(app)
        found = await app.switch.administration.trace("t", user="ada")
        dropped = [each for each in found["events"] if each["what"] == "dropped"]
        assert {each["policy"] for each in dropped if "policy" in each} == {overflow}
        assert dropped[0]["cause"] in ("overflow", "resync")


async def _fill(app: TestSwitch) -> None:
    """One user does not read, and is followed."""
    ada = await app.connect(slow=True)
    await ada.join("hall", user_id="ada")
    await app.switch.administration.trace("t", user="ada")
    for number in range(20):
        await app.switch.publish("hall", f"{number} {'x' * 2000}")


async def test_a_trace_that_nobody_polls_ends_and_the_outbox_is_direct_again(autojump_clock: MockClock) -> None:
    async with open_test_switch() as app:
        admin = app.switch.administration
        ada = await app.connect()
        await ada.join("hall", user_id="ada")
        for _ in range(30):
            await admin.trace("t", user="ada")
            await trio.sleep(5)
        await app.switch.publish("hall", 1)
        await ada.receive_until(data=1)
        assert len((await admin.trace("t", user="ada"))["events"]) == 2
        await trio.sleep(11)
        await app.switch.publish("hall", 2)
        assert (await admin.trace("t", user="ada"))["events"] == []  # it has begun anew


async def test_a_name_that_is_used_for_something_else_begins_anew(autojump_clock: MockClock) -> None:
    async with open_test_switch() as app:
        admin = app.switch.administration
        ada = await app.connect()
        await ada.join("hall", user_id="ada")
        await admin.trace("t", user="ada")
        await app.switch.publish("hall", 1)
        await ada.receive_until(data=1)
        assert (await admin.trace("t", room="other"))["events"] == []
        await app.switch.publish("hall", 2)
        await ada.receive_until(data=2)
        assert await admin.trace("t", room="other") == {"events": [], "missed": 0, "connections": 0}


async def test_it_is_bounded(autojump_clock: MockClock) -> None:
    async with open_test_switch() as app:
        admin = app.switch.administration
        ada = await app.connect()
        await ada.join("hall", user_id="ada")
        await ada.receive_until(action="user_joined")
        for number in range(8):
            await admin.trace(str(number), user="ada")
        with pytest.raises(ValueError, match="8 traces"):
            await admin.trace("one more", user="ada")
        for number in range(1100):
            await app.switch.publish("hall", number)
            await ada.receive_until(type="message")
        found = await admin.trace("0", user="ada")
        assert (len(found["events"]), found["missed"]) == (2000, 200)
        assert (await admin.trace("0", user="ada"))["missed"] == 0


@pytest.mark.parametrize("who", [{}, {"user": "ada", "room": "hall"}, {"user": "ada", "trace": ""}])
async def test_what_is_asked_is_checked(who: dict[str, str], autojump_clock: MockClock) -> None:
    async with open_test_switch() as app:
        with pytest.raises(ValueError, match=r"."):
            await app.switch.administration.trace(**{"trace": "t", **who})


async def test_all_nodes_are_asked(autojump_clock: MockClock) -> None:
    async with open_test_cluster(3) as cluster:
        clients = [await cluster.join(index, "hall", user) for index, user in enumerate(("ada", "bob", "ada"))]
        await trio.sleep(1)
        admin = cluster[1].app.switch.administration
        assert (await admin.trace("t", user="ada"))["connections"] == 2
        await clients[1].send("chat_message", room="hall", content="hello")
        for client in clients:
            await client.receive_until(content="hello")
        found = await admin.trace("t", user="ada")
        assert sorted(_seen(found)) == 2 * [("ada", "queued", "bob")] + 2 * [("ada", "written", "bob")]
        assert len({each["connection"] for each in found["events"]}) == 2


KEY = "a key for everything"


@pytest.mark.slow
async def test_the_command_shows_it(tmp_path: Any) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[api.keys]]\nkey = "{KEY}"\n')
    serve = ("-m", "trioswitch", "serve", "--port", "0", "--config", keys)
    async with (
        run(*serve, is_up=r"listens on (ws://[^\s;]+)") as server,
        open_client(server.found, user_id="ada") as ada,
    ):
        url = "http" + server.found.removeprefix("ws").removesuffix("/ws")
        command = [sys.executable, "-m", "trioswitch", "trace", "--user", "ada", "--url", url]
        environment = {**os.environ, "TRIOSWITCH_API_KEY": KEY}
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        said = b""
        with trio.fail_after(PATIENCE):
            while b"connections are followed" not in said:
                said += await process.stdout.receive_some()
            async with ada.room("hall\x1b[2J") as room:
                await room.chat("a secret")
                while b" bytes: written after" not in said:  # the chat message; answers and announcements have no size
                    said += await process.stdout.receive_some()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0
        text = said.decode()
        assert "hall�[2J: chat_message, from ada" in text
        assert "secret" not in text
        assert "\x1b" not in text


@pytest.mark.parametrize(
    ("key", "url", "status", "sentence"),
    [
        ("", "http://127.0.0.1:1", 2, "TRIOSWITCH_API_KEY"),
        ("k", "ws://127.0.0.1:1", 2, "--url must be a URL"),
        ("k", "http://127.0.0.1:1", 1, "cannot be asked"),
        ("k", "OTHER", 1, "is not the API of trioswitch"),
        ("wrong", "SERVER", 1, "the server refuses"),
    ],
)
async def test_the_command_says_what_is_wrong(key: str, url: str, status: int, sentence: str) -> None:
    async def other(_request: Request) -> Page:
        return Page(b"[]", "application/json")

    async with open_switch() as switch, trio.open_nursery() as nursery:
        pages: Any = {"/api/trace": Api(switch, [ApiKey(KEY)]).route if url == "SERVER" else Route(other, "POST")}
        server = await nursery.start(partial(serve, switch, port=0, pages=pages))
        if url in ("SERVER", "OTHER"):
            url = f"http://127.0.0.1:{server.port}"
        command = [sys.executable, "-m", "trioswitch", "trace", "--room", "hall", "--url", url]
        environment = {**os.environ, "TRIOSWITCH_API_KEY": key}
        done = await trio.run_process(command, check=False, capture_stderr=True, env=environment)
        nursery.cancel_scope.cancel()
    assert done.returncode == status
    assert sentence in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


@pytest.mark.slow
async def test_the_command_ends_when_nobody_reads_it() -> None:
    async with open_switch() as switch, trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, switch, port=0, pages=Api(switch, [ApiKey(KEY)]).pages))
        url = f"http://127.0.0.1:{server.port}"
        command = [sys.executable, "-m", "trioswitch", "trace", "--room", "hall", "--url", url]
        environment = {**os.environ, "TRIOSWITCH_API_KEY": KEY}
        async with switch.subscribe("hall"):
            process = await trio.lowlevel.open_process(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
            )
            assert process.stdout is not None
            assert process.stderr is not None
            await process.stdout.receive_some()
            await process.stdout.aclose()
            async with open_client(f"ws://127.0.0.1:{server.port}/ws", user_id="ada") as client, client.room("hall"):
                with trio.fail_after(PATIENCE):
                    assert await process.wait() == 0
            assert await process.stderr.receive_some() == b""
            await process.stderr.aclose()
        nursery.cancel_scope.cancel()
