"""What the application's code can do with one connection, by its object or its id."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .connections.connection import Connection
from .connections.directory import ConnectionDirectory
from .errors import CloseCause, UnknownConnection
from .publishing import check_name, event_of, prepare
from .rooms.presence import Presence
from .wire.prepared import Receipt

if TYPE_CHECKING:
    from .switch import Switch

__all__ = ["ConnectionServices"]


class ConnectionServices:
    """Implements the methods of `Connection`, and those of `Switch` that take one. All raise UnknownConnection."""

    def __init__(
        self,
        connections: ConnectionDirectory,
        presence: Presence,
        kick_elsewhere: Callable[[str, str], bool] | None = None,
    ) -> None:
        """`kick_elsewhere` closes a connection on another node, by id and reason; it returns False when there is no such node."""
        self._kick_elsewhere = kick_elsewhere
        self._connections = connections
        self._presence = presence
        self._switch: Switch | None = None

    def attach(self, switch: "Switch") -> None:
        """The facade is made last, of all other parts."""
        self._switch = switch

    @property
    def switch(self) -> "Switch":
        assert self._switch is not None, "it is attached before any connection is admitted"
        return self._switch

    async def send(
        self,
        connection: Connection | str,
        data: Any,
        *,
        priority: int = 0,
        max_delay: float | None = None,
        expires: float | None = None,
        key: str | None = None,
    ) -> Receipt:
        event = event_of(data, None, key)
        message = prepare(event, priority=priority, max_delay=max_delay, expires=expires, key=key)
        return await self._connections.send([self._connections.get(connection)], message)

    def join(self, connection: Connection | str, room: str) -> None:
        check_name("room", room)
        self._presence.join(self._connections.get(connection), room)

    def leave(self, connection: Connection | str, room: str) -> None:
        check_name("room", room)
        self._presence.leave(self._connections.get(connection), room)

    def kick(self, connection: Connection | str, reason: str = "") -> None:
        if not isinstance(reason, str):
            raise TypeError(f"the reason must be a str, not {reason!r}")
        try:
            self._connections.get(connection).close(CloseCause.KICKED, reason or None)
        except UnknownConnection as unknown:
            if self._kick_elsewhere is None or not self._kick_elsewhere(str(unknown.args[0]), reason):
                raise
