"""The exceptions of the client.

TrioswitchError
`- ClientError
   |- CannotConnect             a connection could not be opened: unknown host, connection refused, server full ...
   |  `- UntrustedCertificate   the server's TLS certificate could not be verified
   |- ConnectionLost            an open connection ended
   |- Rejected                  the server rejects this client permanently; the client does not reconnect
   |- RequestFailed             the server answered a request with an `error`
   `- ClientClosed              the block of the client, or of the room, has been left
"""

from ..errors import CloseCause, TrioswitchError

__all__ = [
    "CannotConnect",
    "ClientClosed",
    "ClientError",
    "ConnectionLost",
    "Rejected",
    "RequestFailed",
    "UntrustedCertificate",
]


class ClientError(TrioswitchError):
    """The base class of the client's exceptions."""


class CannotConnect(ClientError):
    """A connection could not be opened. The text is one sentence for a person.

    `after` is the number of seconds after which the server asks the client to reconnect; None if it does not say.
    """

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class UntrustedCertificate(CannotConnect):
    """The server's TLS certificate could not be verified: unknown authority, expired, issued for another name ..."""


class ConnectionLost(ClientError):
    """An open connection ended.

    `code` and `reason` come from the WebSocket close frame; without one, `code` is 1006. `after` is as in CannotConnect.
    """

    def __init__(self, code: int, reason: str, after: float | None = None) -> None:
        super().__init__(f"the connection was lost ({code}){f': {reason}' if reason else ''}")
        self.code = code
        self.reason = reason
        self.after = after


class Rejected(ClientError):
    """The server rejects this client permanently.

    `code` is a WebSocket close code from 4500 to 4999: 4500 if the client is not authenticated, 4501 if it is not allowed to
    connect (also where the server said so before there was a WebSocket). `reason` is the server's sentence, or empty.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the server rejected this client ({code}){f': {reason}' if reason else ''}")
        self.code = code
        self.reason = reason

    @property
    def unauthenticated(self) -> bool:
        """Whether the token is missing, invalid or expired."""
        return self.code == CloseCause.UNAUTHORISED.code


class RequestFailed(ClientError):
    """The server answered a request with an `error`.

    `code` is a stable word (listed in `docs/protocol.md`), `message` a sentence for a person.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message

    @property
    def unauthenticated(self) -> bool:
        """Whether the server requires a token that this client did not send."""
        return self.code == "unauthorised"


class ClientClosed(ClientError):
    """A client or a room was used after its block had been left."""
