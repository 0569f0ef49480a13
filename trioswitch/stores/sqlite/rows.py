"""Rows of the SQLite file, many to a statement.

Each step of a statement hands over Python's lock, and getting it back from a busy event loop takes up to 5 ms: row by row, 200
messages took 200 ms where they take 20 (measured with a loop that never waits).

An insertion that fails ends the transaction (OR ROLLBACK). Only the statement is undone by default, and for that SQLite copies
each page that one of many rows touches into a temporary file first: an eighth of what an acknowledged publish cost.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

__all__ = ["Row", "Rows"]

ROWS: Final = 512
"""Rows in one statement."""

Row = Sequence[str | int | float | bytes | None]


class Rows:
    """What is asked of a connection and written to it, whatever the number of rows."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._last_ids: dict[str, int] = {}

    def next_id(self, table: Literal["rooms", "inboxes", "senders"]) -> int:
        if table not in self._last_ids:
            (self._last_ids[table],) = self._connection.execute(f"SELECT ifnull(max(id), 0) FROM {table}").fetchone()
        self._last_ids[table] += 1
        return self._last_ids[table]

    def known(self, table: str, asked: Sequence[tuple[int, str | None]]) -> dict[tuple[int, str | None], int]:
        """What keys stand for, by the id of their owner and the key."""
        keys = [pair for pair in asked if pair[1] is not None]
        known: dict[tuple[int, str | None], int] = {}
        for part in _parts(keys):
            sql = (
                f"WITH asked (owner, key) AS (VALUES {_places(len(part), 2)})"
                f" SELECT owner, key, number FROM asked CROSS JOIN {table} USING (owner, key)"
            )
            for owner, key, number in self._connection.execute(sql, _flat(part)):
                known[owner, key] = number
        return known

    def select(self, sql: str, values: Sequence[str]) -> list[Any]:
        """The rows of a query, which ends with IN, for these values."""
        return [
            row for part in _parts(values) for row in self._connection.execute(f"{sql} {_places(1, len(part))}", part)
        ]

    def delete(self, table: Literal["inboxes"], ids: Sequence[int]) -> None:
        for part in _parts(ids):
            self._connection.execute(f"DELETE FROM {table} WHERE id IN {_places(1, len(part))}", part)

    def insert(self, table: str, rows: Sequence[Row], otherwise: str = "") -> None:
        for part in _parts(rows):
            sql = f"INSERT OR ROLLBACK INTO {table} VALUES {_places(len(part), len(part[0]))} {otherwise}"
            self._connection.execute(sql, _flat(part))


def _parts(rows: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """Cut rows into parts of few different lengths, the powers of two: statements are prepared once and used again."""
    start = 0
    while start < len(rows):
        length = min(ROWS, 1 << (len(rows) - start).bit_length() - 1)
        yield rows[start : start + length]
        start += length


def _places(rows: int, columns: int) -> str:
    row = f"({','.join('?' * columns)})"
    return ",".join([row] * rows)


def _flat(rows: Iterable[Row]) -> list[Any]:
    return [value for row in rows for value in row]
