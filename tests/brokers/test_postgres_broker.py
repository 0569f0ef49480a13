"""The broker in PostgreSQL, with a real server."""

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
from broker_contract import BrokerContract, Client, Connect
from postgres_server import PostgresServer, postgres_server

from trioswitch.brokers import open_broker
from trioswitch.errors import BrokerError

pytestmark = pytest.mark.slow

PREFIXES = (f"p{number}" for number in itertools.count())
"""Of clusters that have the database to themselves."""


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


class TestPostgresBroker(BrokerContract):
    @pytest.fixture
    async def connect(self, postgres: PostgresServer) -> AsyncIterator[Connect]:
        url = f"{postgres.url()}?prefix={next(PREFIXES)}"
        async with trio.open_nursery() as nursery:

            async def connect(*topics: str) -> Client:
                client = Client(open_broker(url), list(topics))
                nursery.start_soon(client.broker.run, client)
                await client.wait(lambda: client.connected)
                return client

            yield connect
            nursery.cancel_scope.cancel()

    async def test_a_server_that_dies_and_comes_back(self) -> None:
        with postgres_server() as server:
            async with trio.open_nursery() as nursery:
                client = Client(open_broker(server.url()), ["t"])
                nursery.start_soon(client.broker.run, client)
                await client.wait(lambda: client.connected)
                server.kill()
                await client.wait(lambda: not client.connected)
                with pytest.raises(BrokerError):
                    await client.broker.publish([("t", b"x")])
                await client.wait(lambda: "Connection refused" in client.reasons[-1])
                await trio.to_thread.run_sync(server.start)
                await client.wait(lambda: client.connected)
                await client.broker.publish([("t", b"after")])
                assert await client.receive(1) == [("t", b"after")]
                nursery.cancel_scope.cancel()

    async def test_connections_that_the_server_ends(self, connect: Connect, postgres: PostgresServer) -> None:
        client, publisher = await connect("t"), await connect()
        postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        await client.wait(lambda: client.connections == 2)
        await publisher.wait(lambda: publisher.connections == 2)
        await publisher.broker.publish([("t", b"after")])
        assert await client.receive(1) == [("t", b"after")]

    async def test_old_payloads_are_deleted_and_a_node_that_is_slower_is_told(
        self, connect: Connect, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client, publisher = await connect("t"), await connect()
        newest = "SELECT nspname FROM pg_namespace WHERE nspname LIKE '%_broker' ORDER BY oid DESC LIMIT 1"
        prefix = postgres.execute(newest).strip()
        await publisher.broker.publish([("t", b"1"), ("t", b"2")])
        await client.receive(2)
        assert postgres.execute(f"SELECT {prefix}.clean(60, 100)") == "0\n"
        postgres.execute(f"UPDATE {prefix}.payloads SET at = at - interval '61 s'")
        assert postgres.execute(f"SELECT {prefix}.clean(60, 100)") == "2\n"
        # Now a row that is deleted before anybody has read it.
        postgres.execute(
            f"INSERT INTO {prefix}.payloads (topic, payload, at) VALUES ('t', '3', now() - interval '61 s');"
            f"SELECT {prefix}.clean(60, 100)"
        )
        await publisher.broker.publish([("t", b"4")])
        await client.wait(lambda: client.connections == 2)
        assert client.reasons == ["this node was too slow for the broker: messages for it were deleted"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgres://postgres:wrong@127.0.0.1:{}/postgres", 'password authentication failed for user "postgres"'),
        ("postgres://postgres:secret@127.0.0.1:{}/none", 'database "none" does not exist'),
        ("postgres://127.0.0.1:1/x", "Connection refused"),
    ],
)
async def test_servers_that_cannot_be_used(postgres: PostgresServer, url: str, reason: str) -> None:
    async with trio.open_nursery() as nursery:
        client = Client(open_broker(url.format(postgres.port)))
        nursery.start_soon(client.broker.run, client)
        await client.wait(lambda: bool(client.reasons))
        assert reason in client.reasons[0]
        assert "cannot be reached" in client.reasons[0]
        assert "wrong" not in client.reasons[0]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgres://", "the URL of PostgreSQL names a host"),
        ("postgres:///x", "the URL of PostgreSQL names a host"),
        ("postgres://a:b/x", "the URL of PostgreSQL names a host"),
        ("postgres://u:secret@a:99999/x", "the URL of PostgreSQL names a host"),
        ("postgres://a", "the URL of PostgreSQL names a database"),
        ("postgres://a/x?prefix=a.b", "the prefix in the URL of PostgreSQL has letters, digits, - and _, not 'a.b'"),
        ("postgresql://a/x?y=1", "unknown option 'y' in the URL of PostgreSQL"),
    ],
)
def test_wrong_urls(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as raised:
        open_broker(url)
    assert "secret" not in str(raised.value)
