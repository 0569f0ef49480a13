"""Encode once: a message, a window and an envelope cost the same however many receive them."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_support import BINARY, TEXT, Seen, incompressible, judge_websockets, judge_wsproto, server_frames

from trioswitch.wire.body import encoded
from trioswitch.wire.formats import Chunk, Format, Framing
from trioswitch.wire.frames import Compressor
from trioswitch.wire.messages import Ack, ChatMessage, DirectMessage, Error, Event, GroupMessage, Message
from trioswitch.wire.prepared import Arrived, Prepared
from trioswitch.wire.protocols import JSON, JSON_BATCH, JSON_CODEC, MSGPACK, MSGPACK_CODEC
from trioswitch.wire.protocols.port import ClientProtocol, Codec
from trioswitch.wire.records import encode_record, read_record
from trioswitch.wire.windows import Window, pack

TIME = "2026-11-20T12:00:00.000Z"
MIN_BYTES = 200
PLAIN, BITS = 0, 12
PROTOCOLS = [JSON, JSON_BATCH, MSGPACK]


def counted(codec: Codec, encoded: list[object]) -> Codec:
    """A codec that keeps what it encoded."""

    class Counted(type(codec)):
        def encode_event(self, event: Event) -> bytes:
            encoded.append(event)
            return bytes(super().encode_event(event))

    return Counted()


def make_format(
    protocol: ClientProtocol = JSON,
    *,
    bits: int = PLAIN,
    framed: bool = True,
    batch_messages: int = 64,
    batch_bytes: int = 64 * 1024,
    codec: Codec | None = None,
    min_bytes: int = MIN_BYTES,
) -> Format:
    framing = Framing(codec or protocol.codec, framed, bits, Compressor(min_bytes, 6))
    return Format(protocol, framing, batch_messages, batch_bytes)


def sent(*data: Any) -> list[Prepared]:
    return [Prepared(Message(data=each, timestamp=TIME)) for each in data]


def unwrapped(payloads: Sequence[bytes | str], protocol: ClientProtocol) -> list[list[Any]]:
    """The data of the messages that a client reads, frame by frame; envelopes must be sound."""
    read = json.loads if protocol.codec.text else msgspec.msgpack.decode
    frames = []
    for payload in payloads:
        message = read(payload)  # type: ignore[arg-type]
        if message["type"] == "batch":
            assert protocol.batches
            assert message["timestamp"] == TIME
            assert message["count"] == len(message["messages"]) > 1
            frames.append([inner["data"] for inner in message["messages"]])
        else:
            frames.append([message["data"]])
    return frames


def received(chunk: Chunk, format: Format) -> list[list[Any]]:
    """The same, from what is written to the socket or given to a transport that frames by itself."""
    if not format.framing.framed:
        assert isinstance(chunk, tuple)
        assert all(isinstance(payload, str if format.framing.codec.text else bytes) for payload in chunk)
        return unwrapped(chunk, format.protocol)
    assert isinstance(chunk, bytes)
    seen = judge_websockets(chunk, format.framing.deflate_bits)
    assert seen == judge_wsproto(chunk, format.framing.deflate_bits)
    assert {each.opcode for each in seen} <= {TEXT if format.framing.codec.text else BINARY}
    return unwrapped([each.payload for each in seen], format.protocol)


def frame_flags(chunk: Chunk) -> list[bool]:
    """Whether each frame is compressed, by its RSV1 bit."""
    assert isinstance(chunk, bytes)
    return [bool(first & 0x40) for first, _ in server_frames(chunk)]


class TestPrepared:
    @pytest.mark.parametrize("codec", [JSON_CODEC, MSGPACK_CODEC])
    def test_it_is_encoded_once_for_each_codec(self, codec: Codec) -> None:
        encoded: list[object] = []
        codec = counted(codec, encoded)
        framings = [Framing(codec, framed, bits, Compressor(1, 6)) for framed in (True, False) for bits in (0, 9, 12)]
        [message] = sent("x" * 500)
        for _ in range(3):
            message.payload(codec)
            for framing in framings:
                message.frame(framing)
        assert encoded == [message.event]

    def test_and_framed_and_compressed_once_for_each_framing(self) -> None:
        compressor = Compressor(1, 6)
        narrow, wide = (Framing(JSON_CODEC, True, bits, compressor) for bits in (9, 12))
        [message] = sent("x" * 500)
        frames = {framing: message.frame(framing) for framing in (narrow, wide)}
        for framing, frame in frames.items():
            assert message.frame(framing) is frame
        assert compressor.statistics().tried == 2

    def test_each_codec_gets_its_own_bytes(self) -> None:
        [message] = sent({"a": 1})
        assert json.loads(message.payload(JSON_CODEC)) == msgspec.msgpack.decode(message.payload(MSGPACK_CODEC))
        assert message.payload(JSON_CODEC) == JSON_CODEC.encode(message.event)
        assert message.payload(MSGPACK_CODEC) == MSGPACK_CODEC.encode(message.event)

    def test_the_stamp_is_in_every_encoding(self) -> None:
        message = Prepared(Message(data=1))
        message.stamp(TIME)
        assert json.loads(message.payload(JSON_CODEC))["timestamp"] == TIME
        assert msgspec.msgpack.decode(message.payload(MSGPACK_CODEC))["timestamp"] == TIME

    def test_what_carries_no_time_takes_no_stamp(self) -> None:
        message = Prepared(Ack(id=1))
        message.stamp(TIME)
        assert json.loads(message.payload(JSON_CODEC)) == {"type": "ack", "id": 1}

    @pytest.mark.parametrize(("framed", "kind"), [(True, bytes), (False, str)])
    def test_text_goes_out_as_text_where_the_transport_frames(self, framed: bool, kind: type) -> None:
        [message] = sent("é")
        frame = message.frame(make_format(JSON, framed=framed).framing)
        assert isinstance(frame, kind)
        if isinstance(frame, str):
            assert json.loads(frame)["data"] == "é"
        assert isinstance(message.frame(make_format(MSGPACK, framed=framed).framing), bytes)

    @pytest.mark.parametrize(("bits", "size", "compressed"), [(12, 500, True), (12, 50, False), (0, 500, False)])
    def test_compression_where_it_was_negotiated_and_pays(self, bits: int, size: int, compressed: bool) -> None:
        [message] = sent("x" * size)
        frame = message.frame(make_format(bits=bits).framing)
        assert isinstance(frame, bytes)
        assert frame_flags(frame) == [compressed]
        assert (len(frame) < size) == compressed

    def test_what_does_not_shrink_goes_out_as_it_is(self) -> None:
        [message] = sent(incompressible(1000))
        frame = message.frame(make_format(MSGPACK, bits=BITS).framing)
        assert isinstance(frame, bytes)
        assert frame_flags(frame) == [False]
        assert judge_websockets(frame) == [Seen(BINARY, message.payload(MSGPACK_CODEC))]


class TestUnencodable:
    """Data that one codec cannot carry is an error for its receivers only, and never ends a room."""

    @pytest.mark.parametrize(
        ("data", "reader", "other"), [(2**70, JSON_CODEC, MSGPACK_CODEC), ({None: 1}, MSGPACK_CODEC, JSON_CODEC)]
    )
    def test_the_receivers_of_the_other_codec_get_it(self, data: Any, reader: Codec, other: Codec) -> None:
        message = Prepared(Message(data=data, room="r"), room="r")
        decode = {"JSON": json.loads, "MessagePack": msgspec.msgpack.decode}
        error = decode[other.name](message.payload(other))
        assert (error["type"], error["code"], error["room"]) == ("error", "unencodable", "r")
        assert other.name in error["message"]
        assert decode[reader.name](message.payload(reader))["data"] == data

    def test_without_a_room_the_error_names_none(self) -> None:
        [message] = sent(object())
        assert "room" not in json.loads(message.payload(JSON_CODEC))

    def test_an_answer_keeps_its_id(self) -> None:
        error = json.loads(Prepared(Ack(id=7, data=object())).payload(JSON_CODEC))
        assert (error["type"], error["code"], error["id"]) == ("error", "unencodable", 7)

    def test_it_is_tried_once(self) -> None:
        encoded: list[object] = []
        codec = counted(JSON_CODEC, encoded)
        [message] = sent(object())
        payload = message.payload(codec)
        assert json.loads(payload)["code"] == "unencodable"
        assert message.payload(codec) is payload
        assert [type(event) for event in encoded] == [Message, Error]

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_the_others_in_the_batch_are_not_touched(self, protocol: ClientProtocol) -> None:
        format = make_format(protocol, framed=False)
        chunk = pack(sent(1, object(), 3), format, TIME, shared=True)
        assert isinstance(chunk, tuple)
        read = json.loads if protocol.codec.text else msgspec.msgpack.decode
        inner = [read(payload) for payload in chunk]  # type: ignore[arg-type]
        if protocol.batches:
            [batch] = inner
            inner = batch["messages"]
        assert [message["type"] for message in inner] == ["message", "error", "message"]


class TestPack:
    def test_without_envelopes_the_frames_are_joined(self) -> None:
        messages = sent("a", "b" * 500, "c")
        for bits in (PLAIN, BITS):
            format = make_format(JSON, bits=bits, batch_messages=2, batch_bytes=10)
            for shared in (True, False):
                chunk = pack(messages, format, TIME, shared=shared)
                assert chunk == b"".join(message.frame(format.framing) for message in messages)

    @pytest.mark.parametrize("protocol", [JSON_BATCH, MSGPACK])
    @pytest.mark.parametrize("shared", [True, False])
    @pytest.mark.parametrize("data", ["a", "b" * 500])
    def test_one_message_needs_no_envelope(self, protocol: ClientProtocol, shared: bool, data: str) -> None:
        format = make_format(protocol, bits=BITS)
        [message] = sent(data)
        assert pack([message], format, TIME, shared=shared) == message.frame(format.framing)

    @pytest.mark.parametrize("protocol", [JSON_BATCH, MSGPACK])
    @pytest.mark.parametrize("shared", [True, False])
    def test_several_come_in_one(self, protocol: ClientProtocol, shared: bool) -> None:
        format = make_format(protocol)
        assert received(pack(sent(1, "b", None), format, TIME, shared=shared), format) == [[1, "b", None]]

    @pytest.mark.parametrize("protocol", [JSON_BATCH, MSGPACK])
    def test_an_envelope_holds_batch_messages_at_most(self, protocol: ClientProtocol) -> None:
        format = make_format(protocol, batch_messages=3)
        assert received(pack(sent(*range(7)), format, TIME, shared=True), format) == [[0, 1, 2], [3, 4, 5], [6]]

    @pytest.mark.parametrize("protocol", [JSON_BATCH, MSGPACK])
    def test_and_batch_bytes_at_most_but_a_larger_message_goes_alone(self, protocol: ClientProtocol) -> None:
        messages = sent(1, 2, "x" * 100, 3, 4, 5)
        size = len(messages[0].payload(protocol.codec))
        format = make_format(protocol, batch_bytes=2 * size)
        chunk = pack(messages, format, TIME, shared=True)
        assert received(chunk, format) == [[1, 2], ["x" * 100], [3, 4], [5]]
        one_less = make_format(protocol, batch_bytes=2 * size - 1)
        assert received(pack(messages[:2], one_less, TIME, shared=True), one_less) == [[1], [2]]

    def test_a_shared_envelope_is_compressed(self) -> None:
        """Each message is too small for it; together they are not, and all receivers share the work."""
        format = make_format(JSON_BATCH, bits=BITS)
        chunk = pack(sent(*["x" * 50] * 10), format, TIME, shared=True)
        assert frame_flags(chunk) == [True]
        assert received(chunk, format) == [["x" * 50] * 10]

    def test_an_envelope_for_one_is_not(self) -> None:
        format = make_format(JSON_BATCH, bits=BITS)
        chunk = pack(sent(*["x" * 50] * 10), format, TIME, shared=False)
        assert frame_flags(chunk) == [False]
        assert format.framing.compressor.statistics().tried == 0

    def test_nor_does_it_take_what_is_worth_compressing(self) -> None:
        format = make_format(JSON_BATCH, bits=BITS)
        messages = sent(1, 2, "x" * 500, "y" * 500, 3, 4)
        first = pack(messages, format, TIME, shared=False)
        assert received(first, format) == [[1, 2], ["x" * 500], ["y" * 500], [3, 4]]
        assert frame_flags(first) == [False, True, True, False]
        for _ in range(10):
            assert pack(messages, format, TIME, shared=False) == first
        assert format.framing.compressor.statistics().tried == 2, "the cost must not grow with the receivers"

    def test_without_compression_large_ones_go_into_envelopes_too(self) -> None:
        format = make_format(JSON_BATCH)
        messages = sent(1, "x" * 500, 3)
        assert received(pack(messages, format, TIME, shared=False), format) == [[1, "x" * 500, 3]]

    @pytest.mark.parametrize("shared", [True, False])
    def test_a_message_that_goes_alone_is_compressed_once_for_all(self, shared: bool) -> None:
        """Whether it is in a window, in a flush of its own, or queued: it has one frame."""
        format = make_format(JSON_BATCH, bits=BITS, batch_bytes=100)
        messages = sent(1, "x" * 500, 3)
        pack(messages, format, TIME, shared=shared)
        pack(messages, format, TIME, shared=not shared)
        messages[1].frame(format.framing)
        assert format.framing.compressor.statistics().tried == 1

    @given(
        data=st.lists(
            st.integers(0, 9) | st.text("xyzé", max_size=40).map(lambda text: text * 10), min_size=1, max_size=12
        ),
        protocol=st.sampled_from(PROTOCOLS),
        bits=st.sampled_from([PLAIN, 9, 12, 15]),
        framed=st.booleans(),
        shared=st.booleans(),
        batch_messages=st.integers(1, 5),
        batch_bytes=st.integers(1, 400),
    )
    def test_order_is_kept_and_nothing_is_lost(
        self,
        data: list[Any],
        protocol: ClientProtocol,
        bits: int,
        framed: bool,
        shared: bool,
        batch_messages: int,
        batch_bytes: int,
    ) -> None:
        format = make_format(
            protocol,
            bits=bits if framed else PLAIN,
            framed=framed,
            batch_messages=batch_messages,
            batch_bytes=batch_bytes,
        )
        messages = sent(*data)
        frames = received(pack(messages, format, TIME, shared=shared), format)
        assert [each for frame in frames for each in frame] == data
        sizes = iter(len(message.payload(protocol.codec)) for message in messages)
        for frame in frames:
            assert len(frame) <= batch_messages
            assert sum(next(sizes) for _ in frame) <= batch_bytes or len(frame) == 1


class TestWindow:
    def test_it_is_packed_once_for_each_format(self) -> None:
        encoded: list[object] = []
        codec = counted(JSON_CODEC, encoded)
        compressor = Compressor(1, 6)
        plain, compressed = (Framing(codec, True, bits, compressor) for bits in (PLAIN, BITS))
        formats = [
            Format(protocol, framing, 64, 65536) for framing in (plain, compressed) for protocol in (JSON, JSON_BATCH)
        ]
        window = Window(sent("a" * 100, "b" * 100), TIME)
        chunks = [window.chunk(format) for format in formats]
        for _ in range(3):
            assert all(window.chunk(format) is chunk for format, chunk in zip(formats, chunks, strict=True))
        assert encoded == [message.event for message in window.messages]
        assert compressor.statistics().tried == 3  # two messages, one envelope
        assert [received(chunk, format) for format, chunk in zip(formats, chunks, strict=True)] == [
            [["a" * 100], ["b" * 100]],
            [["a" * 100, "b" * 100]],
        ] * 2

    def test_it_is_shared(self) -> None:
        format = make_format(JSON_BATCH, bits=BITS)
        window = Window(sent(*["x" * 50] * 10), TIME)
        assert window.chunk(format) == pack(window.messages, format, TIME, shared=True)
        assert frame_flags(window.chunk(format)) == [True]


class TestAMessageOfAnotherNode:
    BODIES = (encoded({"x": [1, "é"]}), encoded("text"), encoded({"bytes": b"\xff"}))
    EVENTS = (
        lambda body: Message(data=body, room="r", user_id="ada", key="k", timestamp=TIME),
        lambda body: Message(data=body, timestamp=TIME),
        lambda body: ChatMessage(content=body, room="r", timestamp=TIME),
        lambda body: DirectMessage(to="bob", data=body, timestamp=TIME),
        lambda body: GroupMessage(group="g", content=body, user_id="ada", timestamp=TIME),
    )

    @pytest.mark.parametrize("codec", [JSON_CODEC, MSGPACK_CODEC], ids=["json", "msgpack"])
    @pytest.mark.parametrize("body", BODIES)
    @pytest.mark.parametrize("make", EVENTS)
    def test_its_bytes_are_those_that_the_event_has(self, make: Any, body: Any, codec: Codec) -> None:
        event = make(body)
        read, looked_at = (Arrived(read_record(encode_record(event))) for _ in range(2))
        assert type(looked_at.event) is type(event)
        assert read.payload(codec) == looked_at.payload(codec) == codec.encode(event)

    def test_what_looks_at_the_event_may_change_it(self) -> None:
        arrived = Arrived(read_record(encode_record(Message(data=encoded(1), room="r", timestamp=TIME))))
        assert isinstance(arrived.event, Message)
        arrived.event.offset = 7
        assert json.loads(arrived.payload(JSON_CODEC))["offset"] == 7

    @pytest.mark.parametrize(
        "record",
        [
            b"",
            b"{}",
            b"\xc1",
            b'{"type":"message","timestamp":"","data":1,"seq":1}',
            b'{"type":"message","timestamp":""}',
            b'{"type":"chat_message","timestamp":"","room":1,"content":""}',
            b'{"type":"gap","timestamp":""}',
        ],
    )
    def test_what_is_no_event_is_refused_before_anybody_looks(self, record: bytes) -> None:
        with pytest.raises(ValueError, match=r"."):
            read_record(record)
