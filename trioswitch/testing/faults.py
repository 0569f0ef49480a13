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
from typing import Any, Final
from unittest import mock

import trio

from .._util import clock
from ..errors import StoreError
from ..stores import MemoryStore
from .cluster import TestCluster, TestNode

__all__ = ["Faults", "FaultyStore", "deterministic"]

JUMP = 120
"""Seconds that the time of day is set forward or back, at most: less than idempotency keys are kept."""
LOST = 0.3
"""The share of what is published that a broker loses which loses something."""


class _WallClock:
    """Stands for the module `time`: it goes as Trio's clock does, and jumps."""

    START: Final = 1_800_000_000.0

    def __init__(self) -> None:
        self._ahead = 0.0

    def reset(self) -> None:
        self._ahead = 0.0

    def jump(self, seconds: float) -> None:
        self._ahead += seconds

    def time(self) -> float:
        return self.START + self._ahead + trio.current_time()

    def time_ns(self) -> int:
        return int(self.time() * 1e9)


_wall_clock = _WallClock()


@contextmanager
def deterministic(seed: int) -> Iterator[random.Random]:
    """While the block runs, the order of Trio's tasks and all ids and tokens are drawn from a seed. Yields chance for the test.

    On a mock clock the switch takes the time of day from it, too, so that a seed gives the same run each time; from process to
    process, where PYTHONHASHSEED is the same.
    """
    runner: Any = trio._core._run
    before, tokens = runner._ALLOW_DETERMINISTIC_SCHEDULING, random.Random(f"tokens {seed}")
    runner._ALLOW_DETERMINISTIC_SCHEDULING = True
    runner._r.seed(seed)
    _wall_clock.reset()

    def token_bytes(count: int | None = None) -> bytes:
        return tokens.randbytes(secrets.DEFAULT_ENTROPY if count is None else count)

    try:
        with (
            mock.patch.object(secrets, "token_bytes", token_bytes),
            mock.patch.object(clock, "time", _wall_clock),
        ):
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
        faults += [self.cut_broker, self.cut_broker, self.slow_broker, self.stall, self.jump_clock]
        with trio.move_on_after(seconds):
            while True:
                await trio.sleep(self._chance.uniform(1, 8))
                fault = self._chance.choice(faults)
                self.happened.append((trio.current_time(), fault.__name__))
                await fault()
        self._store.repair()
        self._cluster.exchange.lose(None)
        self._cluster.exchange.delay(None)
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

    async def slow_broker(self) -> None:
        """What is published is under way for a while, and overtakes what is published elsewhere."""
        longest = self._chance.choice([0.05, 0.5, 3])
        self._cluster.exchange.delay(lambda: self._chance.uniform(0, longest))
        await trio.sleep(self._chance.choice([1, 5]))
        self._cluster.exchange.delay(None)

    async def jump_clock(self) -> None:
        """The time of day is set, forward or back. Only in a `deterministic` block."""
        _wall_clock.jump(self._chance.choice([-JUMP, -1, 1, JUMP]))

    async def break_store(self) -> None:
        """The store fails for a while."""
        self._store.damage()
        await trio.sleep(self._chance.choice([0.1, 1, 5]))
        self._store.repair()

    async def stall(self) -> None:
        """A node gets nothing from the broker any more, and is not told: only its own signs of life are missing."""
        self._cluster.exchange.forget(self.any_node().broker)
        await trio.sleep(1)
