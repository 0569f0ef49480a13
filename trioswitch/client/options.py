"""The limits of a client: named, with their units, their defaults and the reasons."""

from typing import Any

import attrs
from attrs.validators import ge, gt

__all__ = ["ClientOptions"]

KIB, MIB = 1024, 1024 * 1024


def option(default: Any, help: str, *validators: Any) -> Any:
    return attrs.field(default=default, validator=list(validators), metadata={"help": help})


@attrs.frozen(kw_only=True)
class ClientOptions:
    buffer_messages: int = option(
        1024, "messages that may wait for the reader of a room, and for that of the inbox", ge(1)
    )
    buffer_bytes: int = option(4 * MIB, "bytes that may wait for each of them; one message fits in any case", ge(1))
    max_message_bytes: int = option(
        4 * MIB,
        "bytes in one frame from the server, a page of history included; more ends the connection",
        ge(64 * KIB),
    )
    connect_timeout: float = option(
        10.0, "seconds for connecting, TLS and the handshake; and again for the greeting", gt(0)
    )
    close_timeout: float = option(
        2.0, "seconds that leaving the client may take: what waits is written, then it closes", gt(0)
    )
    keep_trying: bool = option(
        False, "whether the first connection is tried again and again, too; a wrong address is not found out then"
    )
