"""What is addressed to the user or the connection, rather than to a room. No I/O, no clock.

The server keeps a direct message (then it has a `seq`) until this client acknowledges it, and an acknowledgement stands for
all before it. So a message is acknowledged when the application asks for the one after it. Where a kept message finds no place
in the buffer, the later ones are refused too, until the next connection, which brings all of them again (`stuck`).

Numbers hold for one session. A server that does not know it any more may have started again and count from 1, or have a store
on disk and count on: then what comes again has the same number *and* the same time. Such an *echo* goes into the buffer like any
other message, but the application does not see it: by the time it comes to the front the application is done with the first one,
and the echo is what can be acknowledged.

Messages that nobody keeps (group messages, broadcasts) are left out when the buffer is full, and a `Gap` counts them.
"""

from typing import Final

import attrs

from .messages import Gap, Message
from .track import Buffer, Item

__all__ = ["ACK_EVERY", "Inbox"]

ACK_EVERY: Final = 32
"""Messages that are acknowledged together while the application has no time to wait."""


class Inbox:
    """`used` says whether the application reads it: only then may the server keep messages for this client to acknowledge."""

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self.used = False
        self._seen = 0  # the seq of the newest message that went into the buffer
        self._hand = 0  # that of the one that the application works on
        self._done = 0  # that of the newest one that it is done with
        self._acknowledged = 0
        self._unacknowledged = 0  # how many it is done with since
        self._refusing = False
        self._given: dict[int, str] = {}  # seq and time of what the server may give again
        self._earlier: dict[int, str] = {}  # those of earlier sessions
        self._echoes: set[int] = set()

    @property
    def waiting(self) -> int:
        """Items in the buffer."""
        return len(self._buffer)

    @property
    def stuck(self) -> bool:
        """Whether only another connection brings what is missing, and there is place for it."""
        return self.used and self._refusing and not self._buffer

    # --- the server

    def message(self, message: Message, size: int) -> None:
        """A message that came, and its bytes."""
        if message.seq is None:
            if self._buffer.full:
                self._buffer.put(Gap(room=None, dropped=1))
            else:
                self._buffer.put(message, size)
        elif message.seq > self._seen and not self._refusing:
            if self._buffer.full:
                self._refusing = True
            else:
                self._put(message, message.seq, size)

    def gap(self, dropped: int | None) -> None:
        """The server dropped messages on the way, which it does not do with those that are kept."""
        self._buffer.put(Gap(room=None, dropped=dropped))

    def begin(self, *, resumed: bool) -> int:
        """A connection begins: what to acknowledge on it at first; 0 acknowledges nothing, but says that this client does.

        Acknowledgements that were lost with the last connection are made up for where the session was resumed.
        """
        self._refusing = False
        if not resumed:
            self._seen = self._hand = self._done = 0
            self._buffer.change(self._void)
            self._earlier |= self._given
            self._given.clear()
            self._echoes.clear()
        self._acknowledged, self._unacknowledged = self._done, 0
        return self._done

    def confirmed(self, upto: int) -> None:
        """The server has forgotten everything up to this one."""
        self._given = {seq: time for seq, time in self._given.items() if seq > upto}

    def failed(self) -> None:
        """The server could not carry out an acknowledgement."""
        self._acknowledged = 0

    # --- the application

    def take(self) -> Message | Gap | None:
        """The next item; None: there is none yet. With this call the application is done with the one before."""
        self._finish(self._hand)
        self._hand = 0
        while (item := self._buffer.take()) is not None:
            seq = item.seq if isinstance(item, Message) else None
            if seq in self._echoes:
                self._finish(seq)
                continue
            self._hand = seq or 0
            assert isinstance(item, Message | Gap)
            return item
        return None

    def acknowledge(self, *, idle: bool) -> int | None:
        """What to acknowledge now, if anything. `idle`: the application waits."""
        if self._done <= self._acknowledged or not (idle or self._unacknowledged >= ACK_EVERY):
            return None
        self._acknowledged, self._unacknowledged = self._done, 0
        return self._done

    # --- within

    def _put(self, message: Message, seq: int, size: int) -> None:
        if self._earlier.get(seq) == message.timestamp:
            self._echoes.add(seq)
        if self._earlier:  # they come in order: what is below has been forgotten by the server
            self._earlier = {number: time for number, time in self._earlier.items() if number > seq}
        self._given[seq] = message.timestamp
        self._seen = seq
        self._buffer.put(message, size)

    def _void(self, item: Item) -> Item | None:
        """What becomes of an item when its session is over: its number is no longer good, and an echo is no longer one."""
        if not isinstance(item, Message) or item.seq is None:
            return item
        return None if item.seq in self._echoes else attrs.evolve(item, seq=None)

    def _finish(self, seq: int | None) -> None:
        if seq:
            self._done = seq
            self._unacknowledged += 1
            self._echoes.discard(seq)
