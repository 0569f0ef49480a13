"""Events as a store keeps them, and as they go to other nodes: in JSON, or in MessagePack where the body is in MessagePack.

The first byte tells them apart: `{` begins an object of JSON, and no map of MessagePack.
"""

from typing import ClassVar, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from .body import Packed
from .messages import ChatMessage, DirectMessage, GroupMessage, Message, Published, System
from .protocols import JSON_CODEC, MSGPACK_CODEC
from .protocols.port import Codec

__all__ = ["Record", "decode_record", "encode_record", "is_recordable", "read_record"]


class _Kept(msgspec.Struct, tag_field="type", forbid_unknown_fields=True):
    """The fields of an event that is kept, or goes to other nodes of a cluster: those of its class, but for its place."""

    kind: ClassVar[type[Published]]
    timestamp: str


class _ChatMessage(_Kept, tag="chat_message"):
    kind = ChatMessage
    room: str
    content: Raw
    user_id: str | None = None


class _Message(_Kept, tag="message"):
    kind = Message
    data: Raw
    room: str | UnsetType = UNSET
    user_id: str | UnsetType = UNSET
    key: str | UnsetType = UNSET


class _DirectMessage(_Kept, tag="direct_message"):
    kind = DirectMessage
    to: str
    user_id: str | UnsetType = UNSET
    content: Raw | UnsetType = UNSET
    data: Raw | UnsetType = UNSET


class _GroupMessage(_Kept, tag="group_message"):
    kind = GroupMessage
    group: str
    user_id: str | UnsetType = UNSET
    content: Raw | UnsetType = UNSET
    data: Raw | UnsetType = UNSET


class _System(_Kept, tag="system"):
    kind = System
    action: str
    room: str
    online_count: int
    user_id: str | UnsetType = UNSET


_AnyKept = _ChatMessage | _Message | _DirectMessage | _GroupMessage | _System
_KEPT: Final = {kept.kind for kept in (_ChatMessage, _Message, _DirectMessage, _GroupMessage, _System)}
_decode_json: Final = msgspec.json.Decoder(_AnyKept).decode
_decode_msgpack: Final = msgspec.msgpack.Decoder(_AnyKept).decode


class Record:
    """A record that has been read. Its bytes are the event's in the codec of this name, for an event without a place."""

    __slots__ = ("_kept", "codec", "payload")

    def __init__(self, payload: bytes, codec: Codec, kept: _Kept) -> None:
        self.payload = payload
        self.codec = codec
        self._kept = kept

    def event(self) -> Published:
        """A new event."""
        kept = self._kept
        given = {name: value for name in kept.__struct_fields__ if (value := getattr(kept, name)) is not UNSET}
        for name in ("content", "data"):
            if name in given:  # a copy: the record's other bytes are not kept
                body = given[name].copy()
                given[name] = body if self.codec is JSON_CODEC else Packed(body)
        return kept.kind(**given)


def is_recordable(event: object) -> bool:
    """Whether there is a record of events of this kind."""
    return type(event) in _KEPT


def encode_record(event: Published) -> bytes:
    """The bytes of an event that `is_recordable`. Its place in a history or an inbox (`offset`, `seq`) is not part of them.

    Raises UnencodableData.
    """
    return (MSGPACK_CODEC if isinstance(event.body, Packed) else JSON_CODEC).encode(event)


def read_record(payload: bytes) -> Record:
    """Raises ValueError for bytes that no `encode_record` has made."""
    if payload[:1] == b"{":
        return Record(payload, JSON_CODEC, _decode_json(payload))
    return Record(payload, MSGPACK_CODEC, _decode_msgpack(payload))


def decode_record(payload: bytes) -> Published:
    """The event that was kept. Raises ValueError for bytes that no `encode_record` has made."""
    return read_record(payload).event()
