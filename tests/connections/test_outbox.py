"""The outbox and its flusher, on a transport that takes only what it is told to."""

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from support import settled
from trio.testing import MockClock
from websockets.client import ClientProtocol
from websockets.protocol import State
from websockets.uri import parse_uri

from trioswitch import Options, Overflow
from trioswitch.connections.outbox import OfferResult, Outbox
from trioswitch.errors import CloseCause, PeerGone
from trioswitch.metrics import Drop, Traffic
from trioswitch.transport.port import Transport
from trioswitch.wire.formats import Chunk, Format, Framing
from trioswitch.wire.frames import Compressor
from trioswitch.wire.messages import Event, Message
from trioswitch.wire.prepared import Prepared
from trioswitch.wire.protocols import JSON, JSON_BATCH
from trioswitch.wire.protocols.port import ClientProtocol as Protocol
from trioswitch.wire.windows import Window


class FakeTransport(Transport):
    """Takes `room` bytes, and then nothing until it is given more. Keeps every write apart."""

    def __init__(self, protocol: Protocol = JSON, *, direct: bool = True, room: float = float("inf")) -> None:
        options = Options()
        framing = Framing(protocol.codec, True, 0, Compressor(1024, 6))
        self.format = Format(protocol, framing, options.batch_messages, options.batch_bytes)
        self.room = room
        self.writes: list[bytes] = []
        self.times: list[float] = []
        self.broken = False
        self._more = trio.Event()
        if direct:
            self.write_nowait = self._write_nowait

    def give(self, room: float) -> None:
        self.room += room
        self._more.set()
        self._more = trio.Event()

    def break_(self) -> None:
        self.broken = True
        self.give(0)

    def _write_nowait(self, data: bytes) -> int:
        if self.broken:
            raise BrokenPipeError
        if not self.room:
            raise BlockingIOError
        taken = int(min(self.room, len(data)))
        self.room -= taken
        self.writes.append(data[:taken])
        self.times.append(trio.current_time())
        return taken

    async def wait_writable(self) -> None:
        while not self.room:
            if self.broken:
                raise PeerGone(CloseCause.VANISHED)
            await self._more.wait()
        await trio.lowlevel.checkpoint()

    async def write(self, chunk: Chunk | memoryview) -> None:
        assert not isinstance(chunk, tuple)
        chunk = bytes(chunk)
        while chunk:
            await self.wait_writable()
            try:
                chunk = chunk[self._write_nowait(chunk) :]
            except BrokenPipeError:
                raise PeerGone(CloseCause.VANISHED) from None

    def messages(self) -> list[list[dict[str, Any]]]:
        """What arrived, message by message within write by write, read by websockets' client."""
        client = ClientProtocol(parse_uri("ws://test"), state=State.OPEN)
        arrived = []
        for data in self.writes:
            client.receive_data(data)
            arrived.append([json.loads(frame.data) for frame in client.events_received() if frame.opcode <= 2])  # type: ignore[arg-type]
        return [messages for messages in arrived if messages]

    def data(self) -> list[Any]:
        return [message.get("data", message["type"]) for write in self.messages() for message in write]

    async def receive(self) -> list[bytes]:
        raise NotImplementedError

    pongs = ping = send_close = wait_closed = aclose = receive  # type: ignore[assignment]  # an outbox only writes


@attrs.define
class Rig:
    outbox: Outbox
    transport: FakeTransport
    traffic: Traffic
    failures: list[CloseCause]
    nursery: trio.Nursery
    """In which its flusher runs."""

    def offer(self, data: Any, overflow: Overflow = Overflow.DROP_OLDEST, **how: Any) -> OfferResult:
        return self.outbox.offer(message(data, **how), overflow)

    def take(self, *data: Any, overflow: Overflow = Overflow.DROP_OLDEST, **how: Any) -> tuple[OfferResult, int]:
        """A window whole."""
        return self.outbox.enqueue(window(*data, **how), range(len(data)), overflow)


def message(data: Any, *, room: str | None = "r", **how: Any) -> Prepared:
    return Prepared(Message(data=data, room="r", timestamp="t"), room=room, **how)


def window(*data: Any, **how: Any) -> Window:
    return Window([message(each, **how) for each in data], "t")


