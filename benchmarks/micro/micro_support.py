"""What the micro-benchmarks are made of: messages, formats, a codec after its handshake, an outbox on a sink."""

from collections.abc import Callable
from typing import Any

import msgspec
import trio

from trioswitch.bench.wire import TEXT, frame
from trioswitch.config import Options
from trioswitch.connections.outbox import Outbox
from trioswitch.metrics import Traffic
from trioswitch.wire.formats import Format, Framing
from trioswitch.wire.frames import Compressor
from trioswitch.wire.handshake import Handshake
from trioswitch.wire.messages import ChatMessage
from trioswitch.wire.prepared import Prepared
from trioswitch.wire.protocols import JSON, MSGPACK
from trioswitch.wire.protocols.port import ClientProtocol
from trioswitch.wire.websocket import WebSocketCodec

_COMMAND = {
    "type": "chat_message",
    "room": "bench",
    "content": "as long as what a person writes, more or less",
    "user_id": "u1",
}
CHAT = {JSON: msgspec.json.encode(_COMMAND), MSGPACK: msgspec.msgpack.encode(_COMMAND)}
"""A client's chat message, in bytes."""


def chat(priority: int = 0) -> Prepared:
    event = ChatMessage(room="bench", content=_COMMAND["content"], user_id="u1")
    return Prepared(event, room="bench", priority=priority, size=len(CHAT[JSON]))


def format_of(protocol: ClientProtocol, *, deflate_bits: int = 0) -> Format:
    options = Options()
    framing = Framing(protocol.codec, True, deflate_bits, Compressor(1024, 6))
    return Format(protocol, framing, options.batch_messages, options.batch_bytes)


def masked(payload: bytes) -> bytes:
    """A client's frame. Its mask is not zero: unmasking is a part of what is measured."""
    whole = bytearray(frame(TEXT, payload))
    start, mask = len(whole) - len(payload), b"\x12\x34\x56\x78"
    whole[start - 4 : start] = mask
    whole[start:] = bytes(byte ^ mask[number % 4] for number, byte in enumerate(payload))
    return bytes(whole)


def codec() -> WebSocketCodec:
    """A codec whose handshake is over."""
    handshake = Handshake(compression=True, incoming_context_takeover=False, max_message_bytes=2**20)
    handshake.receive(
        b"GET /ws HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    return handshake.accept(1024)[1]


class Sink:
    """A transport whose socket takes everything, or, when it is full, nothing."""

    def __init__(self, *, full: bool = False) -> None:
        self.format = format_of(JSON)
        self.written = 0
        self._full = full

    def write_nowait(self, data: bytes) -> int:
        if self._full:
            raise BlockingIOError
        self.written += len(data)
        return len(data)


def outbox_on(sink: Any) -> Outbox:
    """Its flusher is never started: nothing is taken out."""

    def ignore(*_: object) -> None: ...

    return Outbox("bench", sink, Options(), Traffic(), start_soon=ignore, fail=ignore)


def in_trio(measure: Callable[[], None]) -> None:
    """Run synchronous code where Trio's clock can be read."""

    async def main() -> None:
        measure()

    trio.run(main)
