"""Chaos: three nodes under load, while nodes, workers, brokers and stores are killed and stopped at random, connections are cut,
and Sentinel fails over.

Publishers go on until each message is acknowledged, subscribers reconnect by themselves, users come and go. In the end everything
works, and what was acknowledged is there: everywhere, once, in order; and presence is right. The seed is in the test's name. More
rounds, by hand: `CHAOS_ROUNDS=20 pytest tests/cluster/test_chaos.py`.
"""

import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from engine_server import free_port
from engines import SENTINEL, Engines, open_engines, serve_node
from servers import PATIENCE, Program, run

from trioswitch.client import ClientError, Gap, Message, Room, open_client

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
SECONDS = 15.0
"""With faults."""
STORED, PLAIN = "stored", "plain"
WORKERS = "workers"

pytestmark = pytest.mark.kill


class Nodes:
    """Three of them, which come back at their address when they are killed."""

    def __init__(self, engines: Engines, nursery: trio.Nursery) -> None:
        self.urls = [f"ws://127.0.0.1:{free_port()}/ws" for _ in range(3)]
        self._engines = engines
        self._nursery = nursery
        self._running: dict[str, Program] = {}
        self._started = trio.Event()

    async def start(self) -> None:
        for url in self.urls:
            self._nursery.start_soon(self._keep, url)
        with trio.fail_after(PATIENCE):
            await self._started.wait()

    async def _keep(self, url: str) -> None:
        port = int(url.split(":")[-1].partition("/")[0])
        while True:
            try:
                await self._run(url, port)
            except* AssertionError as failed:  # without a store it does not start, and whoever starts it tries again
                if not any(reason in str(failed.exceptions) for reason in ("cannot be reached", "read-only replica")):
                    raise
                await trio.sleep(0.3)

    async def _run(self, url: str, port: int) -> None:
        async with serve_node(self._engines, url, port) as program:
            self._running[url] = program
            if len(self._running) == len(self.urls):
                self._started.set()
            await program.process.wait()

    def kill(self, url: str) -> None:
        self._running[url].process.kill()


class WorkerNodes(Nodes):
    """Three workers of one server."""

    def __init__(self, engines: Engines, nursery: trio.Nursery, chance: random.Random) -> None:
        super().__init__(engines, nursery)
        self.urls = [self.urls[0]] * 3
        self._chance = chance

    @property
    def supervisor(self) -> Program:
        return self._running[self.urls[0]]

    async def start(self) -> None:
        self._nursery.start_soon(self._keep, self.urls[0])
        with trio.fail_after(PATIENCE):
            await self._started.wait()

    async def _run(self, url: str, port: int) -> None:
        serve = ("-m", "trioswitch", "serve", "--port", str(port), "--workers", "3", "--store", self._engines.store)
        room = ("--room", "stored*:history=stored,history-size=10000")
        async with run(*serve, *room, is_up=r"listens on (ws://[^\s;]+)") as program:
            self._running[url] = program
            self._started.set()
            await program.process.wait()

    def kill(self, url: str) -> None:
        if workers := self.supervisor.children():
            with suppress(ProcessLookupError):  # it was just about to end
                os.kill(self._chance.choice(workers), signal.SIGKILL)


class Supervisor(Engines):
    """What workers have in the place of engines: their supervisor has the hub and the store. WorkerNodes start it again."""

    nodes: WorkerNodes

    async def kill(self) -> None:
        self.nodes.supervisor.process.kill()

    async def start(self) -> None:
        await trio.lowlevel.checkpoint()

    async def pause(self, seconds: float) -> None:
        supervisor = self.nodes.supervisor.process
        supervisor.send_signal(signal.SIGSTOP)
        await trio.sleep(seconds)
        supervisor.send_signal(signal.SIGCONT)

    async def cut(self, chance: random.Random) -> None:
        for url in self.nodes.urls:
            self.nodes.kill(url)
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def _open(name: str, directory: Path, chance: random.Random) -> AsyncIterator[tuple[Engines, Nodes]]:
    if name == WORKERS:
        supervisor = Supervisor("", f"sqlite:{directory / 'messages.db'}", [])
        async with trio.open_nursery() as nursery:
            supervisor.nodes = WorkerNodes(supervisor, nursery, chance)
            yield supervisor, supervisor.nodes
            nursery.cancel_scope.cancel()
    else:
        async with open_engines(name, directory) as engines, trio.open_nursery() as nursery:
            yield engines, Nodes(engines, nursery)
            nursery.cancel_scope.cancel()