SIZE = len(JSON.codec.encode(Message(data=0, room="r", timestamp="t"))) + 2
"""Bytes of a frame that carries one digit."""


@asynccontextmanager
async def rig(transport: FakeTransport | None = None, **options: Any) -> AsyncIterator[Rig]:
    transport = transport or FakeTransport()
    traffic, failures = Traffic(), list[CloseCause]()
    traffic.open_room("r", "*")
    async with trio.open_nursery() as nursery:
        outbox = Outbox(
            "id",
            transport,
            Options(**options),
            traffic,
            start_soon=nursery.start_soon,
            fail=failures.append,
        )
        yield Rig(outbox, transport, traffic, failures, nursery)
        nursery.cancel_scope.cancel()
    outbox.close()
    assert traffic.waiting == 0
    assert traffic.waiting_bytes == 0


async def test_while_nothing_waits_it_writes_straight_through(clock: MockClock) -> None:
    async with rig() as r:
        assert r.offer(1) is OfferResult.WRITTEN
        assert r.outbox.deliver(Window([message(2), message(3)], "t"))
        assert r.transport.messages() == [[m] for m in r.transport.messages()[0]] + [r.transport.messages()[1]]
        assert r.transport.data() == [1, 2, 3]
        assert r.outbox.statistics().depth == 0


async def test_a_write_that_is_cut_off_is_finished_before_anything_else(clock: MockClock) -> None:
    async with rig(FakeTransport(room=SIZE + 10)) as r:
        assert [r.offer(n) for n in (1, 2, 3)] == [OfferResult.WRITTEN, OfferResult.WRITTEN, OfferResult.QUEUED]
        assert not r.outbox.deliver(Window([message(4)], "t"))
        r.offer(4, priority=10)
        await settled()
        assert r.transport.data() == [1]
        r.transport.give(1000)
        await settled()
        assert r.transport.data() == [1, 2, 4, 3]
        assert r.outbox.direct, "it is direct again when nothing waits"
        assert r.offer(5) is OfferResult.WRITTEN


async def test_what_waits_goes_out_in_batches_by_priority_then_age(clock: MockClock) -> None:
    async with rig(FakeTransport(room=0), batch_messages=4) as r:
        r.offer("first")  # nothing of it fits: it is the write under way
        for number, priority in enumerate([0, 5, 0, 9, 5, 9]):
            r.offer(number, priority=priority)
        r.transport.give(10_000)
        await settled()
        assert [[m["data"] for m in write] for write in r.transport.messages()] == [["first"], [3, 5, 1, 4], [0, 2]]


@pytest.mark.parametrize("direct", [True, False])
async def test_linger_ends_by_time(clock: MockClock, direct: bool) -> None:
    async with rig(FakeTransport(direct=direct), linger=0.05) as r:
        start = trio.current_time()
        assert r.offer(1) is OfferResult.QUEUED
        await trio.sleep(0.03)
        r.offer(2)
        await trio.sleep(1)
        assert r.transport.times == pytest.approx([start + 0.05])
        assert r.transport.data() == [1, 2]


@pytest.mark.parametrize(("what", "options"), [("count", {"batch_messages": 3}), ("bytes", {"batch_bytes": 3 * SIZE})])
async def test_linger_ends_when_the_batch_is_full(clock: MockClock, what: str, options: dict[str, int]) -> None:
    async with rig(linger=10, **options) as r:  # type: ignore[arg-type]
        for number in range(4):
            await settled()
            assert r.transport.writes == [], what
            r.offer(number) if number < 3 else None
            if number == 2:
                break
        await settled()
        assert r.transport.data() == [0, 1, 2]


async def test_linger_ends_for_an_urgent_message_and_for_max_delay(clock: MockClock) -> None:
    async with rig(linger=10) as r:
        r.offer("low")
        r.offer("urgent", priority=6)
        await settled()
        assert r.transport.data() == ["urgent", "low"]
        assert r.offer("alone", priority=6) is OfferResult.WRITTEN
        start = trio.current_time()
        r.offer("a")
        await settled()
        r.offer("b", deliver_by=start + 1)
        await trio.sleep(2)
        assert r.transport.times[-1] == pytest.approx(start + 1)
        assert r.transport.data()[3:] == ["a", "b"]


