"""Bytes <-> messages: whatever a client sends is a Command or BadInput, and every event is what the contract says."""

import json
import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioswitch.errors import BadInput, CloseCause, UnencodableData
from trioswitch.wire import commands, messages
from trioswitch.wire.body import Packed, decoded
from trioswitch.wire.commands import COMMANDS, Command, Custom
from trioswitch.wire.messages import Error, Event, Message
from trioswitch.wire.protocols import JSON, JSON_BATCH, MSGPACK, PROTOCOLS, choose
from trioswitch.wire.protocols.port import ClientProtocol

Encode = Callable[[Any], bytes]


def json_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


MSGPACK_BYTES = msgspec.msgpack.encode
ENCODERS: dict[str, Encode] = {JSON.subprotocol: json_bytes, MSGPACK.subprotocol: msgspec.msgpack.encode}
DECODERS = {JSON.subprotocol: json.loads, MSGPACK.subprotocol: msgspec.msgpack.decode}
both = pytest.mark.parametrize("protocol", [JSON, MSGPACK], ids=lambda protocol: protocol.codec.name)


def decode(protocol: ClientProtocol, value: Any) -> Command:
    return protocol.decode(ENCODERS[protocol.subprotocol](value))


def plain(value: Any) -> Any:
    """A field of a command, as the client wrote it."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, msgspec.Raw | Packed):
        return decoded(value)
    return attrs.asdict(value) if attrs.has(type(value)) else value


def refused(protocol: ClientProtocol, data: bytes) -> BadInput:
    with pytest.raises(BadInput) as caught:
        protocol.decode(data)
    return caught.value


def fields_of(protocol: ClientProtocol, payload: bytes) -> dict[str, Any]:
    """The fields of a message of the application's own."""
    command = protocol.decode(payload)
    assert isinstance(command, Custom)
    return command.fields()


def refused_fields(protocol: ClientProtocol, fields: Any) -> BadInput:
    return refused(protocol, ENCODERS[protocol.subprotocol](fields))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=255)
numbers = st.integers(-(2**63), 2**64 - 1)
seconds = st.floats(0, 1e9) | st.integers(0, 10**9)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
request_ids = st.integers(-(2**63), 2**64 - 1) | texts

# What a client may send: for each type its required and its optional fields.
positions = st.fixed_dictionaries({"epoch": texts, "offset": st.integers(0, 2**53)})
keys = st.text(min_size=1, max_size=64)
SENT: dict[str, tuple[dict[str, st.SearchStrategy[Any]], dict[str, st.SearchStrategy[Any]]]] = {
    "authenticate": ({"token": texts}, {}),
    "join_room": (
        {"room": names},
        {"user_id": names, "since": positions, "history": st.integers(0, 2**53), "token": st.text()},
    ),
    "leave_room": ({"room": names}, {}),
    "chat_message": ({"room": names, "content": texts}, {"user_id": names, "idempotency_key": keys}),
    "message": (
        {"room": names, "data": values},
        {
            "priority": st.integers(0, 10),
            "max_delay": seconds,
            "expires": seconds,
            "key": texts,
            "exclude_self": st.booleans(),
            "idempotency_key": keys,
        },
    ),
    "direct_message": (
        {"to": names},
        {"content": texts, "data": values, "expires": seconds, "idempotency_key": keys},
    ),
    "group_message": ({"group": names}, {"content": texts, "data": values}),
    "heartbeat": ({}, {}),
    "presence": ({"room": names}, {}),
    "history": ({"room": names}, {"since": positions, "limit": st.integers(1, 1000)}),
    "resume": ({"session": texts}, {"rooms": st.dictionaries(names, positions, max_size=3)}),
    "inbox_ack": ({"upto": st.integers(0, 2**63 - 1)}, {}),
}
DEFAULTS = {
    "since": None,
    "history": None,
    "token": None,
    "limit": 100,
    "rooms": {},
    "idempotency_key": None,
    "user_id": None,
    "priority": 0,
    "max_delay": None,
    "expires": None,
    "key": None,
    "exclude_self": False,
    "content": msgspec.UNSET,
    "data": msgspec.UNSET,
}
MINIMAL: dict[str, dict[str, Any]] = {
    "authenticate": {"token": "secret"},
    "join_room": {"room": "lobby"},
    "leave_room": {"room": "lobby"},
    "chat_message": {"room": "lobby", "content": "hello"},
    "message": {"room": "lobby", "data": None},
    "direct_message": {"to": "ann"},
    "group_message": {"group": "staff"},
    "heartbeat": {},
    "presence": {"room": "lobby"},
    "history": {"room": "lobby"},
    "resume": {"session": "secret"},
    "inbox_ack": {"upto": 1},
}

