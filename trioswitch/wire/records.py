"""Events as a store keeps them: JSON, whatever protocol their receivers speak."""

from collections.abc import Callable
from typing import Any

import msgspec

from .messages import ChatMessage, DirectMessage, Message, Published
from .protocols import JSON_CODEC

__all__ = ["decode_record", "encode_record"]

_KEPT: dict[str, Callable[..., Published]] = {
    "chat_message": ChatMessage,
    "message": Message,
    "direct_message": DirectMessage,
}
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def encode_record(event: Published) -> bytes:
    """The event's bytes. What its place in a history or an inbox will say (`offset`, `seq`) is not part of them.

    Raises UnencodableData.
    """
    return JSON_CODEC.encode(event)


def decode_record(payload: bytes) -> Published:
    """The event that was kept. Raises ValueError for bytes that no `encode_record` has made."""
    fields = _decode(payload)
    make = _KEPT.get(fields.pop("type", ""))
    if make is None:
        raise ValueError(f"not an event that is kept: {payload[:80]!r}")
    try:
        return make(**fields)
    except TypeError as error:
        raise ValueError(f"not an event that is kept: {error}") from None
