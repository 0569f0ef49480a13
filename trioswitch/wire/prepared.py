"""One message, encoded at most once for each (protocol, framing, compression), whatever the number of receivers."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs
from msgspec import UNSET

from ..errors import TrioswitchError, UnencodableData
from .frames import BINARY, TEXT, Compressor, frame
from .messages import Ack, Error, Event, Published, Recorded
from .protocols import ClientProtocol, Codec

__all__ = [
    "URGENT", "Chunk", "Entry", "Format", "Framing", "Load", "Outcome", "Prepared", "Receipt", "Window", "pack", "size_of",
]  # fmt: skip

URGENT = 5
"""Messages of a priority above this one are written at once."""

Payload = bytes | str
Chunk = bytes | tuple[Payload, ...]
"""What one write takes: frames joined into bytes, or the payloads, for a transport that frames by itself."""


@attrs.frozen(eq=False)
class Framing:
    """From an encoded message to the bytes of its frame."""

    codec: Codec
    framed: bool
    """False for a transport that takes payloads and frames them by itself."""
    deflate_bits: int
    """The window size that the client negotiated for permessage-deflate, 0 without."""
    compressor: Compressor

    def frame(self, payload: bytes, *, compress: bool = True) -> Payload:
        if not self.framed:
            return payload.decode() if self.codec.text else payload
        opcode = TEXT if self.codec.text else BINARY
        if self.deflate_bits and compress and (data := self.compressor.deflate(payload, self.deflate_bits)) is not None:
            return frame(opcode, data, compressed=True)
        return frame(opcode, payload)


@attrs.frozen(eq=False)
class Format:
    """What the bytes for a connection look like. Connections that share a Format share every encoded byte."""

    protocol: ClientProtocol
    framing: Framing
    batch_messages: int
    batch_bytes: int


@attrs.frozen(repr=False)
class Receipt:
    """What became of a published message, in receivers.

    `delivered`: handed to the receiver's socket; `queued`: waiting in its outbox; `dropped`: lost to it, because its outbox
    overflowed, it went away, or the message had expired. A receiver whose outbox overflows, now or later, is told by a `gap`.
    """

    delivered: int = 0
    queued: int = 0
    dropped: int = 0
    kept: int = 0
    """Users in whose inbox it waits."""
    seq: int | None = None
    """Its number there."""
    epoch: str | None = None
    offset: int | None = None
    """Its position, in a room with history."""
    duplicate: bool = False
    """Whether it was a retry: then nothing was published again, and this is what became of the first."""

    def __repr__(self) -> str:
        """The three numbers, and what else there is."""
        values = attrs.asdict(self)
        shown = [
            f"{name}={value!r}" for name, value in values.items() if value or name in ("delivered", "queued", "dropped")
        ]
        return f"Receipt({', '.join(shown)})"

    def at(self, message: "Prepared") -> "Receipt":
        """The same, with the message's position."""
        epoch, offset = message.position
        return attrs.evolve(self, epoch=epoch, offset=offset)


_Key = TypeVar("_Key", Codec, Framing)
_Bytes = TypeVar("_Bytes", bytes, Payload)

Outcome = Receipt | TrioswitchError
"""What became of a message, or why it was not published."""


