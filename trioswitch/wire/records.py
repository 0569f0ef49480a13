"""Events as a store keeps them, and as they go to other nodes: in JSON, or in MessagePack where the body is in MessagePack.

The first byte tells them apart: `{` begins an object of JSON, and no map of MessagePack.
"""

from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from .body import Body, Packed
from .messages import ChatMessage, DirectMessage, GroupMessage, Message, Published, System
from .protocols import JSON_CODEC, MSGPACK_CODEC

__all__ = ["decode_record", "encode_record", "is_recordable"]


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of all events that are kept, or go to other nodes of a cluster."""

    type: str
    timestamp: str
    room: str | UnsetType = UNSET
    to: str | UnsetType = UNSET
    group: str | UnsetType = UNSET
    action: str | UnsetType = UNSET
    online_count: int | UnsetType = UNSET
    user_id: str | UnsetType | None = UNSET
    key: str | UnsetType = UNSET
    content: Raw | UnsetType = UNSET
    data: Raw | UnsetType = UNSET


_KEPT: Final[dict[str, type[Published]]] = {
    "chat_message": ChatMessage,
    "message": Message,
    "direct_message": DirectMessage,
    "group_message": GroupMessage,
    "system": System,
}
_decode_json: Final = msgspec.json.Decoder(_Record).decode
_decode_msgpack: Final = msgspec.msgpack.Decoder(_Record).decode


def is_recordable(event: object) -> bool:
    """Whether there is a record of events of this kind."""
    return isinstance(event, Published) and _KEPT.get(event.type) is type(event)


def encode_record(event: Published) -> bytes:
    """The bytes of an event that `is_recordable`. Its place in a history or an inbox (`offset`, `seq`) is not part of them.

    Raises UnencodableData.
    """
    return (MSGPACK_CODEC if isinstance(event.body, Packed) else JSON_CODEC).encode(event)


def decode_record(payload: bytes) -> Published:
    """The event that was kept. Raises ValueError for bytes that no `encode_record` has made."""
    in_json = payload[:1] == b"{"
    record = (_decode_json if in_json else _decode_msgpack)(payload)
    values: dict[str, Any] = msgspec.structs.asdict(record)
    make = _KEPT.get(values.pop("type"))
    if make is None:
        raise ValueError(f"not an event that is kept: {payload[:80]!r}")
    given = {name: value for name, value in values.items() if value is not UNSET}
    for name in given.keys() & {"content", "data"}:
        given[name] = _body(given[name], in_json)
    try:
        return make(**given)
    except TypeError as error:
        raise ValueError(f"not an event that is kept: {error}") from None


def _body(raw: Raw, in_json: bool) -> Body:
    """A copy: the record's other bytes are not kept."""
    return raw.copy() if in_json else Packed(raw.copy())
