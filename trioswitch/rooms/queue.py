"""The queue of a room: what was published and is not delivered yet, within bounds."""

import trio

from .._util.wakeup import Wakeup
from ..wire.prepared import Prepared

__all__ = ["RoomQueue"]


class RoomQueue:
    """Messages on their way through a room, in order. Publishers wait while it is full: this is how a room pushes back.

    Each message that was accepted is in one of three places, and leaves the last one by `finish`:

        accepted - finished = at the store + in the memory channel (`ready`) + in the window that is being delivered

    Bounds are in messages and in bytes as they came in. A message that is larger than `max_bytes` is taken when no other is
    there. What is at the store keeps a place in the channel: it needs one when it is committed.
    """

    __slots__ = (
        "_accepted",
        "_all_finished",
        "_at_store",
        "_bytes",
        "_finished",
        "_left_over",
        "_max_bytes",
        "_max_messages",
        "_receive",
        "_send",
        "_space",
        "_window_bytes",
        "_window_messages",
        "closed",
    )  # fmt: skip

    def __init__(self, max_messages: int, max_bytes: int, window_messages: int, window_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._window_messages = window_messages
        self._window_bytes = window_bytes
        # Twice as many: messages of other nodes have space of their own (`accept_nowait`).
        self._send, self._receive = trio.open_memory_channel[Prepared](2 * max_messages)
        self._left_over: Prepared | None = None  # taken out of the channel, but too big for the last window
        self._accepted = self._at_store = self._finished = self._bytes = 0
        self._space = Wakeup()  # a message has left, or the queue was closed
        self._all_finished = Wakeup()  # a message has ended
        self.closed = False

    # --- counts

    @property
    def pending(self) -> int:
        """Messages that were accepted and have not ended."""
        return self._accepted - self._finished

    @property
    def ready(self) -> int:
        """Messages that can be taken into a window."""
        return self._accepted - self._finished - self._at_store

    @property
    def finished(self) -> int:
        return self._finished

    # --- in

    def put_nowait(self, message: Prepared) -> None:
        """Accept a message. Raises trio.WouldBlock when the queue is full, trio.ClosedResourceError when it is closed."""
        size = self._bytes + message.size
        if size > self._max_bytes and self._bytes:
            raise trio.WouldBlock
        if self._at_store and self._accepted - self._finished >= self._max_messages:
            raise trio.WouldBlock  # the places that are left belong to what comes back from the store
        if self.ready >= self._max_messages:
            raise trio.WouldBlock
        self._send.send_nowait(message)
        self._accepted += 1
        self._bytes = size

    def accept_nowait(self, message: Prepared) -> None:
        """Accept a message of another node. Messages of this node that are at the store (`reserve_nowait`) take no space from it.

        Raises trio.WouldBlock when the queue is full, trio.ClosedResourceError when it is closed.
        """
        if self.ready >= self._max_messages or self._bytes >= 2 * self._max_bytes:
            raise trio.WouldBlock
        self._send.send_nowait(message)
        self._accepted += 1
        self._bytes += message.size

    def reserve_nowait(self, message: Prepared) -> None:
        """Accept a message that goes to the store first. Raises as `put_nowait`."""
        if self.closed:
            raise trio.ClosedResourceError
        size = self._bytes + message.size
        if (size > self._max_bytes and self._bytes) or self._accepted - self._finished >= self._max_messages:
            raise trio.WouldBlock
        self._accepted += 1
        self._at_store += 1
        self._bytes = size

    def committed(self, message: Prepared) -> None:
        """The store has committed a message: it is `ready`. There is a place for it since it was reserved."""
        self._at_store -= 1
        self._send.send_nowait(message)

    def withdraw(self, message: Prepared) -> None:
        """A message comes back from the store and is not to be delivered. It has yet to be finished."""
        self._at_store -= 1
        self._free(message.size)

    async def wait_space(self) -> None:
        """Wait until a message has left the queue, or it was closed. Safe to cancel."""
        await self._space.wait()

    async def wait_finished(self) -> None:
        """Wait until all messages that were accepted before have ended. Safe to cancel."""
        target = self._accepted
        while self._finished < target:
            await self._all_finished.wait()

    # --- out

    def next_nowait(self) -> Prepared:
        """The first message of the next window. Raises trio.WouldBlock when none is ready."""
        return self._left_over or self._receive.receive_nowait()

    async def next(self) -> Prepared:
        """As `next_nowait`, and wait for one. Raises trio.EndOfChannel when the queue was closed. Safe to cancel."""
        return self._left_over or await self._receive.receive()

    def take_window(self, first: Prepared) -> list[Prepared]:
        """Take the messages of a window that begins with `first`: highest priority first, else in order."""
        self._left_over = None
        messages, size, mixed = [first], first.size, False
        for _ in range(min(self.ready, self._window_messages) - 1):
            message = self._receive.receive_nowait()
            if size + message.size > self._window_bytes:
                self._left_over = message
                break
            messages.append(message)
            size += message.size
            mixed = mixed or message.priority != first.priority
        self._free(size)
        if mixed:
            messages.sort(key=lambda message: -message.priority)
        return messages

    def finish(self, count: int) -> None:
        """So many messages that were taken, or withdrawn, have ended."""
        self._finished += count
        self._space.notify()
        self._all_finished.notify()

    def _free(self, size: int) -> None:
        self._bytes -= size
        self._space.notify()

    # --- the end

    def close(self) -> list[Prepared]:
        """Accept nothing more. Returns the messages that were ready; they have yet to be finished."""
        self.closed = True
        self._send.close()
        messages = [] if self._left_over is None else [self._left_over]
        self._left_over = None
        try:
            while True:
                messages.append(self._receive.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            self._free(self._bytes)
            return messages
