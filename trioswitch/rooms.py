"""A room: the send ends of its members' outboxes, and the task that hands out what is published to it.

The task takes everything that waits (the *window*), encodes it once for each format, and hands it to each member: written
straight through where the socket takes it, queued where not. Under load the window grows by itself; without load it is one
message long and costs no latency.
"""

from collections.abc import Sequence
from math import inf
from typing import Final, Protocol

import attrs
import trio

from .clock import timestamp
from .config import Options, Overflow, RoomPolicy
from .metrics import Drop, RoomStatistics, Traffic
from .outbox import Offer
from .wire.prepared import Prepared, Receipt, Window

__all__ = ["Member", "Room", "Tally"]

YIELD_EVERY: Final = 128
"""Members after which a fan-out lets other tasks run; measured, more often costs throughput, less often latency."""


class Member(Protocol):
    """What a room hands messages to: a connection's outbox, or a subscription of the server's own code."""

    id: str

    def deliver(self, window: Window) -> bool:
        """Write the whole window at once, or return False and do nothing."""

    def offer(self, message: Prepared, overflow: Overflow) -> Offer:
        """Take one message, or do what the policy says. Never waits."""

    async def put(self, message: Prepared) -> Offer:
        """Take one message, and wait for the space. Safe to cancel: then it was not taken."""

    def give_up(self, message: Prepared) -> None:
        """The message was not taken in time: count it, and tell the client."""


class Tally:
    """Counts what becomes of a window's messages: together for members that took it whole, else one by one."""

    def __init__(self, count: int) -> None:
        self.whole = 0
        self.delivered = [0] * count
        self.queued = [0] * count
        self.dropped = [0] * count

    def add(self, index: int, offer: Offer) -> None:
        counts = {Offer.WRITTEN: self.delivered, Offer.QUEUED: self.queued}.get(offer, self.dropped)
        counts[index] += 1

    def receipt(self, index: int) -> Receipt:
        return Receipt(self.whole + self.delivered[index], self.queued[index], self.dropped[index])