async def test_flush_does_not_linger(clock: MockClock) -> None:
    async with rig(linger=100) as r:
        r.offer(1)
        await settled()
        with trio.fail_after(1):
            await r.outbox.flush()
        assert r.transport.data() == [1]
        assert trio.current_time() < 1


async def test_a_batch_envelope_for_who_asked_for_it(clock: MockClock) -> None:
    async with rig(FakeTransport(JSON_BATCH, room=0)) as r:
        r.offer("a")
        for number in range(3):
            r.offer(number)
        r.transport.give(10_000)
        await settled()
        single, batch = r.transport.messages()
        assert single[0]["data"] == "a"
        assert (batch[0]["type"], batch[0]["count"]) == ("batch", 3)
        assert [m["data"] for m in batch[0]["messages"]] == [0, 1, 2]


async def test_expired_messages_are_not_sent_but_counted(clock: MockClock) -> None:
    async with rig(FakeTransport(room=0)) as r:
        r.offer("under way")
        now = trio.current_time()
        r.offer("old", expires_at=now + 1)
        r.offer("new", expires_at=now + 3)
        await trio.sleep(2)
        r.transport.give(10_000)
        await settled()
        assert r.transport.data() == ["under way", "new"]
        assert r.traffic.drops == {Drop.EXPIRED: 1}


def full(protocol: Protocol = JSON) -> FakeTransport:
    return FakeTransport(protocol, room=0)


async def fill(r: Rig, *, to: int) -> None:
    r.offer("under way")
    for number in range(to):
        assert r.offer(number) is OfferResult.QUEUED


async def drained(r: Rig) -> list[Any]:
    r.transport.give(1_000_000)
    await settled()
    assert r.transport.data()[0] == "under way"
    return r.transport.data()[1:]


async def test_drop_oldest(clock: MockClock) -> None:
    async with rig(full(), outbox_messages=3) as r:
        await fill(r, to=3)
        assert r.offer("a") is OfferResult.QUEUED
        assert r.offer("b") is OfferResult.QUEUED
        assert await drained(r) == ["gap", 2, "a", "b"]
        gap = next(m for write in r.transport.messages() for m in write if m["type"] == "gap")
        assert gap == {"type": "gap", "room": "r", "dropped": 2}
        assert r.traffic.drops_of("r") == {"overflow": 2}


async def test_drop_oldest_spares_higher_priorities_and_other_rooms(clock: MockClock) -> None:
    async with rig(full(), outbox_messages=3) as r:
        r.offer("under way")
        r.offer("other", room="q")
        r.offer("high", priority=9)
        r.offer("low", priority=1)
        assert r.offer("middle", priority=5) is OfferResult.QUEUED
        assert r.offer("low again", priority=1) is OfferResult.DROPPED
        assert await drained(r) == ["gap", "high", "middle", "other"]


async def test_drop_newest(clock: MockClock) -> None:
    async with rig(full(), outbox_messages=2) as r:
        await fill(r, to=2)
        assert r.offer("late", Overflow.DROP_NEWEST) is OfferResult.DROPPED
        assert await drained(r) == ["gap", 0, 1]
        assert r.outbox.statistics().messages_dropped == 1


async def test_conflate_keeps_the_newest_of_each_key(clock: MockClock) -> None:
    async with rig(full(), outbox_messages=3) as r:
        r.offer("under way")
        for data, key in [("a1", "a"), ("b1", "b"), ("a2", "a"), ("c1", "c"), ("a3", "a")]:
            assert r.offer(data, Overflow.CONFLATE, key=key) is OfferResult.QUEUED
        assert r.offer("d1", Overflow.CONFLATE, key="d") is OfferResult.QUEUED
        assert await drained(r) == ["gap", "b1", "c1", "d1"]
        assert r.traffic.drops == {Drop.CONFLATED: 2, Drop.OVERFLOW: 1}


async def test_resync_drops_the_rooms_messages_and_tells(clock: MockClock) -> None:
    async with rig(full(), outbox_messages=4) as r:
        await fill(r, to=3)
        r.offer("other", room=None)
        assert r.offer("new", Overflow.RESYNC) is OfferResult.QUEUED
        assert await drained(r) == ["gap", "other", "new"]
        assert r.traffic.drops == {Drop.RESYNC: 3}


