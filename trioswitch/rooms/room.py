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
from typing import Final, Protocol

import attrs
import trio
from msgspec import UNSET

from .._util.clock import timestamp
from ..config import HistoryStorage, Options, Overflow, RoomPolicy
from ..connections.directory import YIELD_EVERY
from ..connections.outbox import OfferResult
from ..errors import TrioswitchError
from ..metrics import Drop, RoomStatistics, Traffic
from ..stores.port import Appended
from ..wire.messages import Gap, Recorded
from ..wire.prepared import URGENT, Announcement, Outcome, Prepared, Receipt
from ..wire.windows import Window
from .history import History
from .membership import Member, Membership
from .queue import RoomQueue
from .sequence import Sequence as OffsetSequence
from .tally import Tally

__all__ = ["Relay", "Room"]

_log = logging.getLogger(__name__)

_NOBODY: Final = frozenset[str]()
_WRITTEN: Final = OfferResult.WRITTEN


class Relay(Protocol):
    """Carries the messages of rooms between the nodes of a cluster."""

    def submit(self, room: "Room", message: Prepared) -> None:
        """Take a message that gets no offset. It comes back by `Room.on_relayed` when it is its turn among those of all nodes."""

    def committed(self, room: "Room", message: Prepared) -> None:
        """A message that was published on this node is committed: tell the other nodes."""

    def behind(self, room: "Room") -> None:
        """Messages of the room are missing here, or wait for space: call `Room.resume` when there is some, or read them."""


