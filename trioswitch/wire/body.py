"""The body of a message: what was sent, as the bytes that it was sent in.

A body is never kept as Python objects. It is kept as the JSON or MessagePack that a client sent, or that was made of the
application's data when it was published, and these bytes are what the receivers get. So a message is what it was when it was
published, whatever the application does with its data afterwards; and a message takes as much memory as its limits count, while
the objects that it describes may take fifty times as many bytes (measured: `[{},{},...]`).

Bytes become objects where that cannot be avoided: for the application's own code, and for receivers that speak another codec
than the sender. What clients send is checked first (`checked_json`, `checked_msgpack`), so that this takes bounded time and
memory, and always succeeds.
"""

import re
from itertools import accumulate
from typing import Any, Final

import msgspec
from msgspec import Raw

from ..errors import UnencodableData
from .packed import check_packed, is_plain

__all__ = [
    "MAX_DEPTH", "MAX_VALUES", "UNENCODABLE", "Body", "Packed", "as_json", "as_msgpack", "check_json_cost", "checked_json",
    "checked_msgpack", "decoded", "encoded",
]  # fmt: skip

MAX_VALUES: Final = 100_000
"""Values and keys in one message of a client: 100,000 empty objects take 7 MB, 50,000 numbers with different keys 8 MB."""
UNENCODABLE: Final = (TypeError, ValueError, OverflowError, RecursionError)
"""What msgspec raises for data that it cannot encode: a foreign type, an integer of more than 64 bits (MessagePack), a lone
surrogate, a structure that is nested too deeply."""

MAX_DEPTH: Final = 500
"""Levels of arrays and objects in one message of a client. Receivers in Python 3.11 decode about 900, those in 3.13 far more."""
MAX_LONG_EXPONENTS: Final = 1000
"""Numbers with an exponent of three digits in one message of a client: to decode `1e308` takes 9 us, and `1e30` 0.03 us."""
SMALL: Final = 4 * 1024
"""Bytes of JSON that need no such check."""

_LONG_EXPONENT: Final = re.compile(rb"[eE][+-]?0*[1-9]\d\d")
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")
_LEVELS: Final = [1 if byte in b"[{" else -1 for byte in range(256)]
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_decode_json: Final = msgspec.json.Decoder().decode
_decode_msgpack: Final = msgspec.msgpack.Decoder().decode
_encode_json: Final = msgspec.json.Encoder().encode
_encode_msgpack: Final = msgspec.msgpack.Encoder().encode


class Packed:
    """A body in MessagePack. (A body in JSON is a `msgspec.Raw`.)"""

    __slots__ = ("raw",)

    def __init__(self, raw: Raw) -> None:
        self.raw = raw


Body = Raw | Packed


def encoded(data: object) -> Body:
    """The body for data of the application. Raises UnencodableData for what JSON cannot carry.

    It is JSON for data that JSON can hold, and MessagePack for other data, such as data with bytes (JSON receivers get them in
    base64).
    """
    try:
        json = _encode_json(data)
    except UNENCODABLE as error:
        raise UnencodableData(f"cannot be written as JSON: {error}") from None
    try:
        packed = _encode_msgpack(data)
    except UNENCODABLE:  # such as an integer of 70 bits
        return Raw(json)
    return Raw(json) if is_plain(packed) else Packed(Raw(packed))


def decoded(body: Body) -> Any:
    """New objects. A body that was not checked may raise any of UNENCODABLE."""
    return _decode_json(body) if isinstance(body, Raw) else _decode_msgpack(body.raw)


def as_json(body: object) -> Raw:
    """The body in JSON. Raises one of UNENCODABLE where JSON cannot carry it, and TypeError for what is not a body."""
    if isinstance(body, Raw):
        return body
    if isinstance(body, Packed):
        return Raw(_encode_json(_decode_msgpack(body.raw)))
    raise TypeError(f"type {type(body).__name__} is not supported")


def as_msgpack(body: object) -> Raw:
    """The body in MessagePack. Raises as `as_json`."""
    if isinstance(body, Packed):
        return body.raw
    if isinstance(body, Raw):
        return Raw(_encode_msgpack(_decode_json(body)))
    raise TypeError(f"type {type(body).__name__} is not supported")


# --- what clients send


def checked_json(raw: Raw) -> Raw:
    """Valid JSON of a client as a body. Raises ValueError or RecursionError for what receivers could not decode.

    The decoder that found it has checked its syntax. What is left are too many values, too many levels, and numbers such as
    `1e999`. A string has none of these.
    """
    if bytes(memoryview(raw)[:1]) != b'"':
        check_json_cost(raw)
        _decode_json(raw)
    return raw


def check_json_cost(json: bytes | Raw) -> None:
    """Raises ValueError for valid JSON that takes much more time or memory to decode than its size says."""
    size = len(memoryview(json))
    if size <= MAX_DEPTH:
        return
    data = bytes(json)
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
        raise ValueError(f"a message may have {MAX_DEPTH} levels of arrays and objects")
    if size <= SMALL:
        return
    if size > MAX_VALUES and _count(data) > MAX_VALUES:
        data = _STRING.sub(b"", data)
        if _count(data) - data.count(b"[]") - data.count(b"{}") > MAX_VALUES:
            raise ValueError(f"a message may have {MAX_VALUES} values")
    if (b"e" in data or b"E" in data) and len(_LONG_EXPONENT.findall(data)) > MAX_LONG_EXPONENTS:
        data = _STRING.sub(b"", data)
        if len(_LONG_EXPONENT.findall(data)) > MAX_LONG_EXPONENTS:
            raise ValueError(f"a message may have {MAX_LONG_EXPONENTS} numbers with an exponent of three digits")


def _depth(json: bytes) -> int:
    """Levels of arrays and objects."""
    brackets = _STRING.sub(b"", json).translate(None, _NO_BRACKETS)
    return max(accumulate(map(_LEVELS.__getitem__, brackets)), default=0)


def _count(json: bytes) -> int:
    """The number of values and keys, or more: an empty array or object counts twice, and what is in strings is counted, too."""
    return json.count(b",") + json.count(b"[") + json.count(b"{") + json.count(b":")


def checked_msgpack(raw: Raw) -> Packed:
    """MessagePack of a client as a body. Raises ValueError for what receivers could not decode (`packed.check_packed`)."""
    check_packed(raw, MAX_VALUES, MAX_DEPTH)
    return Packed(raw)
