"""A prepared message: one message, encoded at most once for each format, whatever the number of receivers."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import attrs
from msgspec import UNSET

from ..errors import TrioswitchError, UnencodableData
from .formats import Framing, Payload
from .messages import Ack, Error, Event, Position, Published, Recorded
from .protocols.port import Codec
from .records import Record

__all__ = ["URGENT", "Announcement", "Arrived", "Outcome", "Prepared", "Receipt"]

URGENT = 5
"""Messages of a priority above this one are written at once."""
LARGE = 8 * 1024
"""Bytes of a message that keeps one frame rather than its bytes in every format, so that it takes at most twice its size: one
copy is its body. The others are encoded again for each window, and each time that they are written from an outbox."""


@attrs.frozen(repr=False)
class Receipt:
    """What became of a published message, in receivers.

    `delivered`: delivered to the receiver's socket; `queued`: waiting in its outbox; `dropped`: lost to it, because its outbox
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

    @property
    def position(self) -> Position | None:
        """The message's position in the history of its room; None if the room has no history."""
        return None if self.epoch is None or self.offset is None else Position(self.epoch, self.offset)

    def at(self, message: "Prepared") -> "Receipt":
        """The same, with the message's position."""
        epoch, offset = message.position
        return attrs.evolve(self, epoch=epoch, offset=offset)


_UNREAD: Final = Event()
_Key = TypeVar("_Key", Codec, Framing)
_Bytes = TypeVar("_Bytes", bytes, Payload)

Outcome = Receipt | TrioswitchError
"""What became of a message, or why it was not published."""


class Prepared:
    """A message on its way: the event, how it is to be delivered, and its bytes in the formats asked for so far."""

    __slots__ = (
        "_codec",
        "_frame",
        "_framing",
        "_others",
        "_payload",
        "deliver_by",
        "event",
        "exclude",
        "expires_at",
        "idempotency_key",
        "key",
        "on_outcome",
        "priority",
        "room",
        "sender",
        "size",
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
        on_outcome: Callable[[Outcome], None] | None = None,
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
        self.sender = ""
        """Whose share of the store it takes, if it is stored; empty: the server itself sent it."""
        self.on_outcome = on_outcome
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

    def report(self, outcome: Outcome) -> None:
        """Report the outcome to whoever wants to know, once: another call does nothing."""
        on_outcome = self.on_outcome
        if on_outcome is not None:
            self.on_outcome = None
            on_outcome(outcome)

    def payload(self, codec: Codec) -> bytes:
        if codec is self._codec:
            return self._payload
        if self._codec is None or self.size > LARGE:
            self._payload, self._codec = self._encode(codec), codec
            return self._payload
        return self._other(codec, self._encode)

    def frame(self, framing: Framing) -> Payload:
        if framing is self._framing:
            return self._frame
        if self._framing is None:
            self._frame, self._framing = framing.frame(self.payload(framing.codec)), framing
            if self.size > LARGE:
                self._payload, self._codec = b"", None
            return self._frame
        return self._other(framing, lambda framing: framing.frame(self.payload(framing.codec)))

    def _other(self, format: _Key, make: Callable[[_Key], _Bytes]) -> _Bytes:
        """Bytes in a codec or framing that is not the first one."""
        if self._others is None:
            self._others = {}
        data: _Bytes | None = self._others.get(format)
        if data is None:
            data = make(format)
            if self.size <= LARGE or len(data) <= LARGE:
                self._others[format] = data
            else:
                self._payload, self._codec = b"", None
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
        """Bytes that it counts against a connection's limits: its frame, or the body in memory where that is more."""
        return max(self.size, len(self.frame(framing)) if framing.framed else len(self.payload(framing.codec)))


class Arrived(Prepared):
    """A message of another node, which has given the event its time.

    Its bytes are those that have come, as long as nobody looks at its event, and may change it: most messages need no event.
    """

    __slots__ = ("_event", "_record")

    def __init__(self, record: Record, **options: Any) -> None:
        self._event: Event = _UNREAD
        self._record: Record | None = record
        super().__init__(_UNREAD, size=len(record.payload), **options)
        self._codec, self._payload = record.codec, record.payload

    @property
    def event(self) -> Event:
        if self._record is not None:
            self._event, self._record = self._record.event(), None
            self._codec, self._payload = None, b""
        return self._event

    @event.setter
    def event(self, event: Event) -> None:
        self._event = event

    def stamp(self, timestamp: str) -> None:
        pass


class Announcement(Prepared):
    """A message that goes to receivers of this node only: each node tells its own what it knows."""

    __slots__ = ()
