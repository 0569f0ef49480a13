"""Handlers: the application's callbacks for message types of its own."""

from collections.abc import Callable
from fnmatch import fnmatchcase

from ._util.checks import check_async, check_text
from .connections.driver import ConnectionDriver, Handler
from .errors import Refused
from .wire.commands import COMMANDS, MAX_NAME, Custom

__all__ = ["Handlers"]


class Handlers:
    """A table of handlers, made at module level and given to `open_switch(handlers=...)`::

        handlers = Handlers()

        @handlers.on("order")
        async def order(connection, message):
            return {"accepted": True}

    A handler is called with the `Connection` and the message, a dict. It runs in the connection's nursery, one message after
    the other, and is cancelled when the connection ends. What it returns is the `data` of the `ack` to a message with an `id`.
    It may raise Refused; what else it raises is logged, and the client gets `internal`.
    """

    def __init__(self) -> None:
        self._by_type: dict[str, dict[str | None, Handler]] = {}

    def on(self, type: str, *, room: str | None = None) -> Callable[[Handler], Handler]:
        """Decorator: register an async function for client messages with this `type`.

        With `room`, a name or a pattern (`*`, `?`, `[a-z]`), it is for messages whose field `room` matches, from clients that
        are in that room or may publish to it without having joined it. The first pattern that matches holds, and a handler
        without a room is called where none does.

        Raises ValueError for a type of the client protocol, and when there is such a handler already; TypeError for
        arguments of another type, and for what is not an async function.
        """
        check_text("type", type, MAX_NAME)
        if room is not None:
            check_text("room", room, MAX_NAME)
        if type in COMMANDS:
            raise ValueError(f"{type!r} is a type of the client protocol")

        def register(handler: Handler) -> Handler:
            check_async("a handler", handler)
            by_room = self._by_type.setdefault(type, {})
            if room in by_room:
                raise ValueError(f"there is a handler for {type!r}{f' in {room!r}' if room else ''} already")
            by_room[room] = handler
            return handler

        return register

    def find(self, connection: ConnectionDriver, command: Custom) -> Handler:
        """The handler for a message of a client. Raises Refused when there is none, or the client may not use it there."""
        by_room = self._by_type.get(command.type)
        if by_room is None:
            raise Refused(f"unknown type {command.type[:64]!r}", code="unknown_type")
        room = command.room
        if room is not None:
            for pattern, handler in by_room.items():
                if pattern is not None and fnmatchcase(room, pattern):
                    _check_room(connection, room)
                    return handler
        if None not in by_room:
            raise Refused(f"`{command.type[:64]}` is not a type of messages for this room", code="unknown_type")
        return by_room[None]


def _check_room(connection: ConnectionDriver, room: str) -> None:
    identity = connection.identity
    if identity is None or not (room in connection.rooms or identity.may_publish(room, as_member=False)):
        raise Refused(f"join {room!r} before you send this to it", code="not_joined")
