"""Bytes to commands, events to bytes, frames in: what each costs for one chat message."""

from typing import Any

import pytest
from micro_support import CHAT, chat, codec, format_of, masked

from trioswitch.wire.protocols import JSON, JSON_BATCH, MSGPACK
from trioswitch.wire.protocols.port import ClientProtocol
from trioswitch.wire.windows import Window, pack

PROTOCOLS = pytest.mark.parametrize("protocol", [JSON, JSON_BATCH, MSGPACK], ids=lambda protocol: protocol.subprotocol)
COUNTS = pytest.mark.parametrize("count", [1, 16, 256])
NOW = "2026-01-01T00:00:00.000000Z"


@pytest.mark.benchmark(group="decode: a command from its bytes")
@pytest.mark.parametrize("protocol", [JSON, MSGPACK], ids=["JSON", "MessagePack"])
def bench_decode(benchmark: Any, protocol: ClientProtocol) -> None:
    payload = CHAT[protocol]
    command = benchmark(protocol.decode, payload)
    assert command.room == "bench"


@pytest.mark.benchmark(group="encode: an event to its bytes")
@pytest.mark.parametrize("protocol", [JSON, MSGPACK], ids=["JSON", "MessagePack"])
def bench_encode(benchmark: Any, protocol: ClientProtocol) -> None:
    event = chat().event
    assert b"bench" in benchmark(protocol.codec.encode, event)


@pytest.mark.benchmark(group="prepare: a message to its frame")
def bench_prepare_and_frame(benchmark: Any) -> None:
    framing = format_of(JSON).framing

    def prepare() -> Any:
        message = chat()
        message.stamp(NOW)
        return message.frame(framing)

    assert b"bench" in benchmark(prepare)


@pytest.mark.benchmark(group="compress: a message of 4 KiB to its frame")
def bench_compress(benchmark: Any) -> None:
    framing = format_of(JSON, deflate_bits=12).framing
    payload = CHAT[JSON] * 40
    assert len(benchmark(framing.frame, payload)) < len(payload)


@pytest.mark.benchmark(group="window: a room's messages to one chunk")
@PROTOCOLS
@COUNTS
def bench_window(benchmark: Any, protocol: ClientProtocol, count: int) -> None:
    format = format_of(protocol)

    def messages() -> tuple[tuple[list[Any]], dict[str, Any]]:
        return ([chat() for _ in range(count)],), {}

    def chunk(prepared: list[Any]) -> Any:
        return Window(prepared, NOW).chunk(format)

    assert b"bench" in benchmark.pedantic(chunk, setup=messages, rounds=200)


@pytest.mark.benchmark(group="pack: encoded messages to one chunk")
@PROTOCOLS
@COUNTS
def bench_pack(benchmark: Any, protocol: ClientProtocol, count: int) -> None:
    format = format_of(protocol)
    messages = [chat() for _ in range(count)]
    pack(messages, format, NOW, shared=False)
    assert benchmark(pack, messages, format, NOW, shared=False)


@pytest.mark.benchmark(group="feed: frames of a client to messages")
@COUNTS
def bench_feed(benchmark: Any, count: int) -> None:
    websocket = codec()
    data = masked(CHAT[JSON]) * count
    assert len(benchmark(websocket.feed, data)) == count


@pytest.mark.benchmark(group="feed: a large frame in pieces of 64 KiB")
def bench_feed_large(benchmark: Any) -> None:
    websocket = codec()
    data = masked(CHAT[JSON] * 4000)
    pieces = [data[at : at + 65536] for at in range(0, len(data), 65536)]

    def feed() -> int:
        return sum(len(websocket.feed(piece)) for piece in pieces)

    assert benchmark(feed) == 1
