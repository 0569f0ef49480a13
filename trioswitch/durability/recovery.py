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

from .._util.clock import timestamp
from ..config import HistoryStorage, Options, Overflow
from ..connections.driver import ConnectionDriver
from ..connections.outbox import OfferResult
from ..errors import CloseCause, HistoryNotAvailable, Refused, StoreError
from ..rooms.directory import RoomDirectory
from ..rooms.history import History
from ..rooms.presence import Presence
from ..rooms.room import Room
from ..wire.messages import Gap, Position, Recorded, thawed
from ..wire.prepared import Prepared
from .store_writer import PAGE_BYTES, StoreWriter

__all__ = ["HistoryPage", "Joined", "Recovery", "RoomReadiness"]

PAGE: Final = 200
"""Messages that are read, and delivered, at once while a client catches up."""
_BEGINNING = Position("", 0)
"""Where a client is that has joined a stored room before its first message."""


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
        catch_up = _CatchUp(room, room.history, connection, reserved, since, newest)
        return self._finish(catch_up) if catch_up.is_little() else None

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
        catch_up = _CatchUp(room, history, connection, reserved, since, newest)
        try:
            catch_up.begin()
            while (joined := self._finish(catch_up)) is None:
                await self._advance(catch_up)
        finally:
            catch_up.end()
        return joined

    def _finish(self, catch_up: "_CatchUp") -> Joined | None:
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

    async def _advance(self, catch_up: "_CatchUp") -> None:
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
            messages = [message for message in messages if _offset(message) <= history.last]
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
        at = _known_offset(since, history)
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
        at = _known_offset(since, history)
        page, messages = await writer.read(name, at or 0, limit)
        recovered, more = at is not None and at + 1 >= min(page.first, history.first), False
        if page.first > history.first:  # for what is not recorded yet, it has let go of what is in memory still
            messages, more = history.page(max(at or 0, history.first - 1), limit, PAGE_BYTES)
        elif messages:
            more = _offset(messages[-1]) < history.last
        return HistoryPage(_recorded(messages, history), history.position, recovered, more)

    def _room(self, name: str) -> Room:
        if self._options.policy(name).history is HistoryStorage.NONE:
            raise HistoryNotAvailable(f"{name!r} keeps no history")
        return self._rooms.open(name)

    def _is_stored(self, name: str) -> bool:
        return self._rooms.open(name).is_stored


class _CatchUp:
    """How far a client has come: it has, or cannot have, everything up to `at`."""

    def __init__(
        self,
        room: Room,
        history: History,
        connection: ConnectionDriver,
        reserved: bool,
        since: Position | None,
        newest: int,
    ) -> None:
        self.room, self.history, self.connection, self.reserved, self.since = room, history, connection, reserved, since
        known = None if since is None else _known_offset(since, history)
        self.recovered = self._knows = known is not None  # up to where it has everything; later: that it has begun
        self._to_tell = since is not None and known is None
        self._was_member = False
        if known is not None:
            self.at = known
        elif since is not None and since.epoch == history.epoch:
            self.at = history.last  # nothing follows what is beyond the end
        else:
            self.at = 0 if room.is_stored else history.first - 1
            if since is None:
                self.at = max(self.at, history.last - newest)

    def begin(self) -> None:
        """Tell the client if its position is of another epoch. If it is a member, it gets nothing new meanwhile."""
        if self.room.membership.remove(self.connection.id):
            if self.reserved:  # its user has a place that is reserved, and the member's own
                self.room.membership.depart(self.connection.user)
            self.reserved = self._was_member = True
        if self._to_tell:
            self._to_tell = False
            self.connection.reply(Gap(room=self.room.name, epoch=self.history.epoch, lost=True))

    @property
    def has_place(self) -> bool:
        """Whether a place is reserved for it: unless it was a member, and was made to leave meanwhile."""
        return self.reserved and not (self._was_member and self.room.name not in self.connection.rooms)

    def end(self) -> None:
        """If it failed, a member is one again, with what comes from here on."""
        if self._was_member and self.room.name in self.connection.rooms:
            self.room.membership.add(self.connection.outbox)

    def is_little(self) -> bool:
        """Whether the rest is in memory, and one write at most; with a gap before it, it would be two."""
        if self._to_tell or self.at + 1 < self.history.first:
            return False
        window = self.history.replay(self.at, timestamp)
        return window is not None and (not window.messages or self.connection.outbox.direct)

    def missed(self, first: int) -> None:
        """Nothing before `first` is kept."""
        if first <= self.at + 1:
            return
        if self._knows:
            lost = Gap(room=self.room.name, epoch=self.history.epoch, start=self.at + 1, to=first - 1, lost=True)
            self.connection.reply(lost)
        self.recovered, self.at = False, first - 1

    async def put(self, message: Prepared) -> None:
        await self.connection.outbox.put(message)
        self.connection.allowance.charge(message.size)
        self.at, self._knows = _offset(message), True

    def replay(self) -> bool:
        """Give the rest to the outbox. Returns False when there is no space for all of it."""
        outbox = self.connection.outbox
        window = self.history.replay(self.at, timestamp)
        if window is None:
            return False
        self.connection.allowance.charge(sum([message.size for message in window.messages]))
        if not window.messages or outbox.deliver(window) is not None:
            return True
        for message in window.messages:
            if outbox.offer(message, Overflow.BLOCK) is OfferResult.FULL:
                return False
            self.at, self._knows = _offset(message), True
        return True


def _check(connection: ConnectionDriver) -> None:
    """Raises Refused when the connection ends: its session may be another's by now, and its places with it."""
    if connection.cause is not None:
        raise Refused("the connection ends", code="unavailable")


def _known_offset(since: Position, history: History) -> int | None:
    """How far a client has come in this history; None when its position is of another one."""
    if since.epoch == history.epoch and since.offset <= history.last:
        return since.offset
    return 0 if since == _BEGINNING else None


def _recorded(messages: list[Prepared], history: History) -> list[Prepared]:
    """Without those that were committed, but not delivered: a client at the answer's position is to get them still."""
    return [message for message in messages if _offset(message) <= history.last]


def _newest(messages: list[Prepared], position: Position) -> HistoryPage:
    """The newest of them, as many as an answer holds."""
    size = 0
    for count, message in enumerate(reversed(messages)):
        size += message.size
        if count and size > PAGE_BYTES:
            return HistoryPage(messages[-count:], position, None, False)
    return HistoryPage(messages, position, None, False)


def _offset(message: Prepared) -> int:
    event = message.event
    assert isinstance(event, Recorded)
    assert isinstance(event.offset, int)
    return event.offset
