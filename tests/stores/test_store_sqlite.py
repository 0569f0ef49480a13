"""The store in an SQLite file: what outlives the process, and how writes are grouped."""

import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path

import pytest
import trio
from store_contract import StoreContract
from store_support import ENDLESS, bounds, fill, inbox_message, inbox_messages, message, newest, offsets, read, upto
from trio.testing import wait_all_tasks_blocked

from trioswitch.errors import StoreError
from trioswitch.stores.open import open_store
from trioswitch.stores.port import InboxResult, Retention, Store
from trioswitch.stores.sqlite.store import SqliteStore

PATIENCE = 20.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


class TestSqliteStore(StoreContract):
    @pytest.fixture
    async def store(self, path: Path) -> AsyncIterator[Store]:
        async with open_store(f"sqlite:{path}") as store:
            yield store


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    async with open_store(f"sqlite:{path}") as store:
        assert isinstance(store, SqliteStore)
        assert store.durable
        yield store


class Obstacle:
    """A request that holds up the writer, in the middle of a transaction, until it is released."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.released = threading.Event()

    def __call__(self, items: Sequence[None]) -> list[None]:
        self.reached.set()
        assert self.released.wait(PATIENCE)
        return [None] * len(items)


@asynccontextmanager
async def held_up(store: SqliteStore) -> AsyncIterator[trio.Nursery]:
    """What is written within the block, by tasks of the nursery, waits until the block is left."""
    obstacle = Obstacle()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.writes.run, obstacle, [None])
        try:
            await trio.to_thread.run_sync(obstacle.reached.wait, PATIENCE)
            yield nursery
            await wait_all_tasks_blocked()
        finally:
            obstacle.released.set()


# --- what stays


async def test_everything_stays(path: Path) -> None:
    async with opened(path) as store:
        epoch = await fill(store, 100, retention=Retention(10, 1000.0))
        await store.append([message(key="k", at=101.0, retention=Retention(10, 1000.0))])
        await store.add_to_inboxes(
            [inbox_message(key="k"), inbox_message(b"2"), inbox_message(user="bob")], limits=upto(3)
        )
        await store.acknowledge("ann", 1)
        await store.acknowledge("bob", 1)
        before = await read(store)
    async with opened(path) as store:
        page = await read(store)
        assert page == before
        assert (page.epoch, *bounds(page)) == (epoch, 92, 101)
        assert [one.seq for one in await inbox_messages(store)] == [2]
        assert (store.may_have_inbox_messages("ann"), store.may_have_inbox_messages("bob")) == (True, False)
        first, second = await store.append([message(key="k"), message(at=102.0, retention=Retention(10, 1000.0))])
        assert (first.offset, first.duplicate, second.offset) == (101, True, 102)
        posted = await store.add_to_inboxes(
            [inbox_message(key="k"), inbox_message(), inbox_message(user="bob")], limits=upto(3)
        )
        assert posted == [InboxResult(1, True), InboxResult(3, False), InboxResult(2, False)]
        assert (await read(store, now=1101.5)).first == 102  # the age stays, too


async def test_nothing_is_left_beside_the_file_but_the_lock(path: Path) -> None:
    async with opened(path) as store:
        await fill(store, 10)
        threads = {thread.name for thread in threading.enumerate()}
        assert {f"reader of {path}", f"writer of {path}"} <= threads
    assert sorted(one.name for one in path.parent.iterdir()) == ["store.db", "store.db-lock"]
    assert not {thread.name for thread in threading.enumerate()} & {f"reader of {path}", f"writer of {path}"}


PUBLISHER = """
import itertools, sys, trio
from trioswitch.stores import Append, InboxMessage, Retention
from trioswitch.stores.open import open_store

async def publish(store, room):
    for number in itertools.count(1):
        one = Append(room=room, payload=b"%d" % number, at=1.0, expires_at=None, key=None, retention=Retention(10**6, None))
        (appended,) = await store.append([one])
        assert appended.offset == number
        print(room, number, flush=True)

async def main():
    async with open_store(sys.argv[1]) as store, trio.open_nursery() as nursery:
        for task in range(10):
            nursery.start_soon(publish, store, f"room{task}")

