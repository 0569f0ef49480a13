"""The SQLite file: its tables, its version, how it is opened, and what its errors mean to a person.

One server at a time: it holds an exclusive SQLite lock on an empty file beside the store, `PATH-lock`, which the system
lets go of when the process dies, however it dies. Others may read the file, and back it up, while the server runs.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import attrs

from ...errors import StoreError

__all__ = ["VERSION", "Connections", "explain", "identify", "open_connections"]

APPLICATION_ID: Final = int.from_bytes(b"tsw1")
CHECKPOINT_PAGES: Final = 4000
"""Pages of 4 KiB in the write-ahead log after which they go into the file: those that are written often go there once.
As many are kept in memory, for otherwise the pages of 200 busy rooms were read again for each transaction."""
PATIENCE: Final = 5.0
"""Seconds that a write waits for another program that writes to the file."""

MIGRATIONS: Final = (
    (  # 1
        """CREATE TABLE rooms (
            id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, epoch TEXT NOT NULL,
            first INTEGER NOT NULL,  -- what is below it is gone, though some of it may still be in the table
            last INTEGER NOT NULL,
            size INTEGER NOT NULL, age REAL,
            at REAL NOT NULL  -- the greatest of its messages
        )""",
        """CREATE TABLE messages (
            room INTEGER NOT NULL, offset INTEGER NOT NULL, at REAL NOT NULL, expires_at REAL, payload BLOB NOT NULL,
            PRIMARY KEY (room, offset)
        ) WITHOUT ROWID""",
        "CREATE INDEX messages_expire ON messages (expires_at) WHERE expires_at IS NOT NULL",
        "CREATE TABLE inboxes (id INTEGER PRIMARY KEY, user TEXT NOT NULL UNIQUE, last INTEGER NOT NULL)",
        """CREATE TABLE letters (
            inbox INTEGER NOT NULL, seq INTEGER NOT NULL, at REAL NOT NULL, expires_at REAL, payload BLOB NOT NULL,
            PRIMARY KEY (inbox, seq)
        ) WITHOUT ROWID""",
        "CREATE INDEX letters_age ON letters (at)",
        "CREATE INDEX letters_expire ON letters (expires_at) WHERE expires_at IS NOT NULL",
    ),
    (  # 2: idempotency keys; `number` is the offset or the seq of what was kept first
        """CREATE TABLE room_keys (
            owner INTEGER NOT NULL, key TEXT NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (owner, key)
        ) WITHOUT ROWID""",
        "CREATE INDEX room_keys_age ON room_keys (at)",
        """CREATE TABLE inbox_keys (
            owner INTEGER NOT NULL, key TEXT NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (owner, key)
        ) WITHOUT ROWID""",
        "CREATE INDEX inbox_keys_age ON inbox_keys (at)",
    ),
    (  # 3: inboxes that have long been empty are forgotten, and all have a limit together
        "ALTER TABLE inboxes ADD COLUMN at REAL NOT NULL DEFAULT 0",  # the greatest of its inbox messages
        "UPDATE inboxes SET at = ifnull((SELECT max(letters.at) FROM letters WHERE inbox = id), 0)",
        "CREATE INDEX inboxes_age ON inboxes (at)",
        """CREATE TABLE all_inboxes (  -- one row
            bytes INTEGER NOT NULL,  -- of the payloads in `letters`
            forgotten INTEGER NOT NULL  -- the greatest `last` of the inboxes that were forgotten
        )""",
        "INSERT INTO all_inboxes SELECT ifnull(sum(length(payload)), 0), 0 FROM letters",
        """CREATE TRIGGER letters_added AFTER INSERT ON letters BEGIN
            UPDATE all_inboxes SET bytes = bytes + length(new.payload); END""",
        """CREATE TRIGGER letters_gone AFTER DELETE ON letters BEGIN
            UPDATE all_inboxes SET bytes = bytes - length(old.payload); END""",
    ),
    (  # 4: a row of `rooms` is not written with each message any more; what it would say now follows from the newest one
        """CREATE VIEW rooms_now AS
            SELECT id, name, epoch, max(first, newest - size + 1) AS first, newest AS last, size, age, max(at, latest) AS at
            FROM (SELECT *,
                max(last, ifnull((SELECT max(offset) FROM messages WHERE room = id), 0)) AS newest,
                ifnull((SELECT at FROM messages WHERE room = id ORDER BY offset DESC LIMIT 1), 0) AS latest
            FROM rooms)""",
    ),
    (  # 5: whose bytes they are. The sender 0 is the server itself, and counts the bytes of all
        """CREATE TABLE senders (
            id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, room_bytes INTEGER NOT NULL, inbox_bytes INTEGER NOT NULL
        )""",
        "INSERT INTO senders SELECT 0, '', ifnull(sum(length(payload)), 0), (SELECT bytes FROM all_inboxes) FROM messages",
        "DROP TRIGGER letters_added",
        "DROP TRIGGER letters_gone",
        "ALTER TABLE all_inboxes DROP COLUMN bytes",
        "ALTER TABLE messages ADD COLUMN sender INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE letters ADD COLUMN sender INTEGER NOT NULL DEFAULT 0",
        """CREATE TRIGGER letters_added AFTER INSERT ON letters BEGIN
            UPDATE senders SET inbox_bytes = inbox_bytes + length(new.payload) WHERE id IN (0, new.sender); END""",
        """CREATE TRIGGER letters_gone AFTER DELETE ON letters BEGIN
            UPDATE senders SET inbox_bytes = inbox_bytes - length(old.payload) WHERE id IN (0, old.sender); END""",
    ),
    (  # 6: what nodes of a cluster share
        "CREATE TABLE sessions (id TEXT PRIMARY KEY, payload BLOB NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID",
        "CREATE INDEX sessions_expire ON sessions (expires_at)",
        "CREATE TABLE groups (name TEXT NOT NULL, user TEXT NOT NULL, PRIMARY KEY (name, user)) WITHOUT ROWID",
    ),
)
"""The statements that lead from each version to the next. What has been released is never changed."""
VERSION: Final = len(MIGRATIONS)
USERS: Final = "SELECT user FROM inboxes WHERE EXISTS (SELECT 1 FROM letters WHERE inbox = id)"

SENTENCES: Final = {
    sqlite3.SQLITE_BUSY: "the store {path} is locked by another program",
    sqlite3.SQLITE_CANTOPEN: "the store {path} cannot be opened: it is no file, or permission is denied",
    sqlite3.SQLITE_CORRUPT: "the store {path} is damaged: restore a copy of it ({error})",
    sqlite3.SQLITE_FULL: "the store {path} cannot grow: the disk is full",
    sqlite3.SQLITE_IOERR: "the store {path} cannot be read or written: {error}",
    sqlite3.SQLITE_NOTADB: "the store {path} is no SQLite file",
    sqlite3.SQLITE_READONLY: "the store {path} is read-only: permission to write it is denied",
}


@attrs.frozen
class Connections:
    """What an open store holds. All may be used from any thread, one at a time; to be closed in this order.

    What `users` says is kept up to date by the writer: a guess that is never wrongly without somebody.
    """

    reader: sqlite3.Connection
    writer: sqlite3.Connection
    lock: sqlite3.Connection
    users: set[str]
    """Who has inbox messages, or had some since the store was opened and is not forgotten."""


def open_connections(path: Path) -> Connections:
    """Open a store's file, or make it. Blocks. Raises StoreError."""
    path = path.resolve()  # the lock must be the same by all names of the file
    if not os.path.isdir(path.parent):  # `Path.is_dir` raises where a directory on the way is closed
        raise StoreError(f"the store {path} cannot be opened: there is no directory {path.parent}")
    if os.path.isdir(path):
        raise StoreError(f"the store {path} cannot be opened: it is a directory")
    with ExitStack() as opened, _explained(path):
        writer = _connect(path, opened, PATIENCE)
        _check(path, writer)  # nothing is put beside the file of another program
        lock = _connect(f"{path}-lock", opened)
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if _primary(error) != sqlite3.SQLITE_BUSY:
                raise
            raise StoreError(f"the store {path} is in use by another server") from error
        version = _check(path, writer)  # another server may have been here in between
        if writer.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise StoreError(f"the store {path} is on a file system that cannot share memory, such as a network's")
        writer.execute("PRAGMA synchronous = FULL")
        writer.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        writer.execute(f"PRAGMA cache_size = {CHECKPOINT_PAGES}")
        _migrate(writer, version)
        reader = _connect(path, opened, PATIENCE)
        reader.execute("PRAGMA query_only = ON")
        users = {row[0] for row in reader.execute(USERS)}
        opened.pop_all()
        return Connections(reader, writer, lock, users)


