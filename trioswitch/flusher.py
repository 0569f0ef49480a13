"""What waits for one connection, and the task that writes it.

Messages come in through a bounded memory channel. The flusher sorts them by the rules of `wire.batch`, and takes a batch
as late as possible: when the socket is writable. It is started when something has to wait for the first time, and parks
while nothing does: an idle connection pays for neither channel nor task.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import Final

import trio

from .clock import timestamp
from .config import Options, Overflow
from .metrics import Account, Drop
from .transport import Transport
from .wire.batch import BatchQueue, Entry
from .wire.messages import Gap
from .wire.prepared import URGENT, Chunk, Prepared, pack

__all__ = ["Flusher"]

MAX_CONTROL: Final = 512
"""Bytes of pings and pongs that wait at most; a peer need not be answered every ping of a flood (RFC 6455, 5.5.3)."""


class Flusher:
    """`run` is its task. `on_idle` is called whenever nothing waits any more."""

    __slots__ = (
        "_account",
        "_channel_in",
        "_channel_out",
        "_closed",
        "_control",
        "_cut",
        "_flush_requested",
        "_gaps",
        "_in_flight",
        "_lingering",
        "_on_idle",
        "_options",
        "_parked",
        "_queue",
        "_rest",
        "_settled",
        "_transport",
        "_waiting",
        "_waiting_bytes",
        "_writing",
    )

    def __init__(self, transport: Transport, options: Options, account: Account, on_idle: Callable[[], None]) -> None:
        self._transport = transport
        self._options = options
        self._account = account
        self._on_idle = on_idle
        # Beside `outbox_messages` there are places for answers to the client itself. Its reader waits while the outbox is
        # full, but what it has published before is acknowledged when rooms hand it out.
        places = options.outbox_messages + options.room_messages
        self._channel_in, self._channel_out = trio.open_memory_channel[Entry](places)
        self._queue = BatchQueue(options.batch_messages, options.batch_bytes, options.linger)
        self._waiting = self._waiting_bytes = 0  # in the channel, in the queue, in flight; the bytes of the rest, too
        self._in_flight: Sequence[Entry] = ()  # taken out of the queue, and being written
        # What a full socket cut off must be written before anything else; `_cut` are the messages in it.
        self._rest: bytes | memoryview = b""
        self._cut: Sequence[Prepared] = ()
        self._control = b""  # pings and pongs: they go before the next batch
        self._gaps: dict[str | None, int] = {}  # drops that the client has not been told of yet, by room
        self._parked: trio.CancelScope | None = None  # where the task waits for a first message, and only there
        self._lingering: trio.CancelScope | None = None  # where it waits for more of them
        self._writing = False  # the task is using the transport: nobody else may
        self._flush_requested = False
        self._closed = False
        self._settled: trio.Event | None = None  # set after each write, for those who wait for space or a flush

    # --- in

    @property
    def busy(self) -> bool:
        """Whether something must be written before anything new is."""
        return bool(self._writing or self._waiting or self._rest or self._control or self._gaps)

    def put_nowait(self, entry: Entry) -> None:
        """Queue a message that fits. Raises trio.WouldBlock when the memory channel is full all the same."""
        self._channel_in.send_nowait(entry)
        self._count(entry, +1)
        self._wake()
        scope, message = self._lingering, entry.message
        if scope is None:
            return
        # The task lingers: it is not woken for each message, only when the batch is due.
        if message.priority > URGENT or (
            self._waiting >= self._options.batch_messages or self._waiting_bytes >= self._options.batch_bytes
        ):
            scope.cancel()
        elif message.deliver_by is not None and message.deliver_by < scope.deadline:
            scope.deadline = message.deliver_by

    def put_rest(self, rest: memoryview, cut: Sequence[Prepared]) -> None:
        """Take the end of a write that the socket cut off."""
        self._rest, self._cut = rest, cut
        self._count_bytes(len(rest))
        self._wake()

    def put_control(self, data: bytes) -> None:
        """Take a ping's or pong's bytes; of a flood only the first few are kept."""
        if len(self._control) < MAX_CONTROL:
            self._control += data
            self._wake()
            if self._lingering is not None:
                self._lingering.cancel()  # the peer's answer has a time limit

    def put_gap(self, room: str | None) -> None:
        """Note that the client missed a message: it is told with the next batch."""
        self._gaps[room] = self._gaps.get(room, 0) + 1
        self._wake()

    def _wake(self) -> None:
        """Let the task act, if it is parked."""
        if self._parked is not None:
            self._parked.cancel()

    def _count(self, entry: Entry, sign: int) -> None:
        self._waiting += sign
        self._account.traffic.waiting += sign
        self._count_bytes(sign * entry.size)

    def _count_bytes(self, size: int) -> None:
        self._waiting_bytes += size
        self._account.traffic.waiting_bytes += size

    def _collect(self) -> BatchQueue:
        """Sort what is in the memory channel into the queue."""
        try:
            while True:
                self._add(self._channel_out.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return self._queue

    def _add(self, entry: Entry) -> None:
        replaced = self._queue.add(entry)
        if replaced is not None:
            self._forget((replaced,), Drop.CONFLATED)

    def _forget(self, entries: Sequence[Entry], cause: Drop) -> None:
        for entry in entries:
            self._count(entry, -1)
            self._account.drop(entry.message, cause)

    # --- bounds

    @property
    def full(self) -> bool:
        """Whether the high-water mark is reached."""
        return (
            self._waiting >= self._options.outbox_messages
            or self._waiting_bytes >= self._options.outbox_bytes
            or self._account.traffic.waiting_bytes >= self._options.total_outbox_bytes
        )

    def fits(self, entry: Entry, instead_of: Entry | None = None) -> bool:
        """Whether the bounds allow this message. An empty outbox takes one whatever its size, and whatever others hold."""
        options = self._options
        waiting, size = (self._waiting, 0) if instead_of is None else (self._waiting - 1, instead_of.size)
        return waiting < options.outbox_messages and (
            not waiting
            or (
                self._waiting_bytes - size + entry.size <= options.outbox_bytes
                and self._account.traffic.waiting_bytes - size + entry.size <= options.total_outbox_bytes
            )
        )

    def make_room(self, entry: Entry, overflow: Overflow) -> bool:
        """Drop what the policy lets give way to a message that does not fit. Returns whether it fits now."""
        queue, message = self._collect(), entry.message
        if overflow in (Overflow.DROP_OLDEST, Overflow.CONFLATE):
            while not self.fits(entry, queue.replaced_by(entry)):
                gone = queue.evict(message.room, message.priority)
                if gone is None:
                    return False
                self._forget((gone,), Drop.OVERFLOW)
                self.put_gap(gone.message.room)
            return True
        if overflow is Overflow.RESYNC:
            for gone in queue.evict_all(message.room):
                self._forget((gone,), Drop.RESYNC)
                self.put_gap(gone.message.room)
        return self.fits(entry)

    # --- the task

    async def run(self) -> None:
        """Write what waits, for ever. Raises PeerGone."""
        while True:
            await self._write_pending()
            queue = self._collect()
            if queue.count or self._gaps:
                await self._linger(queue)
                await self._transport.wait_writable()
                await self._write_batch(self._collect())
            elif not self._control:
                await self._park()

    async def _write_pending(self) -> None:
        """Finish a write that the socket cut off, then write pings and pongs."""
        if self._rest:
            await self._write(self._rest)
            self._account.bytes_sent += len(self._rest)
            self._count_bytes(-len(self._rest))
            self._rest, self._cut = b"", ()
            self._wake_waiters()
        while self._control:
            data, self._control = self._control, b""
            await self._write(data)
            self._account.bytes_sent += len(data)
            self._wake_waiters()

    async def _write(self, chunk: Chunk | memoryview) -> None:
        self._writing = True
        await self._transport.write(chunk)
        self._writing = False

    async def _linger(self, queue: BatchQueue) -> None:
        """Wait for the batch to be due; `put_nowait` and `flush` end it earlier."""
        due = queue.due()
        if due > trio.current_time() and not (self._gaps or self._flush_requested):
            with trio.CancelScope(deadline=due) as self._lingering:
                await trio.sleep_forever()
            self._lingering = None

    async def _write_batch(self, queue: BatchQueue) -> None:
        taken = queue.take(trio.current_time())
        self._forget(taken.expired, Drop.EXPIRED)
        messages = [entry.message for entry in taken.batch]
        if self._gaps:
            gaps, self._gaps = self._gaps, {}
            messages[:0] = [
                Prepared(Gap(dropped=count) if room is None else Gap(dropped=count, room=room))
                for room, count in gaps.items()
            ]
        if messages:
            account, self._in_flight = self._account, taken.batch
            chunk = pack(messages, self._transport.format, timestamp(), shared=False)
            await self._write(chunk)
            self._in_flight = ()
            for entry in taken.batch:
                self._count(entry, -1)
            account.messages_sent += len(taken.batch)
            account.batches_sent += 1
            account.bytes_sent += len(chunk) if isinstance(chunk, bytes) else sum(map(len, chunk))
        self._wake_waiters()

    async def _park(self) -> None:
        """Nothing waits: let rooms write for themselves again, until something has to be queued."""
        self._flush_requested = False
        self._on_idle()
        with trio.CancelScope() as self._parked:
            self._wake_waiters()
            await (
                trio.sleep_forever()
            )  # `receive` would take a first message past the queue, where others may overtake it
        self._parked = None

    def _wake_waiters(self) -> None:
        if self._settled is not None:
            self._settled.set()
            self._settled = None

    async def wait_settled(self) -> None:
        """Wait for the next write, or for the end. Safe to cancel."""
        if self._settled is None:
            self._settled = trio.Event()
        await self._settled.wait()

    async def flush(self) -> None:
        """Write what waits now without lingering, and wait for it. Safe to cancel."""
        called = trio.current_time()
        while self.busy:
            self._flush_requested = True
            if self._lingering is not None:
                self._lingering.cancel()
            await self.wait_settled()
            if not self._in_flight and self._collect().oldest() > called:
                break

    async def wait_parked(self) -> None:
        """Wait until the task has written everything, or has ended: it is not using the transport. Safe to cancel."""
        while self._parked is None and not self._closed:
            await self.wait_settled()

    # --- the end

    def drop_queue(self) -> None:
        """Drop everything but the write that is under way."""
        self._forget(self._collect().clear(), Drop.CLOSED)
        self._gaps.clear()
        if self._lingering is not None:
            self._lingering.cancel()

    def close(self) -> None:
        """The connection is over and `run` has ended: count what did not get out."""
        self.drop_queue()
        self._forget(self._in_flight, Drop.WRITE_FAILED)
        for message in self._cut:  # they were counted as sent when their beginning was
            self._account.messages_sent -= 1
            self._account.drop(message, Drop.WRITE_FAILED)
        self._count_bytes(-len(self._rest))
        self._rest, self._control, self._cut, self._in_flight = b"", b"", (), ()
        self._writing = False
        self._closed = True
        self._channel_in.close()
        self._wake_waiters()

    def depth(self) -> tuple[int, int, float]:
        """How many messages wait, of how many bytes, and for how many seconds the oldest of them (0.0: none waits)."""
        oldest = min(self._collect().oldest(), min((entry.queued_at for entry in self._in_flight), default=inf))
        age = trio.current_time() - oldest if oldest < inf else 0.0
        return self._waiting, self._waiting_bytes, age
