"""Senders: how many bytes each sender's messages take in the file.

A row of `senders` says it for one sender, and the row with the empty name for all together. What inbox messages take is counted
by triggers. What the messages of rooms take is counted here, and written once for each batch: triggers would make a stored
publish cost a tenth more.
"""

import sqlite3
from collections.abc import Iterable
from typing import Any, Final

import attrs

from ..port import Refusal, refusal
from .rows import Rows

__all__ = ["InboxSenders", "RoomSenders"]

ALL: Final = ""
"""The sender whose row counts the bytes of all. The server itself sends under this name: its bytes are not counted apart."""
CACHED: Final = 10_000
"""Senders that the writer remembers."""


@attrs.define(eq=False)
class _Sender:
    id: int
    name: str
    size: int


class _Senders:
    """The senders of a batch, and what it adds to them."""

    column: str

    def __init__(self, connection: sqlite3.Connection, rows: Rows) -> None:
        self._connection = connection
        self._rows = rows
        self._known: dict[str, _Sender] = {}
        self._changed: dict[str, _Sender] = {}

    def load(self, names: Iterable[str]) -> None:
        """To be called with the senders of a batch before anything else."""
        if len(self._known) > CACHED:
            self._known.clear()
        unknown = list({ALL, *names} - self._known.keys())
        if unknown:
            for row in self._rows.select(f"SELECT id, name, {self.column} FROM senders WHERE name IN", unknown):
                self._known[row[1]] = _Sender(*row)

    def forget(self) -> None:
        """The file was changed by others, or what was done since the last commit was undone."""
        self._known.clear()
        self._changed.clear()

    def add(self, name: str, size: int, total_bytes: int) -> int | Refusal:
        """Count a message if there is space for it. Returns the id of its sender, or why there is none."""
        known, everybody = self._known.get(name), self._known[ALL]
        refused = refusal(name, 0 if known is None else known.size, everybody.size, size, total_bytes)
        if refused is not None:
            return refused
        if known is None:
            known = self._known[name] = _Sender(self._rows.next_id("senders"), name, 0)
        everybody.size += size
        if known is not everybody:
            known.size += size
            self._changed[name] = known
        return known.id


class InboxSenders(_Senders):
    """Senders of inbox messages. Triggers write what they have."""

    column = "inbox_bytes"

    def save(self) -> None:
        """Write the senders that are new, before their messages."""
        rows = [(sender.id, sender.name, 0, 0) for sender in self._changed.values()]
        self._rows.insert("senders", rows, "ON CONFLICT (id) DO NOTHING")
        self.forget()


class RoomSenders(_Senders):
    """Senders of the messages of rooms. The writer alone changes what they have, so it may remember that."""

    column = "room_bytes"

    def save(self) -> None:
        """Write what a batch has added."""
        changed = [self._known[ALL], *self._changed.values()]
        rows = [(sender.id, sender.name, sender.size, 0) for sender in changed]
        self._rows.insert("senders", rows, "ON CONFLICT (id) DO UPDATE SET room_bytes = excluded.room_bytes")
        self._changed.clear()

    def delete_messages(self, where: str, values: Any) -> int:
        """Delete messages of rooms, and count what their senders have less. Returns how many messages that were."""
        execute = self._connection.execute
        sql = f"SELECT sender, sum(length(payload)), count(*) FROM messages WHERE {where} GROUP BY sender"
        gone = execute(sql, values).fetchall()
        if gone:
            execute(f"DELETE FROM messages WHERE {where}", values)
            less = [(size, sender) for sender, size, _count in gone if sender] + [(sum(row[1] for row in gone), 0)]
            self._connection.executemany("UPDATE senders SET room_bytes = room_bytes - ? WHERE id = ?", less)
            self.forget()
        return sum(count for _sender, _size, count in gone)

    def forget_idle(self, most: int) -> bool:
        """Delete senders that have nothing in the file. Returns whether there may be more of them."""
        idle = "SELECT id FROM senders WHERE room_bytes = 0 AND inbox_bytes = 0 AND id > 0 LIMIT ?"
        self.forget()
        return self._connection.execute(f"DELETE FROM senders WHERE id IN ({idle})", (most,)).rowcount == most