# What does not fit a field of this kind. A whole number is a number of seconds; nothing else stands in for another.
NAME = [None, 5, True, 1.5, [], {}, "", "n" * 256]
TEXT = [None, 5, True, 1.5, [], {}]
POSITION = [5, "e", [], {}, {"epoch": "e"}, {"offset": 1}, {"epoch": 1, "offset": 1}, {"epoch": "e", "offset": -1}]
KEY = [5, True, [], {}, "", "k" * 65]
SECONDS = ["1", True, [], {}, -1, -0.5]
WRONG: dict[tuple[str, str], list[Any]] = {
    ("authenticate", "token"): TEXT,
    ("join_room", "room"): NAME,
    ("join_room", "user_id"): NAME[1:],
    ("join_room", "since"): POSITION,
    ("join_room", "history"): ["5", True, 1.5, [], {}, -1],
    ("join_room", "token"): [5, True, [], {}],
    ("leave_room", "room"): NAME,
    ("chat_message", "room"): NAME,
    ("chat_message", "content"): TEXT,
    ("chat_message", "user_id"): NAME[1:],
    ("chat_message", "idempotency_key"): KEY,
    ("message", "room"): NAME,
    ("message", "priority"): [None, "5", True, 5.0, 1.5, [], {}, -1, 11, 2**63],
    ("message", "max_delay"): SECONDS,
    ("message", "expires"): SECONDS,
    ("message", "key"): TEXT[1:],
    ("message", "exclude_self"): [None, 0, 1, "true", [], {}],
    ("message", "idempotency_key"): KEY,
    ("direct_message", "to"): NAME,
    ("direct_message", "content"): TEXT,
    ("direct_message", "expires"): SECONDS,
    ("direct_message", "idempotency_key"): KEY,
    ("group_message", "group"): NAME,
    ("group_message", "content"): TEXT,
    ("presence", "room"): NAME,
    ("history", "room"): NAME,
    ("history", "since"): POSITION,
    ("history", "limit"): [None, "5", True, 1.5, [], {}, 0, 1001],
    ("resume", "session"): TEXT,
    ("resume", "rooms"): [None, 5, "r", [], {"r": 5}, {"": {"epoch": "e", "offset": 1}}],
    ("inbox_ack", "upto"): [None, "5", True, 1.5, [], {}, -1, 2**63],
}


def test_the_tables_of_this_test_know_every_command() -> None:
    assert SENT.keys() == MINIMAL.keys() == COMMANDS.keys()
    free = {"id", "data"}
    for name, command in COMMANDS.items():
        fields = set(command.__struct_fields__) - free
        assert fields == {field for type, field in WRONG if type == name}


