"""Announcements: the members of a room are told who joins and leaves it, or how many users there are."""

from collections.abc import Callable
from math import inf
from typing import Final

import trio

from .._util.wakeup import Wakeup
from ..errors import DeliveryError
from ..wire.messages import System
from ..wire.prepared import Announcement, Prepared
from .directory import RoomDirectory
from .room import Room

__all__ = ["Announcements"]

COUNT_INTERVAL: Final = 1.0
"""Seconds between two announcements of a big room's user count (`docs/protocol.md`)."""


class Announcements:
    """Announces to the members of rooms. `run` is its task; `publish` is `Publisher.publish_nowait`.

    In a room with more users than its policy's `announce_limit`, joins and leaves are not announced one by one: the count is,
    at most once in `COUNT_INTERVAL`. The same holds while a room is too full to take an announcement.
    """

    def __init__(self, rooms: RoomDirectory, publish: Callable[[str, Prepared], None]) -> None:
        self._rooms = rooms
        self._publish = publish
        self._due: dict[str, float] = {}  # rooms whose count is to be announced, and when
        self._counted_at: dict[str, float] = {}  # when the count of one of these rooms was last announced
        self._wakeup = Wakeup()

    def joined(self, room: Room, user: str) -> None:
        """Tell a room that a user came, whose first connection this is."""
        self._announce(room, "user_joined", user)

    def left(self, room: Room, user: str) -> None:
        """Tell a room that a user left, whose last connection this was."""
        self._announce(room, "user_left", user)

    def counted(self, room: Room) -> None:
        """Tell a room how many users there are, as it has learned of users who were there before."""
        if room.policy.announce and room.membership.members:
            self._count_soon(room.name)

    def _announce(self, room: Room, action: str, user: str) -> None:
        policy = room.policy
        if not policy.announce or not room.membership.members:
            return
        if len(room.membership.users) <= policy.announce_limit:
            event = System(action=action, room=room.name, online_count=len(room.membership.users), user_id=user)
            if self._published(room.name, event):
                return
        self._count_soon(room.name)

    def _count_soon(self, room: str) -> None:
        self._due.setdefault(room, self._counted_at.get(room, -inf) + COUNT_INTERVAL)
        self._wakeup.notify()

    def _published(self, room: str, event: System) -> bool:
        try:
            self._publish(room, Announcement(event, room=room))
        except (trio.WouldBlock, DeliveryError):
            return False  # the room is full: the count, once it can be told, stands for what is left out
        return True

    async def run(self) -> None:
        """The task that tells big rooms how many users they have."""
        while True:
            while not self._due:
                await self._wakeup.wait()
            await trio.sleep_until(min(self._due.values()))
            now = trio.current_time()
            self._counted_at = {name: at for name, at in self._counted_at.items() if at + COUNT_INTERVAL > now}
            for name in [name for name, due in self._due.items() if due <= now]:
                del self._due[name]
                room = self._rooms.get(name)
                if room is None:
                    continue
                self._counted_at[name] = now
                if not self._published(
                    name, System(action="count", room=name, online_count=len(room.membership.users))
                ):
                    self._due[name] = now + COUNT_INTERVAL
