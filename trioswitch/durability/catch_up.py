"""How far a client has come in the history of a room that it joins."""

from .._util.clock import timestamp
from ..config import Overflow
from ..connections.driver import ConnectionDriver
from ..connections.outbox import OfferResult
from ..rooms.history import History
from ..rooms.room import Room
from ..wire.messages import Gap, Position, Recorded
from ..wire.prepared import Prepared

__all__ = ["CatchUp", "known_offset", "offset_of"]

_BEGINNING = Position("", 0)
"""Where a client is that has joined a stored room before its first message."""


class CatchUp:
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
        known = None if since is None else known_offset(since, history)
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
        self.at, self._knows = offset_of(message), True

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
            self.at, self._knows = offset_of(message), True
        return True


def known_offset(since: Position, history: History) -> int | None:
    """How far a client has come in this history; None when its position is of another one."""
    if since.epoch == history.epoch and since.offset <= history.last:
        return since.offset
    return 0 if since == _BEGINNING else None


def offset_of(message: Prepared) -> int:
    """The offset of a message that has one."""
    event = message.event
    assert isinstance(event, Recorded)
    assert isinstance(event.offset, int)
    return event.offset
