"""The way out of one connection: written straight through while it can be, a memory channel and a flusher when not.

States, and who moves between them:

    direct      nothing waits and the socket took everything: rooms write to it themselves, no task is woken
    queueing    something waits: messages go into the memory channel, the flusher (started when first needed) batches
                them by the rules of `wire.batch`; when nothing waits any more it makes the outbox direct again
    closed      the connection ends: offers are refused, what waited is counted as dropped

A transport without `write_nowait` (TLS, in-memory streams, trio-websocket) and a linger above 0 never are direct.
"""

import enum
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Final

import trio

from .config import Options, Overflow
from .errors import Cause, PeerGone
from .metrics import Drop, OutboxStatistics, Traffic
from .transport import Transport
from .wire.batch import BatchQueue, Entry
from .wire.messages import Gap
from .wire.prepared import URGENT, Format, Prepared, Window, pack

__all__ = ["Offer", "Outbox"]

REPLY_RESERVE: Final = 64
"""Places in the memory channel beside `outbox_messages`, for answers to the client itself: its reader waits while the
outbox is full, so that only handlers which are under way can need them."""
MAX_CONTROL: Final = 512
"""Bytes of pings and pongs that wait at most; a peer need not be answered every ping of a flood (RFC 6455, 5.5.3)."""


class Offer(enum.Enum):
    """What became of an offered message."""

    WRITTEN = "written"
    QUEUED = "queued"
    DROPPED = "dropped"
    FULL = "full"
    """Not taken, not dropped: the policy is to wait (`Overflow.BLOCK`)."""


