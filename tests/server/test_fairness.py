"""What a client costs others: its commands give way, senders wait for a slow store, its transport is closed at the end."""

import itertools
from typing import Any

import pytest
import trio
from links import Link
from support import App, running, settled
from trio.testing import MockClock

from trioswitch import Options
from trioswitch.connections import driver
from trioswitch.durability.group_commit import MAX_BATCH
from trioswitch.stores.memory import MemoryStore
from trioswitch.transport.native import NativeTransport


async def test_the_commands_of_one_client_give_way_to_others(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command takes as long as the time slice, so that others run after each, though all arrived in one read."""
    ticks = itertools.count()
    monkeypatch.setattr("trioswitch.connections.driver.time.monotonic", lambda: next(ticks) * driver.COMMAND_TIME_SLICE)
    async with running() as app:
        link = Link.open(app.switch, app.nursery)
        await settled()
        link.take()
        for number in range(20):  # they arrive in one read
            link.send("heartbeat", id=number)
        turns: list[int] = []
        while sum(turns) < 40:
            await trio.lowlevel.checkpoint()
            turns.append(len(link.take()))
            assert len(turns) < 1000
        assert max(turns) <= 8, "an answer and an ack for each heartbeat: others run after four of them at the latest"


async def test_senders_wait_while_the_store_of_inboxes_is_busy(clock: MockClock) -> None:
    """As many messages are pending as fit into one batch; the rest stay with their senders."""
    blocked = trio.Event()

    class Blocked(MemoryStore):
        async def add_to_inboxes(self, *args: Any, **how: Any) -> Any:
            await blocked.wait()
            return await super().add_to_inboxes(*args, **how)

    count = 2 * MAX_BATCH + 100
    async with running(store=Blocked()) as app, trio.open_nursery() as nursery:
        sent = 0

        async def send(number: int) -> None:
            nonlocal sent
            await app.switch.send_to_user(f"user{number}", number)
            sent += 1

        for number in range(count):
            nursery.start_soon(send, number)
        await settled()
        assert MAX_BATCH <= app.switch.statistics().uncommitted_messages <= 2 * MAX_BATCH
        blocked.set()
        await settled()
        assert sent == count


async def test_a_connection_closes_its_transport_at_the_end(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[NativeTransport] = []
    aclose = NativeTransport.aclose

    async def noted(self: NativeTransport) -> None:
        closed.append(self)
        await aclose(self)

    monkeypatch.setattr(NativeTransport, "aclose", noted)

    async def ends(app: App, end: str) -> None:
        client = await app.connect()
        if end == "the client closes":
            await client.websocket.aclose()
        elif end == "the client is gone":
            await client.cut()
        elif end == "it is kicked":
            app.switch.kick(client.connection_id)
            await client.closed()
        else:
            await client.send_raw(b"\xff" if end == "it is malformed" else "x" * 2_000_000)
            await client.closed()
        await trio.sleep(10)

    reasons = ["the client closes", "the client is gone", "it is kicked", "it is too big"]
    async with running(Options()) as app:
        for number, reason in enumerate(reasons, 1):
            await ends(app, reason)
            assert len(closed) == number, reason
    async with trio.open_nursery() as nursery:
        async with running() as app:
            await app.connect()
        nursery.cancel_scope.cancel()
    assert len(closed) == len(reasons) + 1, "the block of the switch was left"
