"""A connection as applications hold it: in hooks, in handlers, and in the calls of a `Switch`."""

from typing import TYPE_CHECKING, Any, Protocol

from ..auth.identity import Identity
from ..auth.request import ConnectRequest
from ..errors import CloseCause
from ..wire.prepared import Receipt

if TYPE_CHECKING:
    from ..switch import Switch
    from .driver import ConnectionDriver

__all__ = ["Connection", "Services"]


class Services(Protocol):
    """What a connection asks of its switch."""

    @property
    def switch(self) -> "Switch": ...

    async def send(
        self,
        connection: "Connection",
        data: Any,
        *,
        priority: int = 0,
        max_delay: float | None = None,
        expires: float | None = None,
        key: str | None = None,
    ) -> Receipt: ...

    def join(self, connection: "Connection", room: str) -> None: ...

    def leave(self, connection: "Connection", room: str) -> None: ...

    def kick(self, connection: "Connection", reason: str = "") -> None: ...


class Connection:
    """One client that is connected. Handlers and hooks get it; a `Switch` takes it wherever it takes a connection's id.

    It stays readable when the client is gone. Two of them are equal if they are the same client's.
    """

    __slots__ = ("_driver", "_services")

    def __init__(self, driver: "ConnectionDriver", services: Services) -> None:
        self._driver = driver
        self._services = services

    @property
    def id(self) -> str:
        """The connection's id: a random string, new for each connection."""
        return self._driver.id

    @property
    def user(self) -> str:
        """Its user: from its identity, or what an anonymous client called itself; its own id before that."""
        return self._driver.user

    @property
    def identity(self) -> Identity | None:
        """Who it is, as `on_connect` or `authenticate` said; None while its client has yet to authenticate itself."""
        return self._driver.identity

    @property
    def request(self) -> ConnectRequest:
        """The request with which it came."""
        return self._driver.request

    @property
    def rooms(self) -> frozenset[str]:
        """The rooms that it is a member of now."""
        return frozenset(self._driver.rooms)

    @property
    def cause(self) -> CloseCause | None:
        """Why it ended; None while it is open."""
        return self._driver.cause

    @property
    def switch(self) -> "Switch":
        """The switch that serves it: so a handler at module level can publish."""
        return self._services.switch

    async def send(
        self,
        data: Any,
        *,
        priority: int = 0,
        max_delay: float | None = None,
        expires: float | None = None,
        key: str | None = None,
    ) -> Receipt:
        """Send to this connection only; the arguments, and what is raised, as in `Switch.send`."""
        return await self._services.send(self, data, priority=priority, max_delay=max_delay, expires=expires, key=key)

    def join(self, room: str) -> None:
        """Make it a member of a room. Raises UnknownConnection when it has ended."""
        self._services.join(self, room)

    def leave(self, room: str) -> None:
        """End its membership of a room, if there is one. Raises UnknownConnection when it has ended."""
        self._services.leave(self, room)

    def close(self, reason: str = "") -> None:
        """Close it with 4502, so that the client does not come back, after what is pending for it. Returns at once.

        `reason` is shown to the client, up to 123 bytes of UTF-8. Does nothing when it has ended already.
        """
        if self._driver.cause is None:
            self._services.kick(self, reason)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Connection) and other._driver is self._driver

    def __hash__(self) -> int:
        return hash(self._driver)

    def __repr__(self) -> str:
        return f"<Connection {self.id} of {self.user!r}>"