@attrs.define(eq=False)
class Room:
    """One room. `wake` is called when something is pending that `dispatch_nowait` should deliver.

    A message for a `stored` room goes to `submit` first, and into the room's queue when it was committed (`on_committed`). In a
    cluster there is a `relay`: then the messages of `memory` rooms are stored as well, and those of rooms without history go to
    the relay first.
    """

    name: str
    policy: RoomPolicy
    _options: Options
    _traffic: Traffic
    _wake: Callable[["Room"], None]
    _submit: Callable[["Room", Prepared], None]
    history: History | None
    """None: the policy keeps none, or it was not loaded from the store yet (`attach_history`)."""
    _relay: Relay | None = None
    membership: Membership = attrs.field(factory=Membership, init=False)
    is_stored: bool = attrs.field(default=False, init=False)
    """Whether messages are stored before they are delivered."""
    crashes: int = attrs.field(default=0, init=False)
    _blocks: bool = attrs.field(default=False, init=False)
    _queue: RoomQueue = attrs.field(init=False)
    _pins: int = attrs.field(default=0, init=False)
    _scheduled: bool = attrs.field(default=False, init=False)  # it was woken, or has a task: no need to wake it again
    _in_delivery: list[Prepared] = attrs.field(factory=list, init=False)  # taken out of the queue, and not ended
    _stored_up_to: int = attrs.field(default=0, init=False)  # the newest offset that came back from the store
    _sequence: OffsetSequence = attrs.field(factory=OffsetSequence, init=False)  # in a cluster, instead of this
    _windows: int = attrs.field(default=0, init=False)
    _delivered: int = attrs.field(default=0, init=False)
    _queued: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        options = self._options
        self._queue = RoomQueue(
            options.room_messages, options.room_bytes, options.window_messages, options.window_bytes
        )
        # Asked for each message; a member of an Enum costs 0.1 us to look up.
        kept = HistoryStorage.NONE if self._relay is not None else HistoryStorage.MEMORY
        self.is_stored = self.policy.history not in (HistoryStorage.NONE, kept)
        self._blocks = self.policy.overflow is Overflow.BLOCK

    @property
    def closed(self) -> bool:
        """Whether it accepts nothing any more."""
        return self._queue.closed

    # --- in

    def publish_nowait(self, message: Prepared) -> None:
        """Enqueue a message. Raises trio.WouldBlock when the room is full, trio.ClosedResourceError when it is closed."""
        if message.priority and self.policy.history is not HistoryStorage.NONE:
            # The order of offsets is the order of delivery: priority ends a linger here, and does not reorder.
            message.deliver_by = 0.0 if message.priority > URGENT else message.deliver_by
            message.priority = 0
        if self.is_stored and isinstance(message.event, Recorded):
            self._queue.reserve_nowait(message)
            self._submit(self, message)
        elif self._relay is not None and not isinstance(message, Announcement):
            self._queue.reserve_nowait(message)
            self._relay.submit(self, message)
        else:
            self._queue.put_nowait(message)
            if not self._scheduled:
                self._scheduled = True
                self._wake(self)

    async def publish(self, message: Prepared) -> None:
        """Enqueue a message, and wait for space. Safe to cancel: then it was not enqueued."""
        while True:
            try:
                self.publish_nowait(message)
            except trio.WouldBlock:
                await self._queue.wait_space()
            else:
                return

    def on_committed(self, message: Prepared, appended: Appended) -> None:
        """The store has committed a message. It is delivered, unless it was a retry of one that was delivered before."""
        event = message.event
        assert isinstance(event, Recorded)
        event.epoch, event.offset = appended.epoch, appended.offset
        assert self.history is not None  # the store writer has loaded it
        if self._relay is not None:
            self._take_own(message, appended, self._relay)
            return
        # A duplicate that nobody has seen: it was committed, but the store could not say so.
        seen = appended.duplicate and appended.offset <= max(self._stored_up_to, self.history.last)
        if seen or self._queue.closed:
            self._queue.withdraw(message)
            self._end([message], Receipt(duplicate=appended.duplicate))
        else:
            self._stored_up_to = appended.offset
            self._queue.committed(message)
            if not self._scheduled:
                self._scheduled = True
                self._wake(self)

    def on_commit_failed(self, message: Prepared, error: TrioswitchError) -> None:
        """The store has failed: the message is not published."""
        self._queue.withdraw(message)
        self._end([message], error)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._wake(self)

    async def wait_dispatched(self) -> None:
        """Wait until what was published before has been delivered to the members. Safe to cancel."""
        await self._queue.wait_finished()

    def attach_history(self, history: History) -> None:
        """The history was loaded from the store."""
        self.history = history
        self._sequence.clear(history.last)

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

    # --- in a cluster

    def on_relayed(self, message: Prepared) -> None:
        """It is the turn of a message of our own that was submitted to the relay."""
        if self._queue.closed:
            self._queue.withdraw(message)
            self._end([message], Receipt())
        else:
            self._queue.committed(message)
            self._schedule()

    def accept_nowait(self, message: Prepared) -> None:
        """Take a message of another node that has no offset. Raises as `publish_nowait`."""
        self._queue.accept_nowait(message)
        self._schedule()

    def on_committed_elsewhere(self, message: Prepared) -> None:
        """Take a message of another node, or from the store, that was committed in the epoch of the room's history."""
        _epoch, offset = message.position
        assert offset is not None
        if self._sequence.add(offset, message, own=False):
            self.resume()
        elif self._sequence.behind:
            self._tell_behind()

    def _take_own(self, message: Prepared, appended: Appended, relay: Relay) -> None:
        assert self.history is not None
        if appended.epoch != self.history.epoch:
            self.begin_epoch(appended.epoch)
        relay.committed(self, message)
        if self._queue.closed or not self._sequence.add(appended.offset, message, own=True):
            self._queue.withdraw(message)
            self._end([message], Receipt(duplicate=appended.duplicate))
        else:
            self.resume()

    def resume(self) -> None:
        """Take into the queue what is next in the order of offsets, as far as there is space."""
        sequence = self._sequence
        while (found := sequence.next()) is not None and not self._queue.closed:
            message, own = found
            if own:
                self._queue.committed(message)
            else:
                try:
                    self._queue.accept_nowait(message)
                except trio.WouldBlock:
                    break
            sequence.advance()
            self._schedule()
        if sequence.behind:
            self._tell_behind()

    def _tell_behind(self) -> None:
        if self._relay is not None and not self._queue.closed:
            self._relay.behind(self)

    @property
    def in_order(self) -> int:
        """The newest offset up to which nothing is missing here."""
        return self._sequence.last

    @property
    def is_behind(self) -> bool:
        """Whether messages are missing here, or wait for space."""
        return self._sequence.behind

    @property
    def waits_for_space(self) -> bool:
        """Whether the next message in order is here."""
        return self._sequence.next() is not None

    def hear_of(self, offset: int) -> None:
        """The room has a message at this offset."""
        self._sequence.hear_of(offset)
        if self._sequence.behind:
            self._tell_behind()

    def pass_over(self, offset: int, *, lost: bool) -> None:
        """What is missing up to this offset does not come: it has expired, or is `lost`: then the members are told."""
        first = self._sequence.last + 1
        offset = min(offset, self._sequence.first_ahead() - 1)
        if offset < first:
            return
        self._sequence.pass_over(offset)
        if lost and self.history is not None:
            self.tell_gap(Gap(room=self.name, epoch=self.history.epoch, start=first, to=offset, lost=True))
        self.resume()

    def begin_epoch(self, epoch: str) -> None:
        """The store has begun the room's history; or it has lost it and begun a new one: then the members are told."""
        assert self.history is not None
        is_first = not self.history.epoch
        for message in self._sequence.clear():
            self._queue.withdraw(message)
            self._end([message], Receipt(dropped=len(self.membership.members)))
        self.history.begin(epoch)
        if not is_first:
            self.tell_gap(Gap(room=self.name, epoch=epoch, lost=True))

    def tell_gap(self, gap: Gap) -> bool:
        """Tell the members that messages are missing here. Returns False when the room is full, or closed."""
        try:
            self.accept_nowait(Announcement(gap, room=self.name))
        except (trio.WouldBlock, trio.ClosedResourceError):
            return False
        return True

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
                if self._relay is None or not message.stamped:
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
