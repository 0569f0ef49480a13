"""Server frames, judged by two clients that know nothing of each other; compression, judged by their inflaters."""

import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_support import BINARY, JUDGES, PING, TEXT, Seen, incompressible, judge_websockets

from trioswitch.metrics import CompressionStatistics
from trioswitch.wire import frames
from trioswitch.wire.frames import Compressor, frame

BORDERS = [0, 1, 124, 125, 126, 127, 65534, 65535, 65536, 65537]
WINDOWS = list(range(9, 16))

texts = st.text(st.characters(exclude_categories=["Cs"]))
judges = pytest.mark.parametrize("judge", JUDGES)
Judge = Callable[..., list[Seen]]


def test_opcodes_are_those_of_the_rfc() -> None:
    assert (frames.TEXT, frames.BINARY, frames.PING) == (TEXT, BINARY, PING)


@judges
@pytest.mark.parametrize("size", BORDERS)
def test_a_frame_of_any_length_encoding_is_read_back(judge: Judge, size: int) -> None:
    text, binary = b"t" * size, incompressible(size)
    assert judge(frame(TEXT, text)) == [Seen(TEXT, text)]
    assert judge(frame(BINARY, binary)) == [Seen(BINARY, binary)]


@pytest.mark.parametrize("size", BORDERS)
def test_the_shortest_length_encoding_is_used(size: int) -> None:
    """RFC 6455, 5.2: the minimal number of bytes must be used; the judges do not look."""
    overhead = 2 if size < 126 else 4 if size < 65536 else 10
    assert len(frame(BINARY, bytes(size))) == size + overhead


@judges
@given(st.lists(st.tuples(st.sampled_from([TEXT, BINARY, PING]), texts.map(str.encode)), max_size=5))
def test_frames_that_are_joined_are_read_back_in_order(judge: Judge, sent: list[tuple[int, bytes]]) -> None:
    sent = [(opcode, payload[:125] if opcode == PING else payload) for opcode, payload in sent]
    assert judge(b"".join(frame(*each) for each in sent)) == [Seen(*each) for each in sent]


class TestCompression:
    @judges
    @pytest.mark.parametrize("bits", WINDOWS)
    @pytest.mark.parametrize("level", [1, 6, 9])
    def test_a_client_with_this_window_inflates_it(self, judge: Judge, bits: int, level: int) -> None:
        """Repeated 40,000 bytes apart and 300 bytes apart: a window larger than agreed would be found out."""
        far, near = incompressible(20_000).hex().encode(), incompressible(150).hex().encode()
        payload = far + near * 10 + far
        data = Compressor(1, level).deflate(payload, bits)
        assert data is not None
        assert len(data) < len(payload)
        assert judge(frame(TEXT, data, compressed=True), bits) == [Seen(TEXT, payload)]

    @judges
    @given(
        st.lists(st.tuples(texts, st.integers(1, 100), st.booleans()).map(lambda part: (part[0] * part[1], part[2]))),
        st.sampled_from(WINDOWS),
    )
    def test_compressed_and_plain_frames_mix(self, judge: Judge, sent: list[tuple[str, bool]], bits: int) -> None:
        """No context is carried from message to message, so any receiver reads any of them."""
        compressor, data, expected = Compressor(1, 6), b"", []
        for text, compress in sent:
            payload = text.encode()
            small = compressor.deflate(payload, bits) if compress else None
            data += frame(TEXT, payload) if small is None else frame(TEXT, small, compressed=True)
            expected.append(Seen(TEXT, payload))
        assert judge(data, bits) == expected

    def test_it_is_independent_of_what_came_before(self) -> None:
        compressor, payload = Compressor(1, 6), b"the same " * 20
        assert compressor.deflate(payload, 12) == compressor.deflate(payload, 12)

    def test_a_wider_window_finds_what_a_narrow_one_cannot(self) -> None:
        payload = incompressible(2000) * 2
        narrow, wide = (Compressor(1, 6).deflate(payload, bits) for bits in (9, 12))
        assert narrow is None
        assert wide is not None
        assert len(wide) < 2200

    def test_small_payloads_are_left_alone(self) -> None:
        compressor = Compressor(100, 6)
        assert compressor.deflate(b"a" * 99, 12) is None
        assert compressor.statistics().tried == 0
        assert compressor.deflate(b"a" * 100, 12) is not None

    @given(st.binary(min_size=1, max_size=300), st.sampled_from(WINDOWS))
    def test_the_result_is_kept_only_when_it_is_smaller(self, payload: bytes, bits: int) -> None:
        compressor = Compressor(1, 9)
        data = compressor.deflate(payload, bits)
        deflater = zlib.compressobj(9, zlib.DEFLATED, -bits)
        smaller = len((deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]) < len(payload)
        assert (data is not None) == smaller
        assert data is None or judge_websockets(frame(BINARY, data, compressed=True), bits) == [Seen(BINARY, payload)]

    def test_to_the_byte(self) -> None:
        """What is a byte smaller is kept, what is as long is not."""
        for saved in (0, 1, 2, 3, 4):
            payload = self.payload_that_saves(saved)
            data = Compressor(1, 6).deflate(payload, 12)
            assert (data is not None) == (saved > 0)

    @staticmethod
    def payload_that_saves(wanted: int) -> bytes:
        for size in range(100):
            payload = incompressible(20) + b"a" * size
            deflater = zlib.compressobj(6, zlib.DEFLATED, -12)
            data = deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)
            if len(payload) - (len(data) - 4) == wanted:
                return payload
        raise AssertionError("there is none")

    def test_the_level_is_obeyed(self) -> None:
        payload = incompressible(3000).hex().encode() * 2
        fast, small = Compressor(1, 1).deflate(payload, 15), Compressor(1, 9).deflate(payload, 15)
        assert fast is not None
        assert small is not None
        assert len(small) < len(fast)

    def test_statistics_count_what_was_saved(self) -> None:
        compressor = Compressor(10, 6)
        assert compressor.statistics() == CompressionStatistics(0, 0, 0, 0)
        assert compressor.statistics().ratio == 0.0
        data = compressor.deflate(b"a" * 1000, 12)
        assert data is not None
        assert compressor.deflate(incompressible(500), 12) is None  # tried, in vain
        assert compressor.deflate(b"small", 12) is None  # not tried
        assert compressor.statistics() == CompressionStatistics(2, 1, 1000, len(data))
        assert compressor.statistics().ratio == pytest.approx(1 - len(data) / 1000)
