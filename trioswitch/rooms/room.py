"""A room: what is published to it is delivered to its members.

Everything that is pending in the room's queue (the *window*) is encoded once for each format and delivered to each member:
written straight through where the socket takes it, enqueued in its outbox where not. Under load windows grow by themselves;
without load they hold one message and cost no latency.

Delivery has two drivers. The dispatcher, one task for all rooms, drives those that never wait (`dispatch_nowait`). A room that
is big, waits for its members (policy `block`), or has crashed is driven by a task of its own (`run`). Waking a task for each
message of each small room cost half of what an echo costs (`docs/decisions/`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import attrs
import trio
from msgspec import UNSET

from .._util.clock import timestamp
from ..config import Overflow
from ..connections.directory import YIELD_EVERY
from ..connections.outbox import OfferResult
from ..metrics import Drop, RoomStatistics
from ..wire.messages import Recorded
from ..wire.prepared import Announcement, Outcome, Prepared, Receipt
from ..wire.windows import Window
from .history import History
from .intake import Intake
from .membership import Member
from .tally import Tally

__all__ = ["Room"]

_log = logging.getLogger(__name__)

_NOBODY: Final = frozenset[str]()
_WRITTEN: Final = OfferResult.WRITTEN


@attrs.define(eq=False)
class Room(Intake):
    """One room: what came in is delivered to its members.

    `_wake` is called when something is pending that `dispatch_nowait` should deliver; `_submit` gives a message to the store.
    """

    _wake: Callable[["Room"], None]
    _submit: Callable[["Room", Prepared], None]

    crashes: int = attrs.field(default=0, init=False)
    _blocks: bool = attrs.field(default=False, init=False)
    _pins: int = attrs.field(default=0, init=False)
    _in_delivery: list[Prepared] = attrs.field(factory=list, init=False)  # taken out of the queue, and not ended
    _windows: int = attrs.field(default=0, init=False)
    _delivered: int = attrs.field(default=0, init=False)
    _queued: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._blocks = self.policy.overflow is Overflow.BLOCK

    def _schedule(self) -> None:
        self._scheduled = True
        self._wake(self)

    def _store(self, message: Prepared) -> None:
        self._submit(self, message)

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """While the block runs, the room is needed: it is not idle, though it may be empty."""
        self._pins += 1
        try:
            yield
        finally:
            self._pins -= 1

    @property
    def is_pinned(self) -> bool:
        return self._pins > 0

    async def wait_dispatched(self) -> None:
        """Wait until what was published before has been delivered to the members. Safe to cancel."""
        await self._queue.wait_finished()

    # --- out

    def dispatch_nowait(self) -> bool:
        """Deliver one window, if that needs no waiting. Returns whether it was done; if not, `run` has to do it.

        The room wakes again when more is pending.
        """
        if self._blocks or len(self.membership.members) > YIELD_EVERY:
            return False
        if not self._queue.ready:
            return True  # it was closed in the meantime
        window = self._next_window(self._queue.next_nowait())
        tally = Tally(len(window.messages))
        self._deliver_to(list(self.membership.members.values()), window, tally)
        self._finish(window.messages, tally)
        self._scheduled = self._queue.ready > 0
        if self._scheduled:
            self._wake(self)
        return True

    async def run(self) -> None:
        """The task of a room that needs one: it delivers until the room is closed and empty."""
        while True:
            try:
                first = await self._queue.next()
            except trio.EndOfChannel:
                return
            await self._fan_out(self._next_window(first))

    def _next_window(self, first: Prepared) -> Window:
        """The window that begins with this message: stamped, recorded, without what has expired."""
        self._in_delivery = messages = self._queue.take_window(first)
        self.membership.begin_fan_out()
        now, excluded, expiring = timestamp(), _NOBODY, False
        for message in messages:
            expiring = expiring or message.expires_at is not None
            excluded = excluded | message.exclude if message.exclude else excluded
        if expiring:
            self._in_delivery = messages = self._drop_expired(messages)
        if self.history is None:
            for message in messages:
                if self._relay is None or isinstance(message, Announcement):  # else it was stamped before it was sent
                    message.stamp(now)
        else:
            self._record(messages, now, self.history)
        return Window(messages, now, excluded)

    @staticmethod
    def _record(messages: list[Prepared], timestamp: str, history: History) -> None:
        """Put the messages into the history.

        From here on those who join get them from the history, and those who are members get them from the window: nobody gets
        both or neither.
        """
        now = trio.current_time()
        for message in messages:
            event = message.event
            if not isinstance(event, Recorded):
                message.stamp(timestamp)
                continue
            if event.offset is UNSET:  # no store has numbered and stamped it
                event.timestamp = timestamp
            elif event.epoch != history.epoch and history.epoch:
                continue  # the store has lost it since
            history.add(message, event, now)

    def _drop_expired(self, messages: list[Prepared]) -> list[Prepared]:
        now = trio.current_time()
        expired: list[Prepared] = []
        good: list[Prepared] = []
        for message in messages:
            (expired if message.expires_at is not None and message.expires_at <= now else good).append(message)
        members = len(self.membership.members)
        self._traffic.dropped(self.name, Drop.EXPIRED, members * len(expired))
        if self.history is not None:
            self.history.pass_over(expired)
        self._end(expired, Receipt(dropped=members))
        return good

    async def _fan_out(self, window: Window) -> None:
        """Deliver a window to any number of members, and wait for those that the policy waits for."""
        membership, tally = self.membership, Tally(len(window.messages))
        members = list(membership.members.values())
        blocked: list[tuple[Member, list[int]]] = []
        for start in range(0, len(members), YIELD_EVERY):
            some = members[start : start + YIELD_EVERY]
            if start:
                await trio.lowlevel.checkpoint()
                if changed := membership.changed:  # a member that left and joined again got it from the history
                    some = [member for member in some if member.id not in changed]
            blocked += self._deliver_to(some, window, tally)
        if blocked:
            await self._wait_for(blocked, window.messages, tally)
        self._finish(window.messages, tally)

    def _deliver_to(self, members: list[Member], window: Window, tally: Tally) -> list[tuple[Member, list[int]]]:
        """The hot path: a window to some members. Returns who could not take which of its messages, and may be waited for."""
        messages, excluded = window.messages, window.excluded
        if not messages:
            return []  # all of them had expired
        everything, overflow = range(len(messages)), self.policy.overflow
        blocked: list[tuple[Member, list[int]]] = []
        for member in members:
            wanted: Sequence[int] = everything
            if member.id not in excluded:
                result = member.deliver(window)
                if result is _WRITTEN:
                    tally.written += 1
                    continue
                if result is not None:
                    tally.queued += 1
                    continue
            else:
                wanted = [i for i, message in enumerate(messages) if member.id not in message.exclude]
            result, count = member.enqueue(window, wanted, overflow)
            tally.add(result, wanted[:count])
            if count < len(wanted):
                if self._blocks:
                    blocked.append((member, list(wanted[count:])))
                else:
                    tally.add(OfferResult.DROPPED, wanted[count:])
        return blocked

    async def _wait_for(self, blocked: list[tuple[Member, list[int]]], messages: list[Prepared], tally: Tally) -> None:
        """Policy `block`: wait for members that are full, all of them within one time limit."""
        with trio.move_on_after(self.policy.block_timeout):
            for member, refused in blocked:
                while refused:
                    tally.add(await member.put(messages[refused[0]]), refused[:1])
                    del refused[0]
        for member, refused in blocked:
            for index in refused:
                member.report_loss(messages[index], Drop.BLOCK_TIMEOUT)
            tally.add(OfferResult.DROPPED, refused)

    def _finish(self, messages: list[Prepared], tally: Tally) -> None:
        self._in_delivery = []
        self.membership.end_fan_out()
        self._windows += 1
        written, queued = tally.totals()
        self._delivered += written
        self._queued += queued
        self._queue.finish(len(messages))
        for index, message in enumerate(messages):
            if message.on_outcome is not None:
                self._report(message, tally.receipt(index, *message.position))

    def _end(self, messages: list[Prepared], outcome: Outcome) -> None:
        """These messages are not delivered: report the outcome that they share."""
        self._queue.finish(len(messages))
        for message in messages:
            if message.on_outcome is not None:
                self._report(message, outcome.at(message) if isinstance(outcome, Receipt) else outcome)

    def _report(self, message: Prepared, outcome: Outcome) -> None:
        try:
            message.report(outcome)
        except Exception:  # a fault of ours: the publishers of the other messages have to be told all the same
            _log.exception("room %r: an outcome could not be reported", self.name)

    @property
    def idle(self) -> bool:
        """Whether it can be closed and nobody would miss anything."""
        kept = not self.is_stored and self.history is not None and not self.history.empty
        return self.membership.empty and not (self._pins or kept or self._queue.pending)

    # --- ends

    def crashed(self) -> None:
        """Delivering a window has failed: count it, and tell the publishers of a loss and the members of a gap.

        Some members may have got the window all the same; it is not known which.
        """
        self.crashes += 1
        messages, self._in_delivery = self._in_delivery, []
        self.membership.end_fan_out()
        for member in self.membership.members.values():
            for message in messages:
                member.report_loss(message, Drop.CRASHED)
        self._end(messages, Receipt(dropped=len(self.membership.members)))

    def close(self) -> None:
        """The last member has left: accept nothing more; what is pending goes to nobody."""
        self._end(self._queue.close(), Receipt())
        if self.history is not None:
            self.history.clear()

    def abandon(self) -> None:
        """The switch ends: nothing is delivered any more."""
        lost, self._in_delivery = self._in_delivery + self._queue.close(), []
        members = len(self.membership.members)
        self._traffic.dropped(self.name, Drop.CLOSED, members * len(lost))
        self._end(lost, Receipt(dropped=members))

    def statistics(self) -> RoomStatistics:
        return RoomStatistics(
            name=self.name,
            members=len(self.membership.members),
            waiting=self._queue.pending,
            published=self._queue.finished,
            windows=self._windows,
            delivered=self._delivered,
            queued=self._queued,
            crashes=self.crashes,
            drops=self._traffic.drops_of(self.name),
        )
