"""The hub: it is a broker and a store like any other, and survives its processes."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from broker_contract import BrokerContract, Client, Connect
from store_contract import StoreContract
from store_support import message
from trio.testing import MockClock

from trioswitch.errors import BrokerError, StoreError
from trioswitch.hub import server
from trioswitch.hub.client import open_hub
from trioswitch.hub.protocol import Frames, frame
from trioswitch.hub.server import Hub
from trioswitch.stores import MemoryStore, Store, open_store


@asynccontextmanager
async def open_hub_at(path: Path, store: Store | None = None) -> AsyncIterator[Hub]:
    hub = Hub(store or MemoryStore())
    async with trio.open_nursery() as nursery:
        await nursery.start(hub.serve, str(path))
        yield hub
        nursery.cancel_scope.cancel()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hub"


class TestHubBroker(BrokerContract):
    @pytest.fixture
    async def connect(self, path: Path) -> AsyncIterator[Connect]:
        async with open_hub_at(path), trio.open_nursery() as nursery:

            async def keep_connected(task_status: trio.TaskStatus[Client]) -> None:
                async with open_hub(str(path)) as (_store, broker):
                    client = Client(broker)
                    task_status.started(client)
                    await broker.run(client)

            async def connect(*topics: str) -> Client:
                client: Client = await nursery.start(_with_topics, keep_connected, topics)
                await client.wait(lambda: client.connected)
                return client

            yield connect
            nursery.cancel_scope.cancel()


async def _with_topics(keep_connected, topics, task_status):  # type: ignore[no-untyped-def]
    class Status:
        def started(self, client: Client) -> None:
            client.wanted = list(topics)
            task_status.started(client)

    await keep_connected(Status())


class TestMemoryStoreBehindTheHub(StoreContract):
    knows_users = False

    @pytest.fixture
    async def store(self, path: Path) -> AsyncIterator[Store]:
        async with open_hub_at(path), open_hub(str(path)) as (store, _broker):
            await _wait_works(store)
            yield store


class TestSqliteStoreBehindTheHub(StoreContract):
    knows_users = False

    @pytest.fixture
    async def store(self, path: Path, tmp_path: Path) -> AsyncIterator[Store]:
        async with (
            open_store(f"sqlite:{tmp_path / 'x.db'}") as sqlite,
            open_hub_at(path, sqlite),
            open_hub(str(path)) as (store, _broker),
        ):
            await _wait_works(store)
            yield store


async def _wait_works(store: Store) -> None:
    with trio.fail_after(5):
        while True:
            try:
                await store.read_groups()
            except StoreError:
                await trio.sleep(0.01)
            else:
                return


async def test_without_a_hub_calls_say_why(path: Path) -> None:
    async with open_hub(str(path)) as (store, broker):
        await trio.sleep(0.05)
        with pytest.raises(StoreError, match="the hub cannot be reached: No such file or directory"):
            await store.append([message()])
        with pytest.raises(BrokerError, match="the hub cannot be reached"):
            await broker.publish([("t", b"x")])


async def test_a_hub_that_comes_back_is_found_again(path: Path) -> None:
    async with open_hub(str(path)) as (store, _broker):
        for _ in range(2):
            async with open_hub_at(path):
                await _wait_works(store)
                assert len(await store.append([message()])) == 1
            os.unlink(path)
            with pytest.raises(StoreError):
                await store.append([message()])


async def test_errors_of_the_store_are_those_of_the_hub(path: Path) -> None:
    class Broken(MemoryStore):
        async def append(self, appends, *, total_bytes=0):  # type: ignore[no-untyped-def]
            raise StoreError("the disk is full")

    async with open_hub_at(path, Broken()), open_hub(str(path)) as (store, _broker):
        await _wait_works(store)
        with pytest.raises(StoreError, match="the disk is full"):
            await store.append([message()])


async def test_a_call_that_fails_harms_no_other_process(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(MemoryStore):
        async def append(self, appends, *, total_bytes=0):  # type: ignore[no-untyped-def]
            raise ZeroDivisionError

    async with open_hub_at(path, Faulty()) as hub, open_hub(str(path)) as (store, broker):
        await _wait_works(store)
        with pytest.raises(StoreError, match="internal error"):
            await store.append([message()])
        wrong = await trio.open_unix_socket(str(path))
        await wrong.send_all(frame([1, "append", ["these are no messages"]]))
        assert b"internal error" in bytes(await wrong.receive_some())
        assert await broker.publish([("t", b"x")]) == [0]
        assert len(hub) == 2
        await wrong.aclose()
    assert "ZeroDivisionError" in caplog.text
    assert "ValidationError" in caplog.text


async def test_a_hub_that_hangs_is_not_waited_for(path: Path, autojump_clock: MockClock) -> None:
    async def hang(_stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await listener.bind(str(path))
    listener.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, hang, [trio.SocketListener(listener)])
        async with open_hub(str(path)) as (store, broker):
            with pytest.raises(StoreError, match="the hub did not answer within 10 s"):
                await store.append([message()])
            with pytest.raises(BrokerError, match="the hub did not answer within 10 s"):
                await broker.publish([("t", b"x")])
            receiver = Client(broker)
            nursery.start_soon(broker.run, receiver)
            await receiver.wait(lambda: receiver.reasons == ["the hub did not answer within 10 s"])
            nursery.cancel_scope.cancel()


async def test_a_process_that_does_not_read_is_disconnected(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_BACKLOG", 1_000_000)
    async with open_hub_at(path) as hub, open_hub(str(path)) as (store, broker):
        await _wait_works(store)
        stuck = await trio.open_unix_socket(str(path))
        await stuck.send_all(frame([1, "subscribe", ["t"]]))
        await stuck.receive_some()
        assert len(hub) == 2
        with trio.fail_after(10):
            while len(hub) == 2:
                await broker.publish([("t", b"x" * 100_000)])
        assert await broker.publish([("t", b"x")]) == [0]
        await stuck.aclose()


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\0\0\0\1x", b"\0\0\0\4\x93\1\xa0\xc0"])
async def test_a_process_that_sends_garbage_is_disconnected(path: Path, garbage: bytes) -> None:
    async with open_hub_at(path) as hub:
        stream = await trio.open_unix_socket(str(path))
        await stream.send_all(garbage)
        with trio.fail_after(5):
            while len(hub):
                await trio.sleep(0.01)
        await stream.aclose()


def test_frames_are_cut_at_any_byte() -> None:
    messages = [frame([number, None, "x" * number]) for number in range(50)]
    data = b"".join(messages)
    for size in (1, 3, 64, len(data)):
        frames, found = Frames(), list[bytes]()
        for at in range(0, len(data), size):
            found += frames.feed(data[at : at + size])
        assert found == [message[4:] for message in messages]