trio.run(main)
"""


def publish_and_be_killed(path: Path, lines: int) -> list[str]:
    """Run a process that appends, kill it in the middle of it, and return what it said was acknowledged."""
    process = subprocess.Popen([sys.executable, "-c", PUBLISHER, f"sqlite:{path}"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        said = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    return [line for line in said if line.endswith("\n")]


async def test_what_was_acknowledged_survives_a_kill(path: Path) -> None:
    said = await trio.to_thread.run_sync(publish_and_be_killed, path, 500)
    assert len(said) >= 500
    acknowledged = Counter(line.split()[0] for line in said)
    async with opened(path) as store:
        for room, count in acknowledged.items():
            page = await read(store, room, limit=1 << 20)
            assert page.last >= count
            assert [(one.offset, one.payload) for one in page.records] == [
                (number, b"%d" % number) for number in range(1, page.last + 1)
            ]
        await fill(store, 1)


# --- groups


async def test_what_waits_is_one_transaction(path: Path) -> None:
    async with opened(path) as store:
        async with held_up(store) as nursery:
            for number in range(100):
                nursery.start_soon(store.append, [message(room=f"room{number % 7}")])
                nursery.start_soon(lambda: store.add_to_inboxes([inbox_message()], limits=upto(1000)))
            nursery.start_soon(store.acknowledge, "ann", 1)
            await wait_all_tasks_blocked()
            assert store.statistics().writes.waiting == 201
            page = await read(store)  # a reader does not wait for the writer
            assert page.last == 0
        writes = store.statistics().writes
        assert (writes.waiting, writes.requests, writes.transactions, writes.failed) == (0, 202, 2, 0)
        assert sum([(await read(store, f"room{number}")).last for number in range(7)]) == 100


async def test_transactions_grow_under_load(path: Path) -> None:
    async with opened(path) as store:

        async def publish(room: str) -> None:
            for _ in range(10):
                await store.append([message(room=room)])

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(publish, f"room{number}")
        writes = store.statistics().writes
        assert writes.requests == 1000
        assert writes.transactions < 300  # each task waits for its own, so 10 were possible


async def test_a_request_that_fails_fails_alone(path: Path) -> None:
    errors: list[StoreError] = []
    async with opened(path) as store:
        await fill(store, 3)

        async def fail() -> None:
            with pytest.raises(StoreError, match="cannot keep this: 'utf-8' codec can't encode") as caught:
                await store.append([message(), message(room="lone surrogate \ud800")])
            errors.append(caught.value)

        async with held_up(store) as nursery:
            for _ in range(5):
                nursery.start_soon(store.append, [message(), message(key="k")])
                nursery.start_soon(fail)
        assert len(errors) == len({id(error) for error in errors}) == 5
        page = await read(store)
        assert offsets(page) == list(range(1, page.last + 1)) == list(range(1, 3 + 5 + 1 + 1))
        assert store.statistics().writes.failed == 5
        with pytest.raises(StoreError, match="cannot keep this"):
            await store.add_to_inboxes([inbox_message(user="\ud800")], limits=upto(1))
        with pytest.raises(StoreError, match="cannot keep this"):
            await read(store, "\ud800")
        assert offsets(await newest(store, limit=1)) == [9]


async def test_many_rooms(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trioswitch.stores.sqlite.writing.CACHED_ROOMS", 100)
    async with opened(path) as store:
        for number in range(1, 4):
            appended = await store.append([message(room=f"room{room}", key=f"k{number}") for room in range(1500)])
            assert {one.offset for one in appended} == {number}
            assert len({one.epoch for one in appended}) == 1500
        again = await store.append([message(room=f"room{room}", key="k2") for room in range(1500)])
        assert {(one.offset, one.duplicate) for one in again} == {(2, True)}
        await store.sweep(1e9, inf)
        assert offsets(await read(store, "room1499")) == [1, 2, 3]


async def test_the_table_holds_little_more_than_the_retention(path: Path) -> None:
    async with opened(path) as store:
        for _ in range(100):
            await fill(store, 10, retention=Retention(20, None))
    async with opened(path) as store:
        await fill(store, 1, retention=Retention(20, None))
        (count,) = store.writes.connection.execute("SELECT count(*) FROM messages").fetchone()
        assert 20 <= count <= 20 + 64


async def test_where_a_room_stands_is_known_after_a_restart_though_its_row_is_not_written_each_time(path: Path) -> None:
    keep = Retention(3, 50.0)
    async with opened(path) as store:
        await fill(store, 5, retention=keep)
        await store.append([message("late", at=90.0, retention=keep)])  # written: its time is not the greatest
        await store.append([message("short", expires_at=101.0, at=99.0, retention=keep)])
        await store.append([message("short", expires_at=101.0, retention=keep)])
        assert store.writes.connection.execute("SELECT last FROM rooms").fetchall() == [(7,)]
        before = [await read(store, now=now) for now in (100.0, 145.0, 149.5, 151.0)]
        assert [(page.first, page.last, offsets(page)) for page in before[:1]] == [(6, 8, [6, 7, 8])]
    async with opened(path) as store:
        assert [await read(store, now=now) for now in (100.0, 145.0, 149.5, 151.0)] == before
        await store.sweep(102.0, inf)
    async with opened(path) as store:
        page = await read(store)
        assert (page.first, page.last, offsets(page)) == (6, 8, [6])
        assert [one.offset for one in await store.append([message(retention=Retention(100, None))])] == [9]
    async with opened(path) as store:
        assert (await read(store)).first == 6  # the larger retention does not bring back what was gone


async def test_a_step_of_a_sweep_costs_the_same_however_much_there_is_to_do(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trioswitch.stores.sqlite.writing.SWEEP_STEP", 50)
    costs: list[int] = []
    async with opened(path) as store:
        for messages in (200, 4000):
            await store.append([message(expires_at=101.0 + n / 1e6) for n in range(messages)])
            steps: list[None] = []
            store.writes.connection.set_progress_handler(lambda steps=steps: steps.append(None), 100)
            assert await store.writes.run(store.writer.sweep_rows, [(200.0, inf)]) == [True]
            store.writes.connection.set_progress_handler(None, 0)
            costs.append(len(steps))
            await store.sweep(200.0, inf)
            assert offsets(await read(store)) == []
    assert 0 < costs[1] < 2 * costs[0]


# --- cancelling and closing


async def test_who_is_cancelled_goes_at_once(path: Path) -> None:
    async with opened(path) as store:
        async with held_up(store):
            with trio.move_on_after(0.01) as scope:
                await store.append([message()])
            assert scope.cancelled_caught
        assert (await store.append([message()]))[0].offset == 2  # it was done all the same


async def test_closing_finishes_what_waits(path: Path) -> None:
    async with opened(path) as store:
        async with held_up(store) as nursery:
            for _ in range(10):
                nursery.start_soon(store.append, [message()])
            await wait_all_tasks_blocked()
            nursery.start_soon(store.aclose)
    async with opened(path) as store:
        assert (await read(store)).last == 10


async def test_closing_goes_on_when_it_is_cancelled(path: Path) -> None:
    store = await SqliteStore.open(path)
    with trio.CancelScope() as scope:
        async with held_up(store) as nursery:
            nursery.start_soon(store.append, [message()])
            await wait_all_tasks_blocked()
            scope.cancel()
            nursery.start_soon(store.aclose)
    assert scope.cancelled_caught
    assert not [thread for thread in threading.enumerate() if str(path) in thread.name]
    async with opened(path) as store:
        assert (await read(store)).last == 1


async def test_a_disk_that_hangs_does_not_keep_the_server(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trioswitch.stores.sqlite.thread.CLOSE_TIME", 0.01)
    store = await SqliteStore.open(path)
    async with held_up(store):
        await store.aclose()
        assert "does not end" in caplog.text
    await store.aclose()


async def test_a_trio_that_ends_before_the_writer_does(path: Path) -> None:
    """Nobody is left to be woken: the thread ends, too."""
    obstacle = Obstacle()

    async def leave() -> SqliteStore:
        store = await SqliteStore.open(path)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.writes.run, obstacle, [None])
                await trio.to_thread.run_sync(obstacle.reached.wait, PATIENCE)
                scope.cancel()
        await store.reads.aclose()  # for it has nothing to do, and so never finds out
        return store

    store = await trio.to_thread.run_sync(trio.run, leave)
    obstacle.released.set()
    for lane in (store.reads, store.writes):
        await trio.to_thread.run_sync(lane.thread.join, PATIENCE)
        assert not lane.thread.is_alive()
    async with opened(path):  # it has let go of the file
        pass


@pytest.fixture
def link(path: Path, tmp_path: Path) -> Path:
    """Another name of the file."""
    link = tmp_path / "link.db"
    link.symlink_to(path)
    return link


async def test_one_server_at_a_time(path: Path, link: Path) -> None:
    async with opened(path) as store:
        for name in (path, link):
            with pytest.raises(StoreError, match=r"store\.db is in use by another server$"):
                async with opened(name):
                    pass
        await fill(store, 1)
    async with opened(link) as store:
        assert (await store.append([message(retention=ENDLESS)]))[0].offset == 2
