"""`python -m trioswitch connect URL`: a client for the terminal, to try things out.

What happens is shown on stdout, one line for each event; notes about the client itself go to stderr. Lines from stdin are sent
to the current room. It leaves at the end of stdin, with `/quit`, and at SIGINT or SIGTERM.
"""

import argparse
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final

import msgspec
import trio

from .client import Client, Room, open_client
from .connector import State
from .errors import ClientError, RequestFailed
from .link import Address
from .messages import Announcement, Gap
from .track import Item

__all__ = ["Terminal", "add_connect", "line_of"]

OK, FAILED = 0, 1
CHUNK: Final = 64 * 1024
LONGEST_LINE: Final = 1024 * 1024
"""Characters after which a line from stdin ends, whether it does or not."""
HELP: Final = """\
TEXT            say it in the current room (//TEXT for one that begins with a slash)
/json DATA      send data, e.g. /json {"x": 1}
/join ROOM      join a room, or make it the current one
/leave          leave the current room
/msg USER TEXT  say it to a user
/who            who is in the room
/history [N]    the newest messages of the room
/quit           leave"""


def add_connect(commands: Any) -> None:
    """Add the command `connect` to the sub-parsers of `trioswitch`; its `run(namespace)` returns the exit status."""
    parser = commands.add_parser(
        "connect",
        help="talk to a server: a client for the terminal",
        description="Show what happens in rooms, and send lines from stdin to the current room. /help tells the commands.",
    )
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add("url", type=_url, metavar="URL", help="where the server is, e.g. ws://127.0.0.1:8765/ws")
    add("--room", action="append", default=[], metavar="ROOM", help="a room to join; the last one is the current one")
    add("--user", metavar="NAME", help="who you are, where the server asks for no token")
    add("--token", help="token, where the server asks for one")
    add("--ca", metavar="FILE", help="certificates (PEM) to trust, rather than those of the system")
    add(
        "--history",
        type=_count,
        default=0,
        metavar="N",
        help="show the newest messages of a room on joining (default: 0)",
    )


def _run(chosen: argparse.Namespace) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return trio.run(_main, chosen, strict_exception_groups=True)
    except KeyboardInterrupt:  # before the signal was watched
        return OK


async def _main(chosen: argparse.Namespace) -> int:
    interactive = sys.stdin is not None and sys.stdin.isatty()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals, trio.CancelScope() as scope:
        show, note = partial(_print, scope, "stdout"), partial(_print, scope, "stderr")
        terminal = Terminal(chosen.history, show=show, note=note)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at_signal, signals, scope)
            try:
                context = None if chosen.ca is None else _trusting(chosen.ca)
                async with open_client(chosen.url, chosen.token, chosen.user, ssl_context=context) as client:
                    if interactive:
                        terminal.note("* /help tells the commands")
                    await terminal.run(client, chosen.room, lines(0))
            except (ClientError, ValueError) as error:
                note(f"trioswitch: {plain(str(error))}")
                return FAILED
            finally:
                nursery.cancel_scope.cancel()
        return FAILED if terminal.failures and not interactive else OK
    return OK


async def _cancel_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()


async def lines(descriptor: int) -> AsyncIterator[str]:
    """The lines of a file, whatever kind of file it is. A thread reads it, and is left behind when this is cancelled."""
    waiting = b""
    while chunk := await trio.to_thread.run_sync(os.read, descriptor, CHUNK, abandon_on_cancel=True):
        *whole, waiting = (waiting + chunk).split(b"\n")
        if len(waiting) > LONGEST_LINE:
            whole, waiting = [*whole, waiting], b""
        for line in whole:
            yield line.decode("utf-8", "replace").rstrip("\r")
    if waiting:
        yield waiting.decode("utf-8", "replace")


