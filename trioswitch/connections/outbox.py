"""The way out of one connection: written straight through while it can be, through the flusher when not.

    direct    nothing waits and the socket took everything: rooms write to it themselves, and no task is woken
    queueing  something waits: messages go to the flusher, which makes the outbox direct again when it is done
    ended     the connection ends: offers are refused and counted as dropped

A transport that cannot be written to at once (a program's own streams, trio-websocket) leaves the whole of each write to the
flusher, as a full socket does. With a linger above 0 an outbox never is direct.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Any

import trio

from ..config import Options, Overflow
from ..errors import CloseCause, PeerGone
from ..metrics import Drop, OutboxStatistics, Traffic
from ..transport.port import Transport
from ..wire.prepared import URGENT, Prepared
from ..wire.windows import QueuedWindow, Window, pack, queue_message
from .account import Account, Tap
from .flusher import Flusher

__all__ = ["OfferResult", "Outbox"]


class OfferResult(enum.Enum):
    """What became of an offered message."""

    __hash__ = object.__hash__  # the one of `Enum` is Python code, and rooms count by these
    WRITTEN = "written"
    QUEUED = "queued"
    DROPPED = "dropped"
    FULL = "full"
    """Not taken, not dropped: the policy is to wait (`Overflow.BLOCK`)."""


_WRITTEN, _QUEUED = OfferResult.WRITTEN, OfferResult.QUEUED  # a member of an Enum costs 0.1 us to look up


class Outbox:
    """Messages on their way to one connection. `deliver`, `take`, `offer`, `reply` and `control` never wait.

    `start_soon` starts the flusher in the connection's nursery; `fail` ends the connection with a cause.
    """

    __slots__ = (
        "_ended",
        "_fail",
        "_flusher",
        "_options",
        "_start_soon",
        "_transport",
        "_write_nowait",
        "account",
        "direct",
        "id",
    )

    def __init__(
        self,
        id: str,
        transport: Transport,
        options: Options,
        traffic: Traffic,
        *,
        start_soon: Callable[..., Any],
        fail: Callable[[CloseCause], None],
    ) -> None:
        self.id = id
        self._transport = transport
        self._write_nowait = transport.write_nowait
        self._options = options
        self._start_soon = start_soon
        self._fail = fail
        self._flusher: Flusher | None = None
        self._ended = False
        self.account = Account(traffic)
        self.direct = False
        """Whether a window may be written: the one question that the hot path asks."""
        self._on_idle()

    # --- in

    def deliver(self, window: Window) -> OfferResult | None:
        """Write a room's window as it is. Returns None, and does nothing, where it has to be queued."""
        if not self.direct:
            return None
        return self._write_through(window.chunk(self._transport.format), window.messages)

    def enqueue(self, window: Window, wanted: Sequence[int], overflow: Overflow) -> tuple[OfferResult, int]:
        """Take messages of a window, by their indexes, or do what the overflow policy says.

        Returns whether they were written or queued, and how many: the first ones. The others were dropped; only under
        `Overflow.BLOCK` are they still to be taken.
        """
        messages = window.messages if len(wanted) == len(window.messages) else [window.messages[i] for i in wanted]
        if not messages:
            return OfferResult.QUEUED, 0
        if self.direct:
            chunk = pack(messages, self._transport.format, window.timestamp, shared=False)
            if (became := self._write_through(chunk, messages)) is not None:
                return became, len(messages)
        if not self._ended:
            framing, conflate = self._transport.format.framing, overflow is Overflow.CONFLATE
            if messages is window.messages:
                queued = window.queued(framing, trio.current_time, conflate=conflate)
            else:
                now = trio.current_time()
                queued = QueuedWindow([queue_message(message, framing, now, conflate=conflate) for message in messages])
            taken = self._flush_later().enqueue(queued, overflow)
        else:
            taken = 0
        if taken < len(messages) and overflow is not Overflow.BLOCK:
            self._refuse(messages[taken:], overflow)
        return OfferResult.QUEUED, taken

    def offer(self, message: Prepared, overflow: Overflow) -> OfferResult:
        """Take one message, or do what the overflow policy says."""
        if (became := self._write_straight(message)) is not None:
            return became
        if not self._ended:
            if self._flush_later().enqueue(self._queue(message, overflow), overflow):
                return OfferResult.QUEUED
            if overflow is Overflow.BLOCK:
                return OfferResult.FULL
        self._refuse((message,), overflow)
        return OfferResult.DROPPED

    def _refuse(self, messages: Sequence[Prepared], overflow: Overflow) -> None:
        """Drop messages that find no place."""
        if self._ended:
            self.account.drop(messages, Drop.CLOSED)
            return
        self.account.drop(messages, Drop.RESYNC if overflow is Overflow.RESYNC else Drop.OVERFLOW)
        if overflow is Overflow.DISCONNECT:
            self._fail(CloseCause.SLOW_CONSUMER)
        else:
            self._flush_later().put_gap(messages)

    async def put(self, message: Prepared) -> OfferResult:
        """Take one message, and wait for the space. Safe to cancel: then it was not taken."""
        while (offered := self.offer(message, Overflow.BLOCK)) is OfferResult.FULL:
            assert self._flusher is not None
            await self._flusher.wait_written()
        return offered

    def report_loss(self, message: Prepared, cause: Drop) -> None:
        """Count a message as lost that was not taken, and tell the client."""
        self.account.drop((message,), cause)
        if not self._ended:
            self._flush_later().put_gap((message,))

    def reply(self, message: Prepared) -> None:
        """Take an answer to the client's own command, whatever waits: its reader asks `full` before the next command."""
        if self._write_straight(message) is not None:
            return
        if self._ended:
            self.account.drop((message,), Drop.CLOSED)
            return
        try:
            self._flush_later().put_nowait(self._queue(message))
        except trio.WouldBlock:  # handlers answer faster than the reserve holds, and the client does not read
            self.account.drop((message,), Drop.OVERFLOW)
            self._fail(CloseCause.SLOW_CONSUMER)

    def control(self, data: bytes) -> None:
        """Take a ping's or pong's bytes: they go before what waits."""
        if self._ended:
            return
        if self._write_nowait is not None and not self.busy:
            self._write_through(data, ())
        else:
            self._flush_later().put_control(data)

    # --- out

    def _write_straight(self, message: Prepared) -> OfferResult | None:
        """Write a message at once, if nothing waits and no linger holds it back."""
        if self.direct or (
            message.priority > URGENT and not self._ended and not self.busy and self.account.tap is None
        ):
            return self._write_through(pack((message,), self._transport.format, "", shared=False), (message,))
        return None

    def _write_through(self, chunk: Any, messages: Sequence[Prepared]) -> OfferResult | None:
        """Write a Chunk (for `write_nowait`, that is bytes) at once; what the socket does not take is left to the flusher.

        Returns None when the connection is gone: the outbox has ended then.
        """
        account = self.account
        try:
            written = self._write_nowait(chunk) if self._write_nowait is not None else 0
        except BlockingIOError:
            written = 0
        except OSError:
            self.end()
            self._fail(CloseCause.VANISHED)
            return None
        if messages:
            account.messages_sent += len(messages)
            account.batches_sent += 1
        account.bytes_sent += written
        if written < len(chunk):
            # A view and no copy: all receivers share the bytes.
            self._flush_later().put_rest(memoryview(chunk)[written:] if written else chunk, messages)
        return _WRITTEN if written else _QUEUED

    def _queue(self, message: Prepared, overflow: Overflow | None = None) -> QueuedWindow:
        framing = self._transport.format.framing
        return QueuedWindow(
            (queue_message(message, framing, trio.current_time(), conflate=overflow is Overflow.CONFLATE),)
        )

    def _flush_later(self) -> Flusher:
        """The flusher, to which everything goes from now on until it is idle."""
        self.direct = False
        if self._flusher is None:
            self._flusher = Flusher(self._transport, self._options, self.account, self._on_idle)
            self._start_soon(self._run, self._flusher)
        return self._flusher

    async def _run(self, flusher: Flusher) -> None:
        try:
            await flusher.run()
        except PeerGone as gone:
            self.end()
            flusher.close()
            self._flusher = None  # nobody is to wait for it
            self._fail(gone.cause)

    def _on_idle(self) -> None:
        self.direct = self._options.linger == 0 and not self._ended and self.account.tap is None

    def follow(self, tap: Tap | None) -> None:
        """Tell a tap what becomes of each message: all of them go through the flusher then. None: no more."""
        self.account.tap = tap
        self.direct = False
        if not self.busy:
            self._on_idle()

    # --- what waits

    @property
    def busy(self) -> bool:
        """Whether something waits to be written."""
        return self._flusher is not None and self._flusher.busy

    @property
    def full(self) -> bool:
        """Whether it has reached its high-water mark, or all outboxes together have."""
        return self._flusher is not None and self._flusher.full

    @property
    def waiting_bytes(self) -> int:
        return 0 if self._flusher is None else self._flusher.waiting_bytes

    def shed(self, priority: int, size: int) -> int:
        """Drop waiting messages of one priority, up to `size` bytes. Returns how many bytes were dropped. The client is told."""
        return 0 if self._flusher is None else self._flusher.shed(priority, size)

    async def wait_space(self) -> None:
        """Wait until it is not full, or ends. Safe to cancel."""
        while not self._ended and self._flusher is not None and self._flusher.busy and self._flusher.full:
            await self._flusher.wait_written()

    async def flush(self) -> None:
        """Write what waits now, without lingering, and wait for it (or for the connection's end). Safe to cancel."""
        if self._flusher is not None:
            await self._flusher.flush()

    # --- the end

    async def finish(self, *, flush: bool) -> None:
        """Take nothing more, and bring what waits (or, without `flush`, only the write under way) to its end.

        Safe to cancel: what did not get out is counted by `close`.
        """
        self.end()
        flusher = self._flusher  # it may be gone when a wait is over
        if flusher is not None:
            if not flush:
                flusher.drop_queue()
            await flusher.flush()
            await flusher.wait_parked()

    def end(self) -> None:
        """Take nothing more."""
        self._ended = True
        self.direct = False

    def close(self) -> None:
        """The connection is over, and its nursery closed: count what did not get out."""
        self.end()
        if self._flusher is not None:
            self._flusher.close()
            self._flusher = None
        self.account.close()
        self._start_soon = self._fail = _over  # they know the connection, which knows us: it is to be freed at once

    def statistics(self) -> OutboxStatistics:
        depth, size, age = self._flusher.depth() if self._flusher is not None else (0, 0, 0.0)
        account = self.account
        return OutboxStatistics(
            depth=depth,
            bytes=size,
            oldest_age=age,
            messages_sent=account.messages_sent,
            batches_sent=account.batches_sent,
            bytes_sent=account.bytes_sent,
            messages_dropped=account.messages_dropped,
        )


def _over(*_: object) -> None:
    """For an outbox that is closed."""
