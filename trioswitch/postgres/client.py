"""A few connections to PostgreSQL, made when they are needed and made again when they are lost."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import TrioswitchError
from .url import PostgresUrl

if TYPE_CHECKING:
    from .connection import Rows, TrioConnection

__all__ = ["CALL_TIMEOUT", "PostgresClient", "PostgresError", "call", "create_schema", "open_connection"]

CONNECT_TIMEOUT: Final = 5.0
"""Seconds that a connection may take."""
CALL_TIMEOUT: Final = 10.0
"""Seconds that a query may take."""
LEAST_VERSION: Final = 120000
"""PostgreSQL 12."""


class PostgresError(TrioswitchError):
    """PostgreSQL cannot be reached, or has refused something; the text is a sentence."""


async def open_connection(url: PostgresUrl) -> "TrioConnection":
    """A connection on which what is committed is on the disk. Raises PostgresError. Safe to cancel."""
    try:
        import psycopg

        from .connection import connect
    except ImportError:
        message = "PostgreSQL needs a package that is missing: pip install 'trioswitch[postgres]'"
        raise PostgresError(message) from None
    try:
        with trio.fail_after(CONNECT_TIMEOUT):
            connection = await connect(url.libpq, CONNECT_TIMEOUT)
            try:
                await _set_up(connection, url)
            except BaseException:
                connection.discard()  # a lock of psycopg's can be cancelled before anything is sent
                raise
    except trio.TooSlowError:
        reason = f"PostgreSQL at {url.place} does not answer within {CONNECT_TIMEOUT:g} s"
        raise PostgresError(reason) from None
    except psycopg.Error as error:
        raise PostgresError(f"PostgreSQL at {url.place} cannot be reached: {_line(error)}") from None
    return connection


async def _set_up(connection: "TrioConnection", url: PostgresUrl) -> None:
    if connection.info.server_version < LEAST_VERSION:
        raise PostgresError(f"PostgreSQL at {url.place} is too old: it takes 12 or later")
    await connection.rows("SET client_min_messages = warning")
    await connection.rows(f"SET statement_timeout = {int(1000 * CALL_TIMEOUT)}")
    (committed,) = (await connection.rows("SHOW synchronous_commit"))[0]
    if committed in ("off", "local"):
        await connection.rows("SET synchronous_commit = on")


@contextmanager
def call(url: PostgresUrl, timeout: float = CALL_TIMEOUT) -> Iterator[None]:
    """A deadline in seconds and one kind of error, PostgresError, for queries."""
    import psycopg

    try:
        with trio.fail_after(timeout):
            yield
    except trio.TooSlowError:
        raise PostgresError(f"PostgreSQL at {url.place} has not answered within {CALL_TIMEOUT:g} s") from None
    except psycopg.OperationalError as error:
        raise PostgresError(f"the connection to PostgreSQL at {url.place} is lost: {_line(error)}") from None
    except psycopg.Error as error:
        raise PostgresError(f"PostgreSQL at {url.place} has refused it: {_line(error)}") from None


async def create_schema(connection: "TrioConnection", url: PostgresUrl, statements: str, version: int) -> None:
    """Make a schema if it is not there. Several nodes may do it at once.

    In the statements, `S.` stands for the schema, and `'S'` for its name. Raises PostgresError for a schema that is of something
    else, or of another version.
    """
    name = url.schema
    await connection.rows("BEGIN")
    try:
        await connection.rows("SELECT pg_advisory_xact_lock(hashtext(%s), hashtext('schema'))", (name,))
        tables = await connection.rows("SELECT tablename FROM pg_tables WHERE schemaname = %s", (name,))
        if ("about",) in tables:
            ((found,),) = await connection.rows(f'SELECT version FROM "{name}".about')
            if found != version:
                raise PostgresError(
                    f"the schema {name!r} of {url.place} has version {found}: this server takes {version}"
                )
        elif tables:
            raise PostgresError(
                f"the schema {name!r} of {url.place} holds tables of something else: choose another prefix"
            )
        else:
            about = f"CREATE TABLE S.about (version int NOT NULL); INSERT INTO S.about VALUES ({version});"
            await connection.rows(f'CREATE SCHEMA IF NOT EXISTS "{name}"')
            await connection.script((about + statements).replace("S.", f'"{name}".').replace("'S'", f"'{name}'"))
    except BaseException:
        connection.discard()  # and with it the transaction
        raise
    await connection.rows("COMMIT")


class PostgresClient:
    """`prepare` is called once, with the first connection, before any query."""

    def __init__(
        self, url: PostgresUrl, size: int, prepare: "Callable[[TrioConnection], Awaitable[None]] | None" = None
    ) -> None:
        self.url = url
        self._idle: list[TrioConnection] = []
        self._slots = trio.CapacityLimiter(size)
        self._prepare = prepare
        self._preparing = trio.Lock()
        self._closed = False

    async def rows(self, query: str, parameters: Sequence[Any] = ()) -> "Rows":
        """Execute a query in a transaction of its own. Raises PostgresError. Safe to cancel: it may be executed or not."""
        async with self._connection() as connection:
            return await connection.rows(query, parameters)

    @asynccontextmanager
    async def _connection(self) -> "AsyncIterator[TrioConnection]":
        async with self._slots:
            connection = await self._take()
            try:
                with call(self.url):
                    await self._prepare_first(connection)
                    yield connection
            finally:
                if connection.is_idle() and not self._closed:
                    self._idle.append(connection)
                else:
                    connection.discard()

    async def _take(self) -> "TrioConnection":
        while self._idle:
            connection = self._idle.pop()
            if not connection.looks_lost():
                return connection
            connection.discard()
        return await open_connection(self.url)

    async def _prepare_first(self, connection: "TrioConnection") -> None:
        if self._prepare is None:
            return
        async with self._preparing:
            if self._prepare is not None:
                await self._prepare(connection)
                self._prepare = None

    def discard_idle(self) -> None:
        """Close what is not in use."""
        while self._idle:
            self._idle.pop().discard()

    async def aclose(self) -> None:
        """Close what is not in use now, and the rest after its use. Safe to cancel."""
        self._closed = True
        self.discard_idle()
        await trio.lowlevel.checkpoint()


def _line(error: BaseException) -> str:
    """The first line of what PostgreSQL says, without the address that others say already."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    _, _, reason = lines[0].rpartition("failed: ")
    return reason or lines[0]
