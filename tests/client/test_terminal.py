"""`python -m trioswitch connect`: what it shows, what its lines do, and how it ends."""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from client_support import PATIENCE, fake_server
from support import listening, settled

from trioswitch import Options, RoomPolicy
from trioswitch.client import Announcement, Gap, Message, open_client
from trioswitch.client.terminal import Terminal, add_connect, line_of, lines

CONNECT = (sys.executable, "-X", "dev", "-m", "trioswitch", "connect")
HISTORY = Options(policies=(RoomPolicy(history="memory"),))


# --- what it shows


@pytest.mark.parametrize(
    ("item", "line"),
    [
        (Message(type="chat_message", room="r", user_id="ann", content="hi"), "[r] ann: hi"),
        (Message(type="message", room="r", user_id="ann", data={"ü": [1, None]}), '[r] ann: {"ü": [1, null]}'),
        (Message(type="message", data=1), "the server: 1"),
        (Message(type="direct_message", to="me", user_id="bob", content="psst"), "[to you] bob: psst"),
        (Message(type="group_message", group="g", user_id="bob", content="all"), "[group g] bob: all"),
        (Message(type="chat_message", room="r", user_id="a\x07", content="\x1b[2Jx\n"), "[r] a\\x07: \\x1b[2Jx\\n"),
        (Gap(room="r", dropped=None), "[r] ... some messages are missing"),
        (Gap(room=None, dropped=1), "... 1 message is missing"),
        (Gap(room="r", dropped=2), "[r] ... 2 messages are missing"),
        (
            Announcement(room="r", action="user_joined", user_id="bob", online_count=2, timestamp=""),
            "[r] + bob (2 here)",
        ),
        (Announcement(room="r", action="user_left", user_id="bob", online_count=1, timestamp=""), "[r] - bob (1 here)"),
        (Announcement(room="r", action="count", user_id=None, online_count=99, timestamp=""), "[r] (99 here)"),
    ],
)
def test_every_item_is_one_line(item: Any, line: str) -> None:
    assert line_of(item) == line


async def test_lines_of_any_length_and_in_any_pieces() -> None:
    reading, writing = os.pipe()
    text = "a\nbé\r\n\n" + "x" * 1_500_000 + "y\nlast"

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(text.encode())

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, write)
            got = [line async for line in lines(reading)]
    os.close(reading)
    assert got[:3] == ["a", "bé", ""]
    assert len(got) > 5
    assert "".join(got[3:-1]) == "x" * 1_500_000 + "y"
    assert got[-1] == "last"


# --- what its lines do


@attrs.define
class Session:
    """A terminal on a connection; each line is carried out before the next one is given."""

    _lines: trio.MemorySendChannel[str]
    shown: list[str] = attrs.field(factory=list)
    noted: list[str] = attrs.field(factory=list)

    async def say(self, *lines: str) -> None:
        for line in lines:
            await self._lines.send(line)
        await self._lines.send("")  # is taken when the last one was carried out
        await settled()


@asynccontextmanager
async def session(url: str, *rooms: str, history: int = 0) -> AsyncIterator[Session]:
    send, receive = trio.open_memory_channel[str](0)
    it = Session(send)
    terminal = Terminal(history, show=it.shown.append, note=it.noted.append)
    with trio.fail_after(PATIENCE):
        async with open_client(url, user_id="ann") as client, trio.open_nursery() as nursery:
            nursery.start_soon(terminal.run, client, list(rooms), receive)
            await it.say()
            yield it
            await send.aclose()


async def test_lines_go_to_the_current_room() -> None:
    async with listening(HISTORY) as (_switch, server), session(server.urls[0], "a", "b") as it:
        await it.say("one", "/leave", "//two", "/join b", "three", "/join c", '/json {"x": 1}', "/who", "/history 1")
        said = [line for line in it.shown if "here)" not in line]
        assert sorted(said[:4]) == ["[a] ann: /two", "[b] ann: one", "[b] ann: three", '[c] ann: {"x": 1}']
        assert said[4:] == ["[c] here: ann", '[c] ann: {"x": 1}']
        assert it.noted == ["* connected", "* the current room is a"]


async def test_joining_shows_the_history() -> None:
    async with listening(HISTORY) as (switch, server):
        for number in range(5):
            await switch.publish("r", number)
        async with session(server.urls[0], "r", history=2) as it:
            await settled()
            assert it.shown[:2] == ["[r] the server: 3", "[r] the server: 4"]


async def test_users_hear_each_other() -> None:
    async with listening() as (_switch, server), session(server.urls[0], "r") as it:
        async with open_client(server.urls[0], user_id="bob") as bob, bob.room("r"):
            await bob.send_to_user("ann", text="psst")
            await it.say("/msg bob hello", "/msg zoe hello")
            assert (await anext(bob.direct())).content == "hello"  # type: ignore[union-attr]
        await it.say()
        assert {"[r] + bob (2 here)", "[to you] bob: psst", "[r] - bob (1 here)"} <= set(it.shown)
        assert it.noted == ["* connected", "* zoe is away, and will find it"]


async def test_what_cannot_be_done_is_said() -> None:
    async with listening() as (_switch, server), session(server.urls[0]) as it:
        await it.say(
            "text", "/nope", "/join", "/msg bob", "/join r", "/json {", "/history x", "/history", "/leave", "/help"
        )
        assert it.noted[0] == "* connected"
        assert [note.split(":")[0] for note in it.noted[1:-1]] == [
            "! join a room first",
            "! there is no /nope",
            "! /join ROOM",
            "! /msg USER TEXT",
            "! that is no JSON",
            "! x is no count",
            "! not_available",
            "* you are in no room now",
        ]
        assert "/quit" in it.noted[-1]


