"""Seed 000's behaviour, point by point, with its own settings: 10 messages, 50 ms, 64 KiB."""

from typing import Any

import pytest
import trio
from support import App, Client, running, settled
from trio.testing import MockClock, lockstep_stream_pair

from trioswitch import Options

SEED = Options(batch_messages=10, linger=0.05, batch_bytes=64 * 1024)


async def member(app: App) -> Client:
    client = await app.connect(subprotocol="trioswitch.v1.batch")
    app.switch.join(client.connection_id, "r")
    await app.switch.flush_all()
    await client.receive_until(action="user_joined")
    return client


async def batches(client: Client, messages: int) -> list[list[Any]]:
    """The data of the next messages, batch by batch."""
    got: list[list[Any]] = []
    while sum(map(len, got)) < messages:
        first = await client.receive()
        whole = [first, *client.batched]
        client.batched = []
        got.append([m["data"] for m in whole if m["type"] == "message"])
    return [batch for batch in got if batch]


async def test_the_welcome_message_comes_first_with_the_highest_priority(clock: MockClock) -> None:
    async with running(SEED) as app:
        start = trio.current_time()
        client = await app.connect(welcome=False)
        welcome = await client.receive()
        assert welcome["type"] == "connected"
        assert {"connection_id", "timestamp"} <= welcome.keys()
        assert trio.current_time() == start, "it does not linger"


async def test_a_batch_by_size(clock: MockClock) -> None:
    async with running(SEED) as app:
        client = await member(app)
        start = trio.current_time()
        for number in range(25):
            await app.switch.send(client.connection_id, number)
        assert await batches(client, 20) == [list(range(10)), list(range(10, 20))]
        assert trio.current_time() == start, "a full batch does not wait"
        assert await batches(client, 5) == [list(range(20, 25))]
        assert trio.current_time() == pytest.approx(start + 0.05), "what is left waits for the interval"


async def test_a_batch_by_interval(clock: MockClock) -> None:
    async with running(SEED) as app:
        client = await member(app)
        start = trio.current_time()
        await app.switch.send(client.connection_id, 1)
        await trio.sleep(0.02)
        await app.switch.send(client.connection_id, 2)
        assert await batches(client, 2) == [[1, 2]]
        assert trio.current_time() == pytest.approx(start + 0.05), "the oldest message sets the time"


async def test_a_batch_by_bytes(clock: MockClock) -> None:
    async with running(SEED) as app:
        client = await member(app)
        start = trio.current_time()
        for _ in range(3):
            await app.switch.send(client.connection_id, "x" * 30_000)
        assert [len(batch) for batch in await batches(client, 2)] == [2]
        assert trio.current_time() == start


async def test_urgent_messages_take_the_batch_along_at_once(clock: MockClock) -> None:
    async with running(SEED) as app:
        client = await member(app)
        start = trio.current_time()
        for number, priority in ((1, 0), (2, 5), (3, 6)):
            await app.switch.send(client.connection_id, number, priority=priority)
        assert await batches(client, 3) == [[3, 2, 1]]
        assert trio.current_time() == start


async def test_order_by_priority_then_age(clock: MockClock) -> None:
    async with running(SEED) as app:
        client = await member(app)
        for number, priority in enumerate([0, 3, 1, 3, 0, 1]):
            await app.switch.send(client.connection_id, number, priority=priority)
        assert await batches(client, 6) == [[1, 3, 2, 5, 0, 4]]


async def test_to_a_room_but_some_and_to_all_or_some(clock: MockClock) -> None:
    async with running(SEED) as app:
        ann, bob = await member(app), await member(app)
        await app.switch.publish("r", "room", exclude={ann.connection_id})
        await app.switch.broadcast("some", connections={bob.connection_id})
        await app.switch.broadcast("all")
        assert await batches(ann, 1) == [["all"]]
        assert await batches(bob, 3) == [["room", "some", "all"]]


async def test_flush_all(clock: MockClock) -> None:
    async with running(SEED) as app:
        client = await member(app)
        start = trio.current_time()
        await app.switch.send(client.connection_id, 1)
        await app.switch.flush_all()
        assert await batches(client, 1) == [[1]]
        assert trio.current_time() == start


async def test_what_was_not_sent_is_not_lost(clock: MockClock) -> None:
    """While a client does not read, everything waits, and comes in order when it reads again."""
    async with running(Options(batch_messages=10, linger=0.05, ping_interval=1e6)) as app:
        client = await app.connect(pair=lockstep_stream_pair)
        await client.join("r")
        await client.receive_until(action="user_joined")
        for number in range(500):
            await app.switch.send(client.connection_id, number)
        await settled()
        assert app.switch.outbox_statistics(client.connection_id).depth > 400
        await trio.sleep(10)
        assert [(await client.receive())["data"] for _ in range(500)] == list(range(500))
        assert app.switch.statistics().drops == {}


async def test_a_broken_connection_leaves_a_trace_of_everything(clock: MockClock) -> None:
    async with running(SEED) as app:
        client = await member(app)
        sent = app.switch.statistics().messages_sent
        for number in range(7):
            await app.switch.send(client.connection_id, number)
        app.nursery.start_soon(client.cut)
        await trio.sleep(1)
        statistics = app.switch.statistics()
        assert statistics.active_connections == 0
        assert sum(statistics.drops.values()) + statistics.messages_sent - sent == 7


async def test_the_statistics_of_the_document(clock: MockClock) -> None:
    async with running(SEED) as app:
        client = await member(app)
        before = app.switch.statistics()
        for number in range(15):
            await app.switch.publish("r", number)
        statistics = app.switch.statistics()
        assert statistics.messages_queued - before.messages_queued == 15
        await settled()
        assert app.switch.statistics().pending_messages == 5
        await batches(client, 15)
        statistics = app.switch.statistics()
        assert statistics.messages_sent - before.messages_sent == 15
        assert statistics.batches_sent - before.batches_sent == 2
        assert statistics.bytes_sent > before.bytes_sent
        assert statistics.compression_ratio == 0.0
        assert statistics.active_connections == 1
        assert statistics.pending_messages == 0
        assert 1 <= statistics.mean_batch_size <= 10
        assert statistics.rooms == {"r": 1}
