"""Frames between a process and the hub: a length of four bytes, and an array in MessagePack.

    process to hub    [id, method, arguments]
    hub to process    [id, error or null, result]; with the id 0: what was published to topics that are subscribed to

Both ends are of one version: the hub starts the processes.
"""

import struct
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import Raw

from ..stores.port import (
    Append,
    Appended,
    GroupChange,
    HistoryRecords,
    InboxLimits,
    InboxMessage,
    InboxResult,
    SavedSession,
    StoredInboxMessage,
)

__all__ = ["DELIVERY", "STORE_CALLS", "Answer", "Call", "Frames", "frame"]

DELIVERY: Final = 0
"""The id of an answer that nobody asked for."""
MAX_FRAME: Final = 1 << 30
"""Bytes of one frame at most."""


class Call(msgspec.Struct, array_like=True):
    id: int
    method: str
    arguments: Raw


class Answer(msgspec.Struct, array_like=True):
    id: int
    error: str | None
    result: Raw


STORE_CALLS: Final[dict[str, tuple[Any, Any]]] = {
    "append": (tuple[list[Append], int], list[Appended]),
    "read": (tuple[str, int, int, int, float], HistoryRecords),
    "read_newest": (tuple[str, int, int, float], HistoryRecords),
    "positions": (tuple[list[str]], list[tuple[str, int]]),
    "add_to_inboxes": (tuple[list[InboxMessage], InboxLimits], list[InboxResult]),
    "read_inbox": (tuple[str, int, int, int, float], list[StoredInboxMessage]),
    "acknowledge": (tuple[str, int], None),
    "save_sessions": (tuple[list[SavedSession]], None),
    "load_session": (tuple[str, float], bytes | None),
    "take_session": (tuple[str, float], bytes | None),
    "change_groups": (tuple[list[GroupChange]], None),
    "read_groups": (tuple[()], list[tuple[str, str]]),
    "sweep": (tuple[float, float], None),
}
"""The calls of a store: the types of their arguments, and of what they return."""

_LENGTH: Final = struct.Struct(">I")
_encode: Final = msgspec.msgpack.Encoder().encode


def frame(message: list[Any]) -> bytes:
    payload = _encode(message)
    return _LENGTH.pack(len(payload)) + payload


class Frames:
    """Cuts a stream of bytes into the payloads of frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Raises ValueError for a length that no frame has."""
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > MAX_FRAME:
                raise ValueError(f"a frame of {length} bytes")
            end = at + _LENGTH.size + length
            if len(buffer) < end:
                break
            yield bytes(memoryview(buffer)[at + _LENGTH.size : end])
            at = end
        del buffer[:at]