async def test_it_says_when_it_comes_back(clock: trio.testing.MockClock) -> None:
    async with fake_server() as server:
        shown: list[str] = []
        noted: list[str] = []
        send, receive = trio.open_memory_channel[str](0)

        async def serve() -> None:
            peer = await server.accept(session=None)
            await peer.expect("inbox_ack")
            await send.send("/join r")
            await peer.let_join("r", offset=None)
            await peer.close(1001, "going \x1b away")
            peer = await server.accept(session=None)
            await peer.error(await peer.expect("join_room"), "forbidden")
            await trio.sleep(1)
            await send.send("/quit")

        server.nursery.start_soon(serve)
        async with server.client() as client:
            await Terminal(0, show=shown.append, note=noted.append).run(client, [], receive)
    assert noted == [
        "* connected",
        "* the connection was lost: 1001 going \\x1b away; trying again in 0.5 s",
        "* connected again",
        "! r is over: forbidden: no",
    ]


# --- how it ends


@attrs.define
class Connected:
    process: trio.Process

    async def line(self) -> str:
        """The next line of stdout."""
        assert self.process.stdout is not None
        said = b""
        while not said.endswith(b"\n"):
            chunk = await self.process.stdout.receive_some(1)
            assert chunk, said
            said += chunk
        return said.decode().rstrip("\n")

    async def ended(self) -> tuple[int, str, str]:
        """Exit status, and what it has still to say on stdout and stderr."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        out = b"".join([chunk async for chunk in self.process.stdout])
        err = b"".join([chunk async for chunk in self.process.stderr])
        assert b"Traceback" not in err, err.decode()
        assert b"Warning" not in err, err.decode()
        return await self.process.wait(), out.decode(), err.decode()


@asynccontextmanager
async def connecting(*arguments: str, stdin: Any = subprocess.PIPE) -> AsyncIterator[Connected]:
    process = await trio.lowlevel.open_process(
        [*CONNECT, *arguments], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        with trio.fail_after(PATIENCE):
            yield Connected(process)
    finally:
        if process.poll() is None:
            process.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                await stream.aclose()
        await process.wait()


async def test_a_pipe_is_read_to_its_end_and_every_line_is_acknowledged() -> None:
    async with listening(HISTORY) as (switch, server):
        async with connecting(server.urls[0], "--room", "r", "--user", "ann") as program:
            assert program.process.stdin is not None
            await program.process.stdin.send_all("".join(f"line {n}\n" for n in range(50)).encode())
            await program.process.stdin.aclose()
            status, _out, err = await program.ended()
            assert (status, err) == (0, "* connected\n")
        assert switch.connections() == []
        async with open_client(server.urls[0]) as client:
            page = await client.history("r")
        assert [message.content for message in page.messages] == [f"line {n}" for n in range(50)]


async def test_ctrl_c_ends_it_in_order() -> None:
    async with listening() as (switch, server), connecting(server.urls[0], "--room", "r", "--user", "ann") as program:
        assert await program.line() == "[r] + ann (1 here)"
        program.process.send_signal(signal.SIGINT)
        assert (await program.ended())[0] == 0
        assert switch.connections() == []


async def test_what_fails_in_a_pipe_is_the_exit_status() -> None:
    async with listening() as (_switch, server), connecting(server.urls[0]) as program:
        assert program.process.stdin is not None
        await program.process.stdin.send_all(b"text")
        await program.process.stdin.aclose()
        status, _out, err = await program.ended()
        assert (status, err) == (1, "* connected\n! join a room first: /join ROOM\n")


async def test_a_reader_that_goes_ends_it_in_silence() -> None:
    async with listening() as (switch, server), connecting(server.urls[0], "--room", "r", "--user", "ann") as program:
        assert program.process.stdout is not None
        await program.line()
        await program.process.stdout.aclose()
        await switch.publish("r", "x")
        with trio.fail_after(PATIENCE):
            assert await program.process.wait() == 0


async def test_an_address_that_is_none_is_one_sentence() -> None:
    async with connecting("ws://127.0.0.1:1/", stdin=subprocess.DEVNULL) as program:
        status, out, err = await program.ended()
        assert (status, out, err) == (1, "", "trioswitch: cannot connect to 127.0.0.1:1: Connection refused\n")


async def test_a_name_that_nobody_has_is_one_sentence() -> None:
    async with connecting("ws://nobody.invalid/", stdin=subprocess.DEVNULL) as program:
        status, out, err = await program.ended()
        assert (status, out, len(err.splitlines())) == (1, "", 1)
        assert err.startswith("trioswitch: cannot connect to nobody.invalid: ")


def test_arguments_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_connect(parser.add_subparsers())
    chosen = parser.parse_args(["connect", "ws://h/ws", "--room", "a", "--room", "b", "--history", "3"])
    assert (chosen.room, chosen.history, chosen.user, chosen.token) == (["a", "b"], 3, None, None)
    for arguments in (["http://h/"], ["ws://h/", "--history", "-1"]):
        with pytest.raises(SystemExit):
            parser.parse_args(["connect", *arguments])
    assert "no WebSocket URL" in capsys.readouterr().err
