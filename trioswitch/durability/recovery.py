"""Catching up: what a client missed is delivered to it before anything newer, with no gaps and no duplicates.

A room records a message in its history when it takes it into a window, and hands that window to those who were members then.
So a client that is handed the rest of the history and made a member in one go, with no checkpoint in between, gets every
message once: from the history what was recorded before, from the room what comes later. What is too much for one go (or is not
in memory) goes out first, page by page, as fast as the client reads, until the rest is little enough.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol, cast

import attrs
import trio

from ..config import HistoryStorage, Options
from ..connections.driver import ConnectionDriver
from ..errors import CloseCause, HistoryNotAvailable, Refused, StoreError
from ..rooms.directory import RoomDirectory
from ..rooms.history import History
from ..rooms.presence import Presence
from ..rooms.room import Room
from ..wire.messages import Position, Recorded, thawed
from ..wire.prepared import Prepared
from .catch_up import CatchUp, known_offset, offset_of
from .store_writer import PAGE_BYTES, StoreWriter

__all__ = ["HistoryPage", "Joined", "Recovery", "RoomReadiness"]

PAGE: Final = 200
"""Messages that are read, and delivered, at once while a client catches up."""


@attrs.frozen
class Joined:
    """A room that was joined, and where it stood then. `recovered`: whether nothing is missing since the client's position."""

    room: Room
    position: Position | None
    recovered: bool | None


def _events(messages: list[Prepared]) -> list[Recorded]:
    return [message.event for message in messages if isinstance(message.event, Recorded)]


@attrs.frozen
class HistoryPage:
    """Messages of a room's history, oldest first; `more` come after them. `position` is the room's newest.

    `recovered`, of a page after a position: whether nothing between the two is gone.
    """

    messages: list[Recorded] = attrs.field(converter=_events)
    position: Position
    recovered: bool | None
    more: bool

    def thawed(self) -> "HistoryPage":
        """A copy for an application, with messages that it may change."""
        page = attrs.evolve(self, messages=[])
        page.messages.extend(cast(Recorded, thawed(message)) for message in self.messages)
        return page


class RoomReadiness(Protocol):
    """Whether a room can be joined, in a cluster: whether this node hears what is published to it elsewhere."""

    def is_ready(self, room: Room) -> bool: ...

    async def wait_ready(self, room: Room) -> None:
        """Wait until it is, or for a while. Safe to cancel."""

    async def reach(self, room: Room, position: Position) -> None:
        """Wait until this node has come as far in a room as a client has on another, or for a while. Raises StoreError.

        Safe to cancel.
        """