class TestCommands:
    @both
    @given(st.data())
    def test_what_is_documented_comes_through(self, protocol: ClientProtocol, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(SENT)))
        required, optional = SENT[name]
        fields = data.draw(st.fixed_dictionaries(required, optional=optional))
        request_id = data.draw(st.none() | request_ids)
        unknown = {
            f"x-{field}": value for field, value in data.draw(st.dictionaries(texts, values, max_size=3)).items()
        }

        command = decode(
            protocol, {"type": name, **unknown, **fields} | ({} if request_id is None else {"id": request_id})
        )

        assert type(command) is COMMANDS[name]
        assert command.id == request_id
        assert type(command.id) is type(request_id)
        for field in [*required, *optional]:
            wanted = fields.get(field, DEFAULTS.get(field))
            assert plain(getattr(command, field)) == wanted, field

    @both
    @pytest.mark.parametrize("name", sorted(COMMANDS))
    def test_the_fields_that_may_be_left_out_have_defaults(self, protocol: ClientProtocol, name: str) -> None:
        command = decode(protocol, {"type": name, **MINIMAL[name]})
        wanted = COMMANDS[name](**MINIMAL[name])
        for field in command.__struct_fields__:
            assert plain(getattr(command, field)) == getattr(wanted, field), field

    @both
    @pytest.mark.parametrize(("name", "field"), [(name, field) for name in sorted(MINIMAL) for field in MINIMAL[name]])
    def test_the_others_may_not(self, protocol: ClientProtocol, name: str, field: str) -> None:
        fields = {key: value for key, value in MINIMAL[name].items() if key != field}
        bad = refused_fields(protocol, {"type": name, "id": "r", **fields})
        assert (bad.code, bad.request_id, bad.counts, bad.fatal) == ("invalid", "r", False, None)
        assert field in bad.message

    @both
    @pytest.mark.parametrize(
        ("name", "field", "value"), [(*where, value) for where, wrong in WRONG.items() for value in wrong], ids=repr
    )
    def test_a_wrong_type_of_a_known_field_is_invalid(
        self, protocol: ClientProtocol, name: str, field: str, value: Any
    ) -> None:
        for request_id in (7, "seven", None):
            bad = refused_fields(protocol, {"type": name, "id": request_id, **MINIMAL[name], field: value})
            assert (bad.code, bad.request_id, bad.counts, bad.fatal) == ("invalid", request_id, False, None)
            assert name in bad.message
            assert field in bad.message

    @both
    @pytest.mark.parametrize("priority", range(11))
    def test_priorities_are_0_to_10(self, protocol: ClientProtocol, priority: int) -> None:
        command = decode(protocol, {"type": "message", "room": "r", "data": 1, "priority": priority})
        assert isinstance(command, commands.SendMessage)
        assert command.priority == priority

    @pytest.mark.parametrize("field", ["max_delay", "expires"])
    @pytest.mark.parametrize("value", [math.nan, -math.inf])
    def test_seconds_are_numbers_from_0(self, field: str, value: float) -> None:
        """MessagePack has a NaN, and a clock that is compared with it never strikes."""
        bad = refused_fields(MSGPACK, {"type": "message", "room": "r", "data": 1, field: value})
        assert bad.code == "invalid"

    @both
    def test_names_are_counted_in_characters(self, protocol: ClientProtocol) -> None:
        command = decode(protocol, {"type": "leave_room", "room": "😀" * 255})
        assert isinstance(command, commands.LeaveRoom)
        assert command.room == "😀" * 255
        assert refused_fields(protocol, {"type": "leave_room", "room": "😀" * 256}).code == "invalid"


