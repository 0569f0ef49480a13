"""Frames of a client: what it meant, however they are cut; what it may not send; and how it ends."""

import struct
import time
import tracemalloc
import zlib
from collections.abc import Iterable
from typing import Any
from unittest.mock import patch

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_support import (
    BINARY,
    CLOSE,
    CONT,
    PING,
    PONG,
    TEXT,
    Seen,
    client_frame,
    close_payload,
    connect,
    cut,
    deflated,
    fragments,
    incompressible,
    judge_websockets,
    server_frames,
)

from trioswitch.errors import CloseCause
from trioswitch.wire.websocket import WebSocketCodec

DEFLATE = "permessage-deflate; client_max_window_bits"
KIB = 1024

cuts = st.lists(st.integers(0, 5000), max_size=12)


@attrs.define
class Talk:
    """What a transport does with a codec: reads, hands pings' answers on, and closes when it has ended."""

    codec: WebSocketCodec
    messages: list[bytes] = attrs.Factory(list)
    written: bytes = b""

    def hear(self, *chunks: bytes) -> "Talk":
        for chunk in chunks:
            self.messages += self.codec.feed(chunk)
            while self.codec.has_more:
                self.messages += self.codec.feed(b"")
            if self.codec.ended is None:
                self.written += self.codec.replies
                self.codec.replies = b""
        if self.codec.ended is not None:
            self.close(self.codec.ended.cause.code, self.codec.ended.reason)
        return self

    def close(self, code: int = 1000, reason: str = "") -> None:
        self.written += self.codec.close(code, reason)

    @property
    def answers(self) -> list[Seen]:
        """What the client reads. Nothing but control frames, and nothing after a close frame."""
        frames = [Seen(first & 0x0F, payload) for first, payload in server_frames(self.written)]
        assert all(each.opcode in (PONG, CLOSE) for each in frames)
        assert CLOSE not in [each.opcode for each in frames[:-1]]
        judge_websockets(self.written)
        return frames


def talk(data: bytes | Iterable[bytes], **options: Any) -> Talk:
    return Talk(connect(**options)).hear(*([data] if isinstance(data, bytes) else data))


def check_failed(done: Talk, cause: CloseCause) -> None:
    """It has ended by our doing, and the client was told with a close frame, its last and only one."""
    ended = done.codec.ended
    assert ended is not None
    assert (ended.cause, ended.code) == (cause, cause.code)
    last = done.answers[-1]
    assert (last.opcode, last.payload[:2]) == (CLOSE, close_payload(cause.code))
    assert last.payload[2:].decode() == ended.reason
    assert done.codec.close(1000, "") == b""


@attrs.frozen
class Sent:
    """Something that a client sends: its frames, the messages it means, and the pongs it is due."""

    frames: list[bytes]
    messages: list[bytes]
    pongs: list[bytes]


@st.composite
def controls(draw: st.DrawFn) -> Sent:
    payload = draw(st.binary(max_size=125))
    if draw(st.booleans()):
        return Sent([client_frame(PING, payload)], [], [payload])
    return Sent([client_frame(PONG, payload)], [], [])


@st.composite
def messages(draw: st.DrawFn, *, compressed: bool) -> Sent:
    """A message, in any number of fragments, with control frames between them."""
    payload = draw(st.binary(max_size=40)) * draw(st.sampled_from([1, 1, 5, 100]))
    compress = compressed and draw(st.booleans())
    parts = cut(deflated(payload) if compress else payload, draw(st.lists(st.integers(0, 5000), max_size=4))) or [b""]
    for _ in range(draw(st.integers(0, 1))):
        parts.insert(draw(st.integers(0, len(parts))), b"")
    frames, pongs = [], []
    for frame in fragments(draw(st.sampled_from([TEXT, BINARY])), parts, compressed=compress):
        if frames:
            for control in draw(st.lists(controls(), max_size=2)):
                frames += control.frames
                pongs += control.pongs
        frames.append(frame)
    return Sent(frames, [payload], pongs)


def conversations(*, compressed: bool) -> st.SearchStrategy[list[Sent]]:
    return st.lists(messages(compressed=compressed) | controls(), max_size=5)


