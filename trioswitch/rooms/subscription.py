"""Server code as a member of a room: what is published there, as an async iterator of events."""

from collections.abc import AsyncIterator, Sequence
from typing import Final

import trio

from .._util.wakeup import Wakeup
from ..config import Overflow
from ..connections.outbox import OfferResult
from ..metrics import Drop, Traffic
from ..wire.gaps import Gaps
from ..wire.messages import Event, thawed
from ..wire.prepared import Prepared
from ..wire.windows import Window

__all__ = ["Subscription"]

BUFFER: Final = 1024
"""Events that wait for a subscriber, as for a connection (`outbox_messages`)."""


class Subscription:
    """Iterate over it for the room's events, in order. What it was too slow for shows up as a `Gap` in their midst."""

    def __init__(self, id: str, room: str, traffic: Traffic) -> None:
        self.id = id
        self.room = room
        self._traffic = traffic
        self._send, self._receive = trio.open_memory_channel[Prepared](BUFFER)
        self._gaps = Gaps()
        self._oldest_dropped = False  # then the gap is before what waits, else behind it
        self._space = Wakeup()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """The next event. Safe to cancel. Ends when the subscription does."""
        if self._gaps and (self._oldest_dropped or not self._receive.statistics().current_buffer_used):
            await trio.lowlevel.checkpoint()
            self._oldest_dropped = False
            (gap,) = self._gaps.take()
            return gap
        try:
            message = await self._receive.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise StopAsyncIteration from None
        self._space.notify()
        return thawed(message.event)

    def deliver(self, window: Window) -> OfferResult | None:
        return None

    def enqueue(self, window: Window, wanted: Sequence[int], overflow: Overflow) -> tuple[OfferResult, int]:
        taken = 0
        for index in wanted:
            offered = self.offer(window.messages[index], overflow)
            if offered is OfferResult.FULL:
                break
            taken += offered is OfferResult.QUEUED
        return OfferResult.QUEUED, taken

    def offer(self, message: Prepared, overflow: Overflow) -> OfferResult:
        try:
            self._send.send_nowait(message)
        except trio.ClosedResourceError:
            self._drop(message, Drop.CLOSED)
            return OfferResult.DROPPED
        except trio.WouldBlock:
            return self._overflow(message, overflow)
        return OfferResult.QUEUED

    def _overflow(self, message: Prepared, overflow: Overflow) -> OfferResult:
        if overflow is Overflow.BLOCK:
            return OfferResult.FULL
        if overflow in (Overflow.DROP_OLDEST, Overflow.CONFLATE, Overflow.RESYNC):
            self._drop(self._receive.receive_nowait(), Drop.OVERFLOW)
            self._oldest_dropped = True
            self._send.send_nowait(message)
            return OfferResult.QUEUED
        self._drop(message, Drop.OVERFLOW)
        if overflow is Overflow.DISCONNECT:
            self._send.close()
        return OfferResult.DROPPED

    def _drop(self, message: Prepared, cause: Drop) -> None:
        self._gaps.add((message,))
        self._traffic.dropped(self.room, cause)

    async def put(self, message: Prepared) -> OfferResult:
        while (offered := self.offer(message, Overflow.BLOCK)) is OfferResult.FULL:
            await self._space.wait()
        return offered

    def report_loss(self, message: Prepared, cause: Drop) -> None:
        self._drop(message, cause)

    def close(self) -> None:
        self._send.close()
        self._receive.close()
        self._space.notify()
