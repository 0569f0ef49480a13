"""What can go wrong, and why a connection ends.

TrioswitchError
|- Refused                a hook, a handler or a permission turns a client away; the client sees the text
|- BadInput               the peer's fault: bytes that are not a message of its protocol
|- PeerGone               the connection is over: the peer closed it, vanished, or broke the protocol
|- WebSocketClosed        the WebSocket of an endpoint is closed: nothing more can be received or sent
|- DeliveryError          a message was not published or kept; nothing is wrong with the store
|  |- RoomFull            the room holds as much as it may, and the publisher did not wait
|  |- InboxFull           the inbox of an offline user, or all inboxes together, hold as much as they may
|  `- TooManyRetries      too many callers wait already for the outcome of one idempotency key
|- HistoryNotAvailable    the room keeps no history
|- UnencodableData        the caller's fault: data that the client protocols cannot carry
|- UnknownConnection      there is no connection with this id, or it has ended
|- ServeError             a listener cannot be opened: the port is taken, a certificate cannot be read ...
|- BrokerError            the broker cannot be reached, or does not answer
`- StoreError             the store cannot be opened, read or written: the disk is full, the file is damaged ...

Each that a client can be told has a `code`: the stable word in its `error` message (`docs/protocol.md`).
"""

import enum
from typing import ClassVar

__all__ = [
    "BadInput",
    "BrokerError",
    "CloseCause",
    "DeliveryError",
    "HistoryNotAvailable",
    "InboxFull",
    "PeerGone",
    "Refused",
    "RoomFull",
    "ServeError",
    "StoreError",
    "TooManyRetries",
    "TrioswitchError",
    "UnencodableData",
    "UnknownConnection",
    "WebSocketClosed",
    "code_of",
]


class CloseCause(enum.Enum):
    """Why a connection ended. The value is (WebSocket close code, reason for a person).

    4000-4499 invite the client to come back, 4500-4999 tell it not to (`docs/protocol.md`).
    """

    CLIENT_LEFT = (1000, "the client closed the connection")
    CLIENT_AWAY = (1001, "the client went away")
    VANISHED = (1006, "the connection was lost")
    APPLICATION = (1000, "the application closed the connection")
    DRAIN = (1001, "the server is going away")
    PROTOCOL_ERROR = (1002, "WebSocket protocol error")
    BAD_DATA = (1007, "the text is not UTF-8")
    POLICY = (1008, "too many errors")
    TOO_BIG = (1009, "message too big")
    INTERNAL = (1011, "internal error")
    SLOW_CONSUMER = (4000, "slow consumer")
    HEARTBEAT_MISSED = (4001, "heartbeat missed")
    TAKEN_OVER = (4002, "session taken over")
    OVERLOADED = (4003, "overloaded")
    UNAUTHORISED = (4500, "unauthorised")
    FORBIDDEN = (4501, "forbidden")
    KICKED = (4502, "kicked")

    @property
    def code(self) -> int:
        return self.value[0]

    @property
    def reason(self) -> str:
        return self.value[1]


class TrioswitchError(Exception):
    """The root of everything that trioswitch raises on purpose."""


class Refused(TrioswitchError):
    """A client is turned away. Hooks and handlers raise it; the client sees its text.

    `code` is the stable word in the client's `error` message. While the handshake lasts, it decides the HTTP status of the
    answer: `unauthorised` 401, `forbidden` 403, `not_found` 404, `rate_limited` 429, `internal` 500, `unavailable` 503; any
    other word 403.
    """

    def __init__(self, message: str = "refused", *, code: str = "forbidden") -> None:
        for name, text in (("message", message), ("code", code)):
            if not isinstance(text, str):
                raise TypeError(f"the {name} of Refused must be a str, not {text!r}")
        super().__init__(message)
        self.message = message
        self.code = code


class BadInput(TrioswitchError):
    """Bytes from a peer that are no message of its client protocol.

    `code` is a stable word for the `error` answer, `request_id` the `id` of the message where it could be read.
    `counts` says whether it counts against the connection's error budget, `fatal` whether the connection must end.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        request_id: str | int | None = None,
        counts: bool = False,
        fatal: CloseCause | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.request_id = request_id
        self.counts = counts
        self.fatal = fatal


class PeerGone(TrioswitchError):
    """The connection is over. `code` and `reason` are those of the closing handshake, 1006 where there was none."""

    def __init__(self, cause: CloseCause, code: int | None = None, reason: str | None = None) -> None:
        self.cause = cause
        self.code = cause.code if code is None else code
        self.reason = cause.reason if reason is None else reason
        super().__init__(f"{self.code} {self.reason}".strip())


class WebSocketClosed(TrioswitchError):
    """The WebSocket of an endpoint is closed.

    `code` and `reason` are those of the closing handshake; the code is 1006 where there was none.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the WebSocket is closed: {code} {reason}".rstrip())
        self.code = code
        self.reason = reason


class DeliveryError(TrioswitchError):
    """A message was not published, or not kept for its user. The text is one sentence for a person."""

    code: ClassVar[str] = "unavailable"


class RoomFull(DeliveryError):
    """The room holds as many messages, or bytes, as it may, and the publisher did not wait."""


class StorageFull(DeliveryError):
    """The messages of all stored rooms, or this sender's share of them, take as many bytes as they may."""

    code: ClassVar[str] = "storage_full"


class InboxFull(DeliveryError):
    """Too many direct messages are pending: for the user, from this sender, or for all users together."""

    code: ClassVar[str] = "inbox_full"


class TooManyRetries(DeliveryError):
    """Too many callers wait already to learn what became of the message with the same idempotency key."""


class HistoryNotAvailable(TrioswitchError):
    """The room keeps no history (`RoomPolicy.history`)."""

    code: ClassVar[str] = "not_available"


class UnencodableData(TrioswitchError, TypeError):
    """The data of a message holds something that neither JSON nor MessagePack can carry."""

    code: ClassVar[str] = "unencodable"


class UnknownConnection(TrioswitchError, KeyError):
    """There is no connection with that id, or there is none any more."""

    def __str__(self) -> str:
        return f"no connection {self.args[0]!r}"


class ServeError(TrioswitchError, OSError):
    """A listener cannot be opened. The text is one sentence for a person."""


class BrokerError(TrioswitchError):
    """The broker cannot be reached, or does not answer. The text is one sentence for a person."""

    code: ClassVar[str] = "unavailable"


class StoreError(TrioswitchError):
    """The store cannot be opened, read or written. The text is one sentence for a person."""

    code: ClassVar[str] = "not_stored"


def code_of(error: TrioswitchError) -> str:
    """The stable word that tells a client of this error (`docs/protocol.md`)."""
    code: str = getattr(error, "code", "internal")
    return code
