"""Encodes server frames (RFC 6455, section 5), and compresses them once for all receivers (permessage-deflate, RFC 7692).

Server frames carry no mask, so one frame serves every receiver. Compression keeps no context from message to message
("no context takeover"), for the same reason: a message is compressed once for each window size that clients negotiated,
whatever the number of receivers.
"""

import struct
import zlib

from ..metrics import CompressionStatistics

__all__ = ["BINARY", "PING", "TEXT", "Compressor", "frame"]

TEXT, BINARY, PING = 0x1, 0x2, 0x9
_FIN, _RSV1 = 0x80, 0x40


def frame(opcode: int, payload: bytes, *, compressed: bool = False) -> bytes:
    """One unfragmented server frame."""
    head, size = _FIN | opcode | (_RSV1 if compressed else 0), len(payload)
    if size < 126:
        return bytes((head, size)) + payload
    if size < 65536:
        return bytes((head, 126, size >> 8, size & 255)) + payload
    return struct.pack("!BBQ", head, 127, size) + payload


class Compressor:
    """Compresses payloads of at least `min_bytes`, and keeps the result only when it is smaller."""

    def __init__(self, min_bytes: int, level: int) -> None:
        self.min_bytes = min_bytes
        self.level = level
        self._tried = self._used = self._before = self._after = 0

    def deflate(self, payload: bytes, window_bits: int) -> bytes | None:
        """The compressed payload, or None where the payload goes out as it is."""
        if len(payload) < self.min_bytes:
            return None
        self._tried += 1
        deflater = zlib.compressobj(self.level, zlib.DEFLATED, -window_bits)
        data = deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)
        if len(data) - 4 >= len(payload):
            return None
        self._used += 1
        self._before += len(payload)
        self._after += len(data) - 4
        return data[:-4]  # the empty block's 00 00 ff ff is left out (RFC 7692, section 7.2.1)

    def statistics(self) -> CompressionStatistics:
        return CompressionStatistics(self._tried, self._used, self._before, self._after)
