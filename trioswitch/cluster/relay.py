"""The relay: what is published to rooms is carried between nodes, in one order for all."""

from functools import partial
from typing import Final

from ..rooms.intake import Intake
from ..rooms.room import Room
from ..wire.messages import Position
from ..wire.prepared import Prepared
from .committed import CommittedMessages
from .link import Link
from .live import LiveMessages
from .messages import room_topic
from .presence import ClusterPresence

__all__ = ["ClusterRelay"]

ATTACH_TIMEOUT: Final = 2.0
"""Seconds that a client who joins a room waits until this node hears what other nodes publish there. After that, it joins."""


class ClusterRelay:
    """Implements `rooms.directory.RoomRelay` and `durability.recovery.RoomReadiness`."""

    def __init__(self, link: Link, presence: ClusterPresence, live: LiveMessages, committed: CommittedMessages) -> None:
        self._link = link
        self._presence = presence
        self._live = live
        self._committed = committed

    @property
    def full(self) -> bool:
        return self._link.full

    async def wait_space(self) -> None:
        await self._link.wait_space()

    def submit(self, room: Intake, message: Prepared) -> None:
        self._live.submit(room, message)

    def committed(self, room: Intake, message: Prepared) -> None:
        self._committed.send(room, message)

    def behind(self, room: Intake) -> None:
        self._committed.behind(room)

    def opened(self, room: Room) -> None:
        self._live.opened(room)
        self._committed.opened(room)
        self._presence.opened(room, room_topic(room.name), on_attached=partial(self._attached, room))

    def closed(self, room: Room) -> None:
        self._live.closed(room)
        self._committed.closed(room)
        self._presence.closed(room_topic(room.name))

    async def reach(self, room: Room, position: Position) -> None:
        await self._committed.reach(room, position)

    def _attached(self, room: Room) -> None:
        self._live.attached(room)
        self._committed.attached(room)

    def is_ready(self, room: Room) -> bool:
        """Whether this node hears everything that is published to a room, and knows who is there."""
        topic = room_topic(room.name)
        return not self._link.connected or (self._link.attached(topic) and self._presence.is_known(topic))

    async def wait_ready(self, room: Room) -> None:
        """Wait until `is_ready`, or for so long that a client should not wait any longer. Safe to cancel."""
        topic = room_topic(room.name)
        if self._link.connected and await self._link.wait_attached(topic, ATTACH_TIMEOUT):
            await self._presence.wait_known(topic)
