"""The subprotocol `trioswitch.v1.msgpack`: MessagePack in binary frames, with `batch` objects."""

import copy
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from ..body import MAX_DEPTH, MAX_VALUES, Body, Packed, as_msgpack, checked_msgpack
from ..commands import ProtocolCommand
from ..messages import Event, Published
from ..packed import check_packed, map_fields
from .port import PROTOCOL_COMMAND, ClientProtocol, Codec, Head

__all__ = ["MSGPACK", "MSGPACK_CODEC"]

_decode: Final = msgspec.msgpack.Decoder(PROTOCOL_COMMAND).decode
_decode_raw: Final = msgspec.msgpack.Decoder(Raw).decode
_decode_fields: Final = msgspec.msgpack.Decoder(dict[str, Any]).decode
_decode_scalar: Final = msgspec.msgpack.Decoder(str | int | None).decode
_decode_text: Final = msgspec.msgpack.Decoder(str).decode
_encode: Final = msgspec.msgpack.Encoder(enc_hook=as_msgpack).encode
_NIL: Final = Raw(b"\xc0")


class MessagePackCodec(Codec):
    name, text = "MessagePack", False

    def decode(self, payload: bytes) -> ProtocolCommand:
        return _decode(payload)  # type: ignore[no-any-return]

    def text_body(self, raw: Raw) -> Body:
        try:
            _decode_text(raw)  # which checks that it is UTF-8, too
        except msgspec.ValidationError as error:
            raise ValueError(f"`content` must be text: {error}") from None
        return Packed(raw)

    def data_body(self, raw: Raw) -> Body:
        return checked_msgpack(raw)

    def head(self, payload: bytes) -> Head:
        _decode_raw(payload)  # it is well-formed, with nothing behind it
        if not (payload[0] & 0xF0 == 0x80 or payload[0] in (0xDE, 0xDF)):
            raise ValueError("Expected `object`")
        fields = map_fields(payload)
        return Head(*[_scalar(fields.get(name, _NIL)) for name in ("type", "id", "room")])

    def fields(self, payload: bytes) -> dict[str, Any]:
        check_packed(payload, MAX_VALUES, MAX_DEPTH)
        return _decode_fields(payload)

    def encode_event(self, event: Event) -> bytes:
        if isinstance(event, Published) and isinstance(event.body, Raw):  # it is in JSON
            event = copy.copy(event)
            event.replace_body(as_msgpack)
        return _encode(event)

    def batch(self, payloads: Sequence[bytes], timestamp: str) -> bytes:
        empty = _encode({"type": "batch", "timestamp": timestamp, "count": len(payloads), "messages": []})
        count = len(payloads)
        array = bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2)
        return b"".join((empty[:-1], array, *payloads))


def _scalar(raw: Raw) -> str | int | Raw | None:
    try:
        return _decode_scalar(raw)  # type: ignore[no-any-return]
    except (ValueError, RecursionError):
        return raw


MSGPACK_CODEC = MessagePackCodec()
MSGPACK = ClientProtocol("trioswitch.v1.msgpack", MSGPACK_CODEC, batches=True)