class TestEnvelope:
    @both
    @pytest.mark.parametrize("wrong", [True, False, 1.5, 1.0, [], {}, [1]], ids=repr)
    @pytest.mark.parametrize("name", ["heartbeat", "history", "of the application", None])
    def test_an_id_is_a_string_or_an_integer(self, protocol: ClientProtocol, wrong: Any, name: str | None) -> None:
        bad = refused_fields(protocol, {"type": name, "id": wrong})
        assert (bad.code, bad.request_id, bad.counts, bad.fatal) == ("invalid", None, False, None)
        assert "`id`" in bad.message

    @both
    @pytest.mark.parametrize("request_id", [0, -1, 2**63, "", "0", "😀"])
    def test_an_id_comes_back_as_it_was(self, protocol: ClientProtocol, request_id: str | int) -> None:
        command = decode(protocol, {"type": "heartbeat", "id": request_id})
        assert (command.id, type(command.id)) == (request_id, type(request_id))
        assert refused_fields(protocol, {"type": "history", "id": request_id}).request_id == request_id

    @both
    @pytest.mark.parametrize("wrong", [None, 5, True, 1.5, ["heartbeat"], {}], ids=repr)
    def test_a_type_is_a_string(self, protocol: ClientProtocol, wrong: Any) -> None:
        bad = refused_fields(protocol, {"type": wrong, "id": 1})
        assert (bad.code, bad.request_id, bad.counts) == ("invalid", 1, False)

    @both
    def test_a_type_there_must_be(self, protocol: ClientProtocol) -> None:
        bad = refused_fields(protocol, {"id": 1})
        assert (bad.code, bad.request_id) == ("invalid", 1)

    @both
    @given(name=texts.filter(lambda name: name not in COMMANDS), fields=st.data())
    def test_any_other_type_is_the_applications(
        self, protocol: ClientProtocol, name: str, fields: st.DataObject
    ) -> None:
        sent = fields.draw(st.dictionaries(texts.filter(lambda field: field != "id"), values, max_size=4))
        sent |= {"type": name, "id": "r"}
        command = decode(protocol, sent)
        assert isinstance(command, Custom)
        room = sent.get("room")
        assert (command.id, command.type, command.room) == ("r", name, room if isinstance(room, str) else None)
        assert command.fields() == sent

    @both
    @pytest.mark.parametrize("value", [[], "heartbeat", 5, None, True, [{"type": "heartbeat"}]], ids=repr)
    def test_what_is_no_object_counts_against_the_budget(self, protocol: ClientProtocol, value: Any) -> None:
        bad = refused_fields(protocol, value)
        assert (bad.code, bad.request_id, bad.counts, bad.fatal) == ("malformed", None, True, None)

    @pytest.mark.parametrize("field", [5, None, b"type", (1,)], ids=repr)
    @pytest.mark.parametrize("name", ["heartbeat", "of the application"])
    def test_names_of_fields_are_strings(self, name: str, field: Any) -> None:
        """MessagePack has keys of any kind; handlers, and members that speak JSON, could not use them."""
        sent = MSGPACK_BYTES({"type": name, "id": 1, field: "value"})
        with pytest.raises(BadInput) as caught:
            fields_of(MSGPACK, sent)
        assert (caught.value.code, caught.value.request_id) == ("invalid", 1)

    @pytest.mark.parametrize("key", [5, None, b"type", (1,), 1.5], ids=repr)
    @pytest.mark.parametrize("wrap", [lambda data: data, lambda data: [[data]], lambda data: {"a": {"b": [1, data]}}])
    @pytest.mark.parametrize("name", ["message", "direct_message", "group_message", "of the application"])
    def test_and_so_are_those_inside_of_the_data(self, name: str, wrap: Callable[[Any], Any], key: Any) -> None:
        sent = MSGPACK_BYTES({"type": name, "id": 1, "room": "r", "to": "u", "group": "g", "data": wrap({key: 1})})
        with pytest.raises(BadInput) as caught:
            fields_of(MSGPACK, sent)
        assert (caught.value.code, caught.value.request_id, caught.value.counts) == ("invalid", 1, False)
        assert "keys of a map must be text" in caught.value.message


