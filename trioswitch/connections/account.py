"""Counting what one outbox wrote and dropped."""

from collections.abc import Sequence

from ..metrics import Drop, Traffic
from ..wire.prepared import Prepared

__all__ = ["Account"]


class Account:
    """What one outbox wrote and dropped."""

    __slots__ = ("batches_sent", "bytes_sent", "messages_dropped", "messages_sent", "traffic")

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self.messages_sent = self.batches_sent = self.bytes_sent = self.messages_dropped = 0

    def drop(self, messages: Sequence[Prepared], cause: Drop) -> None:
        self.messages_dropped += len(messages)
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