async def test_disconnect(clock: MockClock) -> None:
    async with rig(full(), outbox_messages=2) as r:
        await fill(r, to=2)
        assert r.offer("late", Overflow.DISCONNECT) is OfferResult.DROPPED
        assert r.failures == [CloseCause.SLOW_CONSUMER]


async def test_block_is_full_until_there_is_space(clock: MockClock) -> None:
    async with rig(full(), outbox_messages=2) as r:
        await fill(r, to=2)
        assert r.offer("late", Overflow.BLOCK) is OfferResult.FULL
        assert r.traffic.drops == {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(r.outbox.put, message("late"))
            await settled()
            r.transport.give(1_000_000)
        await settled()
        assert r.transport.data() == ["under way", 0, 1, "late"]


@pytest.mark.parametrize("policy", [p for p in Overflow if p not in (Overflow.BLOCK, Overflow.DISCONNECT)])
async def test_bounds_hold_whatever_is_offered(clock: MockClock, policy: Overflow) -> None:
    async with rig(full(), outbox_messages=10, outbox_bytes=600) as r:
        r.offer("under way")
        for number in range(300):
            r.offer("x" * (number % 200), policy, key=str(number % 7), priority=number % 11)
            assert r.outbox.statistics().depth <= 10
            assert r.outbox.statistics().bytes <= 600


async def test_the_budget_of_all_outboxes_makes_each_of_them_full(clock: MockClock) -> None:
    async with rig(full(), total_outbox_bytes=10 * SIZE) as r:
        r.traffic.waiting_bytes += 9 * SIZE  # what waits elsewhere
        await fill(r, to=1)
        assert r.offer("late", Overflow.DROP_NEWEST) is OfferResult.DROPPED
        r.traffic.waiting_bytes -= 9 * SIZE
        assert await drained(r) == ["gap", 0]


async def test_a_failed_write_is_accounted_for(clock: MockClock) -> None:
    async with rig(FakeTransport(room=5)) as r:
        r.offer("under way")
        r.offer("waits")
        await settled()
        r.transport.break_()
        await settled()
        assert r.failures == [CloseCause.VANISHED]
        r.outbox.close()
        assert r.traffic.drops == {Drop.WRITE_FAILED: 1, Drop.CLOSED: 1}
        assert r.traffic.messages_sent == 0
        assert r.offer("late") is OfferResult.DROPPED


async def test_a_batch_that_breaks_is_accounted_for(clock: MockClock) -> None:
    async with rig(full()) as r:
        await fill(r, to=3)
        r.transport.give(len("under way") + SIZE + 20)  # a part of the batch gets out
        await settled()
        r.transport.break_()
        await settled()
        r.outbox.close()
        assert r.traffic.drops == {Drop.WRITE_FAILED: 3}
        assert r.traffic.messages_sent == 1


async def test_a_direct_write_that_breaks_is_accounted_for(clock: MockClock) -> None:
    async with rig() as r:
        r.transport.break_()
        assert not r.outbox.deliver(Window([message(1), message(2)], "t"))
        assert r.failures == [CloseCause.VANISHED]
        assert [r.offer(1), r.offer(2)] == [OfferResult.DROPPED, OfferResult.DROPPED]
        assert r.traffic.drops == {Drop.CLOSED: 2}


async def test_finish_writes_what_waits_or_only_what_is_under_way(clock: MockClock) -> None:
    for flush, arrived in ((True, ["under way", 0, 1]), (False, ["under way"])):
        async with rig(full(), linger=0) as r:
            await fill(r, to=2)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda o=r.outbox, f=flush: o.finish(flush=f))
                await settled()
                assert r.offer("late") is OfferResult.DROPPED
                r.transport.give(10_000)
            assert r.transport.data() == arrived
            assert r.traffic.drops[Drop.CLOSED] == (1 if flush else 3)