class Terminal:
    """What the lines of a person do, and what the person is shown. `show` gets lines of events, `note` lines about the client."""

    def __init__(self, history: int, *, show: Callable[[str], None], note: Callable[[str], None]) -> None:
        self._history = history
        self._show = show
        self.note = note
        self.failures = 0
        """Lines that could not be carried out."""
        self._rooms: dict[str, tuple[Room, trio.CancelScope]] = {}
        self._current: str | None = None
        self._commands: dict[str, Callable[[str], Awaitable[None]]] = {
            "json": self._json,
            "join": self._join,
            "leave": self._leave,
            "msg": self._message,
            "who": self._who,
            "history": self._show_history,
            "help": self._help,
        }

    async def run(self, client: Client, rooms: list[str], lines: AsyncIterator[str]) -> None:
        """Until the lines end. Raises ClientError where one of `rooms` cannot be joined."""
        self._client = client
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._show_states)
            nursery.start_soon(self._show_direct)
            for room in rooms:
                await self._carry_out(f"/join {room}")
            async for line in lines:
                if line.strip() == "/quit":
                    break
                await self._carry_out(line)
            nursery.cancel_scope.cancel()

    # --- what the person says

    async def _carry_out(self, line: str) -> None:
        name, _, rest = line[1:].partition(" ")
        try:
            if not line.strip():
                return
            if not line.startswith("/") or line.startswith("//"):
                await self._client.chat(self._room(), line.removeprefix("/"))
            elif name in self._commands:
                await self._commands[name](rest.strip())
            else:
                raise ValueError(f"there is no /{name}: /help tells the commands")
        except (ClientError, ValueError) as error:
            self.failures += 1
            self.note(f"! {plain(str(error))}")

    def _room(self) -> str:
        """Raises ValueError."""
        if self._current is None:
            raise ValueError("join a room first: /join ROOM")
        return self._current

    async def _json(self, text: str) -> None:
        try:
            data = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise ValueError(f"that is no JSON: {error}") from None
        await self._client.publish(self._room(), data)

    async def _join(self, name: str) -> None:
        if not name:
            raise ValueError("/join ROOM")
        if name not in self._rooms and (error := await self._nursery.start(self._show_room, name)) is not None:
            raise error
        self._current = name

    async def _leave(self, _rest: str) -> None:
        _room, scope = self._rooms.pop(self._room())
        scope.cancel()
        self._current = next(reversed(self._rooms), None)
        self.note(f"* the current room is {plain(self._current)}" if self._current else "* you are in no room now")

    async def _message(self, rest: str) -> None:
        user, _, text = rest.partition(" ")
        if not text:
            raise ValueError("/msg USER TEXT")
        receipt = await self._client.send(user, text=text)
        if not receipt.delivered and not receipt.queued:
            self.note(
                f"* {plain(user)} is away, and will find it" if receipt.kept else f"* {plain(user)} did not get it"
            )

    async def _who(self, _rest: str) -> None:
        presence = await self._client.presence(self._room())
        more = f" and {presence.count - len(presence.users)} more" if presence.count > len(presence.users) else ""
        self._show(f"[{plain(presence.room)}] here: {plain(', '.join(presence.users))}{more}")

    async def _show_history(self, rest: str) -> None:
        page = await self._client.history(self._room(), limit=_number(rest) if rest else 20)
        for message in page.messages:
            self._show(line_of(message))

    async def _help(self, _rest: str) -> None:
        self.note(HELP)

    # --- what the person is shown

    async def _show_room(self, name: str, *, task_status: trio.TaskStatus[Exception | None]) -> None:
        """Be in a room until its scope is cancelled. What hinders to join it is what this starts with."""
        joined = False
        with trio.CancelScope() as scope:
            try:
                async with self._client.room(name, history=self._history, announcements=True) as room:
                    joined = True
                    self._rooms[name] = room, scope
                    task_status.started(None)
                    async for item in room:
                        self._show(line_of(item))
            except RequestFailed as error:
                if not joined:
                    task_status.started(error)
                    return
                self.note(f"! {plain(name)} is over: {plain(str(error))}")
                self._rooms.pop(name, None)
                if self._current == name:
                    self._current = next(reversed(self._rooms), None)

    async def _show_direct(self) -> None:
        async for item in self._client.direct():
            self._show(line_of(item))

    async def _show_states(self) -> None:
        connections = 0
        async for state in self._client.states():
            if state.connected:
                connections += 1
                self.note("* connected" if connections == 1 else "* connected again")
            elif state.retry_in is not None:
                self.note(f"* {_why(state)}; trying again in {state.retry_in:.1f} s")


def _why(state: State) -> str:
    return plain(state.reason) or "not connected"


def line_of(item: Item) -> str:
    """One line for a person."""
    place = f"[{plain(item.room)}] " if item.room is not None else ""
    if isinstance(item, Gap):
        count = (
            "some messages are"
            if item.dropped is None
            else f"{item.dropped} message{'s are' if item.dropped > 1 else ' is'}"
        )
        return f"{place}... {count} missing"
    if isinstance(item, Announcement):
        sign = {"user_joined": "+ ", "user_left": "- "}.get(item.action, "")
        who = f"{sign}{plain(item.user_id)} " if item.user_id is not None else ""
        return f"{place}{who}({item.online_count} here)"
    if item.to is not None:
        place = "[to you] "
    elif item.group is not None:
        place = f"[group {plain(item.group)}] "
    what = plain(item.content) if item.content is not None else plain(json.dumps(item.data, ensure_ascii=False))
    return f"{place}{plain(item.user_id) if item.user_id is not None else 'the server'}: {what}"


def plain(text: str) -> str:
    """Text that does nothing to a terminal but to be read: control characters become escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _print(scope: trio.CancelScope, stream: str, line: str) -> None:
    """Write a line. Where nobody reads it any more, the scope is cancelled."""
    file = getattr(sys, stream)
    if file is None:
        return
    try:
        print(line, file=file, flush=True)
    except OSError:
        # What is left in the buffer would fail again at the interpreter's end, and make the exit status 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
        scope.cancel()


# --- the options' values


def _url(text: str) -> str:
    try:
        Address.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _trusting(path: str) -> ssl.SSLContext:
    """Raises ValueError."""
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise ValueError(f"--ca: cannot read certificates from {path!r}: {error.strerror or error}") from None


def _count(text: str) -> int:
    try:
        return _number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number(text: str) -> int:
    """Raises ValueError with a sentence."""
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"{text} is no count")
    return int(text)
