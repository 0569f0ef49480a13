"""How fast the SQLite store is on a disk, beside a plain loop of sqlite3 with the same pragmas: run by hand, takes a minute.

python benchmarks/store.py [--dir DIR] [--page docs/performance.md]
"""

import argparse
import random
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from statistics import quantiles
from time import perf_counter

import trio
from report import between_marks

from trioswitch.stores.port import Append, Retention
from trioswitch.stores.sqlite.schema import open_connections
from trioswitch.stores.sqlite.store import SqliteStore

SECONDS = 2.0
"""Of each measurement."""
PAYLOAD = b"x" * 200
ROOMS, MESSAGES = 1000, 1000
"""Of the big file."""
PAGES = 3000
KEEP = Retention(MESSAGES, 86400.0)
NOW = 1_000_000.0


def main() -> None:
    parser = argparse.ArgumentParser(description="The SQLite store on a disk.")
    parser.add_argument("--dir", help="where to make the files, on the disk that is meant; by default a temporary one")
    parser.add_argument("--page", type=Path, help="a page whose marks `store` get what is measured")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.dir) as name:
        raw(Path(name))
        trio.run(appends, Path(name))
        trio.run(big, Path(name) / "big.db")
    if chosen.page:
        text = "\n".join(["```text", *SAID, "```"])
        chosen.page.write_text(between_marks(chosen.page.read_text(), "store", text))


SAID: list[str] = []


def say(line: str) -> None:
    SAID.append(line)
    print(line, flush=True)


def show(what: str, figure: str, times: list[float]) -> None:
    cuts = quantiles(times, n=100)
    say(f"{what:<48}{figure:>18}   p50 {cuts[49] * 1e3:7.2f} ms   p99 {cuts[98] * 1e3:7.2f} ms")


@contextmanager
def timed(times: list[float]) -> Iterator[None]:
    started = perf_counter()
    yield
    times.append(perf_counter() - started)


def raw(directory: Path) -> None:
    """Transactions of so many rows into the same table, with nothing around it."""
    for synchronous in ("FULL", "NORMAL"):
        for batch in (1, 10, 200, 1000):
            connections = open_connections(directory / f"raw-{synchronous}-{batch}.db")
            with closing(connections.reader), closing(connections.lock), closing(connections.writer) as connection:
                connection.execute(f"PRAGMA synchronous = {synchronous}")
                rate(f"sqlite3, {synchronous}, {batch} rows at once", connection, batch)


def rate(what: str, connection: sqlite3.Connection, batch: int) -> float:
    """Rows a second, so many in each transaction."""
    times: list[float] = []
    offset, started = 0, perf_counter()
    while perf_counter() - started < SECONDS / 2:
        with timed(times):
            connection.execute("BEGIN IMMEDIATE")
            rows = [(n % 20, offset + n, NOW, None, PAYLOAD) for n in range(batch)]
            connection.executemany("INSERT INTO messages VALUES (?, ?, ?, ?, ?, 0)", rows)
            connection.execute("COMMIT")
        offset += batch
    show(what, f"{offset / sum(times):,.0f} rows/s", times)
    return offset / sum(times)


def message(room: int) -> Append:
    return Append(room=f"room{room}", payload=PAYLOAD, at=NOW, expires_at=None, key=None, retention=KEEP)


async def repeat(tasks: int, what: str, unit: str, call: Callable[[int], Awaitable[object]]) -> None:
    """Have many tasks do the same for some seconds."""
    times: list[float] = []
    until = perf_counter() + SECONDS

    async def work(task: int) -> None:
        while perf_counter() < until:
            with timed(times):
                await call(task)

    async with trio.open_nursery() as nursery:
        for task in range(tasks):
            nursery.start_soon(work, task)
    show(what, f"{len(times) / SECONDS:,.0f} {unit}/s", times)


async def append(store: SqliteStore, rooms: int, task: int) -> None:
    await store.append([message(task % rooms)])


async def appends(directory: Path) -> None:
    for tasks, rooms in ((1, 1), (200, 20), (200, 200), (1000, 20)):
        store = await SqliteStore.open(directory / f"appends-{tasks}-{rooms}.db")
        what = f"store, {tasks} tasks, {rooms} rooms"
        await repeat(tasks, what, "records", partial(append, store, rooms))
        writes = store.statistics().writes
        say(f"{'':<48}{writes.requests / writes.transactions:>11,.0f} a group")
        await store.aclose()


async def big(path: Path) -> None:
    store = await SqliteStore.open(path)
    times: list[float] = []
    for _ in range(MESSAGES // 5):
        with timed(times):
            await store.append([message(room) for room in range(ROOMS) for _ in range(5)])
    show(f"filling with {ROOMS * MESSAGES:,} messages", f"{ROOMS * MESSAGES / sum(times):,.0f} records/s", times)
    started = perf_counter()
    await store.aclose()
    say(f"closing it: {(perf_counter() - started) * 1e3:.1f} ms; {mebibytes(path)} MiB")

    started = perf_counter()
    store = await SqliteStore.open(path)
    page = await store.read_newest("room1", limit=1, max_bytes=1 << 20, now=NOW)
    say(f"opening it, to the first page: {(perf_counter() - started) * 1e3:.1f} ms")
    assert page.last == MESSAGES

    chance = random.Random(1)

    async def read(_task: int = 0) -> None:
        room, after = f"room{chance.randrange(ROOMS)}", chance.randrange(MESSAGES - 100)
        assert len((await store.read(room, after=after, limit=100, max_bytes=1 << 20, now=NOW)).records) == 100

    times = []
    for _ in range(PAGES):
        with timed(times):
            await read()
    show("page of 100, anywhere", f"{PAGES / sum(times):,.0f} pages/s", times)
    await repeat(50, "page of 100, 50 tasks", "pages", read)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            for task in range(200):
                nursery.start_soon(publish, store, task)
            await repeat(1, "page of 100, while 200 tasks append", "pages", read)
            scope.cancel()
    times = []
    with timed(times):
        await store.sweep(NOW, 1e6)
    say(f"sweeping, nothing to do: {times[0] * 1e3:.1f} ms")
    with timed(times):
        await store.sweep(NOW + 86401.0, 1e6)
    say(f"sweeping all of it: {times[1]:.1f} s")
    await store.aclose()


def mebibytes(path: Path) -> int:
    return path.stat().st_size >> 20


async def publish(store: SqliteStore, task: int) -> None:
    while True:
        await append(store, 20, task)


if __name__ == "__main__":
    main()