class TestAnyBytes:
    """A Command or BadInput, and nothing else."""

    @staticmethod
    def check(protocol: ClientProtocol, data: bytes) -> Command | BadInput:
        try:
            outcome: Command | BadInput = protocol.decode(data)
        except BadInput as bad:
            outcome = bad
        if isinstance(outcome, BadInput):
            assert outcome.code in {"malformed", "invalid_utf8", "invalid"}
            assert outcome.counts == (outcome.code in {"malformed", "invalid_utf8"})
            assert outcome.fatal == (
                CloseCause.BAD_DATA if outcome.code == "invalid_utf8" and protocol is JSON else None
            )
            assert type(outcome.request_id) in (str, int, type(None))
            assert protocol.codec.encode(Error(code=outcome.code, message=outcome.message)), "it can be answered"
        else:
            assert isinstance(outcome, Command)
            assert type(outcome.id) in (str, int, type(None))
        return outcome

    @both
    @given(st.binary(max_size=200))
    def test_noise(self, protocol: ClientProtocol, data: bytes) -> None:
        self.check(protocol, data)

    @both
    @given(st.data())
    def test_damaged_messages(self, protocol: ClientProtocol, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(SENT)))
        required, optional = SENT[name]
        fields = data.draw(st.fixed_dictionaries(required, optional=optional))
        good = ENCODERS[protocol.subprotocol]({"type": name, "id": 1, **fields})
        start = data.draw(st.integers(0, len(good)))
        end = data.draw(st.integers(start, min(len(good), start + 3)))
        self.check(protocol, good[:start] + data.draw(st.binary(max_size=3)) + good[end:])

    @both
    @given(st.data())
    def test_known_types_with_any_fields(self, protocol: ClientProtocol, data: st.DataObject) -> None:
        names = st.sampled_from(sorted(COMMANDS))
        known = st.sampled_from(["id", *DEFAULTS, "room", "to", "group", "token", "session", "upto"])
        fields = data.draw(st.dictionaries(known, values | texts, max_size=6))
        self.check(protocol, ENCODERS[protocol.subprotocol]({**fields, "type": data.draw(names)}))

    @given(
        st.dictionaries(
            st.sampled_from(["type", "id", "room", "data", "priority"])
            | st.integers(-5, 5)
            | st.none()
            | st.binary(max_size=3)
            | st.floats(),
            st.sampled_from(["message", "x"])
            | st.floats()
            | st.binary(max_size=5)
            | st.datetimes(timezones=st.just(UTC))
            | st.builds(msgspec.msgpack.Ext, st.integers(-128, 127), st.binary(max_size=16)),
            max_size=6,
        )
    )
    def test_what_only_messagepack_can_say(self, fields: dict[Any, Any]) -> None:
        try:
            data = msgspec.msgpack.encode(fields)
        except ValueError:
            return
        self.check(MSGPACK, data)

    @both
    @pytest.mark.parametrize("where", ["data", "since", "type", "id", "room", "x"])
    @pytest.mark.parametrize("depth", [100, 500, 900, 1_000, 100_000])
    def test_deep_nesting(self, protocol: ClientProtocol, where: str, depth: int) -> None:
        if protocol is JSON:
            lists, maps = b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth
            frame = b'{"type":"message","room":"r","data":1,"%b":%b}'
        else:
            lists, maps = b"\x91" * depth + b"\x90", b"\x81\xa1a" * depth + b"\x80"
            frame = b"\x84\xa4type\xa7message\xa4room\xa1r\xa4data\x01%b%b"
        field = where.encode() if protocol is JSON else msgspec.msgpack.encode(where)
        for inner in (lists, maps):
            outcome = self.check(protocol, frame % (field, inner))
            if depth == 100_000:
                assert isinstance(outcome, BadInput)
                assert outcome.code == "invalid", "it is valid JSON, or MessagePack"

    @pytest.mark.parametrize("request_id", [7, "seven", "", -1])
    @pytest.mark.parametrize(
        "message",
        [
            b'{"id":%b,"type":"message","room":"r","data":%b}',
            b' {"type":"message" , "id" : %b,"room":"r","data":%b}',
            b'{"type":"message","room":"r","x":0,"id":%b,"data":%b}',
            b'{"type":"message","room":"r","data":%b,"id":%b}',
            b'{"type":"message","room":"r","data":%b, "id": %b }\n',
        ],
    )
    def test_what_is_nested_too_deeply_is_refused_with_its_id(self, message: bytes, request_id: str | int) -> None:
        values = (json_bytes(request_id), b"[" * 5_000 + b"]" * 5_000)
        bad = refused(JSON, message % (values[::-1] if message.index(b'"data"') < message.index(b'"id"') else values))
        assert (bad.code, bad.counts) == ("invalid", False)
        # Where the decoder itself gives up, an `id` in the middle of the message is not found.
        assert bad.request_id == request_id or (b'"x":0' in message and bad.request_id is None)

    @pytest.mark.parametrize("digits", [19, 20, 40, 400, 5_000])
    @pytest.mark.parametrize("field", ["id", "priority", "max_delay", "data", "room", "x"])
    def test_huge_integers(self, digits: int, field: str) -> None:
        number = b"9" * digits
        message = b'{"type":"message","room":"r","data":1,"priority":1,"%b":%b}'
        self.check(JSON, message % (field.encode(), number))
        self.check(JSON, message % (field.encode(), b"-" + number))

    @pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"[1e999]", b"9" * 5_000])
    @pytest.mark.parametrize("name", ["message", "direct_message", "of the application"])
    def test_numbers_that_no_float_holds_are_refused_with_the_id(self, name: str, number: bytes) -> None:
        with pytest.raises(BadInput) as caught:
            fields_of(JSON, b'{"type":"%b","room":"r","to":"u","data":%b,"id":3}' % (name.encode(), number))
        assert (caught.value.code, caught.value.request_id, caught.value.counts) == ("invalid", 3, False)

    @pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"01", b"+1", b"0x1"])
    def test_json_has_no_such_numbers(self, number: bytes) -> None:
        bad = self.check(JSON, b'{"type":"message","room":"r","data":%b}' % number)
        assert isinstance(bad, BadInput)
        assert bad.code == "malformed"

    @pytest.mark.parametrize(
        ("text", "mended"),
        [
            (rb"\ud800", "\ufffd"),
            (rb"\uDC00", "\ufffd"),
            (rb"a\ud800\ud800b", "a\ufffd\ufffdb"),
            (rb"\udc00\ud800", "\ufffd\ufffd"),
            (rb"hi \ud83d x", "hi \ufffd x"),
            (rb"\ud83d\ude00\ude00\ud83d\ud83d\ude00", "😀\ufffd\ufffd😀"),
            (rb"\\ud83d \\\ud83d \n\u00e9", "\\ud83d \\\ufffd \né"),
        ],
    )
    def test_lone_surrogates_become_replacement_characters(self, text: bytes, mended: str) -> None:
        """JSON has them, and UTF-8 does not: nothing could be sent on that has one."""
        command = JSON.decode(
            b'{"type":"chat_message","room":"%b","content":"%b","x":"%b","id":2}' % (text, text, text)
        )
        assert isinstance(command, commands.SendChat)
        assert (command.room, decoded(command.content), command.id) == (mended, mended, 2)
        command = JSON.decode(b'{"type":"message","room":"r","data":{"%b":["%b"]}}' % (text, text))
        assert isinstance(command, commands.SendMessage)
        assert decoded(command.data) == {mended: [mended]}
        custom = JSON.decode(b'{"type":"mine","x":"%b"}' % text)
        assert isinstance(custom, Custom)
        assert custom.fields() == {"type": "mine", "x": mended}

    @given(st.text('\ud83d\ude00\ud800ab\\"\n', max_size=12))
    def test_whatever_json_dumps_makes_is_understood(self, text: str) -> None:
        command = JSON.decode(json_bytes({"type": "chat_message", "room": "r", "content": text}))
        assert isinstance(command, commands.SendChat)
        paired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert decoded(command.content) == paired

    def test_the_bytes_of_a_message_are_one_line(self) -> None:
        """So that a protocol with a message for each line can carry them."""
        command = JSON.decode(b'{"type": "message",\r\n"room":"r", "data": {\n"a": [1,\r2]}}\n')
        assert isinstance(command, commands.SendMessage)
        assert command.data == msgspec.Raw(b'{"a":[1,2]}')

    NOT_UTF8 = (b"\xff", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"\xc0\x80", b"\xf5\x80\x80\x80")

    @pytest.mark.parametrize("text", NOT_UTF8)
    @pytest.mark.parametrize("field", ["type", "room", "data", "x"])
    def test_text_that_is_not_utf8_ends_a_json_connection(self, field: str, text: bytes) -> None:
        outcome = self.check(JSON, b'{"type":"message","room":"r","data":1,"%b":"%b"}' % (field.encode(), text))
        assert isinstance(outcome, BadInput)
        assert (outcome.code, outcome.fatal) == ("invalid_utf8", CloseCause.BAD_DATA)

    @pytest.mark.parametrize("text", NOT_UTF8)
    def test_and_only_counts_in_messagepack(self, text: bytes) -> None:
        bad = self.check(MSGPACK, b"\x81\xa4type" + bytes((0xA0 | len(text),)) + text)
        assert isinstance(bad, BadInput)
        assert (bad.code, bad.fatal) == ("invalid_utf8", None)

    @pytest.mark.parametrize("code", [-128, -2, 0, 1, 5, 127])
    def test_extension_types_are_refused(self, code: int) -> None:
        for data in (msgspec.msgpack.Ext(code, b"x"), [msgspec.msgpack.Ext(code, b"")]):
            bad = refused_fields(MSGPACK, {"type": "message", "id": 1, "room": "r", "data": data})
            assert (bad.code, bad.request_id, bad.counts) == ("invalid", 1, False)
            assert str(code) in bad.message

    def test_a_timestamp_is_no_extension(self) -> None:
        now = datetime(2026, 11, 20, 12, tzinfo=UTC)
        command = decode(MSGPACK, {"type": "message", "room": "r", "data": now})
        assert isinstance(command, commands.SendMessage)
        assert decoded(command.data) == now

    @pytest.mark.parametrize(
        "data",
        [
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xff",
            b"\x81\xa4type\xc6\xff\xff\xff\xff",
        ],
    )
    def test_lengths_that_are_only_claimed(self, data: bytes) -> None:
        assert isinstance(self.check(MSGPACK, data), BadInput)

    @pytest.mark.parametrize("data", [b"", b" ", b"{}{}", b'{"type":"heartbeat"} x', b"\xef\xbb\xbf{}", b"{", b"\x00"])
    def test_json_that_is_none(self, data: bytes) -> None:
        outcome = self.check(JSON, data)
        assert isinstance(outcome, BadInput)
        assert outcome.code == ("invalid" if data == b"{}" else "malformed")

    def test_messagepack_with_something_after_it(self) -> None:
        assert refused(MSGPACK, msgspec.msgpack.encode({"type": "heartbeat"}) + b"\xc0").code == "malformed"


