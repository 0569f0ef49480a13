"""What can go wrong, and why a connection ends.

TrioswitchError
|- Refused                a client is turned away: by a hook, or because it may not do what it asked for
|- BadInput               the peer's fault: bytes that are no message of its protocol
|- PeerGone               the connection is over: the peer closed it, vanished, or broke the protocol
|- UnencodableData        the caller's fault: data that the client protocols cannot carry
|- UnknownConnection      no such connection (any more)
|- ServeError             a listener cannot be opened: the port is taken, a certificate cannot be read ...
`- StoreError             the store cannot be opened, read or written: the disk is full, the file is damaged ...
"""

import enum
import http

__all__ = [
    "BadInput",
    "Cause",
    "PeerGone",
    "Refused",
    "ServeError",
    "StoreError",
    "TrioswitchError",
    "UnencodableData",
    "UnknownConnection",
]


class Cause(enum.Enum):
    """Why a connection ended. The value is (WebSocket close code, reason for a person).

    4000-4499 invite the client to come back, 4500-4999 tell it not to (`docs/protocol.md`).
    """

    CLIENT_LEFT = (1000, "the client closed the connection")
    CLIENT_AWAY = (1001, "the client went away")
    VANISHED = (1006, "the connection was lost")
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
    """A client is turned away. Hooks raise it; its text is shown to the client.

    `status` is the HTTP status where the handshake is not over yet (401, 403, 503 ...); `code` is the stable word in the
    `error` message where it is.
    """

    def __init__(self, message: str = "refused", *, status: int = 403, code: str = "forbidden") -> None:
        super().__init__(message)
        if status < 400 or status not in set(http.HTTPStatus):
            raise ValueError(f"{status} is no HTTP status of a refusal")
        self.message = message
        self.status = status
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
        fatal: Cause | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.request_id = request_id
        self.counts = counts
        self.fatal = fatal


class PeerGone(TrioswitchError):
    """The connection is over. `code` and `reason` are those of the closing handshake, 1006 where there was none."""

    def __init__(self, cause: Cause, code: int | None = None, reason: str | None = None) -> None:
        self.cause = cause
        self.code = cause.code if code is None else code
        self.reason = cause.reason if reason is None else reason
        super().__init__(f"{self.code} {self.reason}".strip())


class UnencodableData(TrioswitchError, TypeError):
    """The data of a message holds something that neither JSON nor MessagePack can carry."""


class UnknownConnection(TrioswitchError, KeyError):
    """There is no connection with that id, or there is none any more."""

    def __str__(self) -> str:
        return f"no connection {self.args[0]!r}"


class ServeError(TrioswitchError, OSError):
    """A listener cannot be opened. The text is one sentence for a person."""


class StoreError(TrioswitchError):
    """The store cannot be opened, read or written. The text is one sentence for a person."""
