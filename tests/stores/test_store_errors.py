"""What can be wrong with an SQLite file, in one sentence each, and that the store goes on when it no longer is."""

import os
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest
import trio
from store_support import fill, inbox_message, inbox_messages, message, newest, offsets, read, upto

from trioswitch.errors import StoreError
from trioswitch.stores.port import (
    POSITION_TIME,
    Appended,
    HistoryRecords,
    InboxResult,
    Record,
    Refusal,
    StoredInboxMessage,
)
from trioswitch.stores.sqlite.schema import MIGRATIONS, VERSION
from trioswitch.stores.sqlite.store import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(path)
    try:
        yield store
    finally:
        await store.aclose()


async def refused(path: Path) -> str:
    """Why a store cannot be opened."""
    with pytest.raises(StoreError) as caught:
        await SqliteStore.open(path)
    text = str(caught.value)
    assert text.startswith(f"the store {path} ")
    assert "\n" not in text
    return text.removeprefix(f"the store {path} ")


def run_sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def overwrite(path: Path, start: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


# --- when it is opened


@pytest.mark.parametrize("content", [b"hello", b"hello " * 10_000])
async def test_a_file_of_another_kind(path: Path, content: bytes) -> None:
    write(path, content)
    assert await refused(path) == "is no SQLite file"
    assert content_of(path) == content


@pytest.mark.parametrize(
    "statements",
    [["CREATE TABLE t (x)"], ["PRAGMA application_id = 7", "CREATE TABLE t (x)"], ["PRAGMA user_version = 1"]],
)
async def test_the_file_of_another_program(path: Path, statements: list[str]) -> None:
    run_sql(path, *statements)
    content = content_of(path)
    assert await refused(path) == "belongs to another program"
    assert content_of(path) == content
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def test_the_file_of_a_newer_version(path: Path) -> None:
    async with opened(path):
        pass
    run_sql(path, f"PRAGMA user_version = {VERSION + 1}")
    text = await refused(path)
    assert text == f"was written by a newer trioswitch: its version is {VERSION + 1}, this one knows {VERSION}"


async def test_an_empty_file_is_a_new_store(path: Path) -> None:
    write(path, b"")
    async with opened(path) as store:
        await fill(store, 1)


async def test_no_directory(tmp_path: Path) -> None:
    text = await refused(tmp_path / "none" / "store.db")
    assert text == f"cannot be opened: there is no directory {tmp_path / 'none'}"


async def test_a_directory(path: Path) -> None:
    os.mkdir(path)
    assert await refused(path) == "cannot be opened: it is a directory"


@contextmanager
def unprivileged() -> Iterator[None]:
    """Permissions count, even when the tests are run by root."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


@pytest.fixture
def public() -> Iterator[Path]:
    """A file in a directory that everybody may write to, and get at."""
    with tempfile.TemporaryDirectory() as name:
        allow(Path(name), 0o777)
        yield Path(name) / "store.db"
        allow(Path(name), 0o777)


def allow(path: Path, mode: int) -> None:
    path.chmod(mode)


async def test_a_directory_that_may_not_be_written(public: Path) -> None:
    allow(public.parent, 0o555)
    with unprivileged():
        assert await refused(public) == "cannot be opened: it is no file, or permission is denied"


async def test_a_directory_that_may_not_be_entered(public: Path) -> None:
    allow(public.parent, 0o000)
    with unprivileged():
        assert await refused(public) == "cannot be opened: it is no file, or permission is denied"
        there = public / "below" / "store.db"
        assert (await refused(there)).startswith("cannot be opened: there is no directory")


async def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    assert "cannot be opened" in await refused(tmp_path / ("x" * 300))


async def test_a_file_that_may_not_be_written(public: Path) -> None:
    async with opened(public):
        pass
    allow(public, 0o444)
    allow(public.with_name("store.db-lock"), 0o666)
    with unprivileged():
        assert await refused(public) == "is read-only: permission to write it is denied"


async def test_a_file_that_another_program_has_locked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trioswitch.stores.sqlite.schema.PATIENCE", 0.01)
    async with opened(path) as store:
        await fill(store, 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert await refused(path) == "is locked by another program"
    async with opened(path) as store:  # and nothing holds it after a refusal
        await fill(store, 1)


async def test_a_damaged_file(path: Path) -> None:
    async with opened(path) as store:
        await fill(store, 1)
    overwrite(path, 100, b"\xff" * 200)
    assert (await refused(path)).startswith("is damaged: restore a copy of it (")


# --- while it runs


async def test_a_page_that_is_damaged(path: Path) -> None:
    async with opened(path) as store:
        await fill(store, 10, "good")
        for _ in range(10):
            await store.append([message(b"x" * 800, "bad") for _ in range(100)])
    overwrite(path, len(content_of(path)) // 2 // 4096 * 4096, b"\xff" * 4096)
    async with opened(path) as store:
        with pytest.raises(StoreError, match="is damaged: restore a copy"):
            await read(store, "bad", limit=1000)
        assert len((await read(store, "good")).records) == 10
        await fill(store, 1, "good")


async def test_a_full_disk(path: Path) -> None:
    async with opened(path) as store:
        await fill(store, 1)
        limit_pages(store, 0)  # as many as there are
        for _ in range(2):
            with pytest.raises(StoreError, match=r"store\.db cannot grow: the disk is full$"):
                await store.append([message(b"x" * 100_000)])
            with pytest.raises(StoreError, match="the disk is full"):
                await store.add_to_inboxes([inbox_message(b"x" * 100_000)], limits=upto(10))
            assert offsets(await read(store)) == [1]
        await fill(store, 1)  # a small one fits
        limit_pages(store, 1_000_000)
        appended = await store.append([message(b"x" * 100_000), message(room="other")])
        assert [one.offset for one in appended] == [3, 1]
        assert await store.add_to_inboxes([inbox_message(b"x" * 100_000)], limits=upto(10)) == [InboxResult(1, False)]
        assert store.statistics().writes.failed == 4
    async with opened(path) as store:
        assert offsets(await read(store)) == [1, 2, 3]


def limit_pages(store: SqliteStore, pages: int) -> None:
    """Let the file not grow beyond this: what SQLite says then is what it says when the disk is full."""
    store.writes.connection.execute(f"PRAGMA max_page_count = {pages or 1}")


async def test_all_that_waited_for_a_full_disk_fail(path: Path) -> None:
    failed = 0
    async with opened(path) as store:
        await fill(store, 1)
        limit_pages(store, 0)

        async def fail() -> None:
            nonlocal failed
            with pytest.raises(StoreError, match="the disk is full"):
                await store.append([message(b"x" * 10_000)])
            failed += 1

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(fail)
        assert failed == 20
        limit_pages(store, 1_000_000)
        assert (await store.append([message()]))[0].offset == 2


async def test_a_file_that_becomes_read_only(path: Path) -> None:
    async with opened(path) as store:
        await fill(store, 1)
        store.writes.connection.execute("PRAGMA query_only = ON")
        with pytest.raises(StoreError, match="is read-only"):
            await fill(store, 1)
        with pytest.raises(StoreError, match="is read-only"):
            await store.acknowledge("ann", 1)
        store.writes.connection.execute("PRAGMA query_only = OFF")
        await fill(store, 1)
        assert offsets(await newest(store)) == [1, 2]


async def test_another_program_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trioswitch.stores.sqlite.schema.PATIENCE", 0.01)
    async with opened(path) as store:
        await fill(store, 1)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="is locked by another program"):
                await fill(store, 1)
            assert offsets(await read(store)) == [1]
        await fill(store, 1)


# --- older versions

VERSION_1 = """
CREATE TABLE rooms (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, epoch TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    size INTEGER NOT NULL, age REAL, at REAL NOT NULL
);
CREATE TABLE messages (
    room INTEGER NOT NULL, offset INTEGER NOT NULL, at REAL NOT NULL, expires_at REAL, payload BLOB NOT NULL,
    PRIMARY KEY (room, offset)
) WITHOUT ROWID;
CREATE INDEX messages_expire ON messages (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE inboxes (id INTEGER PRIMARY KEY, user TEXT NOT NULL UNIQUE, last INTEGER NOT NULL);
CREATE TABLE letters (
    inbox INTEGER NOT NULL, seq INTEGER NOT NULL, at REAL NOT NULL, expires_at REAL, payload BLOB NOT NULL,
    PRIMARY KEY (inbox, seq)
) WITHOUT ROWID;
CREATE INDEX letters_age ON letters (at);
CREATE INDEX letters_expire ON letters (expires_at) WHERE expires_at IS NOT NULL;
INSERT INTO rooms VALUES (1, 'room', 'EPOCH', 3, 4, 100, NULL, 50.0);
INSERT INTO messages VALUES (1, 3, 40.0, NULL, x'61'), (1, 4, 50.0, 1e9, x'62');
INSERT INTO inboxes VALUES (1, 'ann', 7);
INSERT INTO letters VALUES (1, 7, 50.0, NULL, x'63');
PRAGMA application_id = 1953724209;
PRAGMA user_version = 1;
"""


async def test_a_file_of_version_1(path: Path) -> None:
    run_sql(path, *VERSION_1.split(";"))
    async with opened(path) as store:
        records = [Record(3, b"a", 40.0, None), Record(4, b"b", 50.0, 1e9)]
        assert await read(store) == HistoryRecords("EPOCH", 3, 4, records)
        assert await inbox_messages(store) == [StoredInboxMessage(7, b"c", 50.0, None)]
        for duplicate in (False, True):
            assert await store.append([message(key="k")]) == [Appended("EPOCH", 5, duplicate)]
            assert await store.add_to_inboxes([inbox_message(key="k")], limits=upto(10)) == [InboxResult(8, duplicate)]
    assert schema(path) == schema(await new(path.with_name("new.db")))


VERSION_2 = (
    VERSION_1
    + """
CREATE TABLE room_keys (
    owner INTEGER NOT NULL, key TEXT NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (owner, key)
) WITHOUT ROWID;
CREATE INDEX room_keys_age ON room_keys (at);
CREATE TABLE inbox_keys (
    owner INTEGER NOT NULL, key TEXT NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (owner, key)
) WITHOUT ROWID;
CREATE INDEX inbox_keys_age ON inbox_keys (at);
INSERT INTO inbox_keys VALUES (1, 'k', 7, 50.0);
INSERT INTO inboxes VALUES (2, 'bob', 9);
PRAGMA user_version = 2;
"""
)


async def test_a_file_of_version_2(path: Path) -> None:
    run_sql(path, *VERSION_2.split(";"))
    async with opened(path) as store:
        assert await inbox_messages(store) == [StoredInboxMessage(7, b"c", 50.0, None)]
        assert await store.add_to_inboxes([inbox_message(key="k")], limits=upto(10)) == [InboxResult(7, True)]
        assert await store.add_to_inboxes([inbox_message(b"x")], limits=upto(10, total=1)) == [
            InboxResult(0, False, Refusal.TOTAL)
        ]
        await store.sweep(51.0 + 60.0 + POSITION_TIME, 60.0)
        posted = await store.add_to_inboxes(
            [inbox_message(b"x", user) for user in ("ann", "bob")], limits=upto(10, total=1)
        )
        assert posted == [InboxResult(10, False), InboxResult(0, False, Refusal.TOTAL)]
    assert schema(path) == schema(await new(path.with_name("new.db")))


VERSION_3 = (
    VERSION_2
    + """
ALTER TABLE inboxes ADD COLUMN at REAL NOT NULL DEFAULT 0;
CREATE INDEX inboxes_age ON inboxes (at);
CREATE TABLE all_inboxes (bytes INTEGER NOT NULL, forgotten INTEGER NOT NULL);
INSERT INTO all_inboxes VALUES (1, 9);
CREATE TRIGGER letters_added AFTER INSERT ON letters BEGIN UPDATE all_inboxes SET bytes = bytes + length(new.payload)| END;
CREATE TRIGGER letters_gone AFTER DELETE ON letters BEGIN UPDATE all_inboxes SET bytes = bytes - length(old.payload)| END;
PRAGMA user_version = 3;
"""
)


async def test_a_file_of_version_3(path: Path) -> None:
    run_sql(path, *(statement.replace("|", ";") for statement in VERSION_3.split(";")))
    async with opened(path) as store:
        assert await read(store) == HistoryRecords(
            "EPOCH", 3, 4, [Record(3, b"a", 40.0, None), Record(4, b"b", 50.0, 1e9)]
        )
        assert await store.append([message()]) == [Appended("EPOCH", 5, False)]
        assert await inbox_messages(store) == [StoredInboxMessage(7, b"c", 50.0, None)]
    async with opened(path) as store:
        assert offsets(await read(store)) == [3, 4, 5]
    assert schema(path) == schema(await new(path.with_name("new.db")))


async def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_sql(path, *VERSION_1.split(";"))
    before = schema(path)
    monkeypatch.setattr("trioswitch.stores.sqlite.schema.MIGRATIONS", (*MIGRATIONS[:2], ("CREATE TABLE rooms (x)",)))
    assert await refused(path) == "failed: table rooms already exists"
    assert schema(path) == before
    monkeypatch.undo()
    async with opened(path) as store:
        assert offsets(await read(store)) == [3, 4]


async def new(path: Path) -> Path:
    async with opened(path):
        return path


def schema(path: Path) -> list[object]:
    """The version of the file, its tables and their columns."""
    with closing(sqlite3.connect(path)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()
        tables = "SELECT m.type, m.name, c.* FROM sqlite_master AS m LEFT JOIN pragma_table_xinfo(m.name) AS c"
        return [version, *sorted(connection.execute(tables), key=str)]
