"""The store in PostgreSQL, with a real server."""

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
from postgres_server import PostgresServer, postgres_server
from servers import silent_server
from store_contract import StoreContract
from store_support import message, read

from trioswitch.errors import StoreError
from trioswitch.stores import Store, open_store

pytestmark = pytest.mark.slow

PREFIXES = (f"p{number}" for number in itertools.count())
"""Of clusters that have the database to themselves."""


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


class TestPostgresStore(StoreContract):
    knows_users = False

    @pytest.fixture
    async def store(self, postgres: PostgresServer) -> AsyncIterator[Store]:
        async with open_store(f"{postgres.url()}?prefix={next(PREFIXES)}") as store:
            yield store


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return f"{postgres.url()}?prefix={next(PREFIXES)}"


def _prefix(url: str) -> str:
    return url.rpartition("=")[2]


async def test_nodes_that_begin_together_share_offsets(url: str) -> None:
    stores: list[Store] = []
    stop = trio.Event()

    async def keep_open() -> None:
        async with open_store(url) as store:
            stores.append(store)
            await stop.wait()

    found: list[int] = []

    async def append(store: Store) -> None:
        for _ in range(20):
            found.extend(one.offset for one in await store.append([message(room="r"), message(room="r")]))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(keep_open)
        while len(stores) < 3:
            await trio.sleep(0.01)
        async with trio.open_nursery() as appending:
            for store in stores * 2:
                appending.start_soon(append, store)
        stop.set()
    assert sorted(found) == list(range(1, 241))


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("CREATE SCHEMA {p}; CREATE TABLE {p}.customers ()", "holds tables of something else: choose another prefix"),
        (
            "CREATE SCHEMA {p}; CREATE TABLE {p}.about (version int); INSERT INTO {p}.about VALUES (99)",
            "has version 99",
        ),
    ],
)
async def test_schemas_that_cannot_be_used(postgres: PostgresServer, url: str, before: str, reason: str) -> None:
    postgres.execute(before.format(p=_prefix(url)))
    with pytest.raises(StoreError, match=reason):
        async with open_store(url):
            pass


async def test_a_user_who_may_not_make_the_schema(postgres: PostgresServer) -> None:
    postgres.execute("CREATE ROLE eve LOGIN PASSWORD 'secret'")
    with pytest.raises(StoreError, match="has refused it: permission denied for database postgres"):
        async with open_store(f"postgres://eve:secret@127.0.0.1:{postgres.port}/postgres?prefix=of_eve"):
            pass


async def test_a_database_that_is_read_only(postgres: PostgresServer) -> None:
    postgres.execute("CREATE DATABASE frozen")
    postgres.execute("ALTER DATABASE frozen SET default_transaction_read_only = on")
    with pytest.raises(StoreError, match="cannot be reached: session is read-only"):
        async with open_store(postgres.url("frozen")):
            pass


async def test_a_disk_that_is_full_for_a_while(postgres: PostgresServer, url: str) -> None:
    p = _prefix(url)
    async with open_store(url) as store:
        assert [one.offset for one in await store.append([message()])] == [1]
        postgres.execute(
            f"CREATE FUNCTION {p}.full() RETURNS trigger LANGUAGE plpgsql AS $$"
            "BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;"
            f"CREATE TRIGGER full_disk BEFORE INSERT ON {p}.messages EXECUTE FUNCTION {p}.full()"
        )
        with pytest.raises(StoreError, match="could not extend file: No space left on device"):
            await store.append([message()])
        assert [record.offset for record in (await read(store)).records] == [1]
        postgres.execute(f"DROP TRIGGER full_disk ON {p}.messages")
        assert [one.offset for one in await store.append([message()])] == [2]


@pytest.mark.kill
async def test_what_was_committed_survives_a_crash_of_the_server() -> None:
    with postgres_server() as server:
        async with open_store(server.url()) as store:
            offsets = [one.offset for one in await store.append([message(b"%d" % number) for number in range(100)])]
            server.kill()
            with pytest.raises(StoreError):
                await store.append([message()])
            with pytest.raises(StoreError, match=r"cannot be reached: .*Connection refused"):
                await store.append([message()])
            await trio.to_thread.run_sync(server.start)
            assert [record.offset for record in (await read(store)).records] == offsets
            assert [one.offset for one in await store.append([message()])] == [101]


async def test_of_two_servers_one_does_not_answer(postgres: PostgresServer, url: str) -> None:
    async with silent_server() as silent, open_store(url.replace("@", f"@127.0.0.1:{silent},")) as store:
        assert [one.offset for one in await store.append([message()])] == [1]


async def test_no_server() -> None:
    with pytest.raises(StoreError, match=r"PostgreSQL at 127.0.0.1:1/x cannot be reached: .*Connection refused"):
        async with open_store("postgres://127.0.0.1:1/x"):
            pass
