"""What a client says and what it is told: one suite for both transports."""

import pytest
import trio
from support import running, settled
from trio.testing import MockClock

from trioswitch import Identity, Options, Overflow, Refused, RoomPolicy


async def test_the_first_message_is_the_welcome(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app:
        client = await app.connect(welcome=False)
        welcome = await client.receive()
        assert welcome["type"] == "connected"
        assert welcome["connection_id"] in app.switch.connections()
        assert welcome["heartbeat"] == 25.0
        assert welcome["timestamp"].endswith("Z")
        assert welcome["user_id"] == welcome["connection_id"]


async def test_members_chat(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app:
        ann, bob = await app.connect(), await app.connect()
        await ann.send("join_room", room="r", user_id="ann")
        joined = await ann.receive()
        assert joined | {"timestamp": ""} == {
            "type": "system", "action": "user_joined", "room": "r", "user_id": "ann", "online_count": 1, "timestamp": "",
        }  # fmt: skip
        await bob.send("join_room", room="r", user_id="bob")
        for client in (ann, bob):
            joined = await client.receive()
            assert (joined["action"], joined["user_id"], joined["online_count"]) == ("user_joined", "bob", 2)
        await ann.send("chat_message", room="r", content="你好")
        for client in (ann, bob):
            line = await client.receive()
            assert (line["type"], line["room"], line["content"], line["user_id"]) == (
                "chat_message",
                "r",
                "你好",
                "ann",
            )
            assert line["timestamp"].endswith("Z")
        await bob.send("leave_room", room="r")
        left = await ann.receive()
        assert (left["action"], left["user_id"], left["online_count"]) == ("user_left", "bob", 1)
        await ann.send("chat_message", room="r", content="alone")
        await bob.nothing_more()


async def test_going_away_is_announced(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app:
        ann, bob = await app.connect(), await app.connect()
        await ann.join("r", user_id="ann")
        await bob.join("r", user_id="bob")
        await bob.websocket.aclose()
        left = await ann.receive_until(action="user_left")
        assert (left["user_id"], left["online_count"]) == ("bob", 1)
        assert app.switch.users_in("r") == ["ann"]


async def test_every_command_with_an_id_gets_one_answer(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app:
        client = await app.connect()
        app.switch.add_to_group("g", "ann")
        wanted = [
            ("join_room", {"room": "r", "user_id": "ann"}, {"type": "ack", "room": "r", "online_count": 1}),
            ("join_room", {"room": "r"}, {"type": "ack", "online_count": 1}),
            ("chat_message", {"room": "r", "content": "x"}, {"type": "ack", "dropped": 0}),
            ("message", {"room": "r", "data": [1]}, {"type": "ack"}),
            ("direct_message", {"to": "ann", "data": 1}, {"type": "ack"}),
            ("group_message", {"group": "g", "content": "x"}, {"type": "ack"}),
            ("heartbeat", {}, {"type": "ack"}),
            ("presence", {"room": "r"}, {"type": "ack", "users": ["ann"], "count": 1}),
            ("leave_room", {"room": "r"}, {"type": "ack", "room": "r"}),
            ("leave_room", {"room": "r"}, {"type": "error", "code": "not_joined"}),
            ("chat_message", {"room": "r", "content": "x"}, {"type": "error", "code": "not_joined"}),
            ("chat_message", {"room": "r"}, {"type": "error", "code": "invalid"}),
            ("chat_message", {"room": "r", "content": 1}, {"type": "error", "code": "invalid"}),
            ("chat_message", {"room": "", "content": "x"}, {"type": "error", "code": "invalid"}),
            ("message", {"room": "r", "data": 1, "priority": 11}, {"type": "error", "code": "invalid"}),
            ("direct_message", {"to": "nobody", "content": "x"}, {"type": "ack", "kept": 1, "seq": 1}),
            ("direct_message", {"to": "ann"}, {"type": "error", "code": "invalid"}),
            ("group_message", {"group": "other", "content": "x"}, {"type": "error", "code": "forbidden"}),
            ("join_room", {"room": "q", "history": 10}, {"type": "ack"}),
            ("join_room", {"room": "q", "since": {"epoch": "e", "offset": 1}}, {"type": "ack", "recovered": False}),
            ("history", {"room": "r"}, {"type": "error", "code": "not_available"}),
            ("resume", {"session": "s"}, {"type": "error", "code": "unknown_session"}),
            ("inbox_ack", {"upto": 1}, {"type": "ack", "upto": 1}),
            ("authenticate", {"token": "t"}, {"type": "error", "code": "not_available"}),
            ("no_such_type", {}, {"type": "error", "code": "unknown_type"}),
        ]
        for number, (kind, fields, _answer) in enumerate(wanted):
            await client.send(kind, id=number, **fields)  # type: ignore[arg-type]
        answers: dict[int, dict[str, object]] = {}
        while len(answers) < len(wanted):
            message = await client.receive()
            if "id" in message:
                assert message["id"] not in answers, "answered twice"
                answers[message["id"]] = message
        for number, (kind, fields, answer) in enumerate(wanted):
            assert answer.items() <= answers[number].items(), (kind, fields, answers[number])  # type: ignore[attr-defined]
        with trio.move_on_after(5):
            while "id" not in (message := await client.receive()):
                pass  # an announcement, which may come after the answers
            raise AssertionError(message)


async def test_what_is_no_message_counts_against_the_error_budget(clock: MockClock, transport: str) -> None:
    async with running(Options(max_errors=3), transport=transport) as app:
        client = await app.connect()
        for payload in ("not json", "[1, 2]", '"text"'):
            await client.send_raw(payload)
            assert (await client.receive())["code"] == "malformed"
        await client.send("heartbeat")  # a good message in between, and the count starts again
        assert (await client.receive())["type"] == "heartbeat_ack"
        for _ in range(4):
            await client.send_raw("{")
        assert await client.closed() == (1008, "too many errors")


async def test_a_wrong_type_is_no_reason_to_close(clock: MockClock, transport: str) -> None:
    async with running(Options(max_errors=0), transport=transport) as app:
        client = await app.connect()
        for _ in range(20):
            await client.send("chat_message", room=5, content="x")
            error = await client.receive()
            assert error["code"] == "invalid"
            assert "room" in error["message"]


@pytest.mark.parametrize(
    "subprotocol", [None, "trioswitch.v1", "trioswitch.v1.batch", "trioswitch.v1.msgpack", "other"]
)
async def test_every_subprotocol_carries_the_same_messages(
    clock: MockClock, transport: str, subprotocol: str | None
) -> None:
    async with running(transport=transport) as app:
        client, plain = await app.connect(subprotocol=subprotocol), await app.connect()
        assert client.websocket.subprotocol == (subprotocol if subprotocol != "other" else None)
        await client.join("r", user_id="ann")
        await plain.join("r", user_id="bob")
        data = {"text": "ü", "list": [1, 2.5, None, True]}
        await client.send("message", room="r", data=data, key="k")
        for receiver in (client, plain):
            message = await receiver.receive_until(type="message")
            assert message["data"] == data
            assert message["key"] == "k"
            assert message["user_id"] == "ann"


async def test_exclude_self(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app:
        ann, bob = await app.connect(), await app.connect()
        await ann.join("r")
        await bob.join("r")
        await ann.receive_until(action="user_joined", online_count=2)
        answer = await ann.ask("message", room="r", data=1, exclude_self=True)
        assert answer["delivered"] + answer["queued"] == 1
        assert (await bob.receive_until(type="message"))["data"] == 1
        await ann.nothing_more()


async def test_direct_and_group_messages_reach_every_connection_of_a_user(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app:
        phone, laptop, bob = await app.connect(), await app.connect(), await app.connect()
        for device in (phone, laptop):
            await device.join("r", user_id="ann")
        await bob.join("q", user_id="bob")
        answer = await bob.ask("direct_message", to="ann", content="hi")
        assert answer["delivered"] + answer["queued"] == 2
        for device in (phone, laptop):
            message = await device.receive_until(type="direct_message")
            assert (message["content"], message["user_id"], message["to"]) == ("hi", "bob", "ann")
        app.switch.add_to_group("staff", "ann")
        app.switch.add_to_group("staff", "bob")
        await bob.send("group_message", group="staff", data=[1])
        for client in (phone, laptop, bob):
            message = await client.receive_until(type="group_message")
            assert (message["group"], message["data"], message["user_id"]) == ("staff", [1], "bob")


async def test_a_new_name_is_told_to_the_rooms(clock: MockClock) -> None:
    async with running() as app:
        ann, bob = await app.connect(), await app.connect()
        await ann.join("r", user_id="ann")
        await bob.join("r")
        await ann.receive_until(action="user_joined", user_id=bob.connection_id)
        await bob.send("join_room", room="q", user_id="bob")
        left, joined = await ann.receive(), await ann.receive()
        assert (left["action"], left["user_id"]) == ("user_left", bob.connection_id)
        assert (joined["action"], joined["user_id"], joined["online_count"]) == ("user_joined", "bob", 2)
        assert app.switch.users_in("r") == ["ann", "bob"]
        assert app.switch.connections(bob.connection_id) == []
        assert (await bob.ask("chat_message", room="r", content="x", user_id="robert"))["code"] == "forbidden"
        for room in ("r", "q"):
            await bob.ask("leave_room", room=room)
        await bob.join("r", user_id="robert")
        assert app.switch.users_in("r") == ["ann", "robert"]


async def test_big_rooms_hear_the_count_at_most_once_a_second(clock: MockClock, transport: str) -> None:
    async with running(Options(policies=(RoomPolicy(announce_limit=2),)), transport=transport) as app:
        clients = [await app.connect() for _ in range(6)]
        await clients[0].join("r")
        await clients[0].receive_until(action="user_joined", online_count=1)
        await clients[1].join("r")
        await clients[0].receive_until(action="user_joined", online_count=2)
        for client in clients[2:]:
            await client.join("r")
        count = await clients[0].receive()
        assert (count["action"], count["online_count"]) == ("count", 6) or count["online_count"] == 3
        if count["online_count"] == 3:
            count = await clients[0].receive()
            assert (count["action"], count["online_count"]) == ("count", 6)
        before = trio.current_time()
        await clients[5].send("leave_room", room="r")
        await clients[4].send("leave_room", room="r")
        count = await clients[0].receive()
        assert (count["action"], count["online_count"]) == ("count", 4)
        assert trio.current_time() - before > 0.5
        await clients[0].nothing_more()


async def test_announcements_can_be_off(clock: MockClock, transport: str) -> None:
    async with running(Options(policies=(RoomPolicy(pattern="q*", announce=False),)), transport=transport) as app:
        client = await app.connect()
        await client.join("quiet")
        await client.nothing_more()
        await client.send("join_room", room="loud")
        assert (await client.receive())["action"] == "user_joined"


async def test_limits_of_one_connection(clock: MockClock, transport: str) -> None:
    async with running(Options(max_rooms=2, max_message_bytes=1000), transport=transport) as app:
        client = await app.connect()
        await client.join("a")
        await client.join("b")
        assert (await client.ask("join_room", room="c"))["code"] == "too_many_rooms"
        await client.join("a")  # it is in there already
        if transport == "native":  # in memory, trio-websocket's limit is the program's own to set
            await client.send("chat_message", room="a", content="x" * 1000)
            assert (await client.closed())[0] == 1009


async def test_identity_and_permissions(clock: MockClock, transport: str) -> None:
    async def authenticate(token: str) -> Identity:
        if token != "good":
            raise Refused("this token is not known")
        return Identity(user="ann", join=("a.*",), publish=("news", "b.*"))

    async with running(transport=transport, authenticate=authenticate) as app:
        ann = await app.connect(path="/ws?token=good")
        other = await app.connect(headers=[(b"Authorization", b"Bearer good")])
        assert (await ann.ask("join_room", room="b"))["code"] == "forbidden"
        assert (await ann.ask("presence", room="b"))["code"] == "forbidden"
        assert (await ann.ask("join_room", room="a.1", user_id="bob"))["code"] == "forbidden"
        await other.join("a.1")
        assert (await ann.ask("chat_message", room="a.1", content="x"))["code"] == "forbidden"
        await ann.join("a.1", user_id="ann")
        assert (await ann.ask("chat_message", room="a.1", content="x"))["code"] == "forbidden", (
            "joining is not publishing"
        )
        assert (await ann.ask("chat_message", room="b.1", content="x"))["type"] == "ack"
        assert (await ann.ask("chat_message", room="a.1", content="x", user_id="bob"))["code"] == "forbidden"
        async with app.switch.subscribe("news") as news:
            assert (await ann.ask("chat_message", room="news", content="x"))["type"] == "ack"
            assert (await anext(news)).user_id == "ann"  # type: ignore[attr-defined]
        late = await app.connect()
        assert len(app.switch.connections()) == 2
        assert (await late.ask("authenticate", token="good"))["user_id"] == "ann"
        await late.join("a.1")
        assert (await late.ask("authenticate", token="good"))["user_id"] == "ann", "a newer token"
        assert len(app.switch.connections("ann")) == 3


async def test_who_does_not_authenticate_in_time_is_closed(clock: MockClock, transport: str) -> None:
    async def authenticate(token: str) -> Identity:
        raise Refused("no")

    async with running(transport=transport, authenticate=authenticate) as app:
        idle, wrong = await app.connect(), await app.connect()
        await wrong.send("authenticate", token="bad")
        assert (await wrong.receive())["code"] == "unauthorised"
        assert (await wrong.closed())[0] == 4500
        assert (await idle.closed())[0] == 4500


async def test_a_publisher_of_a_full_room_waits(clock: MockClock, transport: str) -> None:
    """It is not read on, nothing is lost, and everybody gets everything in order."""
    options = Options(room_messages=4, window_messages=2, policies=(RoomPolicy(overflow=Overflow.BLOCK),))
    async with running(options, transport=transport) as app:
        ann, bob = await app.connect(), await app.connect()
        await bob.join("r")
        await ann.join("r")
        async with trio.open_nursery() as nursery:

            async def publish() -> None:
                for number in range(200):
                    await ann.send("message", room="r", data=number, exclude_self=True)

            nursery.start_soon(publish)
            for number in range(200):
                assert (await bob.receive_until(type="message"))["data"] == number
        await settled()
        assert app.switch.statistics().drops == {}


async def test_two_clients_of_different_codecs_share_a_room_whatever_is_sent(clock: MockClock, transport: str) -> None:
    """An integer that MessagePack cannot carry is an error for its receivers, and nothing to the others."""
    async with running(transport=transport) as app:
        text, binary = await app.connect(), await app.connect(subprotocol="trioswitch.v1.msgpack")
        await text.join("r")
        await binary.join("r")
        await text.send_raw('{"type": "message", "room": "r", "data": 123456789012345678901234567890}')
        assert (await text.receive_until(type="message"))["data"] == 123456789012345678901234567890
        assert (await binary.receive_until(type="error"))["code"] == "unencodable"
        await text.send("message", room="r", data="still here")
        assert (await binary.receive_until(type="message"))["data"] == "still here"


@pytest.mark.parametrize("linger", [0.0, 0.05])
async def test_who_reads_may_publish_as_fast_as_it_can(clock: MockClock, transport: str, linger: float) -> None:
    """A thousand publishes in one breath, each with an id: every one is acknowledged, and nobody is called slow."""
    async with running(Options(linger=linger), transport=transport) as app:
        client = await app.connect()
        await client.join("r")
        async with trio.open_nursery() as nursery:

            async def publish() -> None:
                for number in range(1000):
                    await client.send("message", room="r", id=number, data=number, exclude_self=True)

            nursery.start_soon(publish)
            for number in range(1000):
                await client.receive_until(type="ack", id=number)


@pytest.mark.parametrize("kind", ["message", "direct_message"])
async def test_a_key_belongs_to_its_user(clock: MockClock, kind: str) -> None:
    async with running() as app:
        bob, ada, eve = [await app.connect() for _ in range(3)]
        for client, user in ((bob, "bob"), (ada, "ada"), (eve, "eve")):
            await client.join("r", user_id=user)
        place = {"room": "r"} if kind == "message" else {"to": "bob"}
        for client, data in ((eve, "eve's"), (ada, "ada's"), (ada, "again")):
            await client.ask(kind, data=data, idempotency_key="1", **place)
        if kind == "message":
            await app.switch.publish("r", "the server's", idempotency_key="1")
        else:
            await app.switch.send_to_user("bob", "the server's", idempotency_key="1")
        assert [(await bob.receive_until(type=kind))["data"] for _ in range(3)] == ["eve's", "ada's", "the server's"]


async def test_unnamed_clients_share_their_keys(clock: MockClock) -> None:
    """A client without a name is another one on each connection: its retry is known all the same."""
    async with running() as app:
        first, ada, second = [await app.connect() for _ in range(3)]
        await ada.join("r", user_id="ada")
        for client in (first, second):
            await client.join("r")
        assert "duplicate" not in await first.ask("message", room="r", data=1, idempotency_key="1")
        assert "duplicate" not in await ada.ask("message", room="r", data=2, idempotency_key="1")
        assert (await second.ask("message", room="r", data=1, idempotency_key="1"))["duplicate"]
        for key in ("ada\0" + "1", "\0" + "1"):  # not another's key by another way
            answer = await first.ask("message", room="r", data=3, idempotency_key=key)
            assert (answer["type"], answer["code"]) == ("error", "invalid")


@pytest.mark.parametrize("key", ["", "x" * 65, "\ud800", "a\0b"])
async def test_the_servers_keys_are_checked(clock: MockClock, key: str) -> None:
    async with running() as app:
        with pytest.raises(ValueError, match="idempotency_key"):
            await app.switch.publish("r", 1, idempotency_key=key)
