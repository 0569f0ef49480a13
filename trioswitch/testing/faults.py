"""What goes wrong in a cluster, drawn from a seed: nodes, the broker and the store, on a mock clock.

with deterministic(seed) as chance:
    store = FaultyStore(chance)
    async with open_test_cluster(3, store=store) as cluster:
        faults = Faults(cluster, store, chance)
        ...  # clients, which look for a node with `faults.any_node()`
        await faults.run(120)
"""

import random
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import trio

from ..errors import StoreError
from ..stores import MemoryStore
from .cluster import TestCluster, TestNode

__all__ = ["Faults", "FaultyStore", "deterministic"]

LOST = 0.3
"""The share of what is published that a broker loses which loses something."""


@contextmanager
def deterministic(seed: int) -> Iterator[random.Random]:
    """While the block runs, the order of Trio's tasks and all ids and tokens are drawn from a seed. Yields chance for the test.

    A run on a mock clock then gets the same faults each time, and is nearly always the same in all: what asks the wall clock may
    differ, and so may the order of sets of str (PYTHONHASHSEED).
    """
    runner: Any = trio._core._run
    before, tokens = runner._ALLOW_DETERMINISTIC_SCHEDULING, random.Random(f"tokens {seed}")
    runner._ALLOW_DETERMINISTIC_SCHEDULING = True
    runner._r.seed(seed)

    def token_bytes(count: int | None = None) -> bytes:
        return tokens.randbytes(secrets.DEFAULT_ENTROPY if count is None else count)

    try:
        with mock.patch.object(secrets, "token_bytes", token_bytes):
            yield random.Random(seed)
    finally:
        runner._ALLOW_DETERMINISTIC_SCHEDULING = before


class FaultyStore(MemoryStore):
    """A store in memory that can be broken: then it fails before it has done what it was asked for, or after."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._broken = False
        self._chance = chance

    def damage(self) -> None:
        """It fails from now on."""
        self._broken = True

    def repair(self) -> None:
        """It works again."""
        self._broken = False

    @contextmanager
    def _failing(self) -> Iterator[None]:
        if self._broken and self._chance.random() < 0.5:
            raise StoreError("the store is broken")
        yield
        if self._broken:
            raise StoreError("the store has broken meanwhile")

    async def append(self, appends: Any, **how: Any) -> Any:
        with self._failing():
            return await super().append(appends, **how)

    async def read(self, room: str, **how: Any) -> Any:
        with self._failing():
            return await super().read(room, **how)

    async def read_newest(self, room: str, **how: Any) -> Any:
        with self._failing():
            return await super().read_newest(room, **how)

    async def positions(self, rooms: Any) -> Any:
        with self._failing():
            return await super().positions(rooms)

    async def add_to_inboxes(self, inbox_messages: Any, **how: Any) -> Any:
        with self._failing():
            return await super().add_to_inboxes(inbox_messages, **how)

    async def save_sessions(self, sessions: Any) -> None:
        with self._failing():
            await super().save_sessions(sessions)


class Faults:
    """One after another, faults befall a cluster. `alive` are the nodes that run."""

    def __init__(self, cluster: TestCluster, store: FaultyStore, chance: random.Random) -> None:
        self.alive: list[TestNode] = list(cluster.nodes)
        self.happened: list[tuple[float, str]] = []
        """When, on Trio's clock, and what."""
        self._cluster = cluster
        self._store = store
        self._chance = chance

    def any_node(self) -> TestNode:
        """One of those that run, by chance."""
        return self._chance.choice(self.alive)

    async def run(self, seconds: float) -> None:
        """Let things go wrong for so long; then everything works again. Cancelling leaves what is broken broken."""
        faults: list[Callable[[], Any]] = [self.kill_node, self.drain_node, self.lose_messages, self.break_store]
        faults += [self.cut_broker, self.cut_broker, self.stall]
        with trio.move_on_after(seconds):
            while True:
                await trio.sleep(self._chance.uniform(1, 8))
                fault = self._chance.choice(faults)
                self.happened.append((trio.current_time(), fault.__name__))
                await fault()
        self._store.repair()
        self._cluster.exchange.lose(None)
        for node in self.alive:
            node.broker.reconnect()

    async def kill_node(self) -> None:
        """A node ends without a word, and another one is started."""
        node = self.any_node()
        self.alive.remove(node)
        node.kill()
        self.alive.append(await self._cluster.start())

    async def drain_node(self) -> None:
        """A node is replaced, in good order."""
        node = self.any_node()
        self.alive.append(await self._cluster.start())
        self.alive.remove(node)
        with trio.CancelScope(shield=True):
            await node.app.switch.drain(5)
            await node.stop()

    async def cut_broker(self) -> None:
        """A node loses the broker for a while."""
        node = self.any_node()
        node.broker.disconnect()
        await trio.sleep(self._chance.choice([0.1, 1, 15]))
        node.broker.reconnect()

    async def lose_messages(self) -> None:
        """The broker loses a third of what is published, for a second, and tells nobody."""
        self._cluster.exchange.lose(lambda: self._chance.random() < LOST)
        await trio.sleep(1)
        self._cluster.exchange.lose(None)

    async def break_store(self) -> None:
        """The store fails for a while."""
        self._store.damage()
        await trio.sleep(self._chance.choice([0.1, 1, 5]))
        self._store.repair()

    async def stall(self) -> None:
        """A node gets nothing from the broker any more, and is not told: only its own signs of life are missing."""
        self._cluster.exchange.forget(self.any_node().broker)
        await trio.sleep(1)
