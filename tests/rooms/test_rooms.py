"""Rooms: windows, order, policies, crashes."""

import logging
from typing import Any

import pytest
import trio
from support import Client, running, settled
from trio.testing import MockClock, lockstep_stream_pair

from trioswitch import Options, Overflow, Receipt, RoomPolicy
from trioswitch.wire.prepared import Prepared
from trioswitch.wire.protocols import JSON_CODEC
from trioswitch.wire.windows import Window


async def data_until(client: Client, last: Any) -> list[Any]:
    got = []
    while not got or got[-1] != last:
        got.append((await client.receive_until(type="message"))["data"])
    return got


async def test_order_holds_whatever_the_window(clock: MockClock, transport: str) -> None:
    for window_messages in (1, 3, 1024):
        async with running(Options(window_messages=window_messages), transport=transport) as app:
            client = await app.connect()
            app.switch.join(client.connection_id, "r")
            for number in range(50):
                app.switch.publish_nowait("r", number)
            assert await data_until(client, 49) == list(range(50))


async def test_a_window_is_bounded_in_bytes_and_loses_nothing(clock: MockClock) -> None:
    async with running(Options(window_bytes=1000)) as app:
        client = await app.connect()
        app.switch.join(client.connection_id, "r")
        sizes = [10, 400, 5000, 10, 600, 600, 10]
        for size in sizes:
            app.switch.publish_nowait("r", "x" * size)
        app.switch.publish_nowait("r", "end")
        assert [len(data) for data in await data_until(client, "end")] == [*sizes, 3]
        statistics = app.switch.room_statistics("r")
        assert statistics is not None
        assert statistics.windows >= 4


async def test_a_window_goes_out_by_priority_then_age(clock: MockClock) -> None:
    async with running() as app:
        client = await app.connect()
        app.switch.join(client.connection_id, "r")
        await settled()
        app.switch.publish_nowait("r", "wakes the room")
        for number, priority in enumerate([0, 9, 3, 9, 0]):
            app.switch.publish_nowait("r", number, priority=priority)
        app.switch.publish_nowait("r", "end")
        assert (await data_until(client, "end"))[-6:] in ([1, 3, 2, 0, 4, "end"], [3, 2, "wakes the room", 0, 4, "end"])


async def test_excluded_members_get_the_rest_of_the_window(clock: MockClock) -> None:
    async with running() as app:
        ann, bob = await app.connect(), await app.connect()
        for client in (ann, bob):
            app.switch.join(client.connection_id, "r")
        for number in range(6):
            app.switch.publish_nowait("r", number, exclude=[ann.connection_id] if number % 2 else [])
        app.switch.publish_nowait("r", "end")
        assert await data_until(ann, "end") == [0, 2, 4, "end"]
        assert await data_until(bob, "end") == [0, 1, 2, 3, 4, 5, "end"]


async def test_a_room_holds_so_much_and_then_pushes_back(clock: MockClock) -> None:
    async with running(Options(room_messages=3, room_bytes=1000)) as app, app.switch.subscribe("r"):
        for _ in range(3):
            app.switch.publish_nowait("r", 1)
        with pytest.raises(trio.WouldBlock):
            app.switch.publish_nowait("r", 1)
        await settled()
        app.switch.publish_nowait("r", "x" * 990)
        with pytest.raises(trio.WouldBlock):
            app.switch.publish_nowait("r", "x" * 990)
        receipt = await app.switch.publish("r", "x" * 990)
        assert receipt.queued == 1


class Crash(Exception):
    pass


