"""The PROXY protocol, versions 1 and 2: how a proxy that forwards TCP tells who the client is, in the first bytes.

https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt
"""

import ipaddress
import socket
import struct
from typing import Final

import trio

from ..errors import CloseCause, PeerGone
from .streams import address

__all__ = ["header_length", "parse_header", "read_header"]

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_BEGINNINGS: Final = (_SIGNATURE, b"PROXY ")
_V1_LONGEST: Final = 107
_V2_HEAD: Final = 16
_V2_LONGEST: Final = 4096
"""Bytes of a header of version 2 with its extensions; the format allows for 65,551."""
_V2_FAMILIES: Final = {0x11: ("!4s4sHH", 12), 0x21: ("!16s16sHH", 36)}
"""TCP over IPv4 and over IPv6: both addresses and both ports."""


def header_length(data: bytes) -> int | None:
    """How many bytes the header has that begins so; None: that cannot be said yet. Raises ValueError for what is none."""
    if not any(data.startswith(beginning[: len(data)]) for beginning in _BEGINNINGS):
        raise ValueError(f"no PROXY header: {data[:16]!r}")
    if data.startswith(_SIGNATURE[:2]):
        if len(data) < _V2_HEAD:
            return None
        length = _V2_HEAD + int(struct.unpack_from("!H", data, 14)[0])
        if length > _V2_LONGEST:
            raise ValueError(f"a PROXY header of {length} bytes")
        return length
    end = data.find(b"\r\n")
    if end < 0 and len(data) >= _V1_LONGEST:
        raise ValueError("a PROXY header without an end")
    return None if end < 0 else end + 2


def parse_header(data: bytes) -> str | None:
    """The client, as `address:port`; None: the proxy speaks for itself, as in a health check. Raises ValueError."""
    return _parse_v2(data) if data.startswith(_SIGNATURE) else _parse_v1(data)


def _parse_v1(data: bytes) -> str | None:
    fields = data.decode("ascii").removesuffix("\r\n").split(" ")
    if fields[:2] == ["PROXY", "UNKNOWN"]:
        return None
    if len(fields) != 6 or fields[1] not in ("TCP4", "TCP6") or not fields[4].isdecimal():
        raise ValueError(f"not a PROXY header: {data!r}")
    client, port = ipaddress.ip_address(fields[2]), int(fields[4])
    if (client.version == 4) != (fields[1] == "TCP4") or port > 65535:
        raise ValueError(f"not a PROXY header: {data!r}")
    return address((str(client), port))


def _parse_v2(data: bytes) -> str | None:
    version, command, family = data[12] >> 4, data[12] & 0x0F, data[13]
    if version != 2 or command > 1:
        raise ValueError(f"a PROXY header of another version: {data[:16]!r}")
    if command == 0:
        return None
    if family not in _V2_FAMILIES:
        raise ValueError(f"a PROXY header of something else than TCP: {data[:16]!r}")
    layout, size = _V2_FAMILIES[family]
    if len(data) < _V2_HEAD + size:
        raise ValueError("a PROXY header that is too short")
    client, _server, port, _server_port = struct.unpack_from(layout, data, _V2_HEAD)
    return address((str(ipaddress.ip_address(client)), port))


async def read_header(connected: socket.socket) -> str | None:
    """Read the header, and nothing behind it. Returns as `parse_header`. Raises ValueError, PeerGone. Safe to cancel."""
    data = b""
    while True:
        await trio.lowlevel.wait_readable(connected)
        try:
            # What follows the header is TLS, or HTTP, and not ours to take. What is certainly of the header is taken, so that
            # it does not wake us again.
            seen = connected.recv(_V2_LONGEST, socket.MSG_PEEK)
            length = header_length(data + seen)
            data += connected.recv(len(seen) if length is None else length - len(data))
        except BlockingIOError:
            continue
        except OSError:
            raise PeerGone(CloseCause.VANISHED) from None
        if not seen:
            raise PeerGone(CloseCause.VANISHED)
        if length is not None and len(data) >= length:
            return parse_header(data)
