"""The store on Redis, with a real server."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from engine_server import PATIENCE
from redis_server import RedisServer, redis_server
from store_contract import StoreContract
from store_support import inbox_message, message, read, upto

from trioswitch.errors import StoreError
from trioswitch.stores import Store, StoredInboxMessage, open_store


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with redis_server(tmp_path) as server:
        yield server


class TestRedisStore(StoreContract):
    knows_users = False

    @pytest.fixture
    async def store(self, redis: RedisServer) -> AsyncIterator[Store]:
        async with open_store(redis.url) as store:
            yield store


@pytest.mark.kill
async def test_what_replicas_do_not_have_is_neither_acknowledged_nor_shown(tmp_path: Path) -> None:
    for name in ("primary", "replica"):
        (tmp_path / name).mkdir()
    async with redis_server(tmp_path / "primary") as primary:
        follow = ("--replicaof", f"127.0.0.1 {primary.port}", "--repl-diskless-sync-delay", "0")
        async with redis_server(tmp_path / "replica", *follow) as replica:
            url = f"{primary.url}?replicas=1"
            async with open_store(url) as store:
                with trio.fail_after(PATIENCE):
                    while "state=online" not in await primary.command("INFO", "replication"):
                        await trio.sleep(0.05)
                await store.append([message(key="first")])
                replica.pause()
                for _ in range(2):
                    with pytest.raises(StoreError, match="only 0 of 1 replicas"):
                        await store.append([message(key="retry")])
                    with pytest.raises(StoreError, match="only 0 of 1 replicas"):
                        await store.add_to_inboxes([inbox_message(key="retry")], limits=upto(9))
            async with open_store(url) as store:  # another connection, which has written nothing
                with pytest.raises(StoreError, match="only 0 of 1 replicas"):
                    await store.append([message(key="retry")])
                with pytest.raises(StoreError, match="only 0 of 1 replicas"):
                    await store.add_to_inboxes([inbox_message(key="retry")], limits=upto(9))
                # What only the primary has is shown to nobody: after a failover, another message may have its place.
                for reading in (read(store), store.positions(["room"]), _inbox(store)):
                    with pytest.raises(StoreError, match="only 0 of 1 replicas"):
                        await reading
                replica.resume()
                (appended,) = await store.append([message(key="retry")])
                assert (appended.offset, appended.duplicate) == (2, True)
                assert len((await read(store)).records) == 2
                assert len(await _inbox(store)) == 1


async def _inbox(store: Store) -> list[StoredInboxMessage]:
    return await store.read_inbox("ann", after=0, limit=9, max_bytes=99, now=100.0)


@pytest.mark.kill
async def test_a_server_that_has_lost_what_was_acknowledged(tmp_path: Path) -> None:
    """Offsets that were given once would be given again: so the epochs are others, and inboxes go on above."""
    async with redis_server(tmp_path) as server, open_store(server.url) as store:
        await store.append([message(), message()])
        await store.add_to_inboxes([inbox_message(user="bob")], limits=upto(9))
        await server.command("SAVE")
        await store.append([message()])
        (lost,) = await store.add_to_inboxes([inbox_message(user="bob")], limits=upto(9))
        before = await read(store)
        assert (before.last, lost.seq) == (3, 2)
        await server.kill()
        await server.start()
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    after = await read(store)
                    break
                except StoreError:
                    await trio.sleep(0.05)
        assert after.last == 2
        assert after.epoch != before.epoch
        assert await store.positions(["room", "none"]) == [(after.epoch, 2), ("", 0)]
        (appended,) = await store.append([message()])
        assert (appended.epoch, appended.offset) == (after.epoch, 3)
        (kept,) = await store.add_to_inboxes([inbox_message(user="bob")], limits=upto(9))
        assert kept.seq > lost.seq


async def test_a_server_that_writes_through_keeps_its_epochs(tmp_path: Path) -> None:
    async with redis_server(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        async with open_store(server.url) as store:
            (before,) = await store.append([message()])
        await server.kill()
        await server.start()
        async with open_store(server.url) as store:
            assert await store.positions(["room"]) == [(before.epoch, 1)]


async def test_a_server_that_cannot_be_reached() -> None:
    with pytest.raises(StoreError, match=r"Redis at 127\.0\.0\.1:1 cannot be reached: Connection refused"):
        async with open_store("redis://127.0.0.1:1"):
            pass


async def test_keys_of_another_version(redis: RedisServer) -> None:
    await redis.command("SET", "trioswitch:version", "99")
    with pytest.raises(StoreError, match=r"what 'trioswitch' keeps at .* has version 99: this server takes 1"):
        async with open_store(redis.url):
            pass
    async with open_store(f"{redis.url}?prefix=other"):
        pass
