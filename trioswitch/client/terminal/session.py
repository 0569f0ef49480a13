"""A terminal session: it executes the lines that a person enters, and shows what happens in the rooms."""

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

import msgspec
import trio

from ...wire.prepared import Receipt
from ..client import Client, Room
from ..errors import ClientError, RequestFailed
from ..messages import Gap, Message
from ..reconnector import State
from ..room_sync import Item
from .console import Console
from .rendering import Renderer, plain

__all__ = ["TerminalSession", "parse_count"]

HELP: Final = """\
TEXT            send text to the current room (//TEXT if it begins with a slash)
/json DATA      send data, for example /json {"x": 1}
/join ROOM      join a room, or make it the current room
/leave          leave the current room
/msg USER TEXT  send text to a user
/who            list the users in the current room
/history [N]    show the newest N messages of the current room (default: 20)
/help           show this list
/quit           quit"""


class TerminalSession:
    """Executes lines, and shows items.

    Args:
        console: where lines come from, and where text is shown.
        renderer: how items look.
        history: how many of the newest messages to show when a room is joined.
        echoed: whether the person sees entered lines anyway: then the person's own messages are not shown again.
        hint: returns the text that follows an error, such as the option that avoids it.
    """

    def __init__(
        self,
        console: Console,
        renderer: Renderer,
        *,
        history: int = 0,
        echoed: bool = False,
        hint: Callable[[ClientError], str] = lambda error: "",
    ) -> None:
        self._console = console
        self._renderer = renderer
        self._history = history
        self._echoed = echoed
        self._hint = hint
        self.failures = 0
        """How many lines could not be executed."""
        self._rooms: dict[str, tuple[Room, trio.CancelScope]] = {}
        self._current: str | None = None
        self._connected = False
        self._own: Counter[tuple[str, str]] = Counter()  # room and text of own messages that have not come back yet
        self._commands: dict[str, Callable[[str], Awaitable[None]]] = {
            "json": self._json,
            "join": self._join,
            "leave": self._leave,
            "msg": self._message,
            "who": self._who,
            "history": self._show_history,
            "help": self._help,
        }

    async def run(self, client: Client, rooms: list[str]) -> None:
        """Join rooms, and execute lines until `/quit` or their end. Cancelling is safe."""
        self._client = client
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._show_states)
            nursery.start_soon(self._show_direct)
            for room in rooms:
                await self._execute(f"/join {room}")
            async with aclosing(self._console.lines()) as lines:
                async for line in lines:
                    if line.strip() == "/quit":
                        break
                    await self._execute(line)
            nursery.cancel_scope.cancel()

    def note(self, text: str) -> None:
        """Show a sentence about the client itself."""
        self._console.note(self._renderer.note(text))

    def error(self, text: str) -> None:
        """Show a sentence about a failure."""
        self._console.note(self._renderer.error(text))

    # --- lines that were entered

    async def _execute(self, line: str) -> None:
        name, _, rest = line[1:].partition(" ")
        try:
            if not line.strip():
                return
            if not line.startswith("/") or line.startswith("//"):
                await self._chat(line.removeprefix("/"))
            elif name in self._commands:
                await self._commands[name](rest.strip())
            else:
                commands = ", ".join(f"/{command}" for command in (*self._commands, "quit"))
                raise ValueError(f"/{name} is not a command; the commands are {commands} (//{name} sends it as text)")
        except (ClientError, ValueError) as error:
            self.failures += 1
            self.error(plain(str(error)) + (self._hint(error) if isinstance(error, ClientError) else ""))

    def _current_room(self) -> str:
        """Raises ValueError."""
        if self._current is None:
            raise ValueError("join a room first: /join ROOM")
        return self._current

    def _set_current(self, room: str | None) -> None:
        self._current = room
        self._show_prompt()

    async def _chat(self, text: str) -> None:
        room = self._current_room()
        await self._publish(room, text, lambda: self._client.chat(room, text))

    async def _json(self, text: str) -> None:
        room = self._current_room()
        try:
            data = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise ValueError(f"{text!r} is not valid JSON: {error}") from None
        await self._publish(room, data, lambda: self._client.publish(room, data))

    async def _publish(self, room: str, body: Any, publish: Callable[[], Awaitable[Receipt]]) -> None:
        """Publish, and remember it while the message has not come back from the room."""
        key = (room, json.dumps(body))
        self._own[key] += 1
        try:
            await publish()
        except BaseException:
            self._own[key] -= 1
            raise

    async def _join(self, name: str) -> None:
        if not name:
            raise ValueError("/join needs the name of a room: /join ROOM")
        if name not in self._rooms and (error := await self._nursery.start(self._show_room, name)) is not None:
            raise error
        self._set_current(name)

    async def _leave(self, _rest: str) -> None:
        _room, scope = self._rooms.pop(self._current_room())
        scope.cancel()
        self._set_current(next(reversed(self._rooms), None))
        self.note(f"the current room is {plain(self._current)}" if self._current else "you are in no room now")

    async def _message(self, rest: str) -> None:
        user, _, text = rest.partition(" ")
        if not text:
            raise ValueError("/msg needs a user and a text: /msg USER TEXT")
        receipt = await self._client.send_to_user(user, text=text)
        name, text = plain(user), plain(text)
        if receipt.delivered:
            self.note(f"delivered to {name}: {text}")
        elif receipt.queued:
            self.note(f"queued for {name}: {text}")
        elif receipt.kept:
            self.note(f"{name} is offline; kept in the inbox: {text}")
        else:
            self.note(f"{name} is offline; not delivered: {text}")

    async def _who(self, _rest: str) -> None:
        presence = await self._client.presence(self._current_room())
        more = f" and {presence.count - len(presence.users)} more" if presence.count > len(presence.users) else ""
        self._console.show(self._renderer.answer(presence.room, f"here: {plain(', '.join(presence.users))}{more}"))

    async def _show_history(self, rest: str) -> None:
        page = await self._client.history(self._current_room(), limit=parse_count(rest) if rest else 20)
        for message in page.messages:
            self._console.show(self._renderer.item(message, self._client.user_id))

    async def _help(self, _rest: str) -> None:
        self._console.note(HELP)

    # --- what is shown

    async def _show_room(self, name: str, *, task_status: trio.TaskStatus[Exception | None]) -> None:
        """Show the items of a room until its scope is cancelled. It starts with the error if the room cannot be joined."""
        joined = False
        with trio.CancelScope() as scope:
            try:
                async with self._client.room(name, history=self._history, announcements=True) as room:
                    joined = True
                    self._rooms[name] = room, scope
                    task_status.started(None)
                    async for item in room:
                        self._show(item)
            except RequestFailed as error:
                if not joined:
                    task_status.started(error)
                    return
                self.error(f"left {plain(name)}: {plain(str(error))}{self._hint(error)}")
                self._rooms.pop(name, None)
                if self._current == name:
                    self._set_current(next(reversed(self._rooms), None))

    def _show(self, item: Item) -> None:
        if isinstance(item, Gap):
            for key in [key for key in self._own if key[0] == item.room]:
                del self._own[key]  # they may be among the missing messages
        elif isinstance(item, Message) and item.user_id == self._client.user_id and item.room is not None:
            key = (item.room, json.dumps(item.body))
            if self._own[key] > 0:
                self._own[key] -= 1
                if self._echoed:
                    return
        self._own += Counter()  # removes zeros
        self._console.show(self._renderer.item(item, self._client.user_id))

    async def _show_direct(self) -> None:
        async for item in self._client.direct():
            self._console.show(self._renderer.item(item, self._client.user_id))

    async def _show_states(self) -> None:
        connections = 0
        async for state in self._client.states():
            self._connected = state.connected
            self._show_prompt()
            if state.connected:
                connections += 1
                self.note("connected" if connections == 1 else "connected again")
            elif state.retry_in is not None:
                self.note(f"{_reason(state)}; reconnecting in {state.retry_in:.1f} s")

    def _show_prompt(self) -> None:
        room = plain(self._current) if self._current is not None else ""
        state = "" if self._connected else "(disconnected)"
        self._console.set_prompt(" ".join(filter(None, (room, state))) + "> ")


def _reason(state: State) -> str:
    return plain(state.reason) or "not connected"


def parse_count(text: str) -> int:
    """A whole number that is not negative. Raises ValueError with a sentence."""
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"{text!r} is not a valid count: it must be a whole number, 0 or more")
    return int(text)
