"""Whatever is asked of them, in whatever order: both engines answer as a simple model does."""

import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_support import upto

from trioswitch.stores.memory import MemoryStore
from trioswitch.stores.port import Append, InboxMessage, Retention, Store
from trioswitch.stores.sqlite.store import SqliteStore

ROOMS = {"a": Retention(3, None), "b": Retention(100, 20.0), "c": Retention(80, 8.0), "empty": Retention(1, None)}
INBOX_AGE = 25.0
INBOX = 3

times = st.integers(1, 12)
keys = st.none() | st.sampled_from("kl")
lifetimes = st.none() | times
messages = st.tuples(st.sampled_from("abc"), st.integers(0, 20), lifetimes, keys, st.integers(1, 40))
mail = st.tuples(st.sampled_from(["ann", "bob"]), lifetimes, keys)
pages = st.tuples(st.sampled_from(list(ROOMS)), st.none() | st.integers(0, 30), st.integers(0, 9), st.integers(0, 90))
steps = st.one_of(
    st.tuples(st.just("append"), st.lists(messages, max_size=4)),
    st.tuples(st.just("post"), st.lists(mail, max_size=4)),
    st.tuples(st.just("acknowledge"), st.sampled_from(["ann", "bob"]), st.integers(0, 6)),
    st.tuples(st.just("pass"), times),
    st.tuples(st.just("sweep")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("read"), pages),
    st.tuples(st.just("letters"), st.sampled_from(["ann", "bob"]), st.integers(0, 3), st.integers(0, 4)),
)


@attrs.define
class One:
    """A message or an inbox message of the model."""

    number: int
    payload: bytes
    at: float
    expires_at: float | None
    key: str | None

    def alive(self, now: float) -> bool:
        return self.expires_at is None or self.expires_at > now


class Model:
    """Forgets nothing, and finds out each time what should be there."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.rooms: dict[str, list[One]] = {}
        self.mail: dict[str, list[One]] = {}
        self.kept: dict[str, list[One]] = {}

    @staticmethod
    def put(ones: list[One], payload: bytes, at: float, expires_at: float | None, key: str | None) -> tuple[int, bool]:
        for one in ones:
            if key is not None and one.key == key:
                return one.number, True
        ones.append(One(len(ones) + 1, payload, at, expires_at, key))
        return len(ones), False

    def page(self, room: str, after: int | None, limit: int, max_bytes: int) -> tuple[range, int, list[Any]]:
        """What `first` may be, `last`, and the records. What has expired may count as kept, or as too old when it is."""
        ones, retention = self.rooms.get(room, []), ROOMS[room]
        oldest = self.now - (1e9 if retention.age is None else retention.age)
        low = max(len(ones) - retention.size + 1, 1)
        there = [one for one in ones[low - 1 :] if one.at >= oldest and one.alive(self.now)]
        lowest = low
        while lowest <= len(ones) and ones[lowest - 1].at < oldest:
            lowest += 1
        highest = lowest
        while highest <= len(ones) and (ones[highest - 1].at < oldest or not ones[highest - 1].alive(self.now)):
            highest += 1
        while lowest > low and not ones[lowest - 2].alive(self.now):
            lowest -= 1
        there = there[::-1] if after is None else [one for one in there if one.number > after]
        there = there[:limit]
        while len(there) > 1 and sum(len(one.payload) for one in there) > max_bytes:
            there.pop()
        if after is None:
            there.reverse()
        records = [(one.number, one.payload, one.at, one.expires_at) for one in there]
        return range(lowest, highest + 1), len(ones), records


async def compare(steps: list[Any], open_it: Callable[[], Awaitable[Store]]) -> None:
    model, store = Model(), await open_it()

    async def append(batch: list[Any]) -> None:
        appends, expected = [], []
        for room, late, lifetime, key, size in batch:
            at, expires_at = model.now - late / 10, None if lifetime is None else model.now + lifetime
            one = Append(room=room, payload=b"x" * size, at=at, expires_at=expires_at, key=key, retention=ROOMS[room])
            appends.append(one)
            expected.append(model.put(model.rooms.setdefault(room, []), one.payload, at, expires_at, key))
        assert [(one.offset, one.duplicate) for one in await store.append(appends)] == expected

    async def post(batch: list[Any]) -> None:
        inbox_messages, expected = [], []
        for user, lifetime, key in batch:
            expires_at = None if lifetime is None else model.now + lifetime
            inbox_messages.append(InboxMessage(user=user, payload=b"x", at=model.now, expires_at=expires_at, key=key))
            ever, kept = model.mail.setdefault(user, []), model.kept.setdefault(user, [])
            known = any(key is not None and one.key == key for one in ever)
            if not known and sum(one.alive(model.now) for one in kept) >= INBOX:
                expected.append((0, False))
                continue
            expected.append(model.put(ever, b"x", model.now, expires_at, key))
            if not known:
                kept.append(ever[-1])
        assert [
            (one.seq, one.duplicate) for one in await store.add_to_inboxes(inbox_messages, limits=upto(INBOX))
        ] == expected

    async def acknowledge(user: str, upto: int) -> None:
        await store.acknowledge(user, upto)
        model.kept[user] = [one for one in model.kept.get(user, []) if one.number > upto]

    async def let_time_pass(seconds: int) -> None:
        model.now += seconds

    async def sweep() -> None:
        await store.sweep(model.now, INBOX_AGE)
        for user, kept in model.kept.items():
            model.kept[user] = [one for one in kept if one.at >= model.now - INBOX_AGE]

    async def restart() -> None:
        nonlocal store
        if store.durable:
            await store.aclose()
            store = await open_it()

    async def read(query: Any) -> None:
        room, after, limit, max_bytes = query
        if after is None:
            page = await store.read_newest(room, limit=limit, max_bytes=max_bytes, now=model.now)
        else:
            page = await store.read(room, after=after, limit=limit, max_bytes=max_bytes, now=model.now)
        records = [attrs.astuple(record) for record in page.records]
        assert page.epoch or not model.rooms.get(room)
        firsts, *expected = model.page(*query)
        assert page.first in firsts
        assert [page.last, records] == expected

    async def inbox_messages(user: str, after: int, limit: int) -> None:
        found = [
            one.seq for one in await store.read_inbox(user, after=after, limit=limit, max_bytes=1 << 20, now=model.now)
        ]
        alive = [one.number for one in model.kept.get(user, []) if one.alive(model.now) and one.number > after]
        assert found == alive[:limit]

    do: dict[str, Callable[..., Awaitable[None]]] = {
        "append": append,
        "post": post,
        "acknowledge": acknowledge,
        "pass": let_time_pass,
        "sweep": sweep,
        "restart": restart,
        "read": read,
        "letters": inbox_messages,
    }
    try:
        for name, *args in steps:
            await do[name](*args)
        for room in ROOMS:
            await read((room, 0, 1000, 1 << 20))
            await read((room, None, 1000, 1 << 20))
        for user in ("ann", "bob"):
            await inbox_messages(user, 0, 100)
    finally:
        await store.aclose()


many = st.lists(steps, max_size=40)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(many)
def test_the_memory_store(steps: list[Any]) -> None:
    async def open_it() -> Store:
        return MemoryStore()

    trio.run(compare, steps, open_it)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(many)
def test_the_sqlite_store(steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trio.run(compare, steps, partial(SqliteStore.open, Path(directory) / "store.db"))
