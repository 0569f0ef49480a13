"""The store in PostgreSQL: shared by nodes on several machines. PostgreSQL 12 or later.

Each call is one function of the database (`schema`), and one transaction. What it has committed is on the disk
(`synchronous_commit`), and on the standbys that PostgreSQL is told to wait for.
"""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from ...errors import StoreError
from ...postgres.client import PostgresClient, PostgresError, create_schema
from ...postgres.url import PostgresUrl
from ..port import (
    KEY_TIME,
    POSITION_TIME,
    UNLIMITED,
    Append,
    Appended,
    GroupChange,
    HistoryRecords,
    InboxLimits,
    InboxMessage,
    InboxResult,
    Record,
    Refusal,
    SavedSession,
    Store,
    StoredInboxMessage,
)
from .schema import SCHEMA, VERSION

if TYPE_CHECKING:
    from ...postgres.connection import TrioConnection

__all__ = ["PostgresStore", "open_postgres_store"]

CONNECTIONS: Final = 4
"""At most, for each node: writes wait for each other anyway."""
SWEEP_STEP: Final = 1000
"""Messages or inboxes after which a sweep lets others write."""
GREATEST: Final = 2**62
"""The greatest offset and seq."""


@asynccontextmanager
async def open_postgres_store(url: PostgresUrl) -> "AsyncIterator[PostgresStore]":
    """Connect, and make the schema if it is not there. Raises StoreError when the database cannot be used."""
    store = PostgresStore(url)
    try:
        await store.read_groups()
        yield store
    finally:
        await store.aclose()