def identify(path: Path) -> tuple[int, int]:
    """What identifies the file at a path. Raises StoreError when there is none."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise StoreError(f"the store {path} was deleted while the server ran: {error.strerror}") from None
    return found.st_dev, found.st_ino


def explain(path: Path | str, error: Exception) -> str:
    """One sentence for a person."""
    if isinstance(error, StoreError):
        return str(error)
    if isinstance(error, sqlite3.Error):
        sentence = SENTENCES.get(_primary(error), "the store {path} failed: {error}")
        return sentence.format(path=path, error=error)
    return f"the store {path} cannot keep this: {error}"


def _connect(path: Path | str, opened: ExitStack, patience: float = 0.0) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
    opened.callback(connection.close)
    return connection


def _check(path: Path, connection: sqlite3.Connection) -> int:
    """The version of the file, 0 for an empty one. Writes nothing: the file may be another program's."""
    sql = (
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)"
        " FROM pragma_application_id, pragma_user_version"
    )  # one statement: another server may be making the file
    application, version, tables = connection.execute(sql).fetchone()
    if application != APPLICATION_ID and (application or version or tables):
        raise StoreError(f"the store {path} belongs to another program")
    if version > VERSION:
        raise StoreError(
            f"the store {path} was written by a newer trioswitch: its version is {version}, this one knows {VERSION}"
        )
    return int(version)


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    connection.execute("BEGIN IMMEDIATE")  # what fails is undone when the connection is closed
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(explain(path, error)) from error


def _primary(error: sqlite3.Error) -> int:
    """SQLite's result code without its details, 0 for what is Python's own."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF
