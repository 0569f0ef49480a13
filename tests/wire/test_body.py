"""The bodies of messages: bytes in one codec, checked when they come in, and decoded or encoded again when that is needed."""

import json
import math
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from trioswitch.errors import UnencodableData
from trioswitch.wire.body import (
    MAX_DEPTH,
    MAX_VALUES,
    Packed,
    as_json,
    as_msgpack,
    check_json_cost,
    checked_json,
    checked_msgpack,
    decoded,
    encoded,
)
from trioswitch.wire.packed import check_packed, map_fields

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
plain = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(texts, inner, max_size=20), max_leaves=30
)
packable = st.recursive(
    scalars
    | st.binary(max_size=300)
    | st.floats()
    | st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(texts, inner, max_size=20),
    max_leaves=30,
)


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types; NaN is NaN."""
    return repr(one) == repr(other)


class TestOfTheApplication:
    @given(plain)
    def test_data_is_what_it_was(self, data: Any) -> None:
        body = encoded(data)
        assert same(decoded(body), data)
        assert json.loads(bytes(as_json(body))) == data
        assert same(msgspec.msgpack.decode(as_msgpack(body)), data)

    @pytest.mark.parametrize(
        ("data", "json_data"),
        [
            (b"abc", "YWJj"),
            ({"a": [1, b"\xff"]}, {"a": [1, "/w=="]}),
            ({"a": datetime(2026, 1, 2, tzinfo=UTC)}, {"a": "2026-01-02T00:00:00Z"}),
        ],
    )
    def test_what_only_messagepack_has_is_kept_for_it(self, data: Any, json_data: Any) -> None:
        body = encoded(data)
        assert decoded(body) == data
        assert msgspec.msgpack.decode(as_msgpack(body)) == data
        assert json.loads(bytes(as_json(body))) == json_data

    def test_it_is_what_it_was_when_it_was_encoded(self) -> None:
        data = {"a": [1]}
        body = encoded(data)
        data["a"].append(2)
        assert decoded(body) == {"a": [1]}
        decoded(body)["a"].append(3)
        assert decoded(body) == {"a": [1]}

    def test_integers_of_more_than_64_bits_are_json(self) -> None:
        body = encoded([2**70])
        assert decoded(body) == [2**70]
        with pytest.raises(OverflowError):
            as_msgpack(body)

    @pytest.mark.parametrize("data", [object(), "\ud800", {"a": "\udfff"}, 1j])
    def test_what_json_cannot_carry_is_refused(self, data: Any) -> None:
        with pytest.raises(UnencodableData, match="cannot be written as JSON"):
            encoded(data)

    def test_nothing_else_is_a_body(self) -> None:
        for convert in (as_json, as_msgpack):
            with pytest.raises(TypeError, match="type dict is not supported"):
                convert({})


class TestOfClients:
    @given(packable)
    def test_messagepack_that_receivers_can_decode_is_taken(self, data: Any) -> None:
        packed = msgspec.msgpack.encode(data)
        body = checked_msgpack(Raw(packed))
        assert same(decoded(body), msgspec.msgpack.decode(packed))
        json.loads(bytes(as_json(body)))
        assert bytes(as_msgpack(body)) == packed

    @given(st.data(), packable)
    def test_whatever_is_checked_can_be_decoded(self, draw: st.DataObject, data: Any) -> None:
        """Bytes of MessagePack are changed: they are refused, or they decode with text as keys."""
        packed = bytearray(msgspec.msgpack.encode([data]))
        packed[draw.draw(st.integers(0, len(packed) - 1))] = draw.draw(st.integers(0, 255))
        try:
            raw = msgspec.msgpack.decode(bytes(packed), type=Raw)
            body = checked_msgpack(raw)
        except (ValueError, RecursionError):
            return

        def check(value: Any) -> None:
            if isinstance(value, dict):
                assert all(type(key) is str for key in value)
                value = list(value.values())
            if isinstance(value, list):
                for each in value:
                    check(each)

        check(decoded(body))

    @pytest.mark.parametrize("size", [15, 16, 70_000])
    def test_lengths_of_all_kinds(self, size: int) -> None:
        for data in (
            ["x" * size, b"x" * size, [b"", *range(size)], {str(number): b"" for number in range(size)}],
            {"x" * size: {"y" * size: b""}},
        ):
            packed = msgspec.msgpack.encode(data)
            check_packed(packed, 10**9, MAX_DEPTH)
            with pytest.raises(ValueError, match="keys of a map"):
                check_packed(msgspec.msgpack.encode([data, {1: 2}]), 10**9, MAX_DEPTH)

    @pytest.mark.parametrize("limit", [1, 2, 100])
    def test_values_and_keys_count(self, limit: int) -> None:
        packed = b"\xdd" + (20_000).to_bytes(4) + b"\x80" * 20_000
        with pytest.raises(ValueError, match=f"a message may have {limit} values"):
            check_packed(packed, limit, MAX_DEPTH)
        check_packed(packed, 20_001, MAX_DEPTH)
        with pytest.raises(ValueError, match="20000 values"):
            check_packed(packed, 20_000, MAX_DEPTH)

    def test_json_values_are_counted_where_there_may_be_too_many(self) -> None:
        many, few = b"[" + b"{}," * MAX_VALUES + b"1]", b"[" + b"{}," * (MAX_VALUES - 2) + b"1]"
        check_json_cost(few)
        with pytest.raises(ValueError, match=f"a message may have {MAX_VALUES} values"):
            check_json_cost(many)
        with pytest.raises(ValueError, match="values"):
            checked_json(Raw(many))
        text = json.dumps(['",[{' * MAX_VALUES])
        check_json_cost(text.encode())
        assert decoded(checked_json(Raw(text))) == json.loads(text)

    @pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}"), ('[{"]}":', "}]")])
    def test_levels_are_counted(self, opened: str, closed: str) -> None:
        """The same on each interpreter, and in both codecs: receivers in Python 3.11 decode 900 levels, in 3.13 far more."""
        each = opened.count("[") + opened.count("{")
        most = MAX_DEPTH // each
        good, bad = (opened * count + "1" + closed * count for count in (most, most + 1))
        wide = f"[{','.join(['[{}]'] * 1000)}]"
        for text in (good, wide, json.dumps("[{" * 5000)):
            checked_json(Raw(text))
            packed = msgspec.msgpack.encode(json.loads(text))
            check_packed(packed, MAX_VALUES, MAX_DEPTH)
        with pytest.raises(ValueError, match="500 levels of arrays and objects"):
            checked_json(Raw(bad))
        with pytest.raises(ValueError, match="500 levels of arrays and maps"):
            check_packed(msgspec.msgpack.encode(json.loads(bad)), MAX_VALUES, MAX_DEPTH)

    def test_numbers_that_take_long_to_decode_are_counted(self) -> None:
        for number in (b"1e308", b"1E+308", b"-1e-0308", b"0.1e100"):
            check_json_cost(b"[" + b",".join([number] * 1000) + b"]")
            with pytest.raises(ValueError, match="1000 numbers with an exponent of three digits"):
                check_json_cost(b"[" + b",".join([number] * 1001) + b"]")
        check_json_cost(b"[" + b",".join([b'"1e308"'] * 5000) + b"]")
        check_json_cost(b"[" + b",".join([b"1e-05"] * 5000) + b"]")

    @pytest.mark.parametrize("data", [b"1e999", b"[-1e999]", b'{"a":' + b"9" * 5000 + b"}", b"[" * 5000 + b"]" * 5000])
    def test_json_that_receivers_could_not_decode_is_refused(self, data: bytes) -> None:
        with pytest.raises((ValueError, RecursionError)):
            checked_json(Raw(data))

    def test_keys_with_equal_hashes_take_no_time(self) -> None:
        """Arrays of -1 and -2 have one hash: a map with 20,000 of them took seconds to decode."""
        keys = [
            bytes((0x9F,)) + bytes(0xFF if number >> bit & 1 else 0xFE for bit in range(15)) for number in range(20_000)
        ]
        packed = b"\xdf" + len(keys).to_bytes(4) + b"".join(key + b"\x00" for key in keys)
        for hostile in (packed, b"\x91" + packed, b"\x81\xa1a" + packed):
            start = time.process_time()
            with pytest.raises(ValueError, match="keys of a map must be text"):
                check_packed(hostile, MAX_VALUES, MAX_DEPTH)
            assert map_fields(hostile).keys() <= {"a"}
            assert time.process_time() - start < 0.5, "it is refused at the first key"


class TestMapFields:
    @given(st.dictionaries(texts | st.integers(0, 5) | st.binary(max_size=3), plain, max_size=20))
    def test_members_with_text_as_keys(self, fields: dict[Any, Any]) -> None:
        found = map_fields(msgspec.msgpack.encode(fields))
        wanted = {key: value for key, value in fields.items() if isinstance(key, str)}
        assert {key: msgspec.msgpack.decode(raw) for key, raw in found.items()} == wanted

    @pytest.mark.parametrize("data", [b"", b"\x90", b"\xa1a", b"\x05", b"\xc0"])
    def test_other_values_have_none(self, data: bytes) -> None:
        assert map_fields(data) == {}

    def test_nor_has_a_large_map(self) -> None:
        assert map_fields(msgspec.msgpack.encode({str(number): 1 for number in range(1001)})) == {}
        assert len(map_fields(msgspec.msgpack.encode({str(number): 1 for number in range(1000)}))) == 1000


def test_numbers_that_are_not_finite_are_null_in_json() -> None:
    assert decoded(encoded([math.nan, math.inf])) == [None, None]
    assert bytes(as_json(Packed(Raw(msgspec.msgpack.encode([math.inf]))))) == b"[null]"