class Chaos:
    def __init__(self, engines: Engines, nodes: Nodes, chance: random.Random) -> None:
        self._engines = engines
        self._nodes = nodes
        self._chance = chance
        self.over = False
        self.done: list[str] = []
        """What went wrong."""

    async def run(self) -> None:
        with trio.move_on_after(SECONDS):
            while True:
                await trio.sleep(self._chance.uniform(0.2, 2))
                fault = self._chance.choice([self._kill_node, self._kill_engines, self._pause_engines, self._cut])
                self.done.append(fault.__name__)
                with trio.CancelScope(shield=True):
                    await fault()
        self.over = True

    async def _kill_node(self) -> None:
        self._nodes.kill(self._chance.choice(self._nodes.urls))

    async def _kill_engines(self) -> None:
        await self._engines.kill()
        await trio.sleep(self._chance.choice([0, 0.5, 2]))
        await self._engines.start()

    async def _pause_engines(self) -> None:
        await self._engines.pause(self._chance.choice([0.5, 3, 15]))

    async def _cut(self) -> None:
        await self._engines.cut(self._chance)


async def _until_it_works(enter: Callable[[], AbstractAsyncContextManager[Room]], stack: AsyncExitStack) -> Room:
    """Join a room, which may be refused while the store does not work."""
    while True:
        try:
            return await stack.enter_async_context(enter())
        except ClientError:
            await trio.sleep(0.1)


async def _subscribe(url: str, user: str, room: str, received: list[str], task_status: trio.TaskStatus[None]) -> None:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_client(url, user_id=user))
        joined = await _until_it_works(partial(client.room, room), stack)
        task_status.started()
        async for message in joined:
            if isinstance(message, Gap):
                received.append("gap")
            elif isinstance(message, Message) and message.content is not None:
                received.append(message.content)


async def _publish(chaos: Chaos, url: str, name: str, chance: random.Random, acknowledged: list[str]) -> None:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_client(url, user_id=name))
        stored, plain = [await _until_it_works(partial(client.room, room), stack) for room in (STORED, PLAIN)]
        number = 0
        while not chaos.over:
            text = f"{name}:{number}"
            number += 1
            while True:
                try:
                    await stored.chat(text, idempotency_key=text)
                    break
                except ClientError:
                    await trio.sleep(0.1)
            acknowledged.append(text)
            with suppress(ClientError):  # it may be lost: nothing keeps it
                await plain.chat(text)
            await trio.sleep(chance.expovariate(30))


async def _come_and_go(chaos: Chaos, urls: list[str], user: str, chance: random.Random) -> None:
    while not chaos.over:
        with suppress(ClientError), trio.move_on_after(chance.uniform(0.5, 3)):
            async with open_client(chance.choice(urls), user_id=user) as client, client.room(STORED):
                await trio.sleep_forever()
        await trio.sleep(chance.uniform(0, 1))


@pytest.mark.parametrize("name", ["redis", SENTINEL, "nats and postgres", WORKERS])
@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_what_was_acknowledged_is_there(name: str, seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    async with AsyncExitStack() as stack:
        engines, nodes = await stack.enter_async_context(_open(name, tmp_path, chance))
        await nodes.start()
        chaos = Chaos(engines, nodes, chance)
        received: list[list[str]] = [[] for _ in nodes.urls]
        heard: list[list[str]] = [[] for _ in nodes.urls]
        acknowledged: list[str] = []
        readers = await stack.enter_async_context(trio.open_nursery())
        for number, url in enumerate(nodes.urls):
            await readers.start(_subscribe, url, f"reader {number}", STORED, received[number])
            await readers.start(_subscribe, url, f"listener {number}", PLAIN, heard[number])
        async with trio.open_nursery() as publishers:
            for number, url in enumerate(nodes.urls):
                name = f"p{number}"
                publishers.start_soon(_publish, chaos, url, name, random.Random(f"{seed}{name}"), acknowledged)
            for number in range(3):
                user = f"guest {number}"
                publishers.start_soon(_come_and_go, chaos, nodes.urls, user, random.Random(f"{seed}{user}"))
            await chaos.run()
        with trio.move_on_after(3 * PATIENCE):
            while any(len(texts) < len(acknowledged) for texts in received):
                await trio.sleep(0.1)
        for texts in received:
            missing = set(acknowledged) - set(texts)
            assert missing == set(), f"{sorted(missing)} of {len(acknowledged)}, {chaos.done}"
        assert received[0] == received[1] == received[2], chaos.done
        assert sorted(received[0]) == sorted(acknowledged), chaos.done
        for number in range(3):
            for texts in (received[0], *heard):
                numbers = [int(text.partition(":")[2]) for text in texts if text.startswith(f"p{number}:")]
                assert numbers == sorted(set(numbers)), chaos.done
        assert len(acknowledged) > 100, chaos.done
        await _presence_is(nodes, {f"reader {number}" for number in range(3)})
        readers.cancel_scope.cancel()


async def _presence_is(nodes: Nodes, users: set[str]) -> None:
    """All nodes say, in the end, that these users are there, and nobody else."""
    for url in nodes.urls:
        async with open_client(url, user_id="who") as client:
            with trio.fail_after(PATIENCE):
                while set((await client.presence(STORED)).users) != users:
                    await trio.sleep(0.5)
