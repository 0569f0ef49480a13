"""A client's side of the wire, written without the code under test: frames, requests, and two judges of our frames."""

import base64
import random
import struct
import zlib
from collections.abc import Iterable, Sequence
from itertools import pairwise

import attrs
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame
from websockets.protocol import State
from websockets.uri import parse_uri
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.extensions import PerMessageDeflate as WsprotoDeflate

from trioswitch.wire.handshake import Handshake
from trioswitch.wire.websocket import WebSocketCodec

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
KEY = base64.b64encode(bytes(range(16))).decode()
UPGRADE = {
    "Host": "switch.example",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}

# --- what a client sends


def head(
    *more: tuple[str, str], target: str = "/ws", method: str = "GET", version: str = "HTTP/1.1", **changed: str | None
) -> bytes:
    """The head of an upgrade request. `Some_Field="value"` changes a field, None leaves it out; `more` are added."""
    fields = UPGRADE | {name.replace("_", "-"): value for name, value in changed.items()}
    lines = [f"{name}: {value}" for name, value in [*fields.items(), *more] if value is not None]
    return "\r\n".join([f"{method} {target} {version}", *lines, "", ""]).encode("latin-1")


def client_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = b"\x01\x80\xff\x3c",
    claimed: int | None = None,
) -> bytes:
    """A client's frame. `rsv` are the three reserved bits, `claimed` another length than the payload's."""
    size = len(payload) if claimed is None else claimed
    masked = 0 if mask is None else 0x80
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    if size < 126:
        start = struct.pack("!BB", first, masked | size)
    elif size < 65536:
        start = struct.pack("!BBH", first, masked | 126, size)
    else:
        start = struct.pack("!BBQ", first, masked | 127, size)
    if mask is None:
        return start + payload
    return start + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def close_payload(code: int, reason: str = "") -> bytes:
    return struct.pack("!H", code) + reason.encode()


def deflated(payload: bytes, bits: int = 12) -> bytes:
    """A message's payload under permessage-deflate, with a context of its own."""
    deflater = zlib.compressobj(wbits=-bits)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


def fragments(opcode: int, parts: Sequence[bytes], *, compressed: bool = False) -> list[bytes]:
    """The frames of one message."""
    last = len(parts) - 1
    return [
        client_frame(CONT if i else opcode, part, fin=i == last, rsv=4 if compressed and not i else 0)
        for i, part in enumerate(parts)
    ]


def cut(data: bytes, at: Iterable[int]) -> list[bytes]:
    """The bytes in chunks, cut at these places."""
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[start:end] for start, end in pairwise(places)]


# --- our side


def make_handshake(
    *, compression: bool = True, incoming_context_takeover: bool = False, max_message_bytes: int = 2**20
) -> Handshake:
    return Handshake(
        compression=compression,
        incoming_context_takeover=incoming_context_takeover,
        max_message_bytes=max_message_bytes,
    )


def connect(
    *, extensions: str | None = None, max_message_bytes: int = 2**20, max_fragments: int = 1024, takeover: bool = False
) -> WebSocketCodec:
    """The codec of a client that has just been let in."""
    handshake = make_handshake(incoming_context_takeover=takeover, max_message_bytes=max_message_bytes)
    handshake.receive(head(Sec_WebSocket_Extensions=extensions))
    return handshake.accept(max_fragments)[1]


# --- judges


@attrs.frozen
class Seen:
    """A frame, or a whole message, as a judge understood it."""

    opcode: int
    payload: bytes


def server_frames(data: bytes) -> list[tuple[int, bytes]]:
    """First byte and payload of each frame, read by hand: unlike the judges, it reads on after a close frame."""
    found, at = [], 0
    while at < len(data):
        first, size, at = data[at], data[at + 1], at + 2
        if size > 125:
            more = 2 if size == 126 else 8
            size, at = int.from_bytes(data[at : at + more], "big"), at + more
        found.append((first, data[at : at + size]))
        at += size
    assert at == len(data), "a frame is not complete"
    return found


def judge_websockets(data: bytes, bits: int = 0) -> list[Seen]:
    """What websockets' client makes of our bytes; fails where it does not accept all of them."""
    client = ClientProtocol(parse_uri("ws://switch.example/"), state=State.OPEN, max_size=None)
    if bits:
        client.extensions = [PerMessageDeflate(True, True, bits, 15)]
    client.receive_data(data)
    assert client.parser_exc is None, client.parser_exc
    assert not client.reader.buffer, "a frame is not complete"
    seen = []
    for event in client.events_received():
        assert isinstance(event, Frame)
        assert event.fin
        seen.append(Seen(event.opcode, bytes(event.data)))
    return seen


def judge_wsproto(data: bytes, bits: int = 0) -> list[Seen]:
    """What wsproto's client makes of our bytes; fails where it does not accept all of them."""
    extension = WsprotoDeflate()
    if bits:
        extension.finalize(f"permessage-deflate; server_no_context_takeover; server_max_window_bits={bits}")
    client = Connection(ConnectionType.CLIENT, [extension] if bits else [])
    client.receive_data(data)
    seen, text, binary = [], "", b""
    for event in client.events():
        match event:
            case TextMessage():
                text += event.data
                if event.message_finished:
                    seen.append(Seen(TEXT, text.encode()))
                    text = ""
            case BytesMessage():
                binary += event.data
                if event.message_finished:
                    seen.append(Seen(BINARY, binary))
                    binary = b""
            case Ping():
                seen.append(Seen(PING, bytes(event.payload)))
            case CloseConnection():
                seen.append(Seen(CLOSE, close_payload(event.code, event.reason or "")))
    assert not text
    assert not binary
    return seen


JUDGES = [judge_websockets, judge_wsproto]


def incompressible(size: int) -> bytes:
    return random.Random(size).randbytes(size)
