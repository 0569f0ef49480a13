"""The broker and the store on Redis behind Sentinel, and on a Redis Cluster, with real servers of which one dies."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from broker_contract import PATIENCE, Client
from redis_server import RedisServer, redis_cluster, redis_sentinel
from servers import silent_server
from store_support import message, read

from trioswitch.brokers import open_broker
from trioswitch.errors import BrokerError, StoreError
from trioswitch.stores import Store, open_store

pytestmark = pytest.mark.kill


@asynccontextmanager
async def two_clients(url: str) -> AsyncIterator[list[Client]]:
    async with trio.open_nursery() as nursery:
        clients = [Client(open_broker(url), ["t"]) for _ in range(2)]
        for client in clients:
            nursery.start_soon(client.broker.run, client)
            await client.wait(lambda client=client: client.connected)  # type: ignore[misc]
        yield clients
        nursery.cancel_scope.cancel()


async def exchange(clients: list[Client], text: bytes) -> None:
    """Each publishes until both have got it."""
    with trio.fail_after(3 * PATIENCE):
        for number, publisher in enumerate(clients):
            sent = ("t", b"%b %d" % (text, number))
            while not all(sent in client.payloads for client in clients):
                with trio.move_on_after(1):
                    try:
                        await publisher.broker.publish([sent])
                    except BrokerError:
                        await trio.sleep(0.1)


async def append(store: Store) -> int:
    """Append until it works. Returns the offset."""
    with trio.fail_after(3 * PATIENCE):
        while True:
            try:
                return (await store.append([message()]))[0].offset
            except StoreError:
                await trio.sleep(0.1)


async def survives(url: str, primary: RedisServer) -> None:
    """Broker and store go on when the primary is killed."""
    async with two_clients(url) as clients, open_store(url) as store:
        await exchange(clients, b"before")
        assert [await append(store) for _ in range(3)] == [1, 2, 3]
        epoch = (await read(store)).epoch
        await primary.kill()
        await exchange(clients, b"after")
        if "cluster" in url:
            with pytest.raises(StoreError, match=r"only 0 of 1 replicas of Redis at 127\.0\.0\.1:\d+ have it"):
                await store.append([message()])
            await primary.start()  # it is the replica now
        await append(store)
        found = await read(store)
        assert found.epoch == epoch
        assert [record.offset for record in found.records][:4] == [1, 2, 3, 4]


async def test_sentinel_fails_over(tmp_path: Path) -> None:
    async with redis_sentinel(tmp_path) as (url, (primary, *replicas)):
        await survives(url, primary)
        # The old primary comes back, and would take clients; but nobody asks it.
        await primary.start()
        async with two_clients(url) as clients:
            await exchange(clients, b"again")
            roles = [await replica.command("INFO", "replication") for replica in replicas]
            assert any("role:master" in role for role in roles)


async def test_clients_leave_a_primary_that_has_been_replaced(tmp_path: Path) -> None:
    async with redis_sentinel(tmp_path) as (url, _servers), two_clients(url) as clients:
        sentinel = int(url.split(":")[2].partition(",")[0])
        done = await trio.run_process(
            ["redis-cli", "-p", str(sentinel), "SENTINEL", "FAILOVER", "main"], capture_stdout=True
        )
        assert done.stdout == b"OK\n"
        for client in clients:
            with trio.fail_after(3 * PATIENCE):
                while client.connections < 2:
                    await trio.sleep(0.1)
        await exchange(clients, b"after")


async def test_a_sentinel_does_not_answer(tmp_path: Path) -> None:
    async with redis_sentinel(tmp_path) as (url, _servers), silent_server() as silent:
        async with open_store(url.replace("//", f"//127.0.0.1:{silent},")) as store:
            assert await append(store) == 1


async def test_sentinels_that_do_not_know_the_name(tmp_path: Path) -> None:
    async with redis_sentinel(tmp_path) as (url, _servers):
        with pytest.raises(StoreError, match="knows no primary that is called 'other'"):
            async with open_store(url.replace("/main", "/other")):
                pass


async def test_a_cluster_loses_the_server_that_is_used(tmp_path: Path) -> None:
    async with redis_cluster(tmp_path) as (url, servers):
        (primary,) = [server for server in servers if await _has_our_slot(server)]
        await survives(url, primary)


async def _has_our_slot(server: RedisServer) -> bool:
    slot = int(await server.command("CLUSTER", "KEYSLOT", "{trioswitch}"))
    own = next(
        line
        for line in (await server.command("CLUSTER", "NODES")).splitlines()
        if "myself,master" in line or "myself,slave" in line
    )
    ranges = [part.split("-") for part in own.split()[8:] if "[" not in part]
    return any(int(each[0]) <= slot <= int(each[-1]) for each in ranges)


async def test_a_slot_moves_to_another_server(tmp_path: Path) -> None:
    async with redis_cluster(tmp_path) as (url, servers):
        (before,) = [server for server in servers if await _has_our_slot(server)]
        others = [server for server in servers if server is not before]
        primaries = [server for server in others if "role:master" in await server.command("INFO", "replication")]
        async with two_clients(url) as clients, open_store(url) as store:
            await exchange(clients, b"before")
            await _move_slot(before, primaries[0], primaries[1])
            await exchange(clients, b"after")
            assert await append(store) == 1
            assert await _has_our_slot(primaries[0])


async def _move_slot(source: RedisServer, target: RedisServer, other: RedisServer) -> None:
    """As `redis-cli --cluster reshard` does, but the one that we use."""
    slot = (await source.command("CLUSTER", "KEYSLOT", "{trioswitch}")).strip()
    ids = [(await server.command("CLUSTER", "MYID")).strip() for server in (source, target)]
    await target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
    await source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
    keys = (await source.command("CLUSTER", "GETKEYSINSLOT", slot, "1000")).split()
    await source.command("MIGRATE", "127.0.0.1", f"{target.port}", "", "0", "5000", "KEYS", *keys)
    for server in (target, source, other):
        await server.command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])


async def test_a_server_that_is_no_cluster(tmp_path: Path) -> None:
    async with redis_sentinel(tmp_path) as (_url, (primary, *_replicas)):
        with pytest.raises(StoreError, match="cluster support disabled"):
            async with open_store(f"redis+cluster://127.0.0.1:{primary.port}"):
                pass


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("redis+other://a", "begins with redis://"),
        ("redis://a,b", "several hosts in the URL of Redis"),
        ("redis+sentinel://a", "does not say what the sentinels call it"),
        ("redis+sentinel://a/main/x", "the database in the URL of Redis is a number, not 'x'"),
        ("redis+cluster://a/1", "a Redis Cluster has database 0 only"),
        ("rediss+cluster://a,,b", "names no host"),
    ],
)
def test_wrong_urls(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_broker(url)
