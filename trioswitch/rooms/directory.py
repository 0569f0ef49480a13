"""The directory of rooms: which rooms there are, how one is opened and closed, and the supervision of their tasks."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from secrets import token_urlsafe
from typing import Final, Protocol

import trio

from .._util.supervision import supervise
from ..config import HistoryStorage, Options
from ..connections.directory import YIELD_EVERY
from ..metrics import Traffic
from ..wire.prepared import Prepared
from .dispatcher import Dispatcher
from .history import History, HistoryBudget
from .intake import Relay
from .membership import Member
from .room import Room

__all__ = ["RoomDirectory", "RoomRelay"]

_log = logging.getLogger(__name__)

IDLE_ROOM_SWEEP_INTERVAL: Final = 10.0
"""Seconds between two looks at rooms with history that nobody is in: those that are idle then are closed."""


class RoomRelay(Relay, Protocol):
    """The relay of a cluster (`rooms.room`), which is told of rooms, too."""

    def opened(self, room: Room) -> None:
        """A room is open: what other nodes publish to it is wanted here."""

    def closed(self, room: Room) -> None:
        """It is no more."""


class RoomDirectory:
    """All rooms that are open. It belongs to one Trio thread.

    A room without history exists while it has members. One with history also exists while messages are kept in memory, or
    somebody needs it. `submit` gives a message of a stored room to the store; `nursery` is for rooms' tasks.
    """

    def __init__(
        self,
        options: Options,
        traffic: Traffic,
        budget: HistoryBudget,
        nursery: trio.Nursery,
        submit: Callable[[Room, Prepared], None],
    ) -> None:
        self._relay: RoomRelay | None = None
        self._options = options
        self._traffic = traffic
        self._budget = budget
        self._nursery = nursery
        self._submit = submit
        self._rooms: dict[str, Room] = {}
        self._deserted: set[str] = set()  # rooms with history that everybody has left, or nobody has joined yet
        self._abandoned = False
        self.dispatcher = Dispatcher(self._start_task, self._crashed)
        self.crashes = 0
        """How often a room has crashed."""

    def __iter__(self) -> Iterator[Room]:
        """All rooms that are open. They may be opened and closed while nobody iterates, not during an iteration."""
        return iter(self._rooms.values())

    def __len__(self) -> int:
        return len(self._rooms)

    def join_cluster(self, relay: RoomRelay) -> None:
        """Carry the messages of rooms between nodes. To be called before any room is opened."""
        assert not self._rooms
        self._relay = relay

    # --- rooms

    def get(self, name: str) -> Room | None:
        """The room, if it is open."""
        return self._rooms.get(name)

    def open(self, name: str) -> Room:
        """The room; it is opened if it is not open. Raises trio.ClosedResourceError when the switch has ended."""
        room = self._rooms.get(name)
        if room is None:
            if self._abandoned:
                raise trio.ClosedResourceError("the switch's block was left")
            policy = self._options.policy(name)
            relay, in_memory = self._relay, policy.history is HistoryStorage.MEMORY
            history = History(policy, self._budget, token_urlsafe(6)) if in_memory and relay is None else None
            room = Room(name, policy, self._options, self._traffic, history, relay, self.dispatcher.wake, self._submit)
            self._rooms[name] = room
            self._traffic.open_room(name, policy.pattern)
            if policy.history is not HistoryStorage.NONE or relay is not None:
                self._deserted.add(name)
            if relay is not None:
                relay.opened(room)
        return room

    def for_publishing(self, name: str) -> Room | None:
        """The room to which something is published: it is opened if it keeps a history. None: nobody would get it."""
        room = self._rooms.get(name)
        if room is None and self._options.policy(name).history is not HistoryStorage.NONE:
            return self.open(name)
        return room

    def is_stored(self, name: str) -> bool:
        """Whether the room's messages are stored."""
        room = self._rooms.get(name)
        if room is not None:
            return room.is_stored
        history = self._options.policy(name).history
        return history is HistoryStorage.STORED or (history is HistoryStorage.MEMORY and self._relay is not None)

    def members_publish(self, name: str) -> bool:
        """Whether the members of a room may publish to it."""
        room = self._rooms.get(name)
        return (room.policy if room is not None else self._options.policy(name)).members_publish

    # --- members that are not connections

    def add_member(self, name: str, member: Member) -> None:
        """Make a subscription, say, a member of a room; nobody is told."""
        self.open(name).membership.add(member)

    def remove_member(self, name: str, member: Member) -> None:
        room = self._rooms.get(name)
        if room is not None and room.membership.remove(member.id):
            self.close_if_empty(room)

    # --- ends

    def close_if_empty(self, room: Room) -> None:
        """Close a room that somebody has just left, if nobody is in it and it keeps nothing."""
        if not room.membership.empty:
            return
        if room.policy.history is HistoryStorage.NONE and not room.is_pinned:
            self._close(room)
        else:
            self._deserted.add(room.name)

    def close_if_idle(self, room: Room) -> None:
        """Close a room that was opened to look into it, if nobody needs it."""
        if room.idle and self._rooms.get(room.name) is room:
            self._deserted.discard(room.name)
            self._close(room)

    def _close(self, room: Room) -> None:
        del self._rooms[room.name]
        self._traffic.forget_room(room.name)
        room.close()
        if self._relay is not None:
            self._relay.closed(room)

    async def close_idle_rooms(self) -> None:
        """The task that closes rooms with history that nobody is in, when nothing is pending in them and nothing is kept."""
        while True:
            await trio.sleep(IDLE_ROOM_SWEEP_INTERVAL)
            for count, name in enumerate(list(self._deserted)):
                if not count % YIELD_EVERY:
                    await trio.lowlevel.checkpoint()
                room = self._rooms.get(name)
                if room is None:
                    continue
                if room.idle:
                    self._close(room)
                if room.idle or room.membership.members:
                    self._deserted.discard(name)

    async def wait_dispatched(self) -> None:
        """Wait until everything that was published to any room before has been delivered to its members. Safe to cancel."""
        for room in list(self._rooms.values()):
            await room.wait_dispatched()

    def abandon(self) -> None:
        """The switch ends: nothing is delivered any more, and the outcome of what is pending is reported."""
        self._abandoned = True
        for room in self._rooms.values():
            room.abandon()

    # --- rooms' tasks

    def _start_task(self, room: Room) -> None:
        self._nursery.start_soon(supervise, room.run, partial(self._crashed, room))

    def _crashed(self, room: Room) -> None:
        """Called while the exception is handled."""
        _log.exception(
            "room %r crashed and is started again with its %d members", room.name, len(room.membership.members)
        )
        self.crashes += 1
        room.crashed()
