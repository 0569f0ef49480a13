"""The way into a room: what is published waits here, within bounds, until the room (`rooms.room`) delivers it.

room without history           publish -> queue
room with history, stored      publish -> store -> queue
in a cluster, without history  publish -> relay -> queue        other nodes -> relay -> queue
in a cluster, with history     publish -> store -> sequence -> queue        other nodes -> relay -> sequence -> queue
"""

from typing import Protocol

import attrs
import trio

from ..config import HistoryStorage, Options, RoomPolicy
from ..errors import StoreError, TrioswitchError
from ..metrics import Traffic
from ..stores.port import Appended
from ..wire.messages import Gap, Recorded
from ..wire.prepared import URGENT, Announcement, Outcome, Prepared, Receipt
from .history import History
from .membership import Membership
from .queue import RoomQueue
from .sequence import Sequence

__all__ = ["Intake", "Relay"]


class Relay(Protocol):
    """Carries the messages of rooms between the nodes of a cluster."""

    @property
    def full(self) -> bool:
        """Whether publishers should wait (`wait_space`)."""

    async def wait_space(self) -> None:
        """Wait until it is not full. Safe to cancel."""

    def submit(self, room: "Intake", message: Prepared) -> None:
        """Take a message that gets no offset. It comes back by `on_relayed` when it is its turn among those of all nodes."""

    def committed(self, room: "Intake", message: Prepared) -> None:
        """A message that was published on this node is committed: tell the other nodes."""

    def behind(self, room: "Intake") -> None:
        """Messages of the room are missing here, or wait for space: call `resume` when there is some, or read them."""


@attrs.define(eq=False)
class Intake:
    """The base class of a room, which says how a message is stored (`_store`) and delivered (`_schedule`).

    A message for a `stored` room is stored first, and goes into the queue when it was committed (`on_committed`). In a cluster
    there is a `_relay`: then the messages of `memory` rooms are stored as well, and those of rooms without history go to the
    relay first.
    """

    name: str
    policy: RoomPolicy
    _options: Options
    _traffic: Traffic
    history: History | None
    """None: the policy keeps none, or it was not loaded from the store yet (`attach_history`)."""
    _relay: Relay | None
    membership: Membership = attrs.field(factory=Membership, init=False)
    is_stored: bool = attrs.field(default=False, init=False)
    """Whether messages are stored before they are delivered."""
    _queue: RoomQueue = attrs.field(init=False)
    _scheduled: bool = attrs.field(default=False, init=False)  # it was woken, or has a task: no need to wake it again
    _stored_up_to: int = attrs.field(default=0, init=False)  # the newest offset that came back from the store
    _sequence: Sequence = attrs.field(factory=Sequence, init=False)  # in a cluster, instead of this
    _owed: list[Gap] = attrs.field(factory=list, init=False)  # gaps that find no space yet, ahead of what follows

    def __attrs_post_init__(self) -> None:
        options = self._options
        self._queue = RoomQueue(
            options.room_messages, options.room_bytes, options.window_messages, options.window_bytes
        )
        # Asked for each message; a member of an Enum costs 0.1 us to look up.
        kept = HistoryStorage.NONE if self._relay is not None else HistoryStorage.MEMORY
        self.is_stored = self.policy.history not in (HistoryStorage.NONE, kept)

    @property
    def closed(self) -> bool:
        """Whether it accepts nothing any more."""
        return self._queue.closed

    def _store(self, message: Prepared) -> None:
        """Give a message to the store. It comes back by `on_committed` or `on_commit_failed`."""
        raise NotImplementedError

    def _schedule(self) -> None:
        """Something is ready in the queue: have it delivered."""
        raise NotImplementedError

    def _end(self, messages: list[Prepared], outcome: Outcome) -> None:
        """These messages are not delivered: report the outcome that they share."""
        raise NotImplementedError

    # --- messages that are published here

    def publish_nowait(self, message: Prepared) -> None:
        """Enqueue a message. Raises trio.WouldBlock when the room is full, trio.ClosedResourceError when it is closed."""
        if message.priority and self.policy.history is not HistoryStorage.NONE:
            # The order of offsets is the order of delivery: priority ends a linger here, and does not reorder.
            message.deliver_by = 0.0 if message.priority > URGENT else message.deliver_by
            message.priority = 0
        relay = self._relay
        if relay is not None and relay.full and not isinstance(message, Announcement):
            raise trio.WouldBlock
        if self.is_stored and isinstance(message.event, Recorded):
            self._queue.reserve_nowait(message)
            self._store(message)
        elif relay is not None and not isinstance(message, Announcement):
            self._queue.reserve_nowait(message)
            relay.submit(self, message)
        else:
            self._queue.put_nowait(message)
            if not self._scheduled:
                self._schedule()

    async def publish(self, message: Prepared) -> None:
        """Enqueue a message, and wait for space. Safe to cancel: then it was not enqueued."""
        while True:
            try:
                self.publish_nowait(message)
            except trio.WouldBlock:
                if self._relay is not None and self._relay.full:
                    await self._relay.wait_space()
                else:
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
                self._schedule()

    def on_commit_failed(self, message: Prepared, error: TrioswitchError) -> None:
        """The store has failed: the message is not published."""
        self._queue.withdraw(message)
        self._end([message], error)

    def attach_history(self, history: History) -> None:
        """The history was loaded from the store."""
        self.history = history
        self._sequence.clear(history.last)

    # --- in a cluster

    def on_relayed(self, message: Prepared) -> None:
        """It is the turn of a message of our own that was submitted to the relay."""
        if self._queue.closed:
            self._queue.withdraw(message)
            self._end([message], Receipt())
        else:
            self._queue.committed(message)
            if not self._scheduled:
                self._schedule()

    def accept_nowait(self, message: Prepared) -> None:
        """Take a message of another node that has no offset. Raises as `publish_nowait`."""
        self._queue.accept_nowait(message)
        if not self._scheduled:
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
        while self._owed and not self._queue.closed:
            if not self.tell_gap(self._owed[0]):
                self._tell_behind()
                return
            del self._owed[0]
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
            if not self._scheduled:
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
        return self._sequence.behind or bool(self._owed)

    @property
    def waits_for_space(self) -> bool:
        """Whether what is next in order is here."""
        return bool(self._owed) or self._sequence.next() is not None

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
            self._owed.append(Gap(room=self.name, epoch=self.history.epoch, start=first, to=offset, lost=True))
        self.resume()

    def begin_epoch(self, epoch: str) -> None:
        """The store has begun the room's history; or it has lost it and begun a new one: then the members are told."""
        assert self.history is not None
        is_first = not self.history.epoch
        for message in self._sequence.clear():
            self._queue.withdraw(message)
            self._end([message], StoreError("the store has lost the message, and the history of its room"))
        self.history.begin(epoch)
        if not is_first:
            self._owed = [Gap(room=self.name, epoch=epoch, lost=True)]
            self.resume()

    def tell_gap(self, gap: Gap) -> bool:
        """Tell the members that messages are missing here. Returns False when the room is full, or closed."""
        try:
            self.accept_nowait(Announcement(gap, room=self.name))
        except (trio.WouldBlock, trio.ClosedResourceError):
            return False
        return True
