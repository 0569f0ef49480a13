"""psycopg's connection on Trio. Its generators say what to wait for, and Trio waits. One task at a time uses a connection.

`_connect_gen` and `lock` are psycopg's own: the extra `postgres` is held at the versions that these were tried with.
"""

from collections.abc import Generator, Sequence
from typing import Any, Final

import psycopg
import trio
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.waiting import Ready, Wait

__all__ = ["Rows", "TrioConnection", "connect"]

Rows = list[tuple[Any, ...]]

PORT: Final = 5432
KEEPALIVE: Final = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
"""So that a server that has vanished is noticed by a connection that only listens: seconds, the last one milliseconds."""


class TrioConnection(psycopg.AsyncConnection[tuple[Any, ...]]):
    """Made by `connect`."""

    _notified = False

    async def wait(self, gen: Any, interval: float = 0.0, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        """What psycopg's methods call to wait. When it is cancelled in the middle of a query, the connection is closed."""
        try:
            return await _run(gen, self.pgconn.socket)
        except trio.Cancelled:
            self.pgconn.finish()
            raise

    async def rows(self, query: str, parameters: Sequence[Any] = ()) -> Rows:
        """Execute a query in a transaction of its own. Raises psycopg.Error."""
        cursor = await self.execute(query.encode(), parameters, prepare=bool(parameters), binary=True)
        return [] if cursor.description is None else await cursor.fetchall()

    async def script(self, statements: str) -> None:
        """Execute statements. Raises psycopg.Error."""
        await self.execute(statements.encode())

    # --- notifications, of whatever channels are listened to

    def take_notified(self) -> bool:
        """Whether notifications have come since the last call."""
        while self.pgconn.notifies() is not None:
            self._notified = True
        notified, self._notified = self._notified, False
        return notified

    async def wait_notified(self) -> None:
        """Wait until there is something to read. Raises psycopg.Error. Safe to cancel: the connection stays usable."""
        if not self._notified:
            await trio.lowlevel.wait_readable(self.pgconn.socket)
            self.pgconn.consume_input()

    def _on_notify(self, _notification: psycopg.Notify) -> None:
        """Called for those that come during a query."""
        self._notified = True

    # --- the rest

    def looks_lost(self) -> bool:
        """Whether the server has closed it while nobody used it. Notices that it has sent are read."""
        try:
            self.pgconn.consume_input()
        except errors.OperationalError:
            return True
        return self.pgconn.status != psycopg.pq.ConnStatus.OK

    def is_idle(self) -> bool:
        """Whether another query can be executed: it is there, and in no transaction."""
        return self.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE

    def discard(self) -> None:
        """Close it, without saying goodbye to a server that may not listen."""
        self.pgconn.finish()


async def connect(url: str, timeout: float) -> TrioConnection:  # noqa: ASYNC109
    """Connect to the first of the servers that accepts writes. Raises psycopg.Error. Safe to cancel.

    `timeout` is the number of seconds for all of them together: each has a share.
    """
    given: dict[str, Any] = {**conninfo_to_dict(url), **KEEPALIVE, "target_session_attrs": "read-write"}
    hosts = str(given.get("host", "localhost")).split(",")
    ports = str(given.get("port", PORT)).split(",")
    problem: psycopg.Error | None = None
    places: list[dict[str, str]] = []
    for number, host in enumerate(hosts):
        port = ports[number % len(ports)]
        try:
            found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        except OSError as error:
            problem = errors.OperationalError(f"{host}: {error.strerror or error}")
            continue
        addresses = dict.fromkeys(str(info[4][0]) for info in found)
        places += [{"host": host, "port": port, "hostaddr": address} for address in addresses]
    for place in places:
        try:
            with trio.fail_after(timeout / len(places)):
                return await _connect_to({**given, **place})
        except trio.TooSlowError:
            problem = errors.OperationalError(f"{place['host']}: it does not answer")
        except psycopg.OperationalError as error:
            problem = error
    assert problem is not None
    raise problem


async def _connect_to(given: dict[str, Any]) -> TrioConnection:
    connection: TrioConnection = await _run(TrioConnection._connect_gen(make_conninfo("", **given)))
    connection.lock = trio.Lock()  # type: ignore[assignment]
    connection._autocommit = True
    connection.add_notify_handler(connection._on_notify)
    return connection


async def _run(generator: Generator[Any, Any, Any], descriptor: int | None = None) -> Any:
    """Run one of psycopg's generators, for a known socket, or one that connects, and says the socket each time."""
    try:
        wanted = next(generator)
        while True:
            if descriptor is None:
                wanted = generator.send(await _wait_ready(*wanted))
            else:
                wanted = generator.send(await _wait_ready(descriptor, wanted))
    except StopIteration as stop:
        return stop.value
    finally:
        generator.close()


async def _wait_ready(descriptor: int, wanted: int) -> Ready:
    if wanted == Wait.R:
        await trio.lowlevel.wait_readable(descriptor)
        return Ready.R
    if wanted == Wait.W:
        await trio.lowlevel.wait_writable(descriptor)
        return Ready.W
    ready = Ready(0)

    async def wait(which: Ready) -> None:
        nonlocal ready
        await (trio.lowlevel.wait_readable if which == Ready.R else trio.lowlevel.wait_writable)(descriptor)
        ready = Ready(ready | which)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, Ready.R)
        nursery.start_soon(wait, Ready.W)
    return ready
