"""The servers behind a cluster of several machines, in all combinations that are supported: a broker and a store each."""

import random
import subprocess
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import trio
from nats_server import NatsServer, nats_server
from postgres_server import PostgresServer, postgres_server
from redis_server import RedisServer, redis_sentinel, redis_server
from servers import PATIENCE, Program, run

__all__ = ["ENGINES", "SENTINEL", "Engines", "open_engines", "serve_node"]

SENTINEL = "redis sentinel"
ENGINES = ["redis", "nats and redis", "nats and postgres", "postgres"]
"""Broker and store; or one server that is both."""


@attrs.define(eq=False)
class Engines:
    broker: str
    """Its URL."""
    store: str
    """Its URL."""
    servers: list[RedisServer | NatsServer | PostgresServer]

    async def kill(self) -> None:
        """End all servers as a crash does."""
        for server in self.servers:
            if isinstance(server, PostgresServer):
                await trio.to_thread.run_sync(server.kill)
            else:
                await server.kill()

    async def start(self) -> None:
        """Start them again, with what they have kept."""
        for server in self.servers:
            if isinstance(server, PostgresServer):
                await trio.to_thread.run_sync(server.start)
            else:
                await server.start()

    async def pause(self, seconds: float) -> None:
        """Let them answer nobody for so long; their connections look alive."""
        paused = [server for server in self.servers if not isinstance(server, PostgresServer)]
        for server in paused:  # PostgreSQL's other processes would go on
            server.pause()
        await trio.sleep(seconds)
        for server in paused:
            server.resume()

    async def cut(self, chance: random.Random) -> None:
        """End the connections of all nodes."""
        for server in self.servers:
            if isinstance(server, RedisServer):
                await server.command("CLIENT", "KILL", "TYPE", chance.choice(["pubsub", "normal"]))
            elif isinstance(server, PostgresServer):
                sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname <> ''"
                await trio.to_thread.run_sync(server.execute, sql)
            else:
                await server.kill()
                await server.start()


class SentinelEngines(Engines):
    """A primary with two replicas: what befalls the engines befalls who is the primary at the time, and a replica takes over."""

    _victim: RedisServer | None = None

    async def kill(self) -> None:
        self._victim = await self._primary()
        await self._victim.kill()

    async def start(self) -> None:
        assert self._victim is not None
        await self._victim.start()

    async def pause(self, seconds: float) -> None:
        primary = await self._primary()
        primary.pause()
        await trio.sleep(seconds)
        primary.resume()

    async def _primary(self) -> RedisServer:
        """Who says so itself, and is followed: one that was replaced says it as well, until Sentinel tells it otherwise."""
        with trio.fail_after(3 * PATIENCE):
            while True:
                for server in self.servers:
                    assert isinstance(server, RedisServer)
                    try:
                        replication = await server.command("INFO", "replication")
                    except subprocess.CalledProcessError:
                        continue  # it is starting, or was just asked to follow another
                    if "role:master" in replication and "connected_slaves:0" not in replication:
                        return server
                await trio.sleep(0.1)


@asynccontextmanager
async def open_engines(name: str, directory: Path) -> AsyncIterator[Engines]:
    """Start the servers of one of ENGINES, or of SENTINEL, each of which keeps what it has committed through a crash."""
    broker, _, store = name.partition(" and ")
    urls: dict[str, str] = {}
    servers: list[RedisServer | NatsServer | PostgresServer] = []
    async with AsyncExitStack() as stack:
        if name == SENTINEL:
            url, redis_servers = await stack.enter_async_context(redis_sentinel(directory))
            url += "?replicas=2"
            yield SentinelEngines(url, url, [*redis_servers])
            return
        for kind in dict.fromkeys((broker, store or broker)):
            if kind == "redis":
                redis = redis_server(directory, "--appendonly", "yes", "--appendfsync", "always")
                servers.append(server := await stack.enter_async_context(redis))
                urls[kind] = server.url
            elif kind == "nats":
                servers.append(nats := await stack.enter_async_context(nats_server(directory, "--jetstream")))
                urls[kind] = nats.url
            else:
                opened = postgres_server()
                postgres = await trio.to_thread.run_sync(opened.__enter__)
                stack.push_async_exit(partial(_exit_in_thread, opened))
                servers.append(postgres)
                urls[kind] = postgres.url()
        yield Engines(urls[broker], urls[store or broker], servers)


def serve_node(engines: Engines, name: str, port: int = 0) -> AbstractAsyncContextManager[Program]:
    """Run a node. Its URL is `found`."""
    serve = ("-m", "trioswitch", "serve", "--port", str(port), "--node-name", name)
    shared = ("--store", engines.store, "--broker", engines.broker)
    room = ("--room", "stored*:history=stored,history-size=10000")
    return run(*serve, *shared, *room, is_up=r"listens on (ws://[^\s;]+)")


async def _exit_in_thread(opened: object, *_error: object) -> None:
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(opened.__exit__, None, None, None)  # type: ignore[attr-defined]