def subclasses(kind: type) -> Iterable[type]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


TIME = "2026-11-20T12:00:00.000Z"
EVENTS: list[tuple[Event, dict[str, Any]]] = [
    (
        messages.Connected(
            connection_id="c",
            session="s",
            user_id="u",
            timestamp=TIME,
            heartbeat=25.0,
            max_message_bytes=9,
            server="t/1",
        ),
        {
            "type": "connected",
            "connection_id": "c",
            "session": "s",
            "user_id": "u",
            "timestamp": TIME,
            "heartbeat": 25.0,
            "max_message_bytes": 9,
            "server": "t/1",
        },
    ),
    (
        messages.ChatMessage(room="r", content="hi", user_id="u", timestamp=TIME),
        {"type": "chat_message", "room": "r", "content": "hi", "user_id": "u", "timestamp": TIME},
    ),
    (
        messages.ChatMessage(room="r", content="hi", timestamp=TIME),
        {"type": "chat_message", "room": "r", "content": "hi", "user_id": None, "timestamp": TIME},
    ),
    (Message(data=None, timestamp=TIME), {"type": "message", "data": None, "timestamp": TIME}),
    (
        Message(data={"a": [1, "é"]}, room="r", user_id="u", key="k", timestamp=TIME),
        {"type": "message", "data": {"a": [1, "é"]}, "room": "r", "user_id": "u", "key": "k", "timestamp": TIME},
    ),
    (
        messages.DirectMessage(to="u", content="", user_id="v", timestamp=TIME),
        {"type": "direct_message", "to": "u", "content": "", "user_id": "v", "timestamp": TIME},
    ),
    (
        messages.GroupMessage(group="g", data=0, timestamp=TIME),
        {"type": "group_message", "group": "g", "data": 0, "timestamp": TIME},
    ),
    (
        messages.System(action="count", room="r", online_count=3, timestamp=TIME),
        {"type": "system", "action": "count", "room": "r", "online_count": 3, "timestamp": TIME},
    ),
    (messages.HeartbeatAck(timestamp=TIME), {"type": "heartbeat_ack", "timestamp": TIME}),
    (messages.Ack(id=0), {"type": "ack", "id": 0}),
    (
        messages.Ack(id="x", delivered=1, queued=0, dropped=0),
        {"type": "ack", "id": "x", "delivered": 1, "queued": 0, "dropped": 0},
    ),
    (Error(code="c", message="m"), {"type": "error", "code": "c", "message": "m"}),
    (
        Error(code="c", message="m", id=1, room="r"),
        {"type": "error", "code": "c", "message": "m", "id": 1, "room": "r"},
    ),
    (messages.Gap(dropped=2), {"type": "gap", "dropped": 2}),
    (
        messages.Gap(room="r", dropped=2, epoch="e", start=3, to=4),
        {"type": "gap", "room": "r", "dropped": 2, "epoch": "e", "from": 3, "to": 4},
    ),
    (
        messages.ChatMessage(room="r", epoch="e", offset=7, content="hi", user_id="u", timestamp=TIME),
        {
            "type": "chat_message",
            "room": "r",
            "epoch": "e",
            "offset": 7,
            "content": "hi",
            "user_id": "u",
            "timestamp": TIME,
        },
    ),
    (
        messages.Ack(id=1, rooms={"r": messages.Resumed(recovered=True, online_count=1)}, messages=[Message(data=1)]),  # type: ignore[list-item]
        {
            "type": "ack",
            "id": 1,
            "rooms": {"r": {"recovered": True, "online_count": 1}},
            "messages": [{"type": "message", "data": 1, "timestamp": ""}],
        },
    ),
    (messages.Reconnect(after=1.5, reason="r"), {"type": "reconnect", "after": 1.5, "reason": "r"}),
]


