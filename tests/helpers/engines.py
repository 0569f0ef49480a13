"""The servers behind a cluster of several machines, in all combinations that are supported: a broker and a store each."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import trio
from nats_server import NatsServer, nats_server
from postgres_server import PostgresServer, postgres_server
from redis_server import RedisServer, redis_server
from servers import Program, run

__all__ = ["ENGINES", "Engines", "open_engines", "serve_node"]

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


@asynccontextmanager
async def open_engines(name: str, directory: Path) -> AsyncIterator[Engines]:
    """Start the servers of one of ENGINES, each of which keeps what it has committed through a crash."""
    broker, _, store = name.partition(" and ")
    urls: dict[str, str] = {}
    servers: list[RedisServer | NatsServer | PostgresServer] = []
    async with AsyncExitStack() as stack:
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
