"""A cluster of real processes on real servers: nodes, brokers and stores are killed, and nothing acknowledged is lost."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from engines import ENGINES, Engines, open_engines, serve_node
from redis_server import RedisServer
from servers import PATIENCE

from trioswitch.client import ClientError, Gap, Message, Room, open_client

pytestmark = pytest.mark.slow


@pytest.fixture
async def engines(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engines]:
    async with open_engines(request.param, tmp_path) as opened:
        yield opened


on_all_engines = pytest.mark.parametrize("engines", ENGINES, indirect=True)
on_redis = pytest.mark.parametrize("engines", ["redis"], indirect=True)


async def _read(url: str, user: str, room: str, received: list[str]) -> None:
    async with open_client(url, user_id=user) as client, client.room(room) as joined:
        received.append("joined")
        async for message in joined:
            if isinstance(message, Gap):
                received.append("gap")
            elif isinstance(message, Message) and message.content is not None:
                received.append(message.content)


async def _said(room: Room, text: str) -> bool:
    """Whether a message was acknowledged. If not, it is sent again, with its key."""
    try:
        await room.chat(text, idempotency_key=text)
    except ClientError:
        return False
    return True


async def _wait(received: list[str], count: int) -> None:
    with trio.fail_after(PATIENCE):
        while len(received) < count:
            await trio.sleep(0.02)


@on_all_engines
@pytest.mark.parametrize("room", ["plain", "stored"])
async def test_nodes_are_one_server(engines: Engines, room: str) -> None:
    async with serve_node(engines, "one") as one, serve_node(engines, "two") as two, trio.open_nursery() as nursery:
        received: list[list[str]] = [[], []]
        nursery.start_soon(_read, one.found, "ann", room, received[0])
        nursery.start_soon(_read, two.found, "bob", room, received[1])
        for texts in received:
            await _wait(texts, 1)
        async with open_client(two.found, user_id="cat") as cat, cat.room(room) as joined:
            for number in range(100):
                await joined.chat(f"{number}")
        for texts in received:
            await _wait(texts, 101)
            assert texts[1:] == [f"{number}" for number in range(100)]
        nursery.cancel_scope.cancel()


@pytest.mark.kill
@on_all_engines
async def test_broker_and_store_are_killed_and_nothing_acknowledged_is_lost(engines: Engines) -> None:
    async with serve_node(engines, "one") as one, serve_node(engines, "two") as two, trio.open_nursery() as nursery:
        received: list[str] = []
        nursery.start_soon(_read, one.found, "ann", "stored", received)
        await _wait(received, 1)
        done = trio.Event()

        async def publish() -> None:
            async with open_client(two.found, user_id="bob") as bob, bob.room("stored") as joined:
                for number in range(200):
                    while not await _said(joined, f"{number}"):
                        await trio.sleep(0.1)
                    await trio.sleep(0.01)
            done.set()

        nursery.start_soon(publish)
        for _ in range(2):
            await trio.sleep(0.7)
            await engines.kill()
            await trio.sleep(0.7)
            await engines.start()
        with trio.fail_after(PATIENCE):
            await done.wait()
        await _wait(received, 201)
        assert received[1:] == [f"{number}" for number in range(200)]
        assert "the connection to the broker is lost" in one.said
        assert "the broker is connected" in one.said
        nursery.cancel_scope.cancel()


@pytest.mark.kill
@on_redis
async def test_the_connections_to_redis_are_cut_again_and_again(engines: Engines) -> None:
    async with serve_node(engines, "one") as one, serve_node(engines, "two") as two, trio.open_nursery() as nursery:
        (redis,) = engines.servers
        assert isinstance(redis, RedisServer)
        received: list[str] = []
        nursery.start_soon(_read, one.found, "ann", "stored", received)
        await _wait(received, 1)

        async def cut() -> None:
            while True:
                await trio.sleep(0.3)
                await redis.command("CLIENT", "KILL", "TYPE", "pubsub")

        async with trio.open_nursery() as cutting:
            cutting.start_soon(cut)
            async with open_client(two.found, user_id="bob") as bob, bob.room("stored") as joined:
                for number in range(200):
                    await joined.chat(f"{number}")
                    await trio.sleep(0.01)
            cutting.cancel_scope.cancel()
        await _wait(received, 201)
        assert received[1:] == [f"{number}" for number in range(200)]
        nursery.cancel_scope.cancel()


@pytest.mark.kill
@on_all_engines
async def test_a_node_is_killed_and_its_clients_go_on_elsewhere(engines: Engines) -> None:
    async with serve_node(engines, "two") as two, trio.open_nursery() as nursery:
        received: list[str] = []
        nursery.start_soon(_read, two.found, "ann", "stored", received)
        await _wait(received, 1)
        async with serve_node(engines, "one") as one:
            port = int(one.found.split(":")[-1].split("/")[0])
            async with open_client(one.found, user_id="bob") as bob, bob.room("stored") as joined:
                for number in range(20):
                    await joined.chat(f"{number}")
                await trio.sleep(0.5)
                one.process.send_signal(signal.SIGKILL)
                await one.process.wait()
                async with serve_node(engines, "one again", port):  # the client finds it at the same address
                    for number in range(20, 40):
                        await joined.chat(f"{number}")
        await _wait(received, 41)
        assert received[1:] == [f"{number}" for number in range(40)]
        nursery.cancel_scope.cancel()


def test_a_redis_that_cannot_be_reached() -> None:
    command = [sys.executable, "-m", "trioswitch", "serve", "--port", "0", "--store", "redis://127.0.0.1:1"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False, env={**os.environ})
    assert done.returncode == 1
    assert "trioswitch: Redis at 127.0.0.1:1 cannot be reached: Connection refused" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--broker", "redis://h"), "argument --broker: needs a store that all servers share: redis:// or postgres://"),
        (
            ("--broker", "kafka://h"),
            "argument --broker: unknown broker 'kafka://h': it is redis://HOST, nats://HOST or postgres://HOST/DATABASE",
        ),
        (("--store", "redis://h/x"), "argument --store: the database in the URL of Redis is a number, not 'x'"),
    ],
)
def test_wrong_options(arguments: tuple[str, ...], sentence: str) -> None:
    command = [sys.executable, "-m", "trioswitch", "serve", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert sentence in done.stderr