class Prepared:
    """A message on its way: the event, how it is to be delivered, and its bytes in each format asked for so far."""

    __slots__ = (
        "_codec", "_frame", "_framing", "_others", "_payload", "deliver_by", "event", "exclude", "expires_at",
        "idempotency_key", "key", "priority", "room", "settle", "size",
    )  # fmt: skip

    def __init__(
        self,
        event: Event,
        *,
        room: str | None = None,
        priority: int = 0,
        deliver_by: float | None = None,
        expires_at: float | None = None,
        key: str | None = None,
        idempotency_key: str | None = None,
        exclude: frozenset[str] = frozenset(),
        settle: Callable[[Outcome], None] | None = None,
        size: int = 0,
    ) -> None:
        self.event = event
        self.room = room
        """The room it belongs to; drops are counted there."""
        self.priority = priority
        self.deliver_by = deliver_by
        """The time by which a linger must end for it (its `max_delay`)."""
        self.expires_at = expires_at
        self.key = key
        """What it replaces under the policy `conflate`."""
        self.idempotency_key = idempotency_key
        """What a retry of it has, too."""
        self.exclude = exclude
        """Ids of connections that do not get it."""
        self.settle = settle
        """Called once with the receipt, or with the reason why it is not published."""
        self.size = size
        """Its bytes as they came in, for the bound of the room's queue."""
        # What was asked for first is most often all; with dicts a message in a history took 1.5 KB rather than 1.1.
        self._codec: Codec | None = None
        self._payload = b""
        self._framing: Framing | None = None
        self._frame: Payload = b""
        self._others: dict[Codec | Framing, Any] | None = None

    @property
    def position(self) -> tuple[str | None, int | None]:
        """Its epoch and offset, where its room has a history."""
        event = self.event
        if isinstance(event, Recorded) and isinstance(event.offset, int) and isinstance(event.epoch, str):
            return event.epoch, event.offset
        return None, None

    @property
    def recorded(self) -> bool:
        """Whether it has a position in the history of its room."""
        return isinstance(self.event, Recorded) and self.event.offset is not UNSET

    def stamp(self, timestamp: str) -> None:
        """Give the event its time. Once, and before the first encoding."""
        if isinstance(self.event, Published):
            self.event.timestamp = timestamp

    def payload(self, codec: Codec) -> bytes:
        if codec is self._codec:
            return self._payload
        if self._codec is None:
            self._payload, self._codec = self._encode(codec), codec
            return self._payload
        return self._other(codec, self._encode)

    def frame(self, framing: Framing) -> Payload:
        if framing is self._framing:
            return self._frame
        if self._framing is None:
            self._frame, self._framing = framing.frame(self.payload(framing.codec)), framing
            return self._frame
        return self._other(framing, lambda framing: framing.frame(self.payload(framing.codec)))

    def _other(self, format: _Key, make: Callable[[_Key], _Bytes]) -> _Bytes:
        """Bytes in a codec or framing that is not the first one."""
        if self._others is None:
            self._others = {}
        data: _Bytes | None = self._others.get(format)
        if data is None:
            data = self._others[format] = make(format)
        return data

    def _encode(self, codec: Codec) -> bytes:
        try:
            return codec.encode(self.event)
        except UnencodableData as error:
            # One client's data (say, an integer of 70 bits) that another's codec cannot carry must not end the room.
            instead = Error(code="unencodable", message=str(error))
            if self.room is not None:
                instead.room = self.room
            if isinstance(self.event, Recorded):
                instead.epoch, instead.offset = self.event.epoch, self.event.offset
            if isinstance(self.event, Ack):
                instead.id = self.event.id
            return codec.encode(instead)

    def weight(self, framing: Framing) -> int:
        """What it counts against a connection's bounds, in bytes."""
        return len(self.frame(framing)) if framing.framed else len(self.payload(framing.codec))

    def entry(self, framing: Framing, now: float, conflate: bool) -> "Entry":
        """What waits for it in a queue; it conflates if it has a key."""
        return Entry(self, self.weight(framing), now, conflate and self.key is not None)


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


def size_of(chunk: Chunk | memoryview) -> int:
    return sum(map(len, chunk)) if isinstance(chunk, tuple) else len(chunk)


def _joined(parts: list[Payload], framing: Framing) -> Chunk:
    if not framing.framed:
        return tuple(parts)
    return b"".join(parts) if len(parts) > 1 else parts[0]  # type: ignore[arg-type, return-value]  # framed: all bytes


@attrs.define(eq=False)
class Entry:
    """A message that waits: its bytes in the connection's format count against the bounds."""

    message: Prepared
    size: int
    queued_at: float
    conflate: bool = False
    """Whether it takes the place of a waiting message with the same room and key."""


class Load:
    """Messages of one room on their way into outboxes, in order, and what each of these wants to know of them all."""

    __slots__ = ("conflate", "entries", "lanes", "priority", "room", "size")

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.room = entries[0].message.room
        self.size = sum([entry.size for entry in entries])
        self.lanes: dict[int, list[Entry]] = {}
        """The same by priority."""
        for entry in entries:
            self.lanes.setdefault(entry.message.priority, []).append(entry)
        self.priority = min(self.lanes)
        """The lowest."""
        self.conflate = any(entry.conflate for entry in entries)


class Window:
    """What a room hands out at once: its messages, and one chunk for each format among the members.

    Where they have to wait, one load for each framing: members that are behind share it, too.
    """

    __slots__ = ("_chunks", "_loads", "excluded", "messages", "timestamp")

    def __init__(self, messages: list[Prepared], timestamp: str, excluded: frozenset[str] = frozenset()) -> None:
        self.messages = messages
        self.timestamp = timestamp
        self.excluded = excluded
        """Who does not get all of it."""
        self._chunks: dict[Format, Chunk] = {}
        self._loads: dict[Framing, Load] = {}

    def chunk(self, format: Format) -> Chunk:
        chunk = self._chunks.get(format)
        if chunk is None:
            chunk = self._chunks[format] = pack(self.messages, format, self.timestamp, shared=True)
        return chunk

    def load(self, framing: Framing, clock: Callable[[], float], *, conflate: bool) -> Load:
        """All of it, to be queued. The time and `conflate` are those of the first member that asks: there is one policy."""
        load = self._loads.get(framing)
        if load is None:
            now = clock()
            load = self._loads[framing] = Load([message.entry(framing, now, conflate) for message in self.messages])
        return load