async def test_pings_go_before_what_waits_and_never_into_a_frame(clock: MockClock) -> None:
    async with rig(FakeTransport(room=10)) as r:
        r.offer("under way")
        r.offer("waits")
        r.outbox.control(b"\x89\x00")
        r.transport.give(10_000)
        await settled()
        everything = b"".join(r.transport.writes)
        assert everything.index(b"under way") < everything.index(b"\x89\x00") < everything.index(b"waits")
        assert r.transport.data() == ["under way", "waits"]


async def test_statistics(clock: MockClock) -> None:
    async with rig(full()) as r:
        await fill(r, to=3)
        await trio.sleep(2)
        statistics = r.outbox.statistics()
        assert statistics.depth == 3
        assert statistics.bytes == 3 * SIZE + SIZE - 1 + len('"under way"'), "what a full socket cut off counts too"
        assert statistics.oldest_age == pytest.approx(2)
        await drained(r)
        statistics = r.outbox.statistics()
        assert (statistics.depth, statistics.bytes, statistics.oldest_age) == (0, 0, 0.0)
        assert (statistics.messages_sent, statistics.batches_sent) == (4, 2)
        assert statistics.bytes_sent == sum(map(len, r.transport.writes))


async def test_a_control_event_needs_no_room(clock: MockClock) -> None:
    async with rig(full(), outbox_messages=1) as r:
        await fill(r, to=1)
        r.outbox.reply(Prepared(Event(), priority=6))
        assert r.traffic.drops == {}


async def test_nothing_is_written_into_a_write_of_the_flusher(clock: MockClock) -> None:
    """Not even while what it writes is no message: a ping, or a gap."""
    async with rig(full(), linger=1) as r:
        r.outbox.control(b"\x89\x00" * 3)
        await settled()  # the flusher is in the middle of it
        r.transport.room = 1
        r.outbox.control(b"\x8a\x00")
        assert r.offer("urgent", priority=9) is OfferResult.QUEUED
        r.transport.give(1000)
        await settled()
        assert b"".join(r.transport.writes).startswith(b"\x89\x00" * 3)
        assert r.transport.data() == ["urgent"]


async def test_finishing_does_not_linger(clock: MockClock) -> None:
    for flush in (True, False):
        async with rig(linger=60) as r:
            r.offer("waits")
            await settled()
            with trio.fail_after(1):
                await r.outbox.finish(flush=flush)
            assert r.transport.data() == (["waits"] if flush else [])


async def test_whatever_others_hold_an_empty_outbox_takes_one(clock: MockClock) -> None:
    async with rig(full(), total_outbox_bytes=1000) as r:
        r.traffic.waiting_bytes += 1000
        r.offer("under way")
        assert r.offer(1, Overflow.DROP_NEWEST) is OfferResult.QUEUED
        assert r.offer(2, Overflow.DROP_NEWEST) is OfferResult.DROPPED
        r.traffic.waiting_bytes -= 1000


async def test_an_outbox_that_has_ended_starts_no_flusher(clock: MockClock) -> None:
    """Its nursery may be closed already: asking it for a task would raise in the room."""
    async with rig(linger=1) as r:
        r.outbox.end()
        assert r.offer(1, Overflow.BLOCK) is OfferResult.DROPPED
        r.outbox.reply(message(2))
        r.outbox.control(b"\x89\x00")
        r.outbox.report_loss(message(3), Drop.BLOCK_TIMEOUT)
        assert not r.nursery.child_tasks


@pytest.mark.parametrize("linger", [0.0, 0.05])
async def test_looking_at_an_outbox_does_not_change_the_order(clock: MockClock, linger: float) -> None:
    """Nor does an overflow: the first message must not be on its way past the queue."""
    async with rig(FakeTransport(direct=False), linger=linger, outbox_messages=4) as r:
        for number in range(4):
            r.offer(number)
        assert r.outbox.statistics().depth == (4 if linger else 3), "without a linger, the first is under way"
        await trio.sleep(1)
        assert r.transport.data() == [0, 1, 2, 3]
        for number in range(4, 10):
            r.offer(number)
        await trio.sleep(1)
        assert r.transport.data()[4:] == (["gap", 6, 7, 8, 9] if linger else [4, "gap", 6, 7, 8, 9])


async def test_a_ping_does_not_wait_for_a_linger(clock: MockClock) -> None:
    async with rig(linger=60) as r:
        r.offer("waits")
        await settled()
        r.outbox.control(b"\x89\x00")
        await settled()
        assert b"\x89\x00" in b"".join(r.transport.writes)


