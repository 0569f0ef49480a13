"""A session of the terminal client: what entered lines do, and what is shown."""

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from client_support import PATIENCE, fake_server
from support import listening, settled

from trioswitch import Options, RoomPolicy
from trioswitch.client import Message, open_client
from trioswitch.client.terminal.console import read_lines
from trioswitch.client.terminal.rendering import Renderer
from trioswitch.client.terminal.session import TerminalSession

HISTORY = Options(policies=(RoomPolicy(history="memory"),))


@attrs.define
class FakeConsole:
    """Collects what is shown. A line given to `enter` is executed before the next one is taken."""

    shown: list[str] = attrs.field(factory=list)
    notes: list[str] = attrs.field(factory=list)
    prompts: list[str] = attrs.field(factory=list)
    _channel: Any = attrs.field(factory=lambda: trio.open_memory_channel[str](0))

    def lines(self) -> AsyncIterator[str]:
        receive: trio.MemoryReceiveChannel[str] = self._channel[1]
        return receive

    def show(self, line: str) -> None:
        self.shown.append(line)

    def note(self, line: str) -> None:
        self.notes.append(line)

    def set_prompt(self, prompt: str) -> None:
        self.prompts.append(prompt)

    async def enter(self, *lines: str) -> None:
        for line in lines:
            await self._channel[0].send(line)
        await self._channel[0].send("")  # taken when the last line was executed
        await settled()

    async def quit(self) -> None:
        await self._channel[0].send("/quit")

    async def close(self) -> None:
        await self._channel[0].aclose()


@asynccontextmanager
async def session(url: str, *rooms: str, user: str = "ann", **options: Any) -> AsyncIterator[FakeConsole]:
    console = FakeConsole()
    terminal = TerminalSession(console, Renderer(), **options)  # type: ignore[arg-type]
    with trio.fail_after(PATIENCE):
        async with open_client(url, user_id=user) as client, trio.open_nursery() as nursery:
            nursery.start_soon(terminal.run, client, list(rooms))
            await console.enter()
            yield console
            await console.close()


async def test_lines_of_any_length_arrive_in_any_pieces() -> None:
    reading, writing = os.pipe()
    text = "a\nbé\r\n\n" + "x" * 1_500_000 + "y\nlast"

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(text.encode())

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, write)
            got = [line async for line in read_lines(reading)]
    os.close(reading)
    assert got[:3] == ["a", "bé", ""]
    assert len(got) > 5
    assert "".join(got[3:-1]) == "x" * 1_500_000 + "y"
    assert got[-1] == "last"


async def test_lines_go_to_the_current_room() -> None:
    async with listening(HISTORY) as (_switch, server), session(server.urls[0], "a", "b") as console:
        await console.enter("one", "/leave", "//two", "/join b", "three", "/join c", '/json {"x": 1}', "/who")
        await console.enter("/history 1")
        lines = [line for line in console.shown if "here)" not in line]
        assert sorted(lines[:4]) == ["[a] ann: /two", "[b] ann: one", "[b] ann: three", '[c] ann: {"x": 1}']
        assert lines[4:] == ["[c] here: ann", '[c] ann: {"x": 1}']
        assert console.notes == ["* connected", "* the current room is a"]
        assert [prompt for prompt in console.prompts if "disconnected" not in prompt] == [
            "> ", "a> ", "b> ", "a> ", "b> ", "c> ",
        ]  # fmt: skip


async def test_joining_shows_the_history() -> None:
    async with listening(HISTORY) as (switch, server):
        for number in range(5):
            await switch.publish("r", number)
        async with session(server.urls[0], "r", history=2) as console:
            await settled()
            assert [line for line in console.shown if "here)" not in line] == [
                "[r] the server: 3",
                "[r] the server: 4",
            ]


async def test_direct_messages_are_shown_and_confirmed() -> None:
    async with listening() as (_switch, server), session(server.urls[0], "r") as console:
        async with open_client(server.urls[0], user_id="bob") as bob, bob.room("r"):
            await bob.send_to_user("ann", text="psst")
            await console.enter("/msg bob hello you", "/msg zoe hello")
            message = await anext(bob.direct())
            assert isinstance(message, Message)
            assert message.body == "hello you"
        await console.enter()
        assert {"[r] + bob (2 here)", "[to you] bob: psst", "[r] - bob (1 here)"} <= set(console.shown)
        assert console.notes[0] == "* connected"
        assert console.notes[1] in ("* delivered to bob: hello you", "* queued for bob: hello you")
        assert console.notes[2:] == ["* zoe is offline; kept in the inbox: hello"]


