"""The queue of messages for one connection, and the task that writes them.

Messages come in through a bounded memory channel. The flusher sorts them by the rules of `wire.batch`, and takes a batch
as late as possible: when the socket is writable. It is started when something has to wait for the first time, and parks
while nothing does: an idle connection pays for neither channel nor task.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import Final

import trio

from .._util.clock import timestamp
from .._util.wakeup import Wakeup
from ..config import Options, Overflow
from ..metrics import Drop
from ..transport.port import Transport
from ..wire.batch import BatchQueue
from ..wire.formats import Chunk, size_of
from ..wire.gaps import Gaps
from ..wire.prepared import URGENT, Prepared
from ..wire.windows import QueuedMessage, QueuedWindow, pack
from .account import Account

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
        "_transport",
        "_unsorted",
        "_waiting",
        "_waiting_bytes",
        "_writing",
        "_written",
    )

    def __init__(self, transport: Transport, options: Options, account: Account, on_idle: Callable[[], None]) -> None:
        self._transport = transport
        self._options = options
        self._account = account
        self._on_idle = on_idle
        # Beside `outbox_messages` there are places for answers to the client itself. Its reader waits while the outbox is
        # full, but what it has published before is acknowledged when rooms hand it out.
        places = options.outbox_messages + options.room_messages
        self._channel_in, self._channel_out = trio.open_memory_channel[QueuedWindow](places)
        self._unsorted = 0  # queued windows in the channel
        self._queue = BatchQueue(options.batch_messages, options.batch_bytes, options.linger)
        self._waiting = self._waiting_bytes = 0  # in the channel, in the queue, in flight; the bytes of the rest, too
        self._in_flight: Sequence[QueuedMessage] = ()  # taken out of the queue, and being written
        # What a full socket cut off, or was left to the task whole, is written before anything else; `_cut` are the messages
        # in it.
        self._rest: Chunk | memoryview = b""
        self._cut: Sequence[Prepared] = ()
        self._control = b""  # pings and pongs: they go before the next batch
        self._gaps = Gaps()  # drops that the client has not been told of yet
        self._parked: trio.CancelScope | None = None  # where the task waits for a first message, and only there
        self._lingering: trio.CancelScope | None = None  # where it waits for more of them
        self._writing = False  # the task is using the transport: nobody else may
        self._flush_requested = False
        self._closed = False
        self._written = Wakeup()  # notified after each write, for those who wait for space or a flush

    # --- in

    @property
    def busy(self) -> bool:
        """Whether something must be written before anything new is."""
        return bool(self._writing or self._waiting or self._rest or self._control or self._gaps)

    def put_nowait(self, queued: QueuedWindow) -> None:
        """Queue messages that fit. Raises trio.WouldBlock when the memory channel is full all the same."""
        self._channel_in.send_nowait(queued)
        self._unsorted += 1
        self._count(len(queued.entries), queued.size)
        if self._account.tap is not None:
            self._account.tap.queued(queued.entries)
        self._wake()
        scope = self._lingering
        if scope is None:
            return
        # The task lingers: it is not woken for each message, only when the batch is due.
        if max(queued.lanes) > URGENT or (
            self._waiting >= self._options.batch_messages or self._waiting_bytes >= self._options.batch_bytes
        ):
            scope.cancel()
        else:
            wanted = [entry.message.deliver_by for entry in queued.entries if entry.message.deliver_by is not None]
            scope.deadline = min([scope.deadline, *wanted])

    def put_rest(self, rest: Chunk | memoryview, cut: Sequence[Prepared]) -> None:
        """Take the end of a write that the socket cut off, or all of it: nothing waits, and it is under way."""
        self._rest, self._cut = rest, cut
        self._count(0, size_of(rest))
        self._wake()

    def put_control(self, data: bytes) -> None:
        """Take a ping's or pong's bytes; of a flood only the first few are kept."""
        if len(self._control) < MAX_CONTROL:
            self._control += data
            self._wake()
            if self._lingering is not None:
                self._lingering.cancel()  # the peer's answer has a time limit

    def put_gap(self, messages: Sequence[Prepared]) -> None:
        """Note that the client missed these messages: it is told with the next batch."""
        self._gaps.add(messages)
        self._wake()

    def _wake(self) -> None:
        """Let the task act, if it is parked."""
        if self._parked is not None:
            self._parked.cancel()

    def _count(self, messages: int, size: int) -> None:
        traffic = self._account.traffic
        self._waiting += messages
        traffic.waiting += messages
        self._waiting_bytes += size
        traffic.waiting_bytes += size
        if traffic.waiting_bytes > traffic.crowded_at:
            traffic.on_crowded()

    def _collect(self) -> BatchQueue:
        """Sort what is in the memory channel into the queue."""
        while self._unsorted:
            self._unsorted -= 1
            if replaced := self._queue.extend(self._channel_out.receive_nowait()):
                self._forget(replaced, Drop.CONFLATED)
        return self._queue

    def _forget(self, entries: Sequence[QueuedMessage], cause: Drop, *, tell: bool = False) -> None:
        """These do not wait any more: they are dropped. With `tell`, the client learns of it."""
        messages = [entry.message for entry in entries]
        self._count(-len(entries), -sum([entry.size for entry in entries]))
        self._account.drop(messages, cause)
        if tell:
            self.put_gap(messages)

    # --- bounds

    @property
    def full(self) -> bool:
        """Whether the high-water mark is reached."""
        return (
            self._waiting >= self._options.outbox_messages
            or self._waiting_bytes >= self._options.outbox_bytes
            or self._account.traffic.waiting_bytes >= self._options.total_outbox_bytes
        )

    def enqueue(self, queued: QueuedWindow, overflow: Overflow) -> int:
        """Queue messages, or do what the policy says. Returns how many: from the first that finds no place on, none.

        What comes after it is newer, or of a lower priority.
        """
        if self._excess(queued) is None or self._make_room(queued, overflow):
            self.put_nowait(queued)
            return len(queued.entries)
        if len(queued.entries) > 1:
            for count, entry in enumerate(queued.entries):
                if not self.enqueue(QueuedWindow((entry,)), overflow):
                    return count
            return len(queued.entries)
        return 0

    def shed(self, priority: int, size: int) -> int:
        """As `Outbox.shed`."""
        before = self._waiting_bytes
        if gone := self._collect().shed(priority, size):
            self._forget(gone, Drop.SHED, tell=True)
            self._written.notify()  # there is space
        return before - self._waiting_bytes

    @property
    def waiting_bytes(self) -> int:
        return self._waiting_bytes

    def _excess(self, queued: QueuedWindow, instead_of: QueuedMessage | None = None) -> tuple[int, int] | None:
        """By how many messages and bytes the bounds would be passed. None: it fits.

        An outbox where nothing waits takes one message whatever its size, and whatever others hold.
        """
        options, count, size = self._options, len(queued.entries), queued.size
        if instead_of is not None:
            count, size = count - 1, size - instead_of.size
        count += self._waiting
        if count <= 1:
            return None
        count -= options.outbox_messages
        here = self._waiting_bytes - options.outbox_bytes
        everywhere = self._account.traffic.waiting_bytes - options.total_outbox_bytes
        size += here if here > everywhere else everywhere
        return (count, size) if count > 0 or size > 0 else None

    def _make_room(self, queued: QueuedWindow, overflow: Overflow) -> bool:
        """Drop what the policy lets give way to messages that do not fit. Returns whether they fit now."""
        queue, alone = self._collect(), len(queued.entries) == 1
        if overflow is Overflow.RESYNC:
            self._forget(queue.evict_all(queued.room), Drop.RESYNC, tell=True)
        elif overflow is Overflow.DROP_OLDEST or (overflow is Overflow.CONFLATE and alone):
            while excess := self._excess(queued, queue.replaced_by(queued.entries[0]) if alone else None):
                gone = queue.evict(queued.room, queued.priority, *excess)
                if not gone:
                    return False
                self._forget(gone, Drop.OVERFLOW, tell=True)
            return True
        return self._excess(queued) is None

    # --- the task

    async def run(self) -> None:
        """Write what waits, forever. Raises PeerGone."""
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
            size = size_of(self._rest)
            self._account.bytes_sent += size
            self._count(0, -size)
            self._rest, self._cut = b"", ()
            self._written.notify()
        while self._control:
            data, self._control = self._control, b""
            await self._write(data)
            self._account.bytes_sent += len(data)
            self._written.notify()

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
        gaps = self._gaps.take() if self._gaps else []
        if gaps:
            messages[:0] = [Prepared(gap) for gap in gaps]
        if messages:
            account, self._in_flight = self._account, taken.batch
            chunk = pack(messages, self._transport.format, timestamp(), shared=False)
            await self._write(chunk)
            self._in_flight = ()
            self._count(-len(taken.batch), -sum([entry.size for entry in taken.batch]))
            account.messages_sent += len(taken.batch)
            account.batches_sent += 1
            account.bytes_sent += size_of(chunk)
            if taken.batch:
                oldest = min([entry.queued_at for entry in taken.batch])
                account.traffic.outbox_waits.add(trio.current_time() - oldest)
                account.traffic.outbox_batches.add(len(taken.batch))
            if account.tap is not None:
                account.tap.told(gaps)
                account.tap.written(taken.batch)
        self._written.notify()

    async def _park(self) -> None:
        """Nothing waits: let rooms write for themselves again, until something has to be queued."""
        self._flush_requested = False
        self._on_idle()
        with trio.CancelScope() as self._parked:
            self._written.notify()
            await (
                trio.sleep_forever()
            )  # `receive` would take a first message past the queue, where others may overtake it
        self._parked = None

    async def wait_written(self) -> None:
        """Wait for the next write, or for the end. Safe to cancel."""
        await self._written.wait()

    async def flush(self) -> None:
        """Write what waits now without lingering, and wait for it. Safe to cancel."""
        called = trio.current_time()
        while self.busy:
            self._flush_requested = True
            if self._lingering is not None:
                self._lingering.cancel()
            await self.wait_written()
            if not self._in_flight and self._collect().oldest() > called:
                break

    async def wait_parked(self) -> None:
        """Wait until the task has written everything, or has ended: it is not using the transport. Safe to cancel."""
        while self._parked is None and not self._closed:
            await self.wait_written()

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
        self._account.messages_sent -= len(self._cut)  # they were counted when their beginning was sent
        self._account.drop(self._cut, Drop.WRITE_FAILED)
        self._count(0, -size_of(self._rest))
        self._rest, self._control, self._cut, self._in_flight = b"", b"", (), ()
        self._writing = False
        self._closed = True
        self._channel_in.close()
        self._written.notify()

    def depth(self) -> tuple[int, int, float]:
        """How many messages wait, of how many bytes, and for how many seconds the oldest of them (0.0: none waits)."""
        oldest = min(self._collect().oldest(), min((entry.queued_at for entry in self._in_flight), default=inf))
        age = trio.current_time() - oldest if oldest < inf else 0.0
        return self._waiting, self._waiting_bytes, age
