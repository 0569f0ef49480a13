"""The way out of one connection: written straight through while it can be, through the flusher when not.

    direct    nothing waits and the socket took everything: rooms write to it themselves, and no task is woken
    queueing  something waits: messages go to the flusher, which makes the outbox direct again when it is done
    ended     the connection ends: offers are refused and counted as dropped

A transport that cannot be written to at once (TLS, in-memory streams, trio-websocket) and a linger above 0 never are direct.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Any

import trio

from .config import Options, Overflow
from .errors import Cause, PeerGone
from .flusher import Flusher
from .metrics import Account, Drop, OutboxStatistics, Traffic
from .transport import Transport
from .wire.batch import Entry
from .wire.prepared import URGENT, Prepared, Window

__all__ = ["Offer", "Outbox"]


class Offer(enum.Enum):
    """What became of an offered message."""

    WRITTEN = "written"
    QUEUED = "queued"
    DROPPED = "dropped"
    FULL = "full"
    """Not taken, not dropped: the policy is to wait (`Overflow.BLOCK`)."""


class Outbox:
    """Messages on their way to one connection. `offer`, `deliver`, `reply` and `control` never wait.

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
        fail: Callable[[Cause], None],
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
        """Whether a room may write to the socket: the one question that the hot path asks."""
        self._on_idle()

    # --- in

    def deliver(self, window: Window) -> bool:
        """Write a room's window straight through. Returns False, and does nothing, where it has to be queued."""
        if not self.direct:
            return False
        return self._write_through(window.chunk(self._transport.format), window.messages)

    def offer(self, message: Prepared, overflow: Overflow) -> Offer:
        """Take one message, or do what the overflow policy says."""
        if self._ended:
            self.account.drop(message, Drop.CLOSED)
            return Offer.DROPPED
        if self._straight(message):
            written = self._write_through(message.frame(self._transport.format.framing), (message,))
            return Offer.WRITTEN if written else self.offer(message, overflow)
        flusher, entry = self._flush_later(), self._entry(message)
        entry.conflate = overflow is Overflow.CONFLATE and message.key is not None
        if flusher.fits(entry) or flusher.make_room(entry, overflow):
            flusher.put_nowait(entry)
            return Offer.QUEUED
        if overflow is Overflow.BLOCK:
            return Offer.FULL
        self.account.drop(message, Drop.RESYNC if overflow is Overflow.RESYNC else Drop.OVERFLOW)
        if overflow is Overflow.DISCONNECT:
            self._fail(Cause.SLOW_CONSUMER)
        else:
            flusher.put_gap(message.room)
        return Offer.DROPPED

    async def put(self, message: Prepared) -> Offer:
        """Take one message, and wait for the space. Safe to cancel: then it was not taken."""
        while (offered := self.offer(message, Overflow.BLOCK)) is Offer.FULL:
            assert self._flusher is not None
            await self._flusher.wait_settled()
        return offered

    def give_up(self, message: Prepared, cause: Drop) -> None:
        """Count a message as lost that was not taken, and tell the client."""
        self.account.drop(message, cause)
        if not self._ended:
            self._flush_later().put_gap(message.room)

    def reply(self, message: Prepared) -> None:
        """Take an answer to the client's own command, whatever waits: its reader asks `full` before the next command."""
        if self._ended:
            self.account.drop(message, Drop.CLOSED)
        elif self._straight(message):
            if not self._write_through(message.frame(self._transport.format.framing), (message,)):
                self.account.drop(message, Drop.CLOSED)
        else:
            try:
                self._flush_later().put_nowait(self._entry(message))
            except trio.WouldBlock:  # handlers answer faster than the reserve holds, and the client does not read
                self.account.drop(message, Drop.OVERFLOW)
                self._fail(Cause.SLOW_CONSUMER)

    def control(self, data: bytes) -> None:
        """Take a ping's or pong's bytes: they go before what waits."""
        if self._ended:
            return
        if self._write_nowait is not None and not self.busy:
            self._write_through(data, ())
        else:
            self._flush_later().put_control(data)

    # --- out

    def _straight(self, message: Prepared) -> bool:
        """Whether the message can be written at once: nothing waits, and no linger holds it back."""
        return self.direct or (message.priority > URGENT and self._write_nowait is not None and not self.busy)

    def _write_through(self, data: Any, messages: Sequence[Prepared]) -> bool:
        """Write at once; what the socket does not take is left to the flusher. `data` is bytes (see `write_nowait`).

        Returns False when the connection is gone: the outbox has ended then.
        """
        assert self._write_nowait is not None
        account = self.account
        try:
            written = self._write_nowait(data)
        except BlockingIOError:
            written = 0
        except OSError:
            self.end()
            self._fail(Cause.VANISHED)
            return False
        if messages:
            account.messages_sent += len(messages)
            account.batches_sent += 1
        account.bytes_sent += written
        if written < len(data):
            self._flush_later().put_rest(memoryview(data)[written:], messages)  # no copy: all receivers share the bytes
        return True

    def _entry(self, message: Prepared) -> Entry:
        return Entry(message, message.weight(self._transport.format.framing), trio.current_time())

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
        self.direct = self._write_nowait is not None and self._options.linger == 0 and not self._ended

    # --- what waits

    @property
    def busy(self) -> bool:
        """Whether something waits to be written."""
        return self._flusher is not None and self._flusher.busy

    @property
    def full(self) -> bool:
        """Whether it has reached its high-water mark, or all outboxes together have."""
        return self._flusher is not None and self._flusher.full

    async def wait_space(self) -> None:
        """Wait until it is not full, or ends. Safe to cancel."""
        while not self._ended and self._flusher is not None and self._flusher.busy and self._flusher.full:
            await self._flusher.wait_settled()

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