@pytest.mark.parametrize(
    ("receipt", "note"),
    [
        ({"delivered": 1, "kept": 1, "seq": 1}, "* delivered to bob: hi"),
        ({"queued": 1}, "* queued for bob: hi"),
        ({"kept": 1, "seq": 1}, "* bob is offline; kept in the inbox: hi"),
        ({}, "* bob is offline; not delivered: hi"),
    ],
)
async def test_each_outcome_of_a_direct_message_is_said(
    receipt: dict[str, int], note: str, clock: trio.testing.MockClock
) -> None:
    console = FakeConsole()
    async with fake_server() as server:

        async def serve() -> None:
            peer = await server.accept()
            await peer.expect("inbox_ack")
            await peer.ack(await peer.expect("direct_message", to="bob", content="hi"), **receipt)

        server.nursery.start_soon(serve)
        async with server.client() as client, trio.open_nursery() as nursery:
            nursery.start_soon(TerminalSession(console, Renderer()).run, client, [])  # type: ignore[arg-type]
            await console.enter("/msg bob hi")
            await console.close()
    assert console.notes == ["* connected", note]


async def test_failures_are_one_sentence_each() -> None:
    async with listening() as (_switch, server), session(server.urls[0]) as console:
        await console.enter("text", "/nope x", "/join", "/msg bob", "/join r", "/json {", "/history x", "/history")
        await console.enter("/leave", "/help")
        assert console.notes[0] == "* connected"
        assert [note.split(":")[0] for note in console.notes[1:-1]] == [
            "! join a room first",
            "! /nope is not a command; the commands are /json, /join, /leave, /msg, /who, /history, /help, /quit"
            " (//nope sends it as text)",
            "! /join needs the name of a room",
            "! /msg needs a user and a text",
            "! '{' is not valid JSON",
            "! 'x' is not a valid count",
            "! not_available",
            "* you are in no room now",
        ]
        assert "/quit" in console.notes[-1]


async def test_echoed_lines_are_not_shown_again() -> None:
    """The person sees them already; messages of the same user on another connection are shown."""
    async with listening() as (_switch, server), session(server.urls[0], "r", echoed=True) as console:
        async with open_client(server.urls[0], user_id="ann") as other, other.room("r") as room:
            await console.enter("mine", '/json {"y": 1, "x": 2}')
            await room.chat("mine")
            await room.chat("other")
            await console.enter()
        assert [line for line in console.shown if "here)" not in line] == ["[r] ann: mine", "[r] ann: other"]


async def test_a_refused_message_is_not_taken_for_a_later_one(clock: trio.testing.MockClock) -> None:
    console = FakeConsole()
    async with fake_server() as server:

        async def serve() -> None:
            peer = await server.accept()
            await peer.expect("inbox_ack")
            await peer.let_join("r", offset=None)
            await peer.error(await peer.expect("chat_message"), "forbidden")
            await peer.send("chat_message", room="r", user_id="ann", content="hi", timestamp="")
            await peer.ack(await peer.expect("chat_message"))
            await peer.send("gap", room="r", dropped=1)
            await peer.send("chat_message", room="r", user_id="ann", content="lost", timestamp="")

        server.nursery.start_soon(serve)
        async with server.client() as client, trio.open_nursery() as nursery:
            nursery.start_soon(TerminalSession(console, Renderer(), echoed=True).run, client, [])  # type: ignore[arg-type]
            await console.enter("/join r", "hi", "lost")
            await trio.sleep(1)
            await console.close()
    assert console.notes == ["* connected", "! forbidden: no"]
    assert console.shown == ["[r] ann: hi", "[r] ... 1 message is missing", "[r] ann: lost"]


async def test_reconnecting_is_said_and_the_prompt_shows_it(clock: trio.testing.MockClock) -> None:
    console = FakeConsole()
    async with fake_server() as server:

        async def serve() -> None:
            peer = await server.accept(session=None)
            await peer.expect("inbox_ack")
            server.nursery.start_soon(console.enter, "/join r")
            await peer.let_join("r", offset=None)
            await peer.close(1001, "going \x1b away")
            peer = await server.accept(session=None)
            await peer.error(await peer.expect("join_room"), "forbidden")
            await trio.sleep(1)
            await console.quit()

        server.nursery.start_soon(serve)
        async with server.client() as client:
            await TerminalSession(console, Renderer(), hint=lambda error: " (a hint)").run(client, [])  # type: ignore[arg-type]
        server.nursery.cancel_scope.cancel()
    assert console.notes == [
        "* connected",
        "* the connection was lost (1001): going \\x1b away; reconnecting in 0.5 s",
        "* connected again",
        "! left r: forbidden: no (a hint)",
    ]
    assert [prompt for prompt, _ in itertools.groupby(console.prompts)] == [
        "> ", "r> ", "r (disconnected)> ", "r> ", "> ",
    ]  # fmt: skip
