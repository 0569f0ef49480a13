"""The client's limits, with units, defaults and reasons."""

import attrs
from attrs.validators import ge, gt

from ..config import KIB, MIB, option

__all__ = ["ClientOptions"]


@attrs.frozen(kw_only=True)
class ClientOptions:
    """Options of a client; each limit is explained in `docs/client.md`. Raises ValueError or TypeError for invalid values."""

    buffer_messages: int = option(
        1024, "messages buffered for the reader of a room, and for the reader of direct messages", ge(1)
    )
    buffer_bytes: int = option(4 * MIB, "bytes in each of these buffers; a single larger message fits, too", ge(1))
    max_message_bytes: int = option(
        4 * MIB,
        "bytes in one frame from the server, such as a page of history; a larger frame ends the connection",
        ge(64 * KIB),
    )
    connect_timeout: float = option(
        10.0, "seconds for TCP, TLS and the WebSocket handshake; and again for the server's greeting", gt(0)
    )
    close_timeout: float = option(
        2.0, "seconds for leaving the client: it sends what is pending, then it closes the connection", gt(0)
    )
    keep_trying: bool = option(
        False, "also retry the first connection; a wrong address is then retried without end instead of raising"
    )