def joined(sent: list[Sent]) -> tuple[bytes, list[bytes], list[Seen]]:
    return (
        b"".join(frame for each in sent for frame in each.frames),
        [message for each in sent for message in each.messages],
        [Seen(PONG, payload) for each in sent for payload in each.pongs],
    )


class TestMessages:
    @pytest.mark.parametrize("extensions", [None, DEFLATE], ids=["plain", "deflate"])
    @given(st.data(), cuts)
    def test_the_same_however_they_are_cut(self, extensions: str | None, data: st.DataObject, at: list[int]) -> None:
        frames, messages, pongs = joined(data.draw(conversations(compressed=extensions is not None)))
        done = talk(cut(frames, at), extensions=extensions)
        assert done.messages == messages
        assert all(type(message) is bytes for message in done.messages)
        assert done.answers == pongs
        assert done.codec.ended is None

    @given(conversations(compressed=True))
    def test_and_byte_by_byte(self, sent: list[Sent]) -> None:
        frames, messages, pongs = joined(sent)
        done = talk([frames[i : i + 1] for i in range(len(frames))], extensions=DEFLATE)
        assert (done.messages, done.answers, done.codec.ended) == (messages, pongs, None)

    @pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 65537])
    def test_every_length_encoding(self, size: int) -> None:
        payload = incompressible(size)
        assert talk(client_frame(BINARY, payload)).messages == [payload]

    @pytest.mark.parametrize("mask", [bytes(4), b"\xff\xff\xff\xff", b"\x00\x01\x02\x03"])
    def test_every_mask(self, mask: bytes) -> None:
        assert talk(client_frame(TEXT, b"hello, world", mask=mask)).messages == [b"hello, world"]

    def test_text_is_not_looked_into(self) -> None:
        """Whether it is UTF-8 is for the client protocol to find out: it decodes it anyway."""
        assert talk(client_frame(TEXT, b"\xff")).messages == [b"\xff"]

    def test_a_context_that_is_kept(self) -> None:
        """Where `incoming_context_takeover` allows it, a message refers back to the ones before."""
        deflater, payload, frames = zlib.compressobj(wbits=-12), incompressible(500), b""
        for _ in range(3):
            data = (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]
            frames += client_frame(BINARY, data, rsv=4)
        assert len(frames) < 700
        assert talk(frames, extensions=DEFLATE, takeover=True).messages == [payload] * 3

    def test_nothing_is_no_news(self) -> None:
        done = talk([b"", client_frame(TEXT, b"a")[:3], b"", b""])
        assert (done.messages, done.written, done.codec.ended) == ([], b"", None)

    def test_each_ping_is_answered_once(self) -> None:
        pings = [b"", b"1", b"1", b"x" * 125]
        done = talk([*(client_frame(PING, ping) for ping in pings), client_frame(TEXT, b"a"), client_frame(PONG, b"1")])
        assert done.answers == [Seen(PONG, ping) for ping in pings]


