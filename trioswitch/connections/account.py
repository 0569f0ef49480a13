"""Counting what one outbox wrote and dropped."""

from collections.abc import Sequence
from typing import Protocol

from ..metrics import Drop, Traffic
from ..wire.messages import Gap
from ..wire.prepared import Prepared
from ..wire.windows import QueuedMessage

__all__ = ["Account", "Tap"]


class Tap(Protocol):
    """Is told what becomes of each message of an outbox, by whoever does it. The calls return at once."""

    def queued(self, entries: Sequence[QueuedMessage]) -> None:
        """These wait from now on."""

    def written(self, entries: Sequence[QueuedMessage]) -> None:
        """These were written to the socket."""

    def dropped(self, messages: Sequence[Prepared], cause: Drop) -> None: ...

    def told(self, gaps: Sequence[Gap]) -> None:
        """The client was told of these."""


class Account:
    """What one outbox wrote and dropped."""

    __slots__ = ("batches_sent", "bytes_sent", "messages_dropped", "messages_sent", "tap", "traffic")

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self.tap: Tap | None = None
        self.messages_sent = self.batches_sent = self.bytes_sent = self.messages_dropped = 0

    def drop(self, messages: Sequence[Prepared], cause: Drop) -> None:
        self.messages_dropped += len(messages)
        if self.tap is not None:
            self.tap.dropped(messages, cause)
        rooms: dict[str | None, int] = {}
        for message in messages:
            rooms[message.room] = rooms.get(message.room, 0) + 1
        for room, count in rooms.items():
            self.traffic.dropped(room, cause, count)

    def close(self) -> None:
        """Add it up to the totals, once."""
        self.traffic.messages_sent += self.messages_sent
        self.traffic.batches_sent += self.batches_sent
        self.traffic.bytes_sent += self.bytes_sent
        self.messages_sent = self.batches_sent = self.bytes_sent = 0
