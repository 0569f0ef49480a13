"""Checks of MessagePack, before it is decoded into objects.

The decoder that finds a value in a message checks its syntax, such as its lengths, but skips what is inside. These checks look
for what receivers could not decode, and for what takes more time to decode than its size says.
"""

from typing import Any, Final

import msgspec
from msgspec import Raw

__all__ = ["check_packed", "is_plain", "map_fields"]

FAST_DEPTH: Final = 5
"""Levels of arrays and maps that `is_plain` knows. The type that it decodes doubles in size with each."""
FAST_BYTES: Final = 16 * 1024
"""Bytes of a client's value for which `is_plain` is asked first: it creates the objects."""
MAX_FIELDS: Final = 1000
"""Members of a map that `map_fields` lists."""

_Plain: Any = None | bool | int | float | str
for _ in range(FAST_DEPTH):
    _Plain = None | bool | int | float | str | list[_Plain] | dict[str, _Plain]
_decode_plain: Final = msgspec.msgpack.Decoder(_Plain).decode
_decode_fields: Final = msgspec.msgpack.Decoder(list[Raw]).decode

# What follows the first byte of a value: so many bytes, or a length of so many bytes.
_FIXED: Final = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
}  # fmt: skip
_BINARY: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_TEXT: Final = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_EXTENSION: Final = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXTENSION: Final = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_ARRAY: Final = {0xDC: 2, 0xDD: 4}
_MAP: Final = {0xDE: 2, 0xDF: 4}
_TIMESTAMP: Final = 0xFF
"""The extension type that MessagePack itself defines (-1)."""


def is_plain(packed: bytes | Raw) -> bool:
    """Whether a value is what JSON has as well: text, numbers, true, false, null, and arrays and maps of them.

    Only five levels of arrays and maps are looked at: what is nested more deeply is not plain.
    """
    try:
        _decode_plain(packed)
    except (ValueError, RecursionError):
        return False
    return True


def check_packed(raw: bytes | Raw, most: int, most_levels: int) -> None:
    """Check a client's value, whose lengths are known to be right.

    Raises ValueError for more than `most` values, more than `most_levels` levels of arrays and maps, text that is not UTF-8,
    extension types other than the timestamp, and keys that are not text: such keys are not in JSON, and the hashes of numbers
    and arrays are easily made equal, so that decoding takes a time that grows with the square of the size.
    """
    if len(memoryview(raw)) <= FAST_BYTES and is_plain(raw):
        return
    data = bytes(raw)
    at, values = 0, 0
    pending: list[int] = []
    """For each array that is open the number of elements to come; for a map that of keys and values, as a negative number."""
    while at < len(data):
        values += 1
        if values > most:
            raise ValueError(f"a message may have {most} values")
        while pending and not pending[-1]:
            pending.pop()
        is_key = False
        if pending:
            is_key = pending[-1] < 0 and not pending[-1] & 1
            pending[-1] += 1 if pending[-1] < 0 else -1
        kind = data[at]
        at += 1
        if 0xA0 <= kind < 0xC0 or kind in _TEXT:
            length = kind & 0x1F
            if kind in _TEXT:
                length, at = _length(data, at, _TEXT[kind])
            str(data[at : at + length], "utf-8")
            at += length
            continue
        if is_key:
            raise ValueError("the keys of a map must be text")
        if kind < 0x80 or kind >= 0xE0:
            continue
        if kind in _FIXED:
            at += _FIXED[kind]
        elif kind < 0xA0:
            pending.append(-2 * (kind & 0x0F) if kind < 0x90 else kind & 0x0F)
        elif kind in _ARRAY:
            length, at = _length(data, at, _ARRAY[kind])
            pending.append(length)
        elif kind in _MAP:
            length, at = _length(data, at, _MAP[kind])
            pending.append(-2 * length)
        elif kind in _BINARY:
            length, at = _length(data, at, _BINARY[kind])
            at += length
        else:
            length = _FIXED_EXTENSION.get(kind, 0)
            if not length:
                length, at = _length(data, at, _EXTENSION[kind])
            if data[at] != _TIMESTAMP or length not in (4, 8, 12):
                raise ValueError(f"extension type {int.from_bytes(data[at : at + 1], signed=True)} is not supported")
            at += 1 + length
        if len(pending) > most_levels:
            raise ValueError(f"a message may have {most_levels} levels of arrays and maps")


def _length(data: bytes, at: int, width: int) -> tuple[int, int]:
    """A length of `width` bytes, and where it ends."""
    return int.from_bytes(data[at : at + width]), at + width


def map_fields(data: bytes) -> dict[str, Raw]:
    """The members of a well-formed map that have text as keys. Nothing in a larger map than MAX_FIELDS, and in what is no map."""
    kind = data[0] if data else 0
    if 0x80 <= kind < 0x90:
        size, start = kind & 0x0F, 1
    elif kind in _MAP:
        size, start = _length(data, 1, _MAP[kind])
    else:
        return {}
    if size > MAX_FIELDS:
        return {}
    # The keys and values of a map are stored as the elements of an array are.
    elements = _decode_fields(b"\xdd" + (2 * size).to_bytes(4) + data[start:])
    fields: dict[str, Raw] = {}
    for key, value in zip(elements[::2], elements[1::2], strict=True):
        try:
            fields[msgspec.msgpack.decode(key, type=str)] = value
        except ValueError:
            continue  # not text
    return fields
