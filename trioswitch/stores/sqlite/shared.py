"""The tables that nodes share: sessions and groups. Writes take many items, in the writer's thread and transaction."""

import sqlite3
from collections.abc import Sequence

from ..port import GroupChange, SavedSession

__all__ = ["SharedTables", "read_groups", "read_sessions"]


class SharedTables:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def save_sessions(self, sessions: Sequence[SavedSession]) -> list[None]:
        newest = {session.id: session for session in sessions}.values()
        self._connection.executemany(
            "INSERT OR REPLACE INTO sessions (id, payload, expires_at) VALUES (?, ?, ?)",
            [(session.id, session.payload, session.expires_at) for session in newest if session.payload is not None],
        )
        gone = [(session.id,) for session in newest if session.payload is None]
        self._connection.executemany("DELETE FROM sessions WHERE id = ?", gone)
        return [None] * len(sessions)

    def take_sessions(self, queries: Sequence[tuple[str, float]]) -> list[bytes | None]:
        return [self._take_session(id, now) for id, now in queries]

    def _take_session(self, id: str, now: float) -> bytes | None:
        rows = self._connection.execute(
            "DELETE FROM sessions WHERE id = ? RETURNING payload, expires_at", (id,)
        ).fetchall()
        return rows[0][0] if rows and rows[0][1] > now else None

    def change_groups(self, changes: Sequence[GroupChange]) -> list[None]:
        for change in changes:
            statement = (
                "INSERT OR IGNORE INTO groups (name, user) VALUES (?, ?)"
                if change.added
                else "DELETE FROM groups WHERE name = ? AND user = ?"
            )
            self._connection.execute(statement, (change.group, change.user))
        return [None] * len(changes)


def read_sessions(connection: sqlite3.Connection, queries: Sequence[tuple[str, float]]) -> list[bytes | None]:
    return [_read_session(connection, id, now) for id, now in queries]


def _read_session(connection: sqlite3.Connection, id: str, now: float) -> bytes | None:
    sql = "SELECT payload FROM sessions WHERE id = ? AND expires_at > ?"
    row = connection.execute(sql, (id, now)).fetchone()
    return None if row is None else row[0]


def read_groups(connection: sqlite3.Connection, queries: Sequence[None]) -> list[list[tuple[str, str]]]:
    return [connection.execute("SELECT name, user FROM groups ORDER BY name, user").fetchall() for _ in queries]
