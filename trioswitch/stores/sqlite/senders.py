"""Senders: how many bytes of the messages in the file are whose."""

import sqlite3
from collections.abc import Iterable
from typing import Final, Literal

from ..port import Refusal, refusal
from .rows import Rows

__all__ = ["SERVER", "Senders", "forget_idle_senders"]

SERVER: Final = 0
"""The id of the server itself, whose bytes are not counted apart."""


class Senders:
    """What the senders of one batch have in the file, and what the batch adds to it. Triggers write what is added."""

    def __init__(
        self, connection: sqlite3.Connection, rows: Rows, names: Iterable[str], table: Literal["rooms", "inboxes"]
    ) -> None:
        of_sender = "room_bytes" if table == "rooms" else "inbox_bytes"
        sql = f"SELECT name, id, {of_sender} FROM senders WHERE name IN"
        self._rows = rows
        self._known: dict[str, tuple[int, int]] = {
            name: (id, size) for name, id, size in rows.select(sql, list({name for name in names if name}))
        }
        (self._all,) = connection.execute(f"SELECT bytes FROM all_{table}").fetchone()
        self._new: list[tuple[int, str, int, int]] = []

    def refusal(self, sender: str, size: int, total_bytes: int) -> Refusal | None:
        """Whether there is space for a message; None: there is."""
        of_sender = self._known[sender][1] if sender in self._known else 0
        return refusal(sender, of_sender, self._all, size, total_bytes)

    def add(self, sender: str, size: int) -> int:
        """Count a message that is added. Returns the id of its sender."""
        self._all += size
        if not sender:
            return SERVER
        known = self._known.get(sender)
        if known is None:
            known = self._rows.next_id("senders"), 0
            self._new.append((known[0], sender, 0, 0))
        self._known[sender] = known[0], known[1] + size
        return known[0]

    def save(self) -> None:
        """Write the senders that are new, before their messages."""
        self._rows.insert("senders", self._new)


def forget_idle_senders(connection: sqlite3.Connection, most: int) -> bool:
    """Forget senders that have nothing in the file. Returns whether there may be more of them."""
    sql = "DELETE FROM senders WHERE id IN (SELECT id FROM senders WHERE room_bytes = 0 AND inbox_bytes = 0 LIMIT ?)"
    return connection.execute(sql, (most,)).rowcount == most
