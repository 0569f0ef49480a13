"""Windows: what a room delivers at once, and the same messages as they wait in an outbox."""

from collections.abc import Callable, Sequence

import attrs

from .formats import Chunk, Format, Framing, Payload
from .prepared import Prepared

__all__ = ["QueuedMessage", "QueuedWindow", "Window", "pack", "queue_message"]


def pack(messages: Sequence[Prepared], format: Format, timestamp: str, *, shared: bool) -> Chunk:
    """What one write takes for these messages: their frames, or batch envelopes where the protocol has them.

    An envelope that only one connection gets (not `shared`) is not compressed, and a message that is worth compressing
    is not put into one, so that the cost of compression never grows with the number of receivers.
    """
    framing = format.framing
    if len(messages) == 1 and framing.framed:
        return messages[0].frame(framing)  # type: ignore[return-value]  # framed: bytes
    if not format.protocol.batches or len(messages) == 1:
        return _joined([message.frame(framing) for message in messages], framing)
    codec, parts = framing.codec, list[Payload]()
    run, run_bytes = list[Prepared](), 0

    def end_run() -> None:
        nonlocal run, run_bytes
        if len(run) > 1:
            batch = codec.batch([message.payload(codec) for message in run], timestamp)
            parts.append(framing.frame(batch, compress=shared))
        elif run:
            parts.append(run[0].frame(framing))
        run, run_bytes = [], 0

    for message in messages:
        size = len(message.payload(codec))
        if not shared and framing.deflate_bits and size >= framing.compressor.min_bytes:
            end_run()
            parts.append(message.frame(framing))
            continue
        if len(run) == format.batch_messages or run_bytes + size > format.batch_bytes:
            end_run()
        run.append(message)
        run_bytes += size
    end_run()
    return _joined(parts, framing)


def _joined(parts: list[Payload], framing: Framing) -> Chunk:
    if not framing.framed:
        return tuple(parts)
    return b"".join(parts) if len(parts) > 1 else parts[0]  # type: ignore[arg-type, return-value]  # framed: all bytes


@attrs.define(eq=False)
class QueuedMessage:
    """A message that waits: its bytes in the connection's format count against the bounds."""

    message: Prepared
    size: int
    queued_at: float
    conflate: bool = False
    """Whether it takes the place of a waiting message with the same room and key."""


def queue_message(message: Prepared, framing: Framing, now: float, *, conflate: bool) -> QueuedMessage:
    """A message as it waits from `now` on; with `conflate`, it conflates if it has a key."""
    return QueuedMessage(message, message.weight(framing), now, conflate and message.key is not None)


class QueuedWindow:
    """Messages of one room on their way into outboxes, in order, and what each of these wants to know of them all."""

    __slots__ = ("conflate", "entries", "lanes", "priority", "room", "size")

    def __init__(self, entries: Sequence[QueuedMessage]) -> None:
        self.entries = entries
        self.room = entries[0].message.room
        self.size = sum([entry.size for entry in entries])
        self.lanes: dict[int, list[QueuedMessage]] = {}
        """The same by priority."""
        for entry in entries:
            self.lanes.setdefault(entry.message.priority, []).append(entry)
        self.priority = min(self.lanes)
        """The lowest."""
        self.conflate = any(entry.conflate for entry in entries)


class Window:
    """What a room delivers at once: its messages, and one chunk for each format among the members.

    Where they have to wait, one load for each framing: members that are behind share it, too.
    """

    __slots__ = ("_chunks", "_queued", "excluded", "messages", "timestamp")

    def __init__(self, messages: list[Prepared], timestamp: str, excluded: frozenset[str] = frozenset()) -> None:
        self.messages = messages
        self.timestamp = timestamp
        self.excluded = excluded
        """Who does not get all of it."""
        self._chunks: dict[Format, Chunk] = {}
        self._queued: dict[Framing, QueuedWindow] = {}

    def chunk(self, format: Format) -> Chunk:
        chunk = self._chunks.get(format)
        if chunk is None:
            chunk = self._chunks[format] = pack(self.messages, format, self.timestamp, shared=True)
        return chunk

    def queued(self, framing: Framing, clock: Callable[[], float], *, conflate: bool) -> QueuedWindow:
        """All of it, to be queued. The time and `conflate` are those of the first member that asks: there is one policy."""
        queued = self._queued.get(framing)
        if queued is None:
            now = clock()
            queued = QueuedWindow(
                [queue_message(message, framing, now, conflate=conflate) for message in self.messages]
            )
            self._queued[framing] = queued
        return queued
