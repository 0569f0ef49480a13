"""The row of a room in the table `rooms`, as the reader and the writer use it."""

import sqlite3
from math import inf
from typing import Final

import attrs

from ..port import Append

__all__ = ["SELECT_ROOM", "RoomRow", "first_kept"]


@attrs.define(eq=False)
class RoomRow:
    """A row of `rooms_now`."""

    id: int
    name: str
    epoch: str
    first: int
    last: int
    size: int
    age: float | None
    at: float
    trimmed: int = 0
    """Below it there are no messages in the table. Not in the row: 0 when nobody knows."""

    def oldest(self, now: float) -> float:
        return -inf if self.age is None else now - self.age

    def add(self, append: Append) -> bool:
        """Count a message. Returns whether the row must be written, as it will not follow from the newest message."""
        retention = append.retention
        same = append.at >= self.at and retention.size == self.size and retention.age == self.age
        self.last += 1
        self.size, self.age = retention.size, retention.age
        self.first = max(self.first, self.last - self.size + 1)
        self.at = max(self.at, append.at)
        return not same


SELECT_ROOM: Final = "SELECT id, name, epoch, first, last, size, age, at FROM rooms_now WHERE"


def first_kept(connection: sqlite3.Connection, room: RoomRow, now: float) -> int:
    """The oldest offset within the retention: the one after the last of those that are too old in a row."""
    oldest = room.oldest(now)
    if room.age is None or room.first > room.last:
        return room.first
    if room.at < oldest:
        return room.last + 1
    sql = "SELECT offset FROM messages WHERE room = ? AND offset >= ? AND at >= ? ORDER BY offset LIMIT 1"
    young = connection.execute(sql, (room.id, room.first, oldest)).fetchone()
    below = room.last + 1 if young is None else young[0]
    if below == room.first:
        return below
    sql = "SELECT max(offset) FROM messages WHERE room = ? AND offset >= ? AND offset < ?"
    (old,) = connection.execute(sql, (room.id, room.first, below)).fetchone()
    return room.first if old is None else int(old) + 1
