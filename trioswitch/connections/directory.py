"""The directory of connections: which connections and users there are, and how a message is sent to them directly."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Final

import trio

from .._util.clock import timestamp
from .._util.wakeup import Wakeup
from ..auth.identity import Identity
from ..config import Overflow
from ..errors import CloseCause, UnknownConnection
from ..wire.prepared import Prepared, Receipt
from .connection import Connection
from .driver import ConnectionDriver
from .outbox import OfferResult

__all__ = ["YIELD_EVERY", "ConnectionDirectory"]

YIELD_EVERY: Final = 128
"""Receivers after which a fan-out lets other tasks run; measured, more often costs throughput, less often latency."""


class ConnectionDirectory:
    """All connections that are open, by id and by user. It belongs to one Trio thread.

    A connection whose client has yet to authenticate itself is nobody: it is counted by `total` and listed by `everyone`, so that
    the limits hold for it and a drain closes it, and nothing else knows of it.

    `overflow` is what happens to a message that is sent directly to a connection with a full outbox.
    """

    def __init__(self, overflow: Overflow) -> None:
        self._overflow = overflow
        self._connections: dict[str, ConnectionDriver] = {}
        self._unauthenticated: dict[str, ConnectionDriver] = {}
        self._by_user: dict[str, dict[str, ConnectionDriver]] = {}
        self._emptied = Wakeup()
        self.opened = 0
        """Connections that were ever opened."""
        self.closes: Counter[CloseCause] = Counter()
        """Connections that have ended, by cause."""
        self._on_user: Callable[[str, bool], None] = lambda _user, _online: None
        self._on_added: Callable[[ConnectionDriver], None] = lambda _connection: None
        self.draining = False
        """Whether all connections are about to end: nobody new is admitted, and leaves are not announced."""

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[ConnectionDriver]:
        """All connections whose client is known. They may come and go while nobody iterates, not during an iteration."""
        return iter(self._connections.values())

    @property
    def total(self) -> int:
        """The number of connections, those included whose client has yet to authenticate itself."""
        return len(self._connections) + len(self._unauthenticated)

    def everyone(self) -> list[ConnectionDriver]:
        """All connections, those included whose client has yet to authenticate itself."""
        return [*self._connections.values(), *self._unauthenticated.values()]

    @property
    def ids(self) -> Collection[str]:
        return self._connections.keys()

    @property
    def users(self) -> Collection[str]:
        """All users that have a connection."""
        return self._by_user.keys()

    def begin_drain(self) -> None:
        """From now on nobody is admitted (`draining`)."""
        self.draining = True

    def on_user(self, callback: Callable[[str, bool], None]) -> None:
        """Have this called with a user who has a connection now and had none (True), or has none any more (False)."""
        self._on_user = callback

    def on_added(self, callback: Callable[[ConnectionDriver], None]) -> None:
        """Have this called with each connection that is added to those of a user."""
        self._on_added = callback

    # --- who there is

    def add(self, connection: ConnectionDriver) -> None:
        self.opened += 1
        if connection.identity is None:
            self._unauthenticated[connection.id] = connection
        else:
            self._connections[connection.id] = connection
            self._add_to_user(connection)

    def authenticate(self, connection: ConnectionDriver, identity: Identity) -> None:
        """The client of a connection has authenticated itself."""
        del self._unauthenticated[connection.id]
        connection.authenticate(identity)
        self._connections[connection.id] = connection
        self._add_to_user(connection)

    def remove(self, connection: ConnectionDriver) -> None:
        """Forget a connection that has ended. Does nothing for one that was never added."""
        if self._connections.pop(connection.id, None) is not None:
            self._remove_from_user(connection)
        elif self._unauthenticated.pop(connection.id, None) is None:
            return
        if connection.cause is not None:
            self.closes[connection.cause] += 1
        if not self.total:
            self._emptied.notify()

    def change_user(self, connection: ConnectionDriver, user: str, *, declared: bool) -> None:
        """The connection belongs to another user from now on; `declared` as in `ConnectionDriver.become`."""
        if user == connection.user:
            connection.become(user, declared=declared)
            return
        self._remove_from_user(connection)
        connection.become(user, declared=declared)
        self._add_to_user(connection)

    def _add_to_user(self, connection: ConnectionDriver) -> None:
        of_user = self._by_user.get(connection.user)
        if of_user is not None:
            of_user[connection.id] = connection
        else:
            self._by_user[connection.user] = {connection.id: connection}
            self._on_user(connection.user, True)
        self._on_added(connection)

    def _remove_from_user(self, connection: ConnectionDriver) -> None:
        of_user = self._by_user.get(connection.user)
        if of_user is not None and of_user.pop(connection.id, None) is not None and not of_user:
            del self._by_user[connection.user]
            self._on_user(connection.user, False)

    def get(self, connection: Connection | str) -> ConnectionDriver:
        """By its public object or its id. Raises UnknownConnection when there is none, or none any more."""
        id = connection.id if isinstance(connection, Connection) else connection
        if not isinstance(id, str):
            raise TypeError(f"a connection must be a Connection or its id, not {connection!r}")
        try:
            return self._connections[id]
        except KeyError:
            raise UnknownConnection(id) from None

    def find(self, connections: Iterable[Connection | str]) -> list[ConnectionDriver]:
        """Those of these connections that are open, by public object or id."""
        ids = (known.id if isinstance(known, Connection) else known for known in connections)
        return [self._connections[id] for id in ids if id in self._connections]

    def of_user(self, user: str) -> Collection[ConnectionDriver]:
        return self._by_user.get(user, {}).values()

    def of_users(self, users: Iterable[str]) -> list[ConnectionDriver]:
        return [connection for user in users for connection in self.of_user(user)]

    async def wait_empty(self) -> None:
        """Wait until there is no connection. Safe to cancel."""
        while self.total:
            await self._emptied.wait()

    # --- messages to them

    async def send(self, receivers: Sequence[ConnectionDriver], message: Prepared) -> Receipt:
        """Offer a message to connections. When it is cancelled, some of them may have it."""
        counts: Counter[OfferResult] = Counter()
        message.stamp(timestamp())
        for start in range(0, len(receivers), YIELD_EVERY):
            if start:
                await trio.lowlevel.checkpoint()
            self._offer(receivers[start : start + YIELD_EVERY], message, counts)
        return _receipt(counts)

    def send_nowait(self, receivers: Iterable[ConnectionDriver], message: Prepared) -> Receipt:
        """As `send`, for a few receivers, without a checkpoint."""
        counts: Counter[OfferResult] = Counter()
        message.stamp(timestamp())
        self._offer(receivers, message, counts)
        return _receipt(counts)

    def _offer(self, receivers: Iterable[ConnectionDriver], message: Prepared, counts: "Counter[Any]") -> None:
        for connection in receivers:
            if connection.id not in message.exclude:
                counts[connection.outbox.offer(message, self._overflow)] += 1

    async def flush(self) -> None:
        """Write everything that is pending now, whatever its linger, and wait until it is written. Safe to cancel.

        A connection that ends is not waited for any longer.
        """
        async with trio.open_nursery() as nursery:
            for connection in list(self._connections.values()):
                if connection.outbox.busy:
                    nursery.start_soon(connection.outbox.flush)


def _receipt(counts: "Counter[OfferResult]") -> Receipt:
    return Receipt(counts[OfferResult.WRITTEN], counts[OfferResult.QUEUED], counts[OfferResult.DROPPED])
