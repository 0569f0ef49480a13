"""What a client may do: whether it may join, read and publish, and the names that it may use. All functions raise Refused."""

from .auth.identity import Identity
from .connections.driver import ConnectionDriver
from .errors import Refused
from .wire.commands import MAX_NAME, History, JoinRoom, Presence

__all__ = ["check_join", "check_name_size", "check_publish", "check_read"]


def check_join(connection: ConnectionDriver, command: JoinRoom, max_rooms: int) -> None:
    """The client must be allowed to join the room, and to read its history if it asks for it; and be in fewer than `max_rooms`
    others."""
    identity, room = _identity(connection), command.room
    if not identity.may_join(room):
        raise Refused(f"you may not join {room!r}")
    if command.history and not identity.may_read_history(room):
        raise Refused(f"you may not read the history of {room!r}")
    if room not in connection.rooms and len(connection.rooms) >= max_rooms:
        raise Refused(f"a connection may be in {max_rooms} rooms", code="too_many_rooms")
    check_name_size("room", room)


def check_read(connection: ConnectionDriver, command: Presence | History) -> str | int:
    """The client must be allowed to see what a room has, and ask with an `id`. Returns this id."""
    identity, room = _identity(connection), command.room
    if not (identity.may_read_history(room) if isinstance(command, History) else identity.may_see_presence(room)):
        raise Refused(f"you may not look into {room!r}")
    check_name_size("room", command.room)
    if command.id is None:
        raise Refused(f"`{command.type}` needs an `id`, which its answer repeats", code="invalid")
    return command.id


def check_publish(connection: ConnectionDriver, room: str, *, members_publish: bool) -> None:
    """The client must be allowed to publish to the room. `members_publish`: the room lets its members do that."""
    identity, is_member = _identity(connection), room in connection.rooms
    if identity.may_publish(room, as_member=is_member and members_publish):
        if not is_member:
            check_name_size("room", room)
    elif is_member or identity.publish is not None:
        raise Refused(f"you may not publish to {room!r}")
    else:
        raise Refused(f"join {room!r} before you publish to it", code="not_joined")


def check_name_size(what: str, name: str) -> None:
    """A name must have at most MAX_NAME bytes in UTF-8. The decoder has counted its characters."""
    if len(name) > MAX_NAME // 4 and len(name.encode()) > MAX_NAME:
        raise Refused(f"the name of a {what} must have 1 to {MAX_NAME} bytes in UTF-8", code="invalid")


def _identity(connection: ConnectionDriver) -> Identity:
    assert connection.identity is not None, "no other command is executed before `authenticate`"
    return connection.identity