async def test_a_room_that_crashes_starts_again_with_its_members(
    clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fragile(messages: list[Prepared], *rest: Any) -> Window:
        if any(b"poison" in JSON_CODEC.encode(message.event) for message in messages):
            raise Crash("the room cannot take this")
        return Window(messages, *rest)

    monkeypatch.setattr("trioswitch.rooms.room.Window", fragile)
    async with running(Options(window_messages=1)) as app:
        client, neighbour = await app.connect(), await app.connect()
        app.switch.join(client.connection_id, "r")
        app.switch.join(neighbour.connection_id, "other")
        app.switch.publish_nowait("r", "before")
        assert await data_until(client, "before") == ["before"]
        receipt = await app.switch.publish("r", "poison")
        assert receipt.dropped == 1
        app.switch.publish_nowait("r", "after")
        await app.switch.publish("other", "untouched")
        assert await client.receive_until(type="gap") == {"type": "gap", "room": "r", "dropped": 1}
        assert await data_until(client, "after") == ["after"]
        assert await data_until(neighbour, "untouched") == ["untouched"]
        assert app.switch.statistics().room_crashes == 1
        statistics = app.switch.room_statistics("r")
        assert statistics is not None
        assert statistics.crashes == 1
        assert statistics.drops == {"crashed": 1}
    assert "room 'r' crashed" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR


async def stalled(app: Any, room: str) -> Client:
    """A member that has joined and reads nothing: its stream takes a byte only when it is read."""
    client = await app.connect(pair=lockstep_stream_pair)
    await client.join(room)
    await client.receive_until(action="user_joined")
    client.stream.reads = False  # trio-websocket's reader stops after what it is waiting for
    return client


@pytest.mark.parametrize("policy", list(Overflow))
async def test_a_member_that_does_not_read_harms_nobody(clock: MockClock, policy: Overflow) -> None:
    options = Options(outbox_messages=10, policies=(RoomPolicy(overflow=policy, block_timeout=1),), ping_interval=1e6)
    async with running(options) as app:
        slow = await stalled(app, "r")
        good = await app.connect()
        await good.join("r")
        receipts = [await app.switch.publish("r", number, key=str(number % 5)) for number in range(100)]
        receipts.append(await app.switch.publish("r", "end"))
        assert await data_until(good, "end") == [*range(100), "end"]
        drops = app.switch.statistics().drops
        if policy is Overflow.DISCONNECT:
            await trio.sleep(10)
            assert app.switch.connections() == [good.connection_id]
            assert app.switch.statistics().closes == {"slow_consumer": 1}
        else:
            waiting = app.switch.outbox_statistics(slow.connection_id)
            assert waiting.depth <= 11
            assert (
                drops
                == {
                    Overflow.BLOCK: {"block_timeout": drops.get("block_timeout", 0)},
                    Overflow.DROP_OLDEST: {"overflow": drops.get("overflow", 0)},
                    Overflow.DROP_NEWEST: {"overflow": drops.get("overflow", 0)},
                    Overflow.CONFLATE: {"conflated": drops.get("conflated", 0)},
                    Overflow.RESYNC: {"resync": drops.get("resync", 0)},
                }[policy]
            )
            assert sum(drops.values()) > 80
        if policy in (Overflow.BLOCK, Overflow.DROP_NEWEST):
            assert sum(receipt.dropped for receipt in receipts) == sum(drops.values()), "the publisher is told"


async def test_leaving_rooms_leaves_nothing_behind(clock: MockClock) -> None:
    async with running() as app:
        clients = [await app.connect() for _ in range(3)]
        for number in range(100):
            for client in clients:
                app.switch.join(client.connection_id, f"room {number}")
        assert len(app.switch.statistics().rooms) == 100
        for client in clients:
            await client.websocket.aclose()
        await settled()
        statistics = app.switch.statistics()
        assert (statistics.rooms, statistics.users) == ({}, 0)


async def test_what_has_expired_is_not_handed_out(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app:
        client = await app.connect()
        app.switch.join(client.connection_id, "r")
        assert await app.switch.publish("r", "too late", expires=0) == Receipt(dropped=1)
        app.switch.publish_nowait("r", "too late", expires=0)
        app.switch.publish_nowait("r", "end", expires=1)
        assert await data_until(client, "end") == ["end"]
        assert app.switch.statistics().drops == {"expired": 2}


async def test_an_expired_message_in_a_room_that_waited_is_dropped(clock: MockClock) -> None:
    async with running(Options(linger=5)) as app:
        client = await app.connect()
        app.switch.join(client.connection_id, "r")
        await app.switch.publish("r", "gone", expires=1)
        await app.switch.publish("r", "end")
        assert await data_until(client, "end") == ["end"]
