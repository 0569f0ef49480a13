"""Clusters in memory: several switches that share a store and an exchange, on one clock."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from trioswitch import Options
from trioswitch.brokers import Exchange, InProcessBroker
from trioswitch.stores import MemoryStore, Store
from trioswitch.testing import MemoryClient, TestSwitch, open_test_switch

__all__ = ["Node", "Nodes", "open_nodes", "texts"]


@attrs.define(eq=False)
class Node:
    app: TestSwitch
    broker: InProcessBroker
    scope: trio.CancelScope
    _stop: trio.Event
    _stopped: trio.Event

    async def stop(self) -> None:
        """End it in good order."""
        self._stop.set()
        await self._stopped.wait()

    def kill(self) -> None:
        """End it as SIGKILL does: without a word to the others."""
        self.broker.disconnect("the node was killed")
        self.scope.cancel()


@attrs.define(eq=False)
class Nodes:
    """Several nodes of one cluster."""

    exchange: Exchange
    store: Store
    options: Options
    _nursery: trio.Nursery
    nodes: list[Node] = attrs.field(factory=list)

    def __getitem__(self, index: int) -> Node:
        return self.nodes[index]

    async def start(self, **arguments: Any) -> Node:
        """Start one more node."""
        node: Node = await self._nursery.start(self._run, arguments)
        self.nodes.append(node)
        return node

    async def _run(self, arguments: Any, task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED) -> None:
        broker, stop, stopped = self.exchange.broker(), trio.Event(), trio.Event()
        with trio.CancelScope() as scope:
            async with open_test_switch(self.options, broker=broker, store=self.store, **arguments) as app:
                task_status.started(Node(app, broker, scope, stop, stopped))
                await stop.wait()
        stopped.set()

    async def join(self, index: int, room: str, user: str, **fields: Any) -> MemoryClient:
        """A new client of a node, which is a member of a room."""
        client = await self[index].app.connect()
        await client.join(room, user_id=user, **fields)
        return client


@asynccontextmanager
async def open_nodes(
    count: int, options: Options | None = None, *, store: Store | None = None, **arguments: Any
) -> AsyncIterator[Nodes]:
    async with trio.open_nursery() as nursery:
        nodes = Nodes(Exchange(), store or MemoryStore(), options or Options(), nursery)
        for _ in range(count):
            await nodes.start(**arguments)
        await trio.sleep(0.1)  # until they know each other
        yield nodes
        nursery.cancel_scope.cancel()


async def texts(client: MemoryClient, count: int) -> Sequence[str]:
    """The next messages of a client, and its gaps."""
    found: list[str] = []
    while len(found) < count:
        message = await client.receive()
        if message["type"] in ("chat_message", "message"):
            found.append(message["content"] if "content" in message else message["data"])
        elif message["type"] == "gap":
            found.append("gap")
    return found
