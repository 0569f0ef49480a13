"""The store in an SQLite file: what was acknowledged survives a crash of the process, and of the machine.

One thread writes, in group commits (`stores.sqlite.thread`). Another thread reads, and does not wait for the writer (WAL). A read
sees everything that was committed before it.

Each transaction is written through to the disk (`synchronous = FULL`). Measured on a virtual disk (`benchmarks/store.py`),
medians: one message 0.1 ms, 200 messages together 1.0 ms; with NORMAL 0.01 and 0.65 ms. NORMAL is not an option: after a power
failure the newest acknowledged messages would be missing, and their offsets would be given to other messages.

One server at a time opens the file (`stores.sqlite.schema`). Trimming is lazy: reads leave out what the retention excludes, and
the writer deletes it later, many messages at a time. The file does not shrink, but SQLite uses its free pages again.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import trio

from ...errors import StoreError
from ..port import (
    UNLIMITED,
    Append,
    Appended,
    GroupChange,
    HistoryRecords,
    InboxLimits,
    InboxMessage,
    InboxResult,
    SavedSession,
    Store,
    StoredInboxMessage,
)
from .reading import InboxQuery, PageQuery, read_inbox, read_pages, read_positions
from .schema import Connections, explain, identify, open_connections
from .shared import SharedTables, read_groups, read_sessions
from .thread import SqliteThread, SqliteThreadStatistics
from .writing import Writer

__all__ = ["SqliteStatistics", "SqliteStore"]

READS: Final = 16
"""Pages that are read before those who asked for them get them."""
WRITES: Final = 100_000
"""Requests in one transaction at most: in effect, all that wait."""


@attrs.frozen
class SqliteStatistics:
    writes: SqliteThreadStatistics
    reads: SqliteThreadStatistics


def _check_file(path: Path, opened: tuple[int, int]) -> None:
    """Raises StoreError when the file that was opened is not there any more: what is committed to it would be lost."""
    if identify(path) != opened:
        raise StoreError(f"the store {path} was replaced while the server ran: restart the server")


class SqliteStore(Store):
    """Made by `SqliteStore.open`, closed by `aclose`; belongs to its Trio thread."""

    durable = True

    def __init__(self, path: Path, connections: Connections) -> None:
        self._users = connections.users
        path = path.resolve()
        self.writer: Writer = Writer(connections.writer, connections.users, partial(_check_file, path, identify(path)))
        self._shared = SharedTables(connections.writer)
        self._read_sessions = partial(read_sessions, connections.reader)
        self._read_groups = partial(read_groups, connections.reader)
        self._pages = partial(read_pages, connections.reader)
        self._read_positions = partial(read_positions, connections.reader)
        self._read_inbox = partial(read_inbox, connections.reader)
        explained = partial(explain, path)
        self.reads: SqliteThread = SqliteThread(
            [connections.reader], name=f"reader of {path}", begin="BEGIN", most=READS, explain=explained
        )
        self.writes: SqliteThread = SqliteThread(
            [connections.writer, connections.lock],
            name=f"writer of {path}",
            begin="BEGIN IMMEDIATE",
            most=WRITES,
            explain=explained,
            forget=self.writer.forget,
        )

    @classmethod
    async def open(cls, path: Path) -> "SqliteStore":
        """Open a file, or make it; its directory must be there. Raises StoreError. Safe to cancel."""
        return cls(path, await trio.to_thread.run_sync(open_connections, path))

    async def append(self, appends: Sequence[Append], *, total_bytes: int = UNLIMITED) -> list[Appended]:
        return await self.writes.run(self.writer.append, [(append, total_bytes) for append in appends])

    async def read(self, room: str, *, after: int, limit: int, max_bytes: int, now: float) -> HistoryRecords:
        (page,) = await self.reads.run(self._pages, [PageQuery(room, after, limit, max_bytes, now)])
        return page

    async def read_newest(self, room: str, *, limit: int, max_bytes: int, now: float) -> HistoryRecords:
        (page,) = await self.reads.run(self._pages, [PageQuery(room, None, limit, max_bytes, now)])
        return page

    async def positions(self, rooms: Sequence[str]) -> list[tuple[str, int]]:
        (found,) = await self.reads.run(self._read_positions, [rooms])
        return found

    async def add_to_inboxes(self, inbox_messages: Sequence[InboxMessage], *, limits: InboxLimits) -> list[InboxResult]:
        return await self.writes.run(self.writer.post, [(inbox_message, limits) for inbox_message in inbox_messages])

    def may_have_inbox_messages(self, user: str) -> bool:
        return user in self._users

    async def read_inbox(
        self, user: str, *, after: int, limit: int, max_bytes: int, now: float
    ) -> list[StoredInboxMessage]:
        (kept,) = await self.reads.run(self._read_inbox, [InboxQuery(user, after, limit, max_bytes, now)])
        return kept

    async def acknowledge(self, user: str, upto: int) -> None:
        await self.writes.run(self.writer.acknowledge, [(user, upto)])

    async def save_sessions(self, sessions: Sequence[SavedSession]) -> None:
        await self.writes.run(self._shared.save_sessions, sessions)

    async def load_session(self, id: str, now: float) -> bytes | None:
        (payload,) = await self.reads.run(self._read_sessions, [(id, now)])
        return payload

    async def take_session(self, id: str, now: float) -> bytes | None:
        (payload,) = await self.writes.run(self._shared.take_sessions, [(id, now)])
        return payload

    async def change_groups(self, changes: Sequence[GroupChange]) -> None:
        await self.writes.run(self._shared.change_groups, changes)

    async def read_groups(self) -> list[tuple[str, str]]:
        (groups,) = await self.reads.run(self._read_groups, [None])
        return groups

    async def sweep(self, now: float, inbox_age: float) -> None:
        after: int | None = 0
        while after is not None:
            (after,) = await self.writes.run(self.writer.sweep_rooms, [(after, now)])
        while any(await self.writes.run(self.writer.sweep_rows, [(now, inbox_age)])):
            pass

    def statistics(self) -> SqliteStatistics:
        return SqliteStatistics(self.writes.statistics(), self.reads.statistics())

    async def aclose(self) -> None:
        try:
            await self.reads.aclose()
        finally:
            await self.writes.aclose()
