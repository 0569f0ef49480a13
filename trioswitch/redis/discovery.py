"""Which server to use: the one that is named, the one that sentinels name, or the one of a Redis Cluster that has our slot.

All keys and channels of ours in a Redis Cluster have the same hash tag, and so the same slot: scripts need it for their keys, and
our nodes need one server for their channels.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from .connection import CONNECT_TIMEOUT, RedisConnection, RedisError, RedisLost, connect
from .url import RedisUrl, Topology

__all__ = ["find_server"]


async def find_server(url: RedisUrl) -> tuple[str, int]:
    """Host and port. Raises RedisError, RedisLost, within CONNECT_TIMEOUT. Safe to cancel."""
    if url.topology is Topology.SERVER:
        await trio.lowlevel.checkpoint()
        return url.servers[0]
    problem: RedisError | RedisLost | None = None
    for server in url.servers:
        try:
            with trio.fail_after(CONNECT_TIMEOUT / (len(url.servers) + 1)):  # some time is left for the server itself
                async with _asking(url, server) as connection:
                    if url.topology is Topology.SENTINEL:
                        return await _ask_sentinel(connection, url)
                    return await _ask_cluster(connection, url, server)
        except trio.TooSlowError:
            problem = RedisLost(f"Redis at {server[0]}:{server[1]} does not answer")
        except (RedisError, RedisLost) as error:
            problem = error
    assert problem is not None, "there is one server at least"
    raise problem


@asynccontextmanager
async def _asking(url: RedisUrl, server: tuple[str, int]) -> AsyncIterator[RedisConnection]:
    connection = await connect(url, server)
    problem: RedisError | RedisLost | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        try:
            yield connection
        except (RedisError, RedisLost) as error:
            problem = error
        nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem


async def _ask_sentinel(connection: RedisConnection, url: RedisUrl) -> tuple[str, int]:
    if url.sentinel_password is not None:
        await connection.call("AUTH", url.sentinel_password)
    found = await connection.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", url.name)
    if found is None:
        raise RedisError(f"the sentinel at {connection.place} knows no primary that is called {url.name!r}")
    host, port = found
    return host.decode(), int(port)


async def _ask_cluster(connection: RedisConnection, url: RedisUrl, server: tuple[str, int]) -> tuple[str, int]:
    await connection.authenticate(url)
    slot = await connection.call("CLUSTER", "KEYSLOT", url.prefix)
    for first, last, (host, port, *_), *_replicas in await connection.call("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return (host.decode() if host else server[0]), port
    raise RedisError(f"the Redis Cluster at {connection.place} has no server for slot {slot}")