# Each is the first frame that may not be sent, after a good one.
FAULTS: dict[str, bytes] = {
    "unmasked": client_frame(TEXT, b"a", mask=None),
    "unmasked ping": client_frame(PING, b"a", mask=None),
    "reserved bit 1, no extension": client_frame(TEXT, b"a", rsv=4),
    "reserved bit 2": client_frame(TEXT, b"a", rsv=2),
    "reserved bit 3": client_frame(TEXT, b"a", rsv=1),
    "reserved bit on a control frame": client_frame(PING, b"a", rsv=4),
    **{f"opcode {opcode}": client_frame(opcode, b"a") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "ping in fragments": client_frame(PING, b"a", fin=False),
    "pong in fragments": client_frame(PONG, b"a", fin=False),
    "close in fragments": client_frame(CLOSE, close_payload(1000), fin=False),
    "long ping": client_frame(PING, b"a" * 126),
    "long pong": client_frame(PONG, b"a" * 126),
    "long close": client_frame(CLOSE, close_payload(1000, "a" * 124)),
    "continuation of nothing": client_frame(CONT, b"a"),
    "message inside another": client_frame(TEXT, b"a", fin=False) + client_frame(TEXT, b"b"),
    "half a close code": client_frame(CLOSE, b"\x03"),
    **{
        f"close code {code}": client_frame(CLOSE, close_payload(code))
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
    },
}
GOOD = client_frame(PING, b"p") + client_frame(TEXT, b"good")


class TestFaults:
    @pytest.mark.parametrize("fault", FAULTS)
    @settings(max_examples=15)
    @given(at=cuts)
    def test_it_is_told_1002_and_nothing_more_is_read(self, fault: str, at: list[int]) -> None:
        done = talk(cut(GOOD + FAULTS[fault] + client_frame(TEXT, b"late") + client_frame(PING, b"late"), at))
        assert done.messages == [b"good"]
        assert done.answers[0] == Seen(PONG, b"p")
        assert len(done.answers) == 2
        check_failed(done, CloseCause.PROTOCOL_ERROR)

    @pytest.mark.parametrize("reason", [b"\xff", b"\xc3", b"\xed\xa0\x80"])
    def test_a_reason_that_is_not_utf8(self, reason: bytes) -> None:
        check_failed(talk(client_frame(CLOSE, close_payload(1000) + reason)), CloseCause.BAD_DATA)

    @pytest.mark.parametrize(
        "frames",
        [
            client_frame(TEXT, b"\xff\xff\xff\xff", rsv=4),
            client_frame(TEXT, deflated(b"a" * 99)[:4] + b"\xff" * 9, rsv=4),
            client_frame(TEXT, b"\xff" * 3000, rsv=4),
            client_frame(TEXT, b"a", fin=False, rsv=4) + client_frame(CONT, b"b", rsv=4),
            client_frame(TEXT, b"a", fin=False) + client_frame(CONT, b"b", rsv=4),
            client_frame(PING, b"a", rsv=4),
        ],
    )
    def test_what_deflate_does_not_allow(self, frames: bytes) -> None:
        check_failed(talk(frames, extensions=DEFLATE), CloseCause.PROTOCOL_ERROR)

    @pytest.mark.parametrize("extensions", [None, DEFLATE], ids=["plain", "deflate"])
    @given(st.binary(max_size=300), cuts)
    def test_noise(self, extensions: str | None, noise: bytes, at: list[int]) -> None:
        self.check_survived(talk(cut(GOOD + noise, at), extensions=extensions, max_message_bytes=125, max_fragments=3))

    @pytest.mark.parametrize("extensions", [None, DEFLATE], ids=["plain", "deflate"])
    @given(
        st.lists(
            st.builds(
                client_frame,
                st.integers(0, 15) | st.sampled_from([CONT, TEXT, BINARY, PING]),
                st.binary(max_size=20) | st.binary(max_size=200).map(deflated),
                fin=st.booleans(),
                rsv=st.sampled_from([0, 0, 0, 4, 4, 1, 2, 7]),
                mask=st.sampled_from([b"mask", b"mask", b"mask", b"mask", None]),
                claimed=st.sampled_from([None, None, None, None, 0, 3, 125, 126, 65536, 2**62]),
            ),
            max_size=12,
        ),
        cuts,
    )
    def test_frames_of_any_kind(self, extensions: str | None, frames: list[bytes], at: list[int]) -> None:
        chunks = cut(GOOD + b"".join(frames), at)
        self.check_survived(talk(chunks, extensions=extensions, max_message_bytes=125, max_fragments=3))

    @pytest.mark.parametrize("extensions", [None, DEFLATE], ids=["plain", "deflate"])
    @given(
        st.lists(st.binary(max_size=40), min_size=1, max_size=3),
        st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3),
        cuts,
    )
    def test_damage(
        self, extensions: str | None, payloads: list[bytes], damage: list[tuple[int, int]], at: list[int]
    ) -> None:
        frames = bytearray(b"".join(client_frame(TEXT, deflated(each), rsv=4) for each in payloads))
        for place, byte in damage:
            frames[place % len(frames)] = byte
        self.check_survived(talk(cut(GOOD + frames, at), extensions=extensions, max_message_bytes=125, max_fragments=3))

    @staticmethod
    def check_survived(done: Talk) -> None:
        """Nothing was raised; what came before is there; if it ended, then for a cause, and the client was told."""
        assert done.messages[0] == b"good"
        assert done.answers[0] == Seen(PONG, b"p")
        assert all(len(message) <= 125 for message in done.messages)
        ended = done.codec.ended
        if ended is None:
            assert CLOSE not in [each.opcode for each in done.answers]
        elif ended.cause in (CloseCause.CLIENT_LEFT, CloseCause.CLIENT_AWAY):
            assert done.answers[-1].opcode == CLOSE
        else:
            assert ended.cause in (CloseCause.PROTOCOL_ERROR, CloseCause.BAD_DATA, CloseCause.TOO_BIG)
            check_failed(done, ended.cause)


