"""A room: the send ends of its members' outboxes, and how what is published to it gets there.

What is published waits in the room's memory channel. Everything that waits (the *window*) is encoded once for each format
and handed to each member: written straight through where the socket takes it, queued where not. Under load windows grow by
themselves; without load they are one message long and cost no latency.

Who hands out: the registry's dispatcher, for all rooms that can be done without waiting; a task of its own for a room that
is big, waits for its members (policy `block`), or has crashed. Waking a task for each message of each small room cost half
of what an echo costs (`docs/decisions/`).
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import Final

import attrs
import trio
from msgspec import UNSET

from .._util.clock import timestamp
from ..config import Keep, Options, Overflow, RoomPolicy
from ..connections.outbox import Offer
from ..errors import TrioswitchError
from ..metrics import Drop, RoomStatistics, Traffic
from ..stores.port import Appended
from ..wire.messages import Recorded
from ..wire.prepared import URGENT, Outcome, Prepared, Receipt
from ..wire.windows import Window
from .history import History
from .members import Audience, Member, Tally

__all__ = ["Room"]

_NOBODY: Final = frozenset[str]()
_WRITTEN: Final = Offer.WRITTEN
YIELD_EVERY: Final = 128
"""Members after which a fan-out lets other tasks run; measured, more often costs throughput, less often latency."""


@attrs.define(eq=False)
class Room(Audience):
    """One room. `wake` is called when something waits in it that `hand_out` is to see to.

    What is published to a `stored` room goes to `submit` first, and is queued here when it was committed (`stored`).
    """

    name: str
    policy: RoomPolicy
    _options: Options
    _traffic: Traffic
    _wake: Callable[["Room"], None]
    _submit: Callable[["Room", Prepared], None]
    history: History | None
    """None: the policy keeps none, or it was not loaded from the store yet."""
    visitors: int = attrs.field(default=0, init=False)
    """Those who are about to join."""
    counted_at: float = attrs.field(default=-inf, init=False)
    """When its count was last announced, on Trio's clock."""
    crashes: int = attrs.field(default=0, init=False)
    _send: trio.MemorySendChannel[Prepared] = attrs.field(init=False)
    _receive: trio.MemoryReceiveChannel[Prepared] = attrs.field(init=False)
    _scheduled: bool = attrs.field(default=False, init=False)  # it was woken, or has a task: no need to wake it again
    _waiting_bytes: int = attrs.field(default=0, init=False)
    _space: trio.Event | None = attrs.field(default=None, init=False)  # set when a window was taken
    _left_over: Prepared | None = attrs.field(default=None, init=False)  # taken, but too big for the last window
    _handed_out: trio.Event | None = attrs.field(default=None, init=False)  # set when a window was handed out
    stores: bool = attrs.field(default=False, init=False)
    """Whether what is published is stored."""
    _blocks: bool = attrs.field(default=False, init=False)
    _window: Window | None = attrs.field(default=None, init=False)  # what is being handed out
    _accepted: int = attrs.field(default=0, init=False)
    _at_store: int = attrs.field(default=0, init=False)  # of those accepted, not yet committed
    _stored_up_to: int = attrs.field(default=0, init=False)  # the newest offset that came back from the store
    _published: int = attrs.field(default=0, init=False)  # of those accepted, handed out
    _closed: bool = attrs.field(default=False, init=False)
    _windows: int = attrs.field(default=0, init=False)
    _delivered: int = attrs.field(default=0, init=False)
    _queued: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Prepared](self._options.room_messages)
        # Asked for each message; a member of an Enum costs 0.1 us to look up.
        self.stores = self.policy.history is Keep.STORED
        self._blocks = self.policy.overflow is Overflow.BLOCK

    # --- in

    def publish_nowait(self, message: Prepared) -> None:
        """Queue a message. Raises trio.WouldBlock when the room holds as much as it may, ClosedResourceError when it is gone."""
        if self._waiting_bytes + message.size > self._options.room_bytes and self._waiting_bytes:
            raise trio.WouldBlock
        if message.priority and self.policy.history is not Keep.NONE:
            # The order of offsets is the order of delivery: priority ends a linger here, and does not reorder.
            message.deliver_by = 0.0 if message.priority > URGENT else message.deliver_by
            message.priority = 0
        if self.stores and self._accepted - self._published >= self._options.room_messages:
            raise trio.WouldBlock  # what is at the store needs a place when it comes back
        if self.stores and isinstance(message.event, Recorded):
            self._store(message)
        else:
            self._send.send_nowait(message)
            if not self._scheduled:
                self._scheduled = True
                self._wake(self)
        self._accepted += 1
        self._waiting_bytes += message.size

    def _store(self, message: Prepared) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        self._submit(self, message)
        self._at_store += 1

    def stored(self, message: Prepared, appended: Appended) -> None:
        """The store has committed a message: it can be handed out, unless it was a retry of one that was before."""
        self._at_store -= 1
        event = message.event
        assert isinstance(event, Recorded)
        event.epoch, event.offset = appended.epoch, appended.offset
        assert self.history is not None  # the journal has loaded it
        # A duplicate that nobody has seen: it was committed, but the store could not say so.
        seen = appended.duplicate and appended.offset <= max(self._stored_up_to, self.history.last)
        if seen or self._closed:
            self._free(message.size)
            self._settle([message], Receipt(duplicate=appended.duplicate))
        else:
            self._stored_up_to = appended.offset
            self._send.send_nowait(message)  # there is space: it was counted when it was submitted
            if not self._scheduled:
                self._scheduled = True
                self._wake(self)

    def not_stored(self, message: Prepared, error: TrioswitchError) -> None:
        """The store has failed: the message is not published."""
        self._at_store -= 1
        self._free(message.size)
        self._settle([message], error)

    async def publish(self, message: Prepared) -> None:
        """Queue a message, and wait for space: this is how a room pushes back. Safe to cancel: then it was not queued."""
        while True:
            try:
                self.publish_nowait(message)
            except trio.WouldBlock:
                if self._space is None:
                    self._space = trio.Event()
                await self._space.wait()
            else:
                return

    async def wait_handed_out(self) -> None:
        """Wait until what was published before has been handed to the members. Safe to cancel."""
        target = self._accepted
        while self._published < target:
            if self._handed_out is None:
                self._handed_out = trio.Event()
            await self._handed_out.wait()

    # --- out

    def hand_out(self) -> bool:
        """Hand out one window, if that needs no waiting. Returns whether it was done; if not, `run` has to.

        The room wakes again when there is more.
        """
        if self._blocks or len(self.members) > YIELD_EVERY:
            return False
        if not self._here:
            return True  # it was closed in the meantime
        self._window = window = self._take(self._next_nowait())
        tally = Tally(len(window.messages))
        self._hand_to(list(self.members.values()), window, tally)
        self._finish(window.messages, tally)
        self._scheduled = self._here > 0
        if self._scheduled:
            self._wake(self)
        return True

    @property
    def _here(self) -> int:
        """Messages that wait to be handed out."""
        return self._accepted - self._published - self._at_store

    async def run(self) -> None:
        """The task of a room that needs one: hands out until the room is closed and empty."""
        while True:
            try:
                first = self._left_over or await self._receive.receive()
            except trio.EndOfChannel:
                return
            self._window = window = self._take(first)
            await self._hand_out(window)

    def _next_nowait(self) -> Prepared:
        return self._left_over or self._receive.receive_nowait()

    def _take(self, first: Prepared) -> Window:
        """Everything that waits, up to the bounds of a window: highest priority first, else in order."""
        options, messages, size = self._options, [first], first.size
        self._left_over = None
        self.moved = set()
        mixed = expiring = False
        for _ in range(min(self._here, options.window_messages) - 1):
            message = self._receive.receive_nowait()
            if size + message.size > options.window_bytes:
                self._left_over = message
                break
            messages.append(message)
            size += message.size
            mixed = mixed or message.priority != first.priority
        self._free(size)
        if mixed:
            messages.sort(key=lambda message: -message.priority)
        now, excluded = timestamp(), _NOBODY
        for message in messages:
            expiring = expiring or message.expires_at is not None
            excluded = excluded | message.exclude if message.exclude else excluded
        if expiring:
            messages = self._drop_expired(messages)
        if self.history is None:
            for message in messages:
                message.stamp(now)
        else:
            self._record(messages, now, self.history)
        return Window(messages, now, excluded)

    @staticmethod
    def _record(messages: list[Prepared], timestamp: str, history: History) -> None:
        """From here on who joins gets these from the history, and who is a member from the window: nobody both or neither."""
        now = trio.current_time()
        for message in messages:
            event = message.event
            if not isinstance(event, Recorded):
                message.stamp(timestamp)
                continue
            if event.offset is UNSET:  # no store has numbered and stamped it
                event.timestamp = timestamp
            history.add(message, event, now)

    def _free(self, size: int) -> None:
        self._waiting_bytes -= size
        if self._space is not None:
            self._space.set()
            self._space = None

    def _drop_expired(self, messages: list[Prepared]) -> list[Prepared]:
        now = trio.current_time()
        expired: list[Prepared] = []
        good: list[Prepared] = []
        for message in messages:
            (expired if message.expires_at is not None and message.expires_at <= now else good).append(message)
        self._traffic.dropped(self.name, Drop.EXPIRED, len(self.members) * len(expired))
        if self.history is not None:
            self.history.pass_over(expired)
        self._settle(expired, Receipt(dropped=len(self.members)))
        return good

    async def _hand_out(self, window: Window) -> None:
        """Hand a window to any number of members, and wait for those that the policy waits for."""
        members, tally = list(self.members.values()), Tally(len(window.messages))
        blocked: list[tuple[Member, list[int]]] = []
        for start in range(0, len(members), YIELD_EVERY):
            some = members[start : start + YIELD_EVERY]
            if start:
                await trio.lowlevel.checkpoint()
                if moved := self.moved:  # who came back in between has got it from the history
                    some = [member for member in some if member.id not in moved]
            blocked += self._hand_to(some, window, tally)
        if blocked:
            await self._wait_for(blocked, window.messages, tally)
        self._finish(window.messages, tally)

    def _hand_to(self, members: list[Member], window: Window, tally: Tally) -> list[tuple[Member, list[int]]]:
        """The hot path: a window to some members. Returns who could not take which of its messages, and may be waited for."""
        messages, excluded = window.messages, window.excluded
        if not messages:
            return []  # all of them had expired
        everything, overflow = range(len(messages)), self.policy.overflow
        blocked: list[tuple[Member, list[int]]] = []
        for member in members:
            wanted: Sequence[int] = everything
            if member.id not in excluded:
                became = member.deliver(window)
                if became is _WRITTEN:
                    tally.written += 1
                    continue
                if became is not None:
                    tally.queued += 1
                    continue
            else:
                wanted = [i for i, message in enumerate(messages) if member.id not in message.exclude]
            taken, count = member.take(window, wanted, overflow)
            tally.add(taken, wanted[:count])
            if count < len(wanted):
                if self._blocks:
                    blocked.append((member, list(wanted[count:])))
                else:
                    tally.add(Offer.DROPPED, wanted[count:])
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
                member.give_up(messages[index], Drop.BLOCK_TIMEOUT)
            tally.add(Offer.DROPPED, refused)

    def _finish(self, messages: list[Prepared], tally: Tally) -> None:
        self._window = self.moved = None
        self._windows += 1
        written, queued = tally.totals()
        self._delivered += written
        self._queued += queued
        self._settle(messages, tally)

    def _settle(self, messages: list[Prepared], outcome: Tally | Outcome) -> None:
        """These messages are done with: tell who waits for it."""
        self._published += len(messages)
        if self._space is not None:
            self._free(0)
        if self._handed_out is not None:
            self._handed_out.set()
            self._handed_out = None
        for index, message in enumerate(messages):
            if message.settle is None:
                continue
            if isinstance(outcome, Tally):
                message.settle(outcome.receipt(index, *message.position))
            else:
                message.settle(outcome.at(message) if isinstance(outcome, Receipt) else outcome)

    @property
    def idle(self) -> bool:
        """Whether it can be closed and nobody would miss anything."""
        kept = self.policy.history is Keep.MEMORY and self.history is not None and not self.history.empty
        return not (self.members or self.users or self.visitors or kept or self._accepted > self._published)

    # --- ends

    def crashed(self) -> None:
        """A window could not be handed out. Count it; whoever waits for a receipt is told of a loss.

        The members are told of a gap. Some may have got the window all the same: which of them is not known.
        """
        self.crashes += 1
        window, self._window, self.moved = self._window, None, None
        if window is not None:
            for member in self.members.values():
                for message in window.messages:
                    member.give_up(message, Drop.CRASHED)
            self._settle(window.messages, Receipt(dropped=len(self.members)))

    def close(self) -> None:
        """The last member has left: take nothing more, and what waits goes to nobody."""
        self._end()
        self._settle(self._take_all(), Receipt())
        if self.history is not None:
            self.history.clear()

    def _end(self) -> None:
        self._closed = True
        self._send.close()

    def abandon(self) -> None:
        """The switch ends: nothing is handed out any more."""
        self._end()
        window, self._window = self._window, None
        lost = (window.messages if window is not None else []) + self._take_all()
        self._traffic.dropped(self.name, Drop.CLOSED, len(self.members) * len(lost))
        self._settle(lost, Receipt(dropped=len(self.members)))

    def _take_all(self) -> list[Prepared]:
        messages = [] if self._left_over is None else [self._left_over]
        self._left_over = None
        try:
            while True:
                messages.append(self._receive.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            self._free(self._waiting_bytes)  # who waits for space hears that the room is closed
            return messages

    def statistics(self) -> RoomStatistics:
        return RoomStatistics(
            name=self.name,
            members=len(self.members),
            waiting=self._accepted - self._published,
            published=self._published,
            windows=self._windows,
            delivered=self._delivered,
            queued=self._queued,
            crashes=self.crashes,
            drops=self._traffic.drops_of(self.name),
        )