class Recovery:
    """Answers from histories, and lets clients join where they left."""

    def __init__(
        self,
        rooms: RoomDirectory,
        presence: Presence,
        writer: StoreWriter,
        options: Options,
        relay: RoomReadiness | None = None,
    ) -> None:
        self._rooms = rooms
        self._presence = presence
        self._writer = writer
        self._options = options
        self._relay = relay

    # --- who is there

    def knows_users(self, name: str) -> bool:
        """Whether this node knows all users of a room. In a cluster, it may have to ask the others: `learning_users`."""
        room = self._rooms.get(name)
        return self._relay is None or (room is not None and self._relay.is_ready(room))

    @asynccontextmanager
    async def learning_users(self, name: str) -> AsyncIterator[None]:
        """While the block runs, this node knows the users of a room, as far as the other nodes answer in time."""
        room = self._rooms.open(name)
        with room.pinned():
            if self._relay is not None:
                await self._relay.wait_ready(room)
            yield
        self._rooms.close_if_idle(room)

    async def prepare(self, name: str) -> None:
        """Wait until a member that is added to a room gets all that is published from then on, or for a while. Safe to cancel.

        Raises StoreError when the room's history cannot be read.
        """
        if self._relay is None:
            return
        room = self._rooms.open(name)
        with room.pinned():
            await self._relay.wait_ready(room)
            if room.is_stored:
                await self._writer.load_history(room)

    # --- joining

    def join_nowait(
        self,
        connection: ConnectionDriver,
        name: str,
        since: Position | None,
        newest: int = 0,
        *,
        reserved: bool = False,
    ) -> Joined | None:
        """Join a room, after what the client missed since a position, or the `newest` messages. None: `join` has to wait.

        `reserved`: as `reserved` of `Presence.join`.
        """
        room = self._rooms.open(name)
        if self._relay is not None and not self._relay.is_ready(room):
            return None
        if room.policy.history is HistoryStorage.NONE:
            return self._join_without_history(connection, room, since, reserved)
        if room.history is None:
            return None
        if since is None and not newest:
            self._presence.join(connection, name, reserved=reserved)
            return Joined(room, room.history.position, None)
        if self._is_ahead(since, room.history):
            return None
        catch_up = CatchUp(room, room.history, connection, reserved, since, newest)
        return self._finish(catch_up) if catch_up.is_little() else None

    def _is_ahead(self, since: Position | None, history: History) -> bool:
        """Whether a client may know more of a room than this node, as it comes from another one."""
        return self._relay is not None and since is not None and known_offset(since, history) is None

    async def join(
        self,
        connection: ConnectionDriver,
        name: str,
        since: Position | None,
        newest: int = 0,
        *,
        reserved: bool = False,
    ) -> Joined:
        """As `join_nowait`, where it takes waiting: for the store, or for the client to read.

        Raises Refused when the history cannot be read, or the connection ends. Safe to cancel: it has not joined then.
        """
        room = self._rooms.open(name)
        with room.pinned():
            if self._relay is not None:
                await self._relay.wait_ready(room)
                if room.policy.history is HistoryStorage.NONE:
                    _check(connection)
                    return self._join_without_history(connection, room, since, reserved)
            try:
                history = await self._writer.load_history(room)
                if self._relay is not None and since is not None and self._is_ahead(since, history):
                    await self._relay.reach(room, since)
                return await self._join(room, history, connection, since, newest, reserved)
            except StoreError as error:
                raise Refused(str(error), code="unavailable") from None

    def _join_without_history(
        self, connection: ConnectionDriver, room: Room, since: Position | None, reserved: bool
    ) -> Joined:
        self._presence.join(connection, room.name, reserved=reserved)
        return Joined(room, None, None if since is None else False)

    async def _join(
        self,
        room: Room,
        history: History,
        connection: ConnectionDriver,
        since: Position | None,
        newest: int,
        reserved: bool,
    ) -> Joined:
        if since is None and not newest:
            _check(connection)
            self._presence.join(connection, room.name, reserved=reserved)
            return Joined(room, history.position, None)
        catch_up = CatchUp(room, history, connection, reserved, since, newest)
        try:
            catch_up.begin()
            while (joined := self._finish(catch_up)) is None:
                await self._advance(catch_up)
        finally:
            catch_up.end()
        return joined

    def _finish(self, catch_up: "CatchUp") -> Joined | None:
        """Hand over what is left, and join; None when it is too much. There is no checkpoint in here.

        Raises Refused when the connection ends.
        """
        connection, history, room = catch_up.connection, catch_up.history, catch_up.room
        _check(connection)
        catch_up.begin()
        if catch_up.at + 1 < history.first:
            if room.policy.history is HistoryStorage.STORED:
                return None
            catch_up.missed(history.first)
        if not catch_up.replay():
            return None
        self._presence.join(connection, room.name, reserved=catch_up.has_place)
        return Joined(room, history.position, catch_up.recovered if catch_up.since is not None else None)

    async def _advance(self, catch_up: "CatchUp") -> None:
        """Hand over one page, as fast as the client reads."""
        history, connection = catch_up.history, catch_up.connection
        if catch_up.at + 1 >= history.first:
            messages, _more = history.page(catch_up.at, PAGE, PAGE_BYTES)
        else:
            page, messages = await self._writer.read(catch_up.room.name, catch_up.at, PAGE)
            # What is committed, but not recorded yet, the room has still to deliver; and the store may have let go for it of
            # what is in memory still.
            catch_up.missed(min(page.first, history.first))
            if catch_up.at + 1 >= history.first:
                return
            messages = [message for message in messages if offset_of(message) <= history.last]
            if not messages:  # what there was has expired
                catch_up.at = max(catch_up.at, min(page.last, history.first - 1))
        for message in messages:
            with trio.move_on_after(self._options.ping_timeout) as patience:
                await catch_up.put(message)
            if patience.cancelled_caught:
                connection.close(CloseCause.SLOW_CONSUMER, flush=False)
            _check(connection)
        await trio.lowlevel.checkpoint()

    # --- looking

    def page_nowait(self, name: str, since: Position | None, limit: int) -> HistoryPage | None:
        """A page of a room's history: after a position, or the newest. None: `page` has to wait for the store.

        Raises HistoryNotAvailable.
        """
        history = self._room(name).history
        if history is None:
            return None
        if since is None:
            if len(messages := history.newest(limit)) < min(limit, history.last) and self._is_stored(name):
                return None
            return _newest(messages, history.position)
        at = known_offset(since, history)
        if at is not None and at + 1 < history.first and self._is_stored(name):
            return None
        if at is None and since.epoch == history.epoch:
            return HistoryPage([], history.position, False, False)  # there is nothing after it
        if at is None and self._is_stored(name):
            return None
        start = history.first - 1 if at is None else at
        messages, more = history.page(start, limit, PAGE_BYTES)
        return HistoryPage(messages, history.position, at is not None and at + 1 >= history.first, more)

    async def page(self, name: str, since: Position | None, limit: int) -> HistoryPage:
        """As `page_nowait`, where it takes waiting. Raises HistoryNotAvailable, StoreError. Safe to cancel."""
        room, writer = self._room(name), self._writer
        history = await writer.load_history(room)
        if (answer := self.page_nowait(name, since, limit)) is not None:
            return answer
        if since is None:
            return _newest(_recorded(await writer.read_newest(name, limit), history), history.position)
        at = known_offset(since, history)
        page, messages = await writer.read(name, at or 0, limit)
        recovered, more = at is not None and at + 1 >= min(page.first, history.first), False
        if page.first > history.first:  # for what is not recorded yet, it has let go of what is in memory still
            messages, more = history.page(max(at or 0, history.first - 1), limit, PAGE_BYTES)
        elif messages:
            more = offset_of(messages[-1]) < history.last
        return HistoryPage(_recorded(messages, history), history.position, recovered, more)

    def _room(self, name: str) -> Room:
        if self._options.policy(name).history is HistoryStorage.NONE:
            raise HistoryNotAvailable(f"{name!r} keeps no history")
        return self._rooms.open(name)

    def _is_stored(self, name: str) -> bool:
        return self._rooms.open(name).is_stored


def _check(connection: ConnectionDriver) -> None:
    """Raises Refused when the connection ends: its session may be another's by now, and its places with it."""
    if connection.cause is not None:
        raise Refused("the connection ends", code="unavailable")


def _recorded(messages: list[Prepared], history: History) -> list[Prepared]:
    """Without those that were committed, but not delivered: a client at the answer's position is to get them still."""
    return [message for message in messages if offset_of(message) <= history.last]


def _newest(messages: list[Prepared], position: Position) -> HistoryPage:
    """The newest of them, as many as an answer holds."""
    size = 0
    for count, message in enumerate(reversed(messages)):
        size += message.size
        if count and size > PAGE_BYTES:
            return HistoryPage(messages[-count:], position, None, False)
    return HistoryPage(messages, position, None, False)
