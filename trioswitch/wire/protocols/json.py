"""The subprotocol `trioswitch.v1`: one JSON object for each text frame."""

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from ..body import Body, as_json, check_json_cost, checked_json
from ..commands import ProtocolCommand
from ..messages import Event
from .port import PROTOCOL_COMMAND, ClientProtocol, Codec, Head

__all__ = ["JSON", "JSON_CODEC"]

_decode: Final = msgspec.json.Decoder(PROTOCOL_COMMAND).decode
_decode_fields: Final = msgspec.json.Decoder(dict[str, Any]).decode
_decode_scalar: Final = msgspec.json.Decoder(str | int | None).decode
_encode: Final = msgspec.json.Encoder(enc_hook=as_json).encode

# An escaped surrogate that is not half of a pair: a high one without a low one behind it, or a low one without a high one
# before it.
_HIGH, _LOW = rb"u[dD][89abAB][0-9a-fA-F]{2}", rb"u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE: Final = re.compile(rb"\\(?:%b(?!\\%b)|(?<!\\%b\\)%b)" % (_HIGH, _LOW, _HIGH, _LOW))
# The `id` of an object whose other fields are nested too deeply for the decoder: the first field, or the last one.
_ID: Final = rb'"id"\s*:\s*("[^"\\]{0,255}"|-?\d{1,19})\s*'
_FIRST_ID, _LAST_ID = (
    re.compile(rb"\s*\{\s*(?:\"type\"\s*:\s*\"[^\"\\]{0,255}\"\s*,\s*)?" + _ID),
    re.compile(_ID + rb"\}\s*\Z"),
)


class _RawHead(msgspec.Struct):
    type: Raw = Raw(b"null")
    id: Raw = Raw(b"null")
    room: Raw = Raw(b"null")


_decode_head: Final = msgspec.json.Decoder(_RawHead).decode


class JsonCodec(Codec):
    name, text = "JSON", True

    def decode(self, payload: bytes) -> ProtocolCommand:
        if not payload.isascii():
            payload.decode()  # raises here: the decoder does not look into what it skips
        if (
            b"\n" in payload or b"\r" in payload
        ):  # the body is part of what others get, in protocols with a message for each line
            payload = msgspec.json.format(_mend(payload), indent=-1)
        try:
            return _decode(payload)  # type: ignore[no-any-return]
        except msgspec.DecodeError:
            if (mended := _mend(payload)) is payload:
                raise
            return _decode(mended)  # type: ignore[no-any-return]

    def text_body(self, raw: Raw) -> Body:
        if memoryview(raw)[0] != 0x22:
            raise ValueError("`content` must be text: Expected `str`")
        return raw

    def data_body(self, raw: Raw) -> Body:
        return checked_json(raw)

    def head(self, payload: bytes) -> Head:
        raw = _decode_head(_mend(payload))
        return Head(_scalar(raw.type), _scalar(raw.id), _scalar(raw.room))

    def find_id(self, payload: bytes) -> str | int | None:
        found = _FIRST_ID.match(payload) or _LAST_ID.search(payload, max(len(payload) - 300, 0))
        request_id = None if found is None else _scalar(Raw(found[1]))
        return None if isinstance(request_id, Raw) else request_id

    def fields(self, payload: bytes) -> dict[str, Any]:
        check_json_cost(payload)
        return _decode_fields(_mend(payload))

    def encode_event(self, event: Event) -> bytes:
        return _encode(event)

    def batch(self, payloads: Sequence[bytes], timestamp: str) -> bytes:
        head = b'{"type":"batch","timestamp":"%b","count":%d,"messages":[' % (timestamp.encode(), len(payloads))
        return b"".join((head, b",".join(payloads), b"]}"))


def _mend(payload: bytes) -> bytes:
    """Valid JSON in which lone surrogates are replaced by U+FFFD: no receiver could decode them, and UTF-8 does not have them.

    They are what `JSON.stringify` makes of a text that was cut inside of an emoji.
    """
    if rb"\u" not in payload or b"\0" in payload:
        return payload
    # What follows an escaped backslash is not an escape. JSON has no NUL, so that it can stand for that backslash meanwhile.
    mended, count = _LONE_SURROGATE.subn(rb"\\ufffd", payload.replace(rb"\\", b"\0"))
    return mended.replace(b"\0", rb"\\") if count else payload


def _scalar(raw: Raw) -> str | int | Raw | None:
    try:
        return _decode_scalar(raw)  # type: ignore[no-any-return]
    except (ValueError, RecursionError):
        return raw


JSON_CODEC = JsonCodec()
JSON = ClientProtocol("trioswitch.v1", JSON_CODEC, batches=False)