class Outbox:
    """Messages on their way to one connection. `offer` and `deliver` never wait; `run` is the flusher's task.

    `start_flusher` starts `run` in the connection's nursery; `fail` ends the connection with a cause.
    """

    __slots__ = (
        "_channel_in",
        "_channel_out",
        "_closed",
        "_control",
        "_cut",
        "_direct_allowed",
        "_dropped",
        "_ending",
        "_fail",
        "_flush_requested",
        "_format",
        "_gaps",
        "_in_flight",
        "_lingering",
        "_options",
        "_parked",
        "_queue",
        "_rest",
        "_settled",
        "_start_flusher",
        "_timestamp",
        "_traffic",
        "_transport",
        "_waiting",
        "_waiting_bytes",
        "_write_nowait",
        "batches_sent",
        "bytes_sent",
        "direct",
        "id",
        "messages_sent",
    )  # fmt: skip

    def __init__(
        self,
        id: str,
        transport: Transport,
        options: Options,
        traffic: Traffic,
        *,
        timestamp: Callable[[], str],
        start_flusher: Callable[[Callable[[], Any]], None],
        fail: Callable[[Cause], None],
    ) -> None:
        self.id = id
        self._transport = transport
        self._write_nowait = transport.write_nowait
        self._format: Format = transport.format
        self._options = options
        self._traffic = traffic
        self._timestamp = timestamp
        self._start_flusher = start_flusher
        self._fail = fail
        # Whether the socket may be written to without queueing, ever and now. `direct` is the hot path's one question.
        self._direct_allowed = transport.write_nowait is not None and options.linger == 0
        self.direct = self._direct_allowed
        self._ending = self._closed = False
        # The memory channel, the queue that the flusher sorts its content into, and what both hold together. They are
        # made when something waits for the first time: an idle connection pays for none of them.
        self._channel_in: trio.MemorySendChannel[Entry] | None = None
        self._channel_out: trio.MemoryReceiveChannel[Entry] | None = None
        self._queue: BatchQueue | None = None
        self._waiting = 0
        self._waiting_bytes = 0
        # What was cut off by a full socket must be written before anything else; `_cut` are the messages in it.
        self._rest: bytes = b""
        self._cut: Sequence[Prepared] = ()
        self._control: bytes = b""  # pings and pongs: written before the next batch
        self._gaps: dict[str | None, int] = {}  # drops that the client has not been told of yet, by room
        self._in_flight: Sequence[Entry] = ()  # taken by the flusher, not yet written; still counted as waiting
        self._parked: trio.CancelScope | None = None  # where the flusher waits for the first message
        self._lingering: trio.CancelScope | None = None  # where it waits for more of them
        self._flush_requested = False
        self._settled: trio.Event | None = None  # set when a batch was written, for those who wait for space or a flush
        self.messages_sent = self.batches_sent = self.bytes_sent = self._dropped = 0

    # --- in

    def deliver(self, window: Window) -> bool:
        """Write a room's window straight through. Returns False, and does nothing, where it has to be queued."""
        if not self.direct:
            return False
        self._write_through(window.chunk(self._format), window.messages)
        return True

    def offer(self, message: Prepared, overflow: Overflow) -> Offer:
        """Take one message, or do what the overflow policy says."""
        if self._ending:
            self._drop(message, Drop.CLOSED, tell=False)
            return Offer.DROPPED
        if self._straight(message):
            self._write_through(message.frame(self._format.framing), (message,))
            return Offer.WRITTEN
        entry = self._entry(message)
        entry.conflate = overflow is Overflow.CONFLATE and message.key is not None
        if not self._fits(entry) and (refusal := self._overflow(entry, overflow)) is not None:
            return refusal
        self._enqueue(entry)
        return Offer.QUEUED

    def reply(self, message: Prepared) -> None:
        """Take an answer to the client's own command, whatever waits: its reader asks `full` before the next command."""
        if self._ending:
            self._drop(message, Drop.CLOSED, tell=False)
            return
        if self._straight(message):
            self._write_through(message.frame(self._format.framing), (message,))
            return
        try:
            self._enqueue(self._entry(message))
        except trio.WouldBlock:  # handlers answer faster than the reserve holds, and the client does not read
            self._drop(message, Drop.OVERFLOW, tell=False)
            self._fail(Cause.SLOW_CONSUMER)

    def control(self, data: bytes) -> None:
        """Take a ping's or pong's bytes: they go before what waits. Of a flood only the first few are kept."""
        if self._ending:
            return
        if self._write_nowait is not None and not self.busy:
            self._write_through(data, ())
        elif len(self._control) < MAX_CONTROL:
            self._control += data
            self._wake()

    # --- out, without a task

    def _straight(self, message: Prepared) -> bool:
        """Whether the message can be written at once: nothing waits, and no linger holds it back."""
        return self.direct or (message.priority > URGENT and self._write_nowait is not None and not self.busy)

    @property
    def busy(self) -> bool:
        """Whether something must be written before anything new is."""
        return bool(self._waiting or self._rest or self._control or self._gaps)

    def _write_through(self, data: Any, messages: Sequence[Prepared]) -> None:
        """Write at once; what the socket does not take is left to the flusher. `data` is bytes (see `write_nowait`)."""
        assert self._write_nowait is not None
        try:
            written = self._write_nowait(data)
        except BlockingIOError:
            written = 0
        except OSError:
            self.direct = False
            for message in messages:
                self._drop(message, Drop.WRITE_FAILED, tell=False)
            self._fail(Cause.VANISHED)
            return
        if messages:
            self.messages_sent += len(messages)
            self.batches_sent += 1
        self.bytes_sent += written
        if written < len(data):
            self._rest, self._cut = data[written:], messages
            self.direct = False
            self._wake()

    # --- the queue

    def _entry(self, message: Prepared) -> Entry:
        return Entry(message, len(message.frame(self._format.framing)), trio.current_time())

    def _enqueue(self, entry: Entry) -> None:
        channel = self._open_queue()
        channel.send_nowait(entry)
        self.direct = False
        self._count(entry, +1)
        scope = self._lingering
        if scope is None:
            return
        message = entry.message  # the flusher lingers: it is not woken for each message, only when the batch is due
        if (
            message.priority > URGENT
            or self._waiting >= self._options.batch_messages
            or self._waiting_bytes >= self._options.batch_bytes
        ):
            scope.cancel()
        elif message.deliver_by is not None and message.deliver_by < scope.deadline:
            scope.deadline = message.deliver_by

    def _count(self, entry: Entry, sign: int) -> None:
        self._waiting += sign
        self._waiting_bytes += sign * entry.size
        self._traffic.waiting += sign
        self._traffic.waiting_bytes += sign * entry.size

    def _open_queue(self) -> trio.MemorySendChannel[Entry]:
        if self._channel_in is None:
            options = self._options
            self._channel_in, self._channel_out = trio.open_memory_channel[Entry](
                options.outbox_messages + REPLY_RESERVE
            )
            self._queue = BatchQueue(options.batch_messages, options.batch_bytes, options.linger)
            self._start_flusher(self.run)
        return self._channel_in

    def _wake(self) -> None:
        """Let the flusher act on something that did not come through the memory channel."""
        self._open_queue()
        if self._parked is not None:
            self._parked.cancel()

    def _collect(self) -> BatchQueue:
        """Sort what is in the memory channel into the queue."""
        self._open_queue()
        assert self._queue is not None
        assert self._channel_out is not None
        try:
            while True:
                self._add(self._channel_out.receive_nowait())
        except trio.WouldBlock:
            return self._queue

    def _add(self, entry: Entry) -> None:
        assert self._queue is not None
        replaced = self._queue.add(entry)
        if replaced is not None:
            self._count(replaced, -1)
            self._drop(replaced.message, Drop.CONFLATED, tell=False)

    # --- overflow

    @property
    def full(self) -> bool:
        """Whether it has reached its high-water mark, or all outboxes together have."""
        return (
            self._waiting >= self._options.outbox_messages
            or self._waiting_bytes >= self._options.outbox_bytes
            or self._traffic.waiting_bytes >= self._options.total_outbox_bytes
        )

    def _fits(self, entry: Entry) -> bool:
        options, waiting = self._options, self._waiting
        return (
            waiting < options.outbox_messages
            and (not waiting or self._waiting_bytes + entry.size <= options.outbox_bytes)
            and self._traffic.waiting_bytes + entry.size <= options.total_outbox_bytes
        )

    def _overflow(self, entry: Entry, overflow: Overflow) -> Offer | None:
        """Do what the policy says of a message that does not fit. Returns None when it fits after all."""
        queue, message = self._collect(), entry.message
        match overflow:
            case Overflow.BLOCK:
                return Offer.FULL
            case Overflow.DROP_OLDEST | Overflow.CONFLATE:
                if queue.replaces(entry):
                    return None
                while not self._fits(entry) and (gone := queue.evict(message.room, message.priority)) is not None:
                    self._count(gone, -1)
                    self._drop(gone.message, Drop.OVERFLOW)
            case Overflow.RESYNC:
                for gone in queue.evict_all(message.room):
                    self._count(gone, -1)
                    self._drop(gone.message, Drop.RESYNC)
            case Overflow.DISCONNECT:
                self._drop(message, Drop.OVERFLOW, tell=False)
                self._fail(Cause.SLOW_CONSUMER)
                return Offer.DROPPED
            case Overflow.DROP_NEWEST:
                pass
        if self._fits(entry):
            return None
        self._drop(message, Drop.RESYNC if overflow is Overflow.RESYNC else Drop.OVERFLOW)
        return Offer.DROPPED

    def give_up(self, message: Prepared) -> None:
        """Drop a message that was refused as FULL: its room has waited long enough."""
        self._drop(message, Drop.BLOCK_TIMEOUT)

    def _drop(self, message: Prepared, cause: Drop, *, tell: bool = True) -> None:
        self._dropped += 1
        self._traffic.dropped(message.room, cause)
        if tell:
            self._gaps[message.room] = self._gaps.get(message.room, 0) + 1
            self.direct = False
            self._wake()

    async def put(self, message: Prepared) -> Offer:
        """Take one message, and wait for the space. Safe to cancel: then it was not taken."""
        while (offered := self.offer(message, Overflow.BLOCK)) is Offer.FULL:
            await self._wait_settled()
        return offered

    async def wait_space(self) -> None:
        """Wait until it is not full, or ends. Safe to cancel."""
        while self.full and not self._ending:
            await self._wait_settled()

    # --- the flusher

    async def run(self) -> None:
        """The flusher: writes what waits, and parks while nothing does. Ends when the connection is gone."""
        try:
            while True:
                await self._write_pending()
                queue = self._collect()
                if queue.count or self._gaps:
                    await self._linger(queue)
                    await self._transport.wait_writable()
                    await self._write_batch(self._collect())
                elif not (self._rest or self._control):
                    await self._park()
        except PeerGone as gone:
            self._fail(gone.cause)

    async def _write_pending(self) -> None:
        """Finish a write that the socket cut off, and write pings and pongs."""
        while self._rest or self._control:
            data = self._rest or self._control
            if not self._rest:
                self._control = b""
            await self._transport.write(data)
            if self._rest:
                self.bytes_sent += len(self._rest)
                self._rest, self._cut = b"", ()
            self._wake_waiters()

    async def _linger(self, queue: BatchQueue) -> None:
        """Wait for the batch to be due; `_enqueue` and `flush` end it earlier."""
        if self._gaps or self._flush_requested or self._control:
            return
        due = queue.due()
        if due > trio.current_time():
            with trio.CancelScope(deadline=due) as self._lingering:
                await trio.sleep_forever()
            self._lingering = None

    async def _write_batch(self, queue: BatchQueue) -> None:
        taken = queue.take(trio.current_time())
        for entry in taken.expired:
            self._count(entry, -1)
            self._drop(entry.message, Drop.EXPIRED, tell=False)
        messages = [entry.message for entry in taken.batch]
        if self._gaps:
            gaps, self._gaps = self._gaps, {}
            told = [Gap(dropped=n) if room is None else Gap(dropped=n, room=room) for room, n in gaps.items()]
            messages[:0] = [Prepared(gap) for gap in told]
        if not messages:
            self._wake_waiters()
            return
        chunk = pack(messages, self._format, self._timestamp(), shared=False)
        self._in_flight = taken.batch
        await self._transport.write(chunk)
        self._in_flight = ()
        for entry in taken.batch:
            self._count(entry, -1)
        self.messages_sent += len(taken.batch)
        self.batches_sent += 1
        self.bytes_sent += len(chunk) if isinstance(chunk, bytes) else sum(map(len, chunk))
        self._wake_waiters()

    async def _park(self) -> None:
        """Nothing waits: let rooms write for themselves again, until something has to be queued."""
        self._flush_requested = False
        self.direct = self._direct_allowed and not self._ending
        self._wake_waiters()
        assert self._channel_out is not None
        with trio.CancelScope() as self._parked:
            self._add(await self._channel_out.receive())
        self._parked = None

    def _wake_waiters(self) -> None:
        if self._settled is not None:
            self._settled.set()
            self._settled = None

    async def _wait_settled(self) -> None:
        if self._settled is None:
            self._settled = trio.Event()
        await self._settled.wait()

    async def flush(self) -> None:
        """Write what waits now, without lingering, and wait for it (or for the connection's end). Safe to cancel."""
        called = trio.current_time()
        while self.busy and not self._closed:
            self._flush_requested = True
            if self._lingering is not None:
                self._lingering.cancel()
            await self._wait_settled()
            if not self._in_flight and self._collect().oldest() > called:
                break

    # --- the end

    def end(self) -> None:
        """Take nothing more; what waits can still be flushed."""
        self._ending = True
        self.direct = False

    async def finish(self, *, flush: bool) -> None:
        """Take nothing more and bring what waits (or, without `flush`, only the write under way) to its end.

        Safe to cancel: what did not get out is counted by `close`.
        """
        self.end()
        if not flush and self._queue is not None:
            self._drop_queue()
            self._gaps.clear()
        await self.flush()

    def _drop_queue(self) -> None:
        for entry in self._collect().clear():
            self._count(entry, -1)
            self._drop(entry.message, Drop.CLOSED, tell=False)

    def close(self) -> None:
        """The connection is over, the flusher has ended: count what did not get out."""
        if self._closed:
            return
        self.end()
        self._closed = True
        for message in self._cut:
            self.messages_sent -= 1
            self._drop(message, Drop.WRITE_FAILED, tell=False)
        for entry in self._in_flight:
            self._count(entry, -1)
            self._drop(entry.message, Drop.WRITE_FAILED, tell=False)
        if self._channel_in is not None and self._channel_out is not None:
            self._drop_queue()
            self._channel_in.close()
            self._channel_out.close()
        self._traffic.messages_sent += self.messages_sent
        self._traffic.batches_sent += self.batches_sent
        self._traffic.bytes_sent += self.bytes_sent
        self._wake_waiters()

    def statistics(self) -> OutboxStatistics:
        oldest = self._queue.oldest() if self._queue is not None else inf
        if self._in_flight:
            oldest = min(oldest, min(entry.queued_at for entry in self._in_flight))
        return OutboxStatistics(
            depth=self._waiting,
            bytes=self._waiting_bytes,
            oldest_age=max(0.0, trio.current_time() - oldest) if oldest < inf else 0.0,
            messages_sent=self.messages_sent,
            batches_sent=self.batches_sent,
            bytes_sent=self.bytes_sent,
            messages_dropped=self._dropped,
        )
