"""What can go wrong in a client.

TrioswitchError
`- ClientError
   |- CannotConnect     no connection was to be had: no such host, nobody listens, the server is full ...
   |- ConnectionLost    there was a connection, and it ended
   |- Rejected          the server does not want this client: to come back is no use
   |- RequestFailed     the server answered a request with an `error`
   `- ClientClosed      the client, or the room, has been left already
"""

from ..errors import TrioswitchError

__all__ = ["CannotConnect", "ClientClosed", "ClientError", "ConnectionLost", "Rejected", "RequestFailed"]


class ClientError(TrioswitchError):
    """The root of what the client raises."""


class CannotConnect(ClientError):
    """The text is one sentence for a person. `after` is when the server asks to come back, in seconds; None: it does not say."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class ConnectionLost(ClientError):
    """`code` and `reason` are those of the closing handshake; 1006 where there was none. `after` as in CannotConnect."""

    def __init__(self, code: int, reason: str, after: float | None = None) -> None:
        super().__init__(
            f"the connection was lost: {code} {reason or ('it broke off' if code == 1006 else '')}".rstrip()
        )
        self.code = code
        self.reason = reason
        self.after = after


class Rejected(ClientError):
    """The end of the client. `code` is an HTTP status (401, 403) or a close code (4500-4999), `reason` a sentence or empty."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the server rejects this client: {code} {reason}".rstrip())
        self.code = code
        self.reason = reason


class RequestFailed(ClientError):
    """`code` is a stable word (`docs/protocol.md` lists them), `message` a sentence for a person."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class ClientClosed(ClientError):
    """Something was asked of a client or a room whose block has been left."""