@attrs.define(eq=False)
class Room:
    """One room. `run` is its task; the registry starts it, and starts it again when it crashes."""

    name: str
    policy: RoomPolicy
    _options: Options
    _traffic: Traffic
    members: dict[str, Member] = attrs.field(factory=dict, init=False)
    connections: int = attrs.field(default=0, init=False)
    """How many of the members are clients: the `online_count`."""
    counted_at: float = attrs.field(default=-inf, init=False)
    """When its count was last announced, on Trio's clock."""
    crashes: int = attrs.field(default=0, init=False)
    _send: trio.MemorySendChannel[Prepared] = attrs.field(init=False)
    _receive: trio.MemoryReceiveChannel[Prepared] = attrs.field(init=False)
    _waiting_bytes: int = attrs.field(default=0, init=False)
    _space: trio.Event | None = attrs.field(default=None, init=False)  # set when a window was taken
    _left_over: Prepared | None = attrs.field(default=None, init=False)  # taken, but too big for the last window
    _handed_out: trio.Event | None = attrs.field(default=None, init=False)  # set when a window was handed out
    _window: Window | None = attrs.field(default=None, init=False)  # what is being handed out
    _accepted: int = attrs.field(default=0, init=False)
    _published: int = attrs.field(default=0, init=False)  # of those accepted, handed out
    _windows: int = attrs.field(default=0, init=False)
    _delivered: int = attrs.field(default=0, init=False)
    _queued: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Prepared](self._options.room_messages)

    # --- in

    def publish_nowait(self, message: Prepared) -> None:
        """Queue a message. Raises trio.WouldBlock when the room holds as much as it may, ClosedResourceError when it is gone."""
        if self._waiting_bytes + message.size > self._options.room_bytes and self._waiting_bytes:
            raise trio.WouldBlock
        self._send.send_nowait(message)
        self._accepted += 1
        self._waiting_bytes += message.size

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

    async def run(self) -> None:
        """Hand out what is published, until the room is closed and empty."""
        while True:
            first = self._left_over
            if first is None:
                try:
                    first = await self._receive.receive()
                except trio.EndOfChannel:
                    return
            self._window = self._take(first)
            await self._hand_out(self._window)

    def _take(self, first: Prepared) -> Window:
        """Everything that waits, up to the bounds of a window: highest priority first, else in order."""
        options, messages, size = self._options, [first], first.size
        self._left_over = None
        mixed = False
        try:
            while len(messages) < options.window_messages:
                message = self._receive.receive_nowait()
                if size + message.size > options.window_bytes:
                    self._left_over = message
                    break
                messages.append(message)
                size += message.size
                mixed = mixed or message.priority != first.priority
        except (trio.WouldBlock, trio.EndOfChannel):
            pass
        self._waiting_bytes -= size
        if self._space is not None:
            self._space.set()
            self._space = None
        if mixed:
            messages.sort(key=lambda message: -message.priority)
        now = timestamp()
        for message in messages:
            message.stamp(now)
        return Window(messages, now)

    async def _hand_out(self, window: Window) -> None:
        messages, overflow = window.messages, self.policy.overflow
        tally = Tally(len(messages))
        excluded = frozenset[str]().union(*(message.exclude for message in messages if message.exclude))
        blocked: list[tuple[Member, list[int]]] = []
        for count, member in enumerate(list(self.members.values())):
            if count and not count % YIELD_EVERY:
                await trio.lowlevel.checkpoint()
            if member.id not in excluded:
                if member.deliver(window):
                    tally.whole += 1
                    continue
                wanted: Sequence[int] = range(len(messages))
            else:
                wanted = [i for i, message in enumerate(messages) if member.id not in message.exclude]
            refused = self._offer(member, messages, wanted, overflow, tally)
            if refused:
                blocked.append((member, refused))
        if blocked:
            await self._wait_for(blocked, messages, tally)
        self._finish(messages, tally)

    @staticmethod
    def _offer(
        member: Member, messages: list[Prepared], wanted: Sequence[int], overflow: Overflow, tally: Tally
    ) -> list[int]:
        """Offer messages one by one. Returns those that have to wait: the first that was refused, and all after it."""
        for position, index in enumerate(wanted):
            offered = member.offer(messages[index], overflow)
            if offered is Offer.FULL:
                return list(wanted[position:])
            tally.add(index, offered)
        return []

    async def _wait_for(self, blocked: list[tuple[Member, list[int]]], messages: list[Prepared], tally: Tally) -> None:
        """Policy `block`: wait for members that are full, all of them within one time limit."""
        with trio.move_on_after(self.policy.block_timeout):
            for member, refused in blocked:
                while refused:
                    tally.add(refused[0], await member.put(messages[refused[0]]))
                    del refused[0]
        for member, refused in blocked:
            for index in refused:
                member.give_up(messages[index])
                tally.add(index, Offer.DROPPED)

    def _finish(self, messages: list[Prepared], tally: Tally) -> None:
        self._windows += 1
        self._delivered += tally.whole * len(messages) + sum(tally.delivered)
        self._queued += sum(tally.queued)
        self._settle(messages, [tally.receipt(i) if message.settle else None for i, message in enumerate(messages)])

    def _settle(self, messages: list[Prepared], receipts: Sequence[Receipt | None]) -> None:
        self._window = None
        self._published += len(messages)
        if self._handed_out is not None:
            self._handed_out.set()
            self._handed_out = None
        for message, receipt in zip(messages, receipts, strict=True):
            if message.settle is not None and receipt is not None:
                message.settle(receipt)

    def crashed(self) -> None:
        """The task failed while it handed out a window. Count it; whoever waits for a receipt is told of a loss.

        Some members may have got the window all the same: which of them is not known.
        """
        self.crashes += 1
        if self._window is not None:
            self._lose(self._window.messages)

    def abandon(self) -> None:
        """The switch ends: nothing is handed out any more."""
        self.close()
        messages = self._window.messages if self._window is not None else []
        if self._left_over is not None:
            messages.append(self._left_over)
        try:
            while True:
                messages.append(self._receive.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            self._lose(messages)

    def _lose(self, messages: list[Prepared]) -> None:
        self._traffic.dropped(self.name, Drop.CRASHED, len(self.members) * len(messages))
        self._settle(messages, [Receipt(dropped=len(self.members))] * len(messages))

    def close(self) -> None:
        """Take nothing more; `run` ends when what waits has been handed out."""
        self._send.close()

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