class PostgresStore(Store):
    """Made by `open_store`."""

    durable = True

    def __init__(self, url: PostgresUrl) -> None:
        self._client = PostgresClient(url, CONNECTIONS, self._prepare)
        self._schema = f'"{url.schema}"'
        self._closed = False

    async def _prepare(self, connection: "TrioConnection") -> None:
        await create_schema(connection, self._client.url, SCHEMA, VERSION)

    async def _rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        if self._closed:
            raise trio.ClosedResourceError("the store was closed")
        try:
            return await self._client.rows(query.replace("S.", f"{self._schema}."), parameters)
        except PostgresError as error:
            raise StoreError(str(error)) from None

    # --- rooms

    async def append(self, appends: Sequence[Append], *, total_bytes: int = UNLIMITED) -> list[Appended]:
        rows = await self._rows(
            "SELECT * FROM S.append(%b::bytea[], %b::bytea[], %s::float8[], %s::float8[], %b::bytea[], %b::bytea[], "
            "%s::bigint[], %s::float8[], %s::text[], %s)",
            [each.room.encode() for each in appends],
            [each.payload for each in appends],
            [each.at for each in appends],
            [each.expires_at for each in appends],
            [each.sender.encode() for each in appends],
            [None if each.key is None else each.key.encode() for each in appends],
            [each.retention.size for each in appends],
            [each.retention.age for each in appends],
            [secrets.token_urlsafe(6) for _ in appends],
            total_bytes,
        )
        return [Appended(epoch, offset, duplicate, _refusal(refused)) for epoch, offset, duplicate, refused in rows]

    async def read(self, room: str, *, after: int, limit: int, max_bytes: int, now: float) -> HistoryRecords:
        return await self._read(room, min(after, GREATEST), limit, max_bytes, now)

    async def read_newest(self, room: str, *, limit: int, max_bytes: int, now: float) -> HistoryRecords:
        found = await self._read(room, None, limit, max_bytes, now)
        found.records.reverse()
        return found

    async def _read(self, room: str, after: int | None, limit: int, max_bytes: int, now: float) -> HistoryRecords:
        rows = await self._rows(
            "SELECT * FROM S.read(%b, %s::bigint, %s, %s, %s::float8)", room.encode(), after, limit, max_bytes, now
        )
        if not rows:
            return HistoryRecords("", 1, 0, [])
        (epoch, first, last, *_), *records = rows
        return HistoryRecords(epoch, first, last, [Record(*row[3:]) for row in records])

    async def positions(self, rooms: Sequence[str]) -> list[tuple[str, int]]:
        return await self._rows(
            "SELECT coalesce(epoch, ''), coalesce(last, 0) FROM unnest(%b::bytea[]) WITH ORDINALITY AS asked (name, place) "
            "LEFT JOIN S.rooms USING (name) ORDER BY place",
            [room.encode() for room in rooms],
        )

    # --- inboxes

    async def add_to_inboxes(self, inbox_messages: Sequence[InboxMessage], *, limits: InboxLimits) -> list[InboxResult]:
        rows = await self._rows(
            "SELECT * FROM S.post(%b::bytea[], %b::bytea[], %s::float8[], %s::float8[], %b::bytea[], %b::bytea[], "
            "%s, %s, %s)",
            [each.user.encode() for each in inbox_messages],
            [each.payload for each in inbox_messages],
            [each.at for each in inbox_messages],
            [each.expires_at for each in inbox_messages],
            [each.sender.encode() for each in inbox_messages],
            [None if each.key is None else each.key.encode() for each in inbox_messages],
            limits.messages,
            limits.bytes,
            limits.total_bytes,
        )
        return [InboxResult(seq, duplicate, _refusal(refused)) for seq, duplicate, refused in rows]

    async def read_inbox(
        self, user: str, *, after: int, limit: int, max_bytes: int, now: float
    ) -> list[StoredInboxMessage]:
        rows = await self._rows(
            "WITH page AS (SELECT * FROM S.inbox_messages WHERE inbox = %b AND number > %s "
            "AND (expires_at IS NULL OR expires_at > %s::float8) ORDER BY number LIMIT %s), "
            "counted AS (SELECT *, sum(octet_length(payload)) OVER (ORDER BY number) AS upto FROM page) "
            "SELECT number, payload, at, expires_at FROM counted "
            "WHERE upto <= %s OR upto = octet_length(payload) ORDER BY number",
            *(user.encode(), min(after, GREATEST), now, limit, max_bytes),
        )
        return [StoredInboxMessage(*row) for row in rows]

    async def acknowledge(self, user: str, upto: int) -> None:
        await self._rows("SELECT S.acknowledge(%b, %s)", user.encode(), min(upto, GREATEST))

    # --- what nodes of a cluster share

    async def save_sessions(self, sessions: Sequence[SavedSession]) -> None:
        newest = {session.id: session for session in sessions}.values()
        kept = [session for session in newest if session.payload is not None]
        await self._rows(
            "WITH gone AS (DELETE FROM S.sessions WHERE id = ANY (%b::bytea[])) "
            "INSERT INTO S.sessions SELECT * FROM unnest(%b::bytea[], %b::bytea[], %s::float8[]) "
            "ON CONFLICT (id) DO UPDATE SET payload = excluded.payload, expires_at = excluded.expires_at",
            [session.id.encode() for session in newest if session.payload is None],
            [session.id.encode() for session in kept],
            [session.payload for session in kept],
            [session.expires_at for session in kept],
        )

    async def load_session(self, id: str, now: float) -> bytes | None:
        sql = "SELECT payload FROM S.sessions WHERE id = %b AND expires_at > %s::float8"
        rows = await self._rows(sql, id.encode(), now)
        return rows[0][0] if rows else None

    async def take_session(self, id: str, now: float) -> bytes | None:
        rows = await self._rows("DELETE FROM S.sessions WHERE id = %b RETURNING payload, expires_at", id.encode())
        return rows[0][0] if rows and rows[0][1] > now else None

    async def change_groups(self, changes: Sequence[GroupChange]) -> None:
        last = {(change.group, change.user): change.added for change in changes}
        added, removed = ([pair for pair, add in last.items() if add is which] for which in (True, False))
        await self._rows(
            "WITH gone AS (DELETE FROM S.groups WHERE (name, member) IN (SELECT * FROM unnest(%b::bytea[], %b::bytea[]))) "
            "INSERT INTO S.groups SELECT * FROM unnest(%b::bytea[], %b::bytea[]) ON CONFLICT DO NOTHING",
            *([name[place].encode() for name in pairs] for pairs in (removed, added) for place in (0, 1)),
        )

    async def read_groups(self) -> list[tuple[str, str]]:
        rows = await self._rows("SELECT name, member FROM S.groups")
        return [(name.decode(), member.decode()) for name, member in rows]

    # --- the rest

    async def sweep(self, now: float, inbox_age: float) -> None:
        before = now - inbox_age
        await self._in_steps("SELECT S.sweep_messages(%s::float8, %s)", now)
        async for room in self._rooms_to_sweep(now):
            sql = "SELECT S.sweep_room(%b, %s::float8, %s::float8, %s)"
            await self._in_steps(sql, room, now, POSITION_TIME)
        sql = "SELECT S.sweep_inboxes(%s::float8, %s::float8, %s::float8, %s)"
        await self._in_steps(sql, now, before, before - POSITION_TIME)
        await self._rows("SELECT S.sweep_rest(%s::float8, %s::float8)", now, now - KEY_TIME)

    async def _rooms_to_sweep(self, now: float) -> AsyncIterator[bytes]:
        """Rooms that keep messages which are too old, or that are empty for long. No lock is held for looking."""
        after: bytes | None = b""
        while after is not None:
            ((after, names),) = await self._rows(
                "SELECT (array_agg(name ORDER BY name DESC))[1], array_agg(name) FILTER (WHERE due) FROM ("
                "SELECT name, S.first_kept(room, %s::float8) <> first OR at < %s::float8 - age AS due "
                "FROM S.rooms AS room WHERE name > %b ORDER BY name LIMIT %s) AS page",
                *(now, now - POSITION_TIME, after, SWEEP_STEP),
            )
            for name in names or ():
                yield name

    async def _in_steps(self, query: str, *parameters: Any) -> None:
        """Execute a function, whose last argument is a number of messages, until it finds less of them."""
        while True:
            ((found,),) = await self._rows(query, *parameters, SWEEP_STEP)
            if found < SWEEP_STEP:
                return

    async def aclose(self) -> None:
        self._closed = True
        await self._client.aclose()


def _refusal(text: str | None) -> Refusal | None:
    return None if text is None else Refusal(text)
