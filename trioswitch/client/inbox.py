"""Messages to the user, its groups and the connection, rather than to a room. This module does no I/O and reads no clock.

The server keeps a direct message that has a `seq` until the client acknowledges it; an acknowledgement covers all earlier
messages. The client acknowledges a message when the application asks for the next one. When a kept message does not fit into
the buffer, later ones are refused as well until the next connection, on which the server sends all of them again (`stuck`).

Sequence numbers are valid for one session. A server that does not know the session any more has restarted: it may count from 1
again, or, with a durable store, continue to count. In the second case redelivered messages have the same number *and* the same
timestamp. Such a *redelivery* enters the buffer like any other message, so that it can be acknowledged in its turn, but the
application does not see it.

Messages that the server does not keep (group messages, broadcasts) are dropped when the buffer is full, and a `Gap` counts them.
"""

from typing import Final

import attrs

from .messages import Gap, Message
from .room_sync import Buffer, Item

__all__ = ["ACK_EVERY", "Inbox"]

ACK_EVERY: Final = 32
"""Messages per acknowledgement, as long as the application finds a next message without waiting."""


class Inbox:
    """The buffer of direct messages, and what to acknowledge. `used`: whether the application reads direct messages.

    The server keeps messages for this client to acknowledge only if it does.
    """

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self.used = False
        self._received = 0  # seq of the newest message that entered the buffer
        self._in_progress = 0  # seq of the message that the application works on
        self._done = 0  # seq of the newest message that the application is done with
        self._acknowledged = 0
        self._unacknowledged = 0  # messages that the application has finished since
        self._refusing = False
        self._unconfirmed: dict[int, str] = {}  # seq and timestamp of messages that the server may send again
        self._earlier: dict[int, str] = {}  # those of earlier sessions
        self._redeliveries: set[int] = set()

    @property
    def buffered(self) -> int:
        """Items in the buffer."""
        return len(self._buffer)

    @property
    def stuck(self) -> bool:
        """Whether refused messages can be received now, which takes a new connection."""
        return self.used and self._refusing and not self._buffer

    # --- events of the server

    def message(self, message: Message, size: int) -> None:
        """A message of `size` bytes was received."""
        if message.seq is None:
            if self._buffer.full:
                self._buffer.put(Gap(room=None, dropped=1))
            else:
                self._buffer.put(message, size)
        elif message.seq > self._received and not self._refusing:
            if self._buffer.full:
                self._refusing = True
            else:
                self._put(message, message.seq, size)

    def gap(self, dropped: int | None) -> None:
        """The server dropped messages that it does not keep."""
        self._buffer.put(Gap(room=None, dropped=dropped))

    def begin(self, *, resumed: bool) -> int:
        """A connection begins. Returns what to acknowledge first; 0 only announces that this client acknowledges.

        If the session was resumed, this repeats an acknowledgement that was lost with the last connection.
        """
        self._refusing = False
        if not resumed:
            self._received = self._in_progress = self._done = 0
            self._buffer.change(self._invalidate)
            self._earlier |= self._unconfirmed
            self._unconfirmed.clear()
            self._redeliveries.clear()
        self._acknowledged, self._unacknowledged = self._done, 0
        return self._done

    def confirmed(self, upto: int) -> None:
        """The server has deleted all messages up to this number."""
        self._unconfirmed = {seq: time for seq, time in self._unconfirmed.items() if seq > upto}

    def ack_failed(self) -> None:
        """The server could not execute an acknowledgement: it has to be repeated."""
        self._acknowledged = 0

    # --- calls of the application

    def take(self) -> Message | Gap | None:
        """The next item, or None. This call finishes the previous message."""
        self._finish(self._in_progress)
        self._in_progress = 0
        while (item := self._buffer.take()) is not None:
            seq = item.seq if isinstance(item, Message) else None
            if seq in self._redeliveries:
                self._finish(seq)
                continue
            self._in_progress = seq or 0
            assert isinstance(item, Message | Gap)
            return item
        return None

    def acknowledge(self, *, idle: bool) -> int | None:
        """What to acknowledge now, or None. `idle`: the application waits for the next message."""
        if self._done <= self._acknowledged or not (idle or self._unacknowledged >= ACK_EVERY):
            return None
        self._acknowledged, self._unacknowledged = self._done, 0
        return self._done

    # --- internal

    def _put(self, message: Message, seq: int, size: int) -> None:
        if self._earlier.get(seq) == message.timestamp:
            self._redeliveries.add(seq)
        if self._earlier:  # messages come in order: the server has deleted those with lower numbers
            self._earlier = {number: time for number, time in self._earlier.items() if number > seq}
        self._unconfirmed[seq] = message.timestamp
        self._received = seq
        self._buffer.put(message, size)

    def _invalidate(self, item: Item) -> Item | None:
        """The buffered item without the number of the session that has ended; None to remove a redelivery."""
        if not isinstance(item, Message) or item.seq is None:
            return item
        return None if item.seq in self._redeliveries else attrs.evolve(item, seq=None)

    def _finish(self, seq: int | None) -> None:
        if seq:
            self._done = seq
            self._unacknowledged += 1
            self._redeliveries.discard(seq)