async def test_a_peer_that_goes_while_the_outbox_finishes_is_not_waited_for(clock: MockClock) -> None:
    for flush in (True, False):
        async with rig(full()) as r:
            await fill(r, to=2)
            await settled()
            with trio.fail_after(1):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lambda o=r.outbox, f=flush: o.finish(flush=f))
                    await settled()
                    r.transport.break_()
            assert r.failures == [CloseCause.VANISHED]


# --- windows


async def test_a_window_waits_as_a_whole(clock: MockClock) -> None:
    async with rig(full()) as r:
        await fill(r, to=1)
        assert r.outbox.deliver(window("a", "b")) is None
        assert r.take("a", "b") == (OfferResult.QUEUED, 2)
        assert r.outbox.statistics().depth == 3
        assert await drained(r) == [0, "a", "b"]


async def test_a_window_without_some_of_its_messages(clock: MockClock) -> None:
    async with rig() as r:
        sent = window("a", "mine", "b", "c")
        assert r.outbox.enqueue(sent, [0, 2], Overflow.DROP_OLDEST) == (OfferResult.WRITTEN, 2)
        assert [[m["data"] for m in write] for write in r.transport.messages()] == [["a", "b"]], "in one write"
        assert r.outbox.enqueue(sent, [], Overflow.DROP_OLDEST)[1] == 0
        r.transport.room = 0
        r.offer("under way")
        assert r.outbox.enqueue(sent, [0, 3], Overflow.DROP_OLDEST) == (OfferResult.QUEUED, 2)
        r.transport.give(10_000)
        await settled()
        assert r.transport.data() == ["a", "b", "under way", "a", "c"]


async def test_a_transport_that_has_to_wait_gets_a_window_in_one_write(clock: MockClock) -> None:
    """As long as nothing waits: shared bytes, whatever a batch may hold."""
    async with rig(FakeTransport(direct=False), batch_messages=2) as r:
        for number in range(3):
            assert r.outbox.deliver(window(*[number] * 5)) is OfferResult.QUEUED
            assert r.outbox.deliver(window("later")) is None, "the flusher has not written it yet"
            await settled()
        assert [[m["data"] for m in write] for write in r.transport.messages()] == [[n] * 5 for n in range(3)]
        statistics = r.outbox.statistics()
        assert (statistics.messages_sent, statistics.batches_sent) == (15, 3)
        assert statistics.bytes_sent == sum(map(len, r.transport.writes))


async def test_a_window_that_such_a_transport_does_not_get_out(clock: MockClock) -> None:
    async with rig(FakeTransport(direct=False, room=10)) as r:
        assert r.outbox.deliver(window(1, 2)) is OfferResult.QUEUED
        assert r.take(3) == (OfferResult.QUEUED, 1)
        await settled()
        r.transport.break_()
        await settled()
        assert r.failures == [CloseCause.VANISHED]
        r.outbox.close()
        assert r.traffic.drops == {Drop.WRITE_FAILED: 2, Drop.CLOSED: 1}
        assert r.traffic.messages_sent == 0


async def test_drop_oldest_makes_room_for_a_window(clock: MockClock) -> None:
    async with rig(full(), outbox_messages=5) as r:
        await fill(r, to=4)
        assert r.take("a", "b", "c") == (OfferResult.QUEUED, 3)
        assert await drained(r) == ["gap", 2, 3, "a", "b", "c"]
        assert r.traffic.drops_of("r") == {"overflow": 2}


async def test_of_a_window_that_is_larger_than_the_outbox_the_end_is_kept(clock: MockClock) -> None:
    async with rig(full(), outbox_messages=3) as r:
        await fill(r, to=2)
        assert r.take(*range(10, 18)) == (OfferResult.QUEUED, 8), "a receiver whose outbox overflows is told by a gap"
        assert await drained(r) == ["gap", 15, 16, 17]
        assert r.traffic.drops_of("r") == {"overflow": 7}