class TestLimits:
    def test_a_message_may_have_this_size_and_no_more(self) -> None:
        for size, fits in ((1000, True), (1001, False)):
            done = talk(client_frame(BINARY, bytes(size)), max_message_bytes=1000)
            assert (done.messages == [bytes(size)]) == fits
            if not fits:
                check_failed(done, CloseCause.TOO_BIG)

    @pytest.mark.parametrize("claimed", [1001, 65535, 65536, 2**32, 2**63 - 1, 2**64 - 1])
    def test_it_is_refused_by_its_header_alone(self, claimed: int) -> None:
        """Not a byte of the payload has come; none has to be kept."""
        start = client_frame(TEXT, claimed=claimed, mask=b"")
        done = talk([start[i : i + 1] for i in range(len(start))], max_message_bytes=1000)
        check_failed(done, CloseCause.TOO_BIG)

    @pytest.mark.parametrize("count", [2, 5])
    @pytest.mark.parametrize(
        ("size", "compressed", "fits"),
        [(1000, False, True), (1002, False, False), (980, True, True), (1002, True, False)],
    )
    def test_the_size_is_that_of_all_fragments(self, count: int, size: int, compressed: bool, fits: bool) -> None:
        """After inflating, and before: websockets holds the deflated bytes of a fragment against what is left too."""
        payload = incompressible(size // 2).hex().encode()
        data = deflated(payload) if compressed else payload
        frames = fragments(BINARY, cut(data, range(0, len(data), len(data) // count)), compressed=compressed)
        done = talk(b"".join(frames), max_message_bytes=1000, extensions=DEFLATE)
        assert done.messages == ([payload] if fits else [])
        if not fits:
            check_failed(done, CloseCause.TOO_BIG)

    def test_the_next_message_begins_anew(self) -> None:
        frames = fragments(BINARY, [bytes(400), bytes(600)]) * 3 + [client_frame(BINARY, bytes(1000))] * 3
        assert talk(b"".join(frames), max_message_bytes=1000).messages == [bytes(1000)] * 6

    @pytest.mark.parametrize("in_fragments", [False, True])
    def test_a_compression_bomb_does_not_go_off(self, in_fragments: bool) -> None:
        """32 MiB in 32 KiB: inflated no further than the limit."""
        bomb = deflated(bytes(32 * KIB * KIB))
        assert len(bomb) < 64 * KIB
        parts = cut(bomb, range(0, len(bomb), 1000)) if in_fragments else [bomb]
        frames = b"".join(fragments(BINARY, parts, compressed=True))
        codec = connect(extensions=DEFLATE, max_message_bytes=64 * KIB)
        tracemalloc.start()
        try:
            done = Talk(codec).hear(frames)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert done.messages == []
        check_failed(done, CloseCause.TOO_BIG)
        assert peak < 1024 * KIB

    @pytest.mark.parametrize("allowed", [1, 2, 3, 10])
    def test_a_message_may_have_so_many_fragments_and_no_more(self, allowed: int) -> None:
        for count in range(1, allowed + 4):
            parts = [b"%d" % i for i in range(count)]
            done = talk(b"".join(fragments(TEXT, parts)), max_fragments=allowed)
            if count <= allowed:
                assert (done.messages, done.codec.ended) == ([b"".join(parts)], None)
            else:
                assert done.messages == []
                check_failed(done, CloseCause.TOO_BIG)

    def test_it_is_refused_before_the_message_ends(self) -> None:
        """A flood of empty fragments would be kept otherwise: it never comes to the limit on bytes."""
        frames = [client_frame(TEXT, fin=False), *[client_frame(CONT, fin=False)] * 9]
        assert talk(frames[:-1], max_fragments=10).codec.ended is None
        check_failed(talk(frames, max_fragments=10), CloseCause.TOO_BIG)

    @given(cuts)
    def test_nothing_is_read_after_too_many(self, at: list[int]) -> None:
        frames = [*fragments(TEXT, [b"x"] * 6), client_frame(TEXT, b"late"), *fragments(TEXT, [b"late", b"too"])]
        done = talk(cut(GOOD + b"".join(frames), at), max_fragments=4)
        assert done.messages == [b"good"]
        check_failed(done, CloseCause.TOO_BIG)

    def test_what_was_handed_over_is_not_kept(self) -> None:
        """An idle connection must not hold the last message that it sent."""
        codec = connect(extensions=DEFLATE)
        chunks = [
            client_frame(BINARY, bytes(100 * KIB)),
            client_frame(BINARY, deflated(bytes(100 * KIB)), rsv=4),
            *fragments(BINARY, [bytes(100 * KIB)] * 4),
        ]
        tracemalloc.start()
        try:
            for chunk in chunks:
                codec.feed(chunk)
                kept, _ = tracemalloc.get_traced_memory()
                assert kept < 50 * KIB or not chunk[0] & 0x80, "only a message that is not whole is kept"
        finally:
            tracemalloc.stop()

    def test_control_frames_are_no_fragments(self) -> None:
        first, last = fragments(TEXT, [b"a", b"b"])
        done = talk(first + client_frame(PING, b"p") * 9 + last, max_fragments=2)
        assert done.messages == [b"ab"]
        assert done.answers == [Seen(PONG, b"p")] * 9


class TestTheyClose:
    @pytest.mark.parametrize("code", [1000, 1001, 1003, 1011, 3000, 4000, 4999])
    @pytest.mark.parametrize("reason", ["", "bye", "é" * 61])
    def test_their_code_is_answered_with_the_same(self, code: int, reason: str) -> None:
        done = talk(GOOD + client_frame(CLOSE, close_payload(code, reason)))
        ended = done.codec.ended
        assert ended is not None
        cause = CloseCause.CLIENT_AWAY if code == 1001 else CloseCause.CLIENT_LEFT
        assert (ended.cause, ended.code, ended.reason) == (cause, code, reason)
        assert done.messages == [b"good"]
        assert done.answers == [Seen(PONG, b"p"), Seen(CLOSE, close_payload(code, reason))]
        assert done.codec.close(1000, "") == b"", "it was answered before"

    def test_without_a_code(self) -> None:
        done = talk(client_frame(CLOSE))
        ended = done.codec.ended
        assert ended is not None
        assert (ended.cause, ended.code, ended.reason) == (CloseCause.CLIENT_LEFT, 1005, "")
        assert done.written == b"\x88\x00"

    @given(st.binary(max_size=50) | conversations(compressed=False).map(lambda sent: joined(sent)[0]), cuts)
    def test_what_comes_after_it_is_not_read(self, after: bytes, at: list[int]) -> None:
        done = talk(cut(GOOD + client_frame(CLOSE, close_payload(1000)) + after, at))
        assert done.messages == [b"good"]
        assert done.answers == [Seen(PONG, b"p"), Seen(CLOSE, close_payload(1000))]
        assert done.codec.ended is not None
        assert done.codec.ended.cause is CloseCause.CLIENT_LEFT

    def test_the_answer_waits_until_we_are_ready(self) -> None:
        """The transport may have half a frame under way: the answer is only written by `close`."""
        codec = connect()
        codec.feed(client_frame(CLOSE, close_payload(1001)))
        assert codec.ended is not None
        assert codec.close(1011, "something else") == b"\x88\x02" + close_payload(1001)


class TestWeClose:
    @pytest.mark.parametrize("cause", [cause for cause in CloseCause if cause is not CloseCause.VANISHED])
    def test_every_cause_has_a_frame(self, cause: CloseCause) -> None:
        codec = connect()
        assert judge_websockets(codec.close(cause.code, cause.reason)) == [
            Seen(CLOSE, close_payload(cause.code, cause.reason))
        ]
        assert codec.ended is None, "they have not answered"

    def test_once(self) -> None:
        codec = connect()
        assert codec.close(1001, "first")
        assert codec.close(1011, "second") == b""

    @pytest.mark.parametrize("character", ["a", "é", "€", "😀"])
    @pytest.mark.parametrize("shift", [0, 1, 2, 3])
    def test_the_reason_is_cut_at_the_border_of_a_character(self, character: str, shift: int) -> None:
        [seen] = judge_websockets(connect().close(4000, "." * shift + character * 200))
        assert seen.payload[2:].decode() == "." * shift + character * ((123 - shift) // len(character.encode()))

    def test_the_longest_reason_costs_no_time(self) -> None:
        """Cut character by character, it would take its length squared."""
        start = time.process_time()
        [seen] = judge_websockets(connect().close(4000, "é" * 2**17))
        assert time.process_time() - start < 1.0
        assert len(seen.payload) == 124

    @given(cuts)
    def test_their_answer_ends_it(self, at: list[int]) -> None:
        done = Talk(connect())
        done.close(1001, "away")
        done.hear(*cut(client_frame(CLOSE, close_payload(1001, "away")), at))
        ended = done.codec.ended
        assert ended is not None
        assert (ended.cause, ended.code, ended.reason) == (CloseCause.CLIENT_AWAY, 1001, "away")
        assert done.answers == [Seen(CLOSE, close_payload(1001, "away"))]

    @given(conversations(compressed=False), conversations(compressed=False), cuts)
    def test_what_was_under_way_is_read_but_not_answered(
        self, before: list[Sent], after: list[Sent], at: list[int]
    ) -> None:
        """Nothing is written after a close frame, pongs neither."""
        done = Talk(connect())
        first, first_messages, pongs = joined(before)
        done.hear(*cut(first, at))
        done.close(1001, "away")
        rest, rest_messages, _ = joined(after)
        done.hear(*cut(rest + client_frame(CLOSE, close_payload(1001)) + rest, at))
        assert done.messages == first_messages + rest_messages
        assert done.answers == [*pongs, Seen(CLOSE, close_payload(1001, "away"))]

    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_fault_instead_of_an_answer_ends_it_too(self, fault: str) -> None:
        done = Talk(connect())
        done.close(1001, "away")
        done.hear(FAULTS[fault])
        assert done.codec.ended is not None
        assert done.codec.ended.cause is not CloseCause.VANISHED
        assert done.answers == [Seen(CLOSE, close_payload(1001, "away"))]

    def test_too_many_fragments_instead_of_an_answer(self) -> None:
        done = Talk(connect(max_fragments=2))
        done.close(1001, "away")
        done.hear(b"".join(fragments(TEXT, [b"x"] * 5)))
        assert done.codec.ended is not None
        assert done.messages == []
        assert done.answers == [Seen(CLOSE, close_payload(1001, "away"))]


class TestTheyVanish:
    @pytest.mark.parametrize(
        "before", [b"", GOOD, client_frame(TEXT, b"half")[:-1], client_frame(TEXT, b"a", fin=False)]
    )
    def test_there_is_nobody_to_tell(self, before: bytes) -> None:
        done = talk(before)
        done.codec.eof()
        ended = done.codec.ended
        assert ended is not None
        assert (ended.cause, ended.code) == (CloseCause.VANISHED, 1006)
        assert done.codec.close(1000, "") == b""

    def test_after_our_close(self) -> None:
        codec = connect()
        codec.close(1001, "away")
        codec.eof()
        assert codec.ended is not None
        assert codec.ended.cause is CloseCause.VANISHED
        assert codec.close(1001, "") == b""

    @pytest.mark.parametrize(
        ("end", "cause"),
        [
            (client_frame(CLOSE, close_payload(1000)), CloseCause.CLIENT_LEFT),
            (FAULTS["unmasked"], CloseCause.PROTOCOL_ERROR),
            (client_frame(TEXT, claimed=2**40), CloseCause.TOO_BIG),
        ],
    )
    def test_after_it_had_ended_the_first_cause_holds(self, end: bytes, cause: CloseCause) -> None:
        codec = connect()
        codec.feed(end)
        ended = codec.ended
        codec.eof()
        assert codec.ended is ended
        assert ended is not None
        assert ended.cause is cause

    def test_twice_is_as_good_as_once(self) -> None:
        codec = connect()
        codec.eof()
        ended = codec.ended
        codec.eof()
        assert codec.ended is ended

    def test_what_is_fed_after_the_end_is_ignored(self) -> None:
        codec = connect()
        codec.eof()
        assert codec.feed(client_frame(TEXT, b"late")) == []
        assert codec.replies == b""


def test_the_support_of_these_tests_frames_as_the_rfc_says() -> None:
    """RFC 6455, 5.7: its example of a masked text frame."""
    assert client_frame(TEXT, b"Hello", mask=b"\x37\xfa\x21\x3d") == bytes.fromhex("818537fa213d7f9f4d5158")
    assert client_frame(PING, b"Hello", mask=None) == bytes.fromhex("890548656c6c6f")
    assert client_frame(BINARY, bytes(256), mask=None)[:4] == bytes.fromhex("827e0100")
    assert client_frame(BINARY, bytes(65536), mask=None)[:10] == bytes.fromhex("827f0000000000010000")
    assert struct.unpack("!H", close_payload(1000)) == (1000,)


class TestMadeLate:
    """websockets' parser costs time and 1 KB: what most clients send before their last frame does without."""

    @given(cuts)
    def test_messages_and_pongs_need_no_parser(self, at: list[int]) -> None:
        pongs = [client_frame(PONG), client_frame(PONG, b"x" * 125), client_frame(TEXT, b"m")]
        with patch("trioswitch.wire.websocket.Protocol", side_effect=AssertionError("a parser is made")):
            done = talk(cut(b"".join(pongs), at), extensions=DEFLATE)
        assert done.messages == [b"m"]
        assert done.written == b""

    def test_a_pong_between_fragments(self) -> None:
        first, last = fragments(TEXT, [b"a", b"b"])
        assert talk(first + client_frame(PONG, b"p") + last).messages == [b"ab"]

    @pytest.mark.parametrize(
        "pong", [client_frame(PONG, b"x" * 126), client_frame(PONG, mask=None), client_frame(PONG, fin=False)]
    )
    def test_a_pong_that_is_none_is_a_fault(self, pong: bytes) -> None:
        check_failed(talk(pong), CloseCause.PROTOCOL_ERROR)


class TestTurns:
    """64 KiB of compressed frames may hold 60 MiB: they are inflated piece by piece, and others get a turn in between."""

    def test_each_feed_inflates_a_bounded_number_of_bytes(self) -> None:
        size = 200 * KIB
        frame = client_frame(TEXT, deflated(b"x" * size), rsv=4)
        codec = connect(extensions=DEFLATE)
        messages = codec.feed(frame * 50)
        turns = [messages]
        while codec.has_more:
            turns.append(codec.feed(b""))
        assert [len(turn) for turn in turns] == [2] * 25
        assert all(len(message) == size for turn in turns for message in turn)

    def test_what_arrives_meanwhile_comes_after_it(self) -> None:
        frame = client_frame(TEXT, deflated(b"x" * 300 * KIB), rsv=4)
        codec = connect(extensions=DEFLATE)
        got = codec.feed(frame * 3)
        assert codec.has_more
        got += codec.feed(client_frame(TEXT, b"last"))
        while codec.has_more:
            got += codec.feed(b"")
        assert [len(message) for message in got] == [300 * KIB] * 3 + [4]

    def test_ordinary_frames_come_all_at_once(self) -> None:
        codec = connect()
        assert len(codec.feed(client_frame(TEXT, b"x" * 1000) * 600)) == 600
        assert not codec.has_more
