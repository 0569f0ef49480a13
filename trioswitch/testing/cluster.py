"""A cluster in memory: several switches that share a store and a broker, on one clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import attrs
import trio

from ..brokers import InProcessBroker
from ..config import Options
from ..stores import MemoryStore, Store
from .exchange import FaultyExchange
from .memory import MemoryClient, TestSwitch, open_test_switch

__all__ = ["TestCluster", "TestNode", "open_test_cluster"]

INTRODUCTIONS = 0.1
"""Seconds until nodes that have just started know each other."""


@attrs.define(eq=False)
class TestNode:
    """A node of a `TestCluster`."""

    __test__: ClassVar[bool] = False  # pytest is not to take it for tests
    app: TestSwitch
    """Its switch, and its clients."""
    broker: InProcessBroker
    """Its connection to the broker: `disconnect` loses it until `reconnect`."""
    _scope: trio.CancelScope
    _stop: trio.Event
    _stopped: trio.Event

    async def stop(self) -> None:
        """End it in good order. Safe to cancel: it ends all the same."""
        self._stop.set()
        await self._stopped.wait()

    def kill(self) -> None:
        """End it as SIGKILL does: without a word to the others, nor to its clients."""
        self.broker.disconnect("the node was killed")
        self._scope.cancel()


@attrs.define(eq=False)
class TestCluster:
    """Several nodes that are one server. Made by `open_test_cluster`."""

    __test__: ClassVar[bool] = False
    exchange: FaultyExchange
    """The broker of all of them."""
    store: Store
    options: Options
    _nursery: trio.Nursery
    _arguments: dict[str, Any]
    nodes: list[TestNode] = attrs.field(factory=list)
    """All that were started, those that have ended as well."""

    def __getitem__(self, index: int) -> TestNode:
        return self.nodes[index]

    async def start(self) -> TestNode:
        """Start one more node."""
        node: TestNode = await self._nursery.start(self._run)
        self.nodes.append(node)
        return node

    async def _run(self, task_status: trio.TaskStatus[TestNode] = trio.TASK_STATUS_IGNORED) -> None:
        broker, stop, stopped = self.exchange.broker(), trio.Event(), trio.Event()
        with trio.CancelScope() as scope:
            async with open_test_switch(self.options, broker=broker, store=self.store, **self._arguments) as app:
                task_status.started(TestNode(app, broker, scope, stop, stopped))
                await stop.wait()
        stopped.set()

    async def join(self, index: int, room: str, user: str, **fields: Any) -> MemoryClient:
        """A new client of a node, which is a member of a room. More fields are those of `join_room`."""
        client = await self[index].app.connect()
        await client.join(room, user_id=user, **fields)
        return client


@asynccontextmanager
async def open_test_cluster(
    count: int, options: Options | None = None, *, store: Store | None = None, **arguments: Any
) -> AsyncIterator[TestCluster]:
    """Run so many nodes for a test; more `arguments` are those of `open_switch`, for each. Leaving the block ends them.

    Without a `store`, all share one in memory.
    """
    async with trio.open_nursery() as nursery:
        exchange = FaultyExchange()
        nursery.start_soon(exchange.run)
        cluster = TestCluster(exchange, store or MemoryStore(), options or Options(), nursery, arguments)
        for _ in range(count):
            await cluster.start()
        await trio.sleep(INTRODUCTIONS)
        yield cluster
        nursery.cancel_scope.cancel()
