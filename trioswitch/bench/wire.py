"""A client's bytes, without I/O: the upgrade request, masked frames, and a scanner for what a server sends.

A message carries the time at which it was sent in its content: `ts=` and 19 digits, CLOCK_MONOTONIC in ns. Receivers look for
that marker instead of parsing messages.
"""

import re
import struct
import zlib
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import Any, Final

import attrs
import msgspec

__all__ = [
    "CLOSE",
    "MIN_SIZE",
    "PING",
    "PONG",
    "Language",
    "Scanned",
    "Scanner",
    "Stamped",
    "frame",
    "request",
    "upgraded",
]

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_CONTROL, _RSV1 = 0x8, 0x40
MSGPACK: Final = "trioswitch.v1.msgpack"
_ZERO_STAMP: Final = b"0" * 19
_STAMP: Final = re.compile(rb"ts=(\d{19})")
MIN_SIZE: Final = len(b"ts=") + len(_ZERO_STAMP) + 1
REMEMBERED: Final = 8
"""Chunks that a scanner remembers: receivers of a fan-out are a window or two apart at most."""

_KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="  # the RFC's own example; nothing here needs a secret
_ACCEPT: Final = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def request(host: str, path: str, protocol: str, *, compression: bool, token: str | None) -> bytes:
    """The head of an upgrade request. The server is asked to keep no compression context, so that equal bytes are equal."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {_KEY}",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Protocol: {protocol}",
    ]
    if compression:
        lines.append(
            "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover"
        )
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*lines, "", ""]).encode()


def upgraded(head: bytes) -> str:
    """Empty where a response's head accepts the request, otherwise why it does not: for a person."""
    line, _, body = head.partition(b"\r\n\r\n")
    status = line.split(b"\r\n", 1)[0].split(b" ", 2)
    if not status[0].startswith(b"HTTP/") or len(status) < 2:
        return "it does not speak HTTP"
    if status[1] != b"101":
        text = body.split(b"\n", 1)[0].strip()[:200]
        said = text if text and not text.startswith(b"<") else status[-1]
        hint = "; --token authenticates the clients" if status[1] in (b"401", b"403") else ""
        return f"it answered {status[1].decode('latin-1')} ({said.decode('utf-8', 'replace')}){hint}"
    return "" if _ACCEPT in line else "its answer to the WebSocket handshake is wrong"


def frame(opcode: int, payload: bytes) -> bytes:
    """One frame of a client. The mask is zero, which servers must take as any other, so that nothing has to be masked."""
    head, size = 0x80 | opcode, len(payload)
    if size < 126:
        return struct.pack("!BBI", head, 0x80 | size, 0) + payload
    if size < 65536:
        return struct.pack("!BBHI", head, 0xFE, size, 0) + payload
    return struct.pack("!BBQI", head, 0xFF, size, 0) + payload


class Language:
    """How messages are written in a subprotocol."""

    def __init__(self, protocol: str) -> None:
        binary = protocol == MSGPACK
        self._opcode = BINARY if binary else TEXT
        self._encode: Callable[[Any], bytes] = msgspec.msgpack.encode if binary else msgspec.json.encode
        self._decode: Callable[[bytes], Any] = msgspec.msgpack.decode if binary else msgspec.json.decode

    def frame(self, message: dict[str, Any]) -> bytes:
        return frame(self._opcode, self._encode(message))

    def messages(self, payload: bytes) -> list[dict[str, Any]]:
        """The messages in one frame's payload: one, or a batch. Empty where it is none of trioswitch's."""
        try:
            message = self._decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return []
        if not isinstance(message, dict):
            return []
        return message.get("messages", []) if message.get("type") == "batch" else [message]


class Stamped:
    """A message that is the same each time but for its stamp: `content` of `size` bytes for a room."""

    def __init__(self, language: Language, room: str, size: int) -> None:
        content = f"ts={_ZERO_STAMP.decode()} {_filling(size - MIN_SIZE)}"
        whole = language.frame({"type": "chat_message", "room": room, "content": content})
        self._before, _, self._after = whole.partition(_ZERO_STAMP)

    def frame(self, now: int) -> bytes:
        return b"%b%019d%b" % (self._before, now, self._after)


@lru_cache(maxsize=4)
def _filling(size: int) -> str:
    """Text that compresses about as well as prose: words of a small vocabulary, always the same ones."""
    random = Random(size)
    words = ["".join(random.choices("etaoinshrdlcumwfgypbvk", k=random.randint(2, 9))) for _ in range(200)]
    return " ".join(random.choices(words, k=size // 3 + 1))[:size]


@attrs.frozen(eq=False)
class Scanned:
    """What a chunk of a server's bytes holds."""

    stamps: list[int]
    controls: list[tuple[int, bytes]]
    """Opcode and payload of control frames."""
    messages: list[bytes]
    """Payloads of data frames, where they were asked for."""
    rest: bytes
    """The beginning of a frame that has not arrived in full."""
    complaint: str
    """What the first `error` message in it says; empty: there is none."""


class Scanner:
    """Finds frames and stamps. One for all clients of a process: what a fan-out sends is the same bytes for each of them.

    So the last few chunks are remembered with what was found, and a chunk that equals one of them costs a comparison only.
    """

    def __init__(self, language: Language) -> None:
        self._language = language
        self._recent: deque[tuple[bytes, Scanned]] = deque(maxlen=REMEMBERED)

    def scan(self, data: bytes) -> Scanned:
        """`data` begins at the border of a frame: the last chunk's `rest`, and what came since."""
        for known, scanned in self._recent:
            if known == data:
                return scanned
        scanned = self.scan_anew(data, want_messages=False)
        self._recent.appendleft((data, scanned))
        return scanned

    def scan_anew(self, data: bytes, *, want_messages: bool = True) -> Scanned:
        """As `scan`, remembering nothing, and with the messages themselves."""
        frames, end, flags = _walk(data)
        controls, messages = list[tuple[int, bytes]](), list[bytes]()
        if flags & (_CONTROL | _RSV1) or want_messages:
            for first, start, stop in frames:
                payload = data[start:stop]
                if first & _CONTROL:
                    controls.append((first & 0xF, payload))
                else:
                    messages.append(_inflate(payload) if first & _RSV1 else payload)
            text = b"\n".join(messages)
        else:
            text = data if end == len(data) else data[:end]
        complaint = ""
        if b"error" in text:  # seldom
            complaint = self._complaint(messages or [data[start:stop] for _, start, stop in frames])
        return Scanned(
            stamps=[int(digits) for digits in _STAMP.findall(text)],
            controls=controls,
            messages=messages if want_messages else [],
            rest=data[end:],
            complaint=complaint,
        )

    def _complaint(self, payloads: list[bytes]) -> str:
        errors = (m for payload in payloads for m in self._language.messages(payload) if m.get("type") == "error")
        return next((f"{error.get('code')}: {error.get('message')}" for error in errors), "")


def _walk(data: bytes) -> tuple[list[tuple[int, int, int]], int, int]:
    """The whole frames in `data` (first byte, where the payload starts and stops), where they end, all first bytes or-ed."""
    frames, at, flags, size = list[tuple[int, int, int]](), 0, 0, len(data)
    while size - at >= 2:
        length, start = data[at + 1], at + 2
        if length == 126:
            length, start = int.from_bytes(data[start : start + 2], "big"), start + 2
        elif length == 127:
            length, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        stop = start + length
        if stop > size:
            break
        frames.append((data[at], start, stop))
        flags |= data[at]
        at = stop
    return frames, at, flags


def _inflate(payload: bytes) -> bytes:
    return zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")
