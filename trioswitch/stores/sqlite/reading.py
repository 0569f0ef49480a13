"""Reads from the tables. Each function takes many queries, and is called in the reader's thread and transaction."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing

import attrs

from ..port import HistoryRecords, Record, StoredInboxMessage, within
from .room_rows import SELECT_ROOM, RoomRow, first_kept

__all__ = ["InboxQuery", "PageQuery", "read_inbox", "read_pages", "read_positions"]


@attrs.frozen
class PageQuery:
    room: str
    after: int | None
    """None: the newest."""
    limit: int
    max_bytes: int
    now: float


@attrs.frozen
class InboxQuery:
    user: str
    after: int
    limit: int
    max_bytes: int
    now: float


def read_pages(connection: sqlite3.Connection, queries: Sequence[PageQuery]) -> list[HistoryRecords]:
    return [_read_page(connection, query) for query in queries]


def _read_page(connection: sqlite3.Connection, query: PageQuery) -> HistoryRecords:
    row = connection.execute(f"{SELECT_ROOM} name = ?", (query.room,)).fetchone()
    if row is None:
        return HistoryRecords("", 1, 0, [])
    room = RoomRow(*row)
    first = first_kept(connection, room, query.now)
    after = first - 1 if query.after is None else max(first - 1, min(query.after, room.last))
    rows = connection.execute(
        "SELECT offset, payload, at, expires_at FROM messages WHERE room = ? AND offset > ? AND at >= ?"
        f" AND (expires_at IS NULL OR expires_at > ?) ORDER BY offset {'DESC' if query.after is None else ''} LIMIT ?",
        (room.id, after, room.oldest(query.now), query.now, query.limit),
    )
    with closing(rows):
        records = within((Record(*row) for row in rows), query.max_bytes)
    if query.after is None:
        records.reverse()
    return HistoryRecords(room.epoch, first, room.last, records)


def read_positions(connection: sqlite3.Connection, queries: Sequence[Sequence[str]]) -> list[list[tuple[str, int]]]:
    return [[_read_position(connection, room) for room in rooms] for rooms in queries]


def _read_position(connection: sqlite3.Connection, room: str) -> tuple[str, int]:
    row = connection.execute("SELECT epoch, last FROM rooms_now WHERE name = ?", (room,)).fetchone()
    return ("", 0) if row is None else row


def read_inbox(connection: sqlite3.Connection, queries: Sequence[InboxQuery]) -> list[list[StoredInboxMessage]]:
    sql = (
        "SELECT seq, payload, letters.at, expires_at FROM inboxes JOIN letters ON inbox = id"
        " WHERE user = ? AND seq > ? AND (expires_at IS NULL OR expires_at > ?) ORDER BY seq LIMIT ?"
    )
    found: list[list[StoredInboxMessage]] = []
    for query in queries:
        with closing(connection.execute(sql, (query.user, query.after, query.now, query.limit))) as rows:
            found.append(within((StoredInboxMessage(*row) for row in rows), query.max_bytes))
    return found
