"""Presence: which connections and users are in which room. Joins and leaves go through here, and are announced."""

from collections.abc import Callable, Mapping

from ..connections.directory import ConnectionDirectory
from ..connections.driver import ConnectionDriver
from .announcements import Announcements
from .directory import RoomDirectory
from .room import Room

__all__ = ["Presence"]


class Presence:
    """Who is in which room.

    A user is in a room with each of its connections that is a member, and with each place that is *reserved* there for a
    client that has lost its connection and may resume its session.
    """

    def __init__(self, rooms: RoomDirectory, connections: ConnectionDirectory, announcements: Announcements) -> None:
        self._rooms = rooms
        self._connections = connections
        self._announcements = announcements
        self._on_change: Callable[[Room, str], None] = lambda _room, _user: None
        self._on_connection: list[Callable[[ConnectionDriver], None]] = []

    def on_change(self, callback: Callable[[Room, str], None]) -> None:
        """Have this called when a user has another number of connections in a room, on this node."""
        self._on_change = callback

    def on_connection(self, callback: Callable[[ConnectionDriver], None]) -> None:
        """Have this called when a connection has other rooms, or another user."""
        self._on_connection.append(callback)

    def join(self, connection: ConnectionDriver, name: str, *, reserved: bool = False) -> Room:
        """Make the connection a member. The members, itself included, are told if its user was not there before.

        `reserved`: a place was reserved for it (`reserve`), so that nobody is told.
        """
        room = self._rooms.open(name)
        if connection.id not in room.membership.members:
            connection.enter(name)
            self._connection_changed(connection)
            room.membership.add(connection.outbox)
            if not reserved:
                self._arrive(room, connection.user)
        elif reserved:
            room.membership.depart(connection.user)
            self._on_change(room, connection.user)
        return room

    def leave(self, connection: ConnectionDriver, name: str) -> bool:
        """End a membership. Returns whether there was one."""
        room = self._rooms.get(name)
        if room is None or name not in connection.rooms:
            return False
        connection.exit(name)
        room.membership.remove(connection.id)
        self._depart(room, connection.user)
        self._connection_changed(connection)
        return True

    def _connection_changed(self, connection: ConnectionDriver) -> None:
        for callback in self._on_connection:
            callback(connection)

    def leave_all(self, connection: ConnectionDriver) -> None:
        for name in list(connection.rooms):
            self.leave(connection, name)

    def reserve(self, connection: ConnectionDriver) -> frozenset[str]:
        """End all memberships of a connection, and reserve its user's places, until `join` or `vacate`. Returns the rooms."""
        names = frozenset(connection.rooms)
        for name in names:
            connection.exit(name)
            self._room(name).membership.remove(connection.id)
        return names

    def vacate(self, user: str, name: str) -> None:
        """Give up a place that was reserved."""
        self._depart(self._room(name), user)

    def change_user(self, connection: ConnectionDriver, user: str, *, declared: bool) -> None:
        """The connection belongs to another user from now on; its rooms are told that one user left and another came.

        `declared` as in `ConnectionDriver.become`.
        """
        before = connection.user
        self._connections.change_user(connection, user, declared=declared)
        self._connection_changed(connection)
        if user == before:
            return
        for name in connection.rooms:
            room = self._room(name)
            self._leave(room, before)
            self._arrive(room, user)

    def _arrive(self, room: Room, user: str) -> None:
        if room.membership.arrive(user):
            self._announcements.joined(room, user)
        self._on_change(room, user)

    def _leave(self, room: Room, user: str) -> None:
        if room.membership.depart(user):
            self._announce_left(room, user)
        self._on_change(room, user)

    def _depart(self, room: Room, user: str) -> None:
        self._leave(room, user)
        self._rooms.close_if_empty(room)

    def _announce_left(self, room: Room, user: str) -> None:
        if not self._connections.draining:  # everybody leaves
            self._announcements.left(room, user)

    def _room(self, name: str) -> Room:
        room = self._rooms.get(name)
        assert room is not None, f"{name!r} has members or reserved places, so it is open"
        return room

    # --- who is there

    def users(self, name: str) -> Mapping[str, int]:
        """The users in a room, in the order in which they came, with the number of their connections and reserved places."""
        room = self._rooms.get(name)
        return room.membership.users if room is not None else {}

    def connections(self, name: str) -> int:
        """The number of connections in a room, reserved places included."""
        room = self._rooms.get(name)
        return room.membership.connections if room is not None else 0