@pytest.mark.parametrize("policy", [Overflow.DROP_NEWEST, Overflow.DISCONNECT])
async def test_the_begin_of_a_window_is_taken_where_newer_messages_give_way(clock: MockClock, policy: Overflow) -> None:
    async with rig(full(), outbox_messages=3) as r:
        await fill(r, to=1)
        assert r.take("a", "b", "c", "d", overflow=policy) == (OfferResult.QUEUED, 2)
        assert r.traffic.drops == {Drop.OVERFLOW: 2}
        assert r.failures == ([CloseCause.SLOW_CONSUMER] if policy is Overflow.DISCONNECT else [])
        assert [data for data in await drained(r) if data != "gap"] == [0, "a", "b"]


async def test_a_window_that_blocks_is_taken_as_far_as_it_fits(clock: MockClock) -> None:
    async with rig(full(), outbox_messages=3) as r:
        await fill(r, to=1)
        assert r.take("a", "b", "c", "d", overflow=Overflow.BLOCK) == (OfferResult.QUEUED, 2)
        assert r.traffic.drops == {}
        r.outbox.end()
        assert r.take("e", overflow=Overflow.BLOCK) == (OfferResult.QUEUED, 0)
        assert r.traffic.drops == {}, "who waits hears of the end from `put`, and it is counted there"
        assert await r.outbox.put(message("e")) is OfferResult.DROPPED
        assert r.take("f", "g") == (OfferResult.QUEUED, 0)
        assert r.traffic.drops == {Drop.CLOSED: 3}


async def test_a_window_after_an_overflow_with_resync(clock: MockClock) -> None:
    async with rig(full(), outbox_messages=4) as r:
        await fill(r, to=3)
        r.offer("other", room=None)
        assert r.take("a", "b", overflow=Overflow.RESYNC) == (OfferResult.QUEUED, 2)
        assert await drained(r) == ["gap", "other", "a", "b"]
        assert r.traffic.drops == {Drop.RESYNC: 3}


async def test_what_conflates_for_one_member_stays_what_it_was_for_another(clock: MockClock) -> None:
    """Members that are behind share what waits for them."""
    async with rig(full()) as slow, rig(full()) as other:
        first, second = window("a1", "b1", key="k"), window("a2", key="k")
        for r in (slow, other):
            r.offer("under way")
            assert r.outbox.enqueue(first, [0, 1], Overflow.CONFLATE) == (OfferResult.QUEUED, 2)
        assert slow.outbox.enqueue(second, [0], Overflow.CONFLATE) == (OfferResult.QUEUED, 1)
        assert await drained(slow) == ["a2"]
        assert await drained(other) == ["b1"]
        assert (slow.traffic.drops, other.traffic.drops) == ({Drop.CONFLATED: 2}, {Drop.CONFLATED: 1})


async def test_conflation_spares_what_need_not_be_dropped(clock: MockClock) -> None:
    """Where the new take the place of the old, nothing overflows."""
    async with rig(full(), outbox_messages=2) as r:
        r.offer("under way")
        for number in range(3):
            sent = Window([message(f"{key}{number}", key=key) for key in "ab"], "t")
            assert r.outbox.enqueue(sent, range(2), Overflow.CONFLATE) == (OfferResult.QUEUED, 2)
        assert await drained(r) == ["a2", "b2"]
        assert r.traffic.drops == {Drop.CONFLATED: 4}


@pytest.mark.parametrize("policy", [p for p in Overflow if p is not Overflow.DISCONNECT])
async def test_bounds_hold_whatever_windows_come(clock: MockClock, policy: Overflow) -> None:
    rng = random.Random(policy.value)
    async with rig(full(), outbox_messages=10, outbox_bytes=900) as r:
        r.offer("under way")
        for _ in range(200):
            room, sent = rng.choice(["r", "q"]), []
            for number in range(rng.randrange(1, 15)):
                data, key = "x" * rng.randrange(150), rng.choice([None, "a", "b"])
                sent.append(message(f"{number}{data}", room=room, key=key, priority=rng.randrange(3)))
            sent.sort(key=lambda each: -each.priority)
            became, taken = r.outbox.enqueue(Window(sent, "t"), range(len(sent)), policy)
            assert became is OfferResult.QUEUED
            assert 0 <= taken <= len(sent)
            statistics = r.outbox.statistics()
            assert statistics.depth <= 10
            assert statistics.bytes <= 900