class TestEvents:
    def test_the_table_of_this_test_knows_every_event(self) -> None:
        assert {type(event) for event, _ in EVENTS} == set(subclasses(Event)) - {messages.Published, messages.Recorded}

    @both
    @pytest.mark.parametrize(("event", "fields"), EVENTS, ids=lambda each: type(each).__name__)
    def test_bytes_are_what_the_contract_says(
        self, protocol: ClientProtocol, event: Event, fields: dict[str, Any]
    ) -> None:
        """No more and no less, what is UNSET is left out; `type` comes first, for whoever reads the wire."""
        decoded = DECODERS[protocol.subprotocol](protocol.codec.encode(event))
        assert decoded == fields
        assert next(iter(decoded)) == "type"

    @both
    @given(data=values, room=names)
    def test_data_comes_out_as_it_went_in(self, protocol: ClientProtocol, data: Any, room: str) -> None:
        decoded = DECODERS[protocol.subprotocol](protocol.codec.encode(Message(data=data, room=room)))
        assert decoded == {"type": "message", "data": data, "room": room, "timestamp": ""}

    @both
    @pytest.mark.parametrize(
        "data",
        [object(), "\ud800", {"a": "\udfff"}, {None: {object(): 1}}, 1j],
        ids=["object", "surrogate", "surrogate inside", "objects inside", "complex number"],
    )
    def test_data_that_no_client_could_read_is_refused(self, protocol: ClientProtocol, data: Any) -> None:
        with pytest.raises(UnencodableData, match=protocol.codec.name):
            protocol.codec.encode(Message(data=data))

    @both
    def test_data_that_is_nested_too_deeply_is_refused(self, protocol: ClientProtocol) -> None:
        deep: Any = []
        for _ in range(100_000):
            deep = [deep]
        with pytest.raises(UnencodableData):
            protocol.codec.encode(Message(data=deep))

    @pytest.mark.parametrize("data", [2**64, -(2**63) - 1, 2**70])
    def test_an_integer_of_more_than_64_bits_is_for_json_only(self, data: int) -> None:
        assert json.loads(JSON.codec.encode(Message(data=data)))["data"] == data
        with pytest.raises(UnencodableData):
            MSGPACK.codec.encode(Message(data=data))


