"""Events as a store keeps them: in JSON, or in MessagePack where the body of the message is in MessagePack.

The first byte tells them apart: `{` begins an object of JSON, and no map of MessagePack.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Raw

from .body import Body, Packed
from .messages import ChatMessage, DirectMessage, Message, Published
from .protocols import JSON_CODEC, MSGPACK_CODEC

__all__ = ["decode_record", "encode_record"]

_KEPT: Final[dict[str, Callable[..., Published]]] = {
    "chat_message": ChatMessage,
    "message": Message,
    "direct_message": DirectMessage,
}
_BODIES: Final = {"content", "data"}
_decode_json: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_json_value: Final = msgspec.json.Decoder().decode
_decode_msgpack: Final = msgspec.msgpack.Decoder(dict[str, Raw]).decode
_decode_msgpack_value: Final = msgspec.msgpack.Decoder().decode


def encode_record(event: Published) -> bytes:
    """The event's bytes. What its place in a history or an inbox will say (`offset`, `seq`) is not part of them.

    Raises UnencodableData.
    """
    return (MSGPACK_CODEC if isinstance(event.body, Packed) else JSON_CODEC).encode(event)


def decode_record(payload: bytes) -> Published:
    """The event that was kept. Raises ValueError for bytes that no `encode_record` has made."""
    body: Callable[[Raw], Body]
    value: Callable[[Raw], Any]
    values: dict[str, Any]
    if payload[:1] == b"{":
        fields, body, value = _decode_json(payload), Raw.copy, _decode_json_value
    else:
        fields, body, value = _decode_msgpack(payload), lambda raw: Packed(raw.copy()), _decode_msgpack_value
    values = {name: body(raw) if name in _BODIES else value(raw) for name, raw in fields.items()}
    make = _KEPT.get(values.pop("type", ""))
    if make is None:
        raise ValueError(f"not an event that is kept: {payload[:80]!r}")
    try:
        return make(**values)
    except TypeError as error:
        raise ValueError(f"not an event that is kept: {error}") from None
