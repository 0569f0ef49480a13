"""Presence across nodes: which users of other nodes are in the rooms of this one.

Every node with members in a room knows the users of all, and tells its own members who comes and goes. A user with connections
on two nodes is there once. When a node dies, each of the others notices, and its own members are told of the leaves.
"""

from collections.abc import Callable

from ..rooms.announcements import Announcements
from ..rooms.directory import RoomDirectory
from ..rooms.room import Room
from .link import Link
from .messages import room_topic
from .roster import Roster
from .shared_state import SharedState

__all__ = ["ClusterPresence"]


class ClusterPresence:
    """The shared state of rooms: the number of each user's connections. `run` is its task."""

    def __init__(self, link: Link, roster: Roster, rooms: RoomDirectory) -> None:
        self._rooms = rooms
        self._announcements: Announcements | None = None
        self._open: dict[str, tuple[Room, Callable[[], None]]] = {}  # by topic, with who is told that it is attached
        self._state = SharedState(link, roster, "room", self._users_here, self._attached, self._on_change)
        self.run = self._state.run
        self.run_repeating = self._state.run_repeating
        self.is_known = self._state.is_known
        self.wait_known = self._state.wait_known

    def announce_by(self, announcements: Announcements) -> None:
        """Who tells the members of rooms of users elsewhere."""
        self._announcements = announcements

    def opened(self, room: Room, topic: str, on_attached: Callable[[], None]) -> None:
        self._open[topic] = (room, on_attached)
        self._state.open(topic)

    def closed(self, topic: str) -> None:
        self._state.close(topic)
        del self._open[topic]

    def _users_here(self, topic: str) -> dict[str, int]:
        membership = self._open[topic][0].membership
        return {user: here for user in membership.users if (here := membership.here(user))}

    def _attached(self, topic: str) -> None:
        self._open[topic][1]()

    def changed(self, room: Room, user: str) -> None:
        """A user has another number of connections in a room, on this node."""
        self._state.changed(room_topic(room.name), user, room.membership.here(user))

    def _on_change(self, topic: str, node: str, user: str, connections: int, is_new: bool) -> None:
        room = self._rooms.get(topic.partition(":")[2])
        if room is None or not room.membership.count_elsewhere(node, user, connections) or self._announcements is None:
            return
        if not is_new:
            self._announcements.counted(room)
        elif connections:
            self._announcements.joined(room, user)
        else:
            self._announcements.left(room, user)