class TestBatch:
    @both
    @given(sent=st.lists(values, min_size=1, max_size=20))
    def test_an_envelope_is_its_messages_in_order(self, protocol: ClientProtocol, sent: list[Any]) -> None:
        payloads = [protocol.codec.encode(Message(data=data)) for data in sent]
        self.check(protocol, payloads, TIME)

    @both
    @pytest.mark.parametrize("count", [1, 2, 14, 15, 16, 17, 255, 256, 65534, 65535])
    def test_of_every_size_that_the_options_allow(self, protocol: ClientProtocol, count: int) -> None:
        self.check(protocol, [ENCODERS[protocol.subprotocol]({"n": n}) for n in range(count)], TIME)

    @staticmethod
    def check(protocol: ClientProtocol, payloads: list[bytes], timestamp: str) -> None:
        read = DECODERS[protocol.subprotocol]
        envelope = protocol.codec.batch(payloads, timestamp)
        expected = {
            "type": "batch",
            "timestamp": timestamp,
            "count": len(payloads),
            "messages": [read(payload) for payload in payloads],
        }
        assert read(envelope) == expected
        if protocol is MSGPACK:
            assert envelope == msgspec.msgpack.encode(expected), "it can be written shorter"


class TestChoice:
    def test_the_names_are_those_of_the_contract(self) -> None:
        assert {name: (protocol.codec.text, protocol.batches) for name, protocol in PROTOCOLS.items()} == {
            "trioswitch.v1": (True, False),
            "trioswitch.v1.batch": (True, True),
            "trioswitch.v1.msgpack": (False, True),
        }

    def test_the_two_in_json_share_every_byte(self) -> None:
        assert JSON.codec is JSON_BATCH.codec

    @pytest.mark.parametrize(
        ("proposed", "chosen"),
        [
            ([], JSON),
            (["soap"], JSON),
            (["trioswitch.v1.msgpack"], MSGPACK),
            (["soap", "trioswitch.v1.batch", "trioswitch.v1"], JSON_BATCH),
            (["trioswitch.v1", "trioswitch.v1.batch"], JSON),
            (["TRIOSWITCH.V1.BATCH"], JSON),
        ],
    )
    def test_the_clients_first_that_is_known_else_json(self, proposed: list[str], chosen: ClientProtocol) -> None:
        assert choose(proposed) is chosen
