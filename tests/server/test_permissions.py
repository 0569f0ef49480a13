"""Who a client is, and what it may do: hooks and what they return, origins, names, reading and publishing."""

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from raw import RawPeer, upgrade
from support import App, Client, listening, running, settled
from trio.testing import MockClock

from trioswitch import (
    Connection,
    ConnectRequest,
    HistoryStorage,
    Identity,
    JoinRequest,
    Options,
    PublishRequest,
    Refused,
    RoomPolicy,
    UnencodableData,
)
from trioswitch.messages import ChatMessage, Message
from trioswitch.stores.memory import MemoryStore

TRANSPORTS = pytest.mark.parametrize("transport", ["native", "trio-websocket"])
ANN = Identity(user="ann")


async def by_token(token: str) -> Identity:
    if token == "ann":
        return ANN
    raise Refused("this token is not known")


# --- before authentication a connection is nobody


@TRANSPORTS
async def test_a_client_without_a_token_is_nobody(clock: MockClock, transport: str) -> None:
    async with running(transport=transport, authenticate=by_token) as app:
        ann, nobody = await app.connect(path="/?token=ann"), await app.connect()
        switch = app.switch
        assert switch.connections() == [ann.connection_id]
        assert switch.connections(nobody.connection_id) == []
        receipt = await switch.broadcast("secret")
        assert receipt.delivered + receipt.queued == 1
        assert switch.statistics().users == 1
        assert switch.statistics().active_connections == 2, "the limit on connections holds for it"
        answer = await nobody.ask("authenticate", token="ann")
        assert answer["user_id"] == "ann"
        assert len(switch.connections("ann")) == 2
        await switch.broadcast("for both")
        assert (await nobody.receive_until(type="message"))["data"] == "for both"


@TRANSPORTS
async def test_a_client_that_sends_no_token_is_closed_after_the_handshake_timeout(
    clock: MockClock, transport: str
) -> None:
    async with running(Options(handshake_timeout=7.0), transport=transport, authenticate=by_token) as app:
        ann, late, silent = await app.connect(path="/?token=ann"), await app.connect(), await app.connect()
        start = trio.current_time()
        await trio.sleep(6)
        await late.ask("authenticate", token="ann")
        assert (await silent.closed())[0] == 4500
        assert trio.current_time() - start == pytest.approx(7, abs=0.1)
        await trio.sleep(60)
        for client in (ann, late):
            await client.nothing_more()


@TRANSPORTS
@pytest.mark.parametrize(
    ("type", "fields"),
    [
        ("heartbeat", {}),
        ("join_room", {"room": "r"}),
        ("mine", {}),
        ("authenticate", {"token": "x" * 20_000}),
    ],
)
async def test_its_first_message_must_be_a_small_authenticate(
    clock: MockClock, transport: str, type: str, fields: dict[str, Any]
) -> None:
    called: list[str] = []

    async def authenticate(token: str) -> Identity:
        called.append(token)
        return ANN

    async with running(transport=transport, authenticate=authenticate) as app:
        client = await app.connect()
        assert (await client.ask(type, **fields))["code"] == "unauthorised"
        assert (await client.closed())[0] == 4500
        assert not called


@TRANSPORTS
async def test_a_drain_closes_it_too(clock: MockClock, transport: str) -> None:
    async with running(transport=transport, authenticate=by_token) as app:
        client = await app.connect()
        closed = []

        async def read() -> None:
            closed.append(await client.closed())

        app.nursery.start_soon(read)
        assert await app.switch.drain(5)
        await settled()
        assert closed[0][0] == 1001


# --- one admission, whichever way the token came


@TRANSPORTS
@pytest.mark.parametrize("late", [True, False])
async def test_on_connect_is_called_once_and_knows_the_identity(clock: MockClock, transport: str, late: bool) -> None:
    seen: list[ConnectRequest] = []

    async def on_connect(request: ConnectRequest) -> Identity:
        seen.append(request)
        assert request.identity is not None
        return attrs.evolve(request.identity, join=("allowed",))

    async with running(transport=transport, authenticate=by_token, on_connect=on_connect) as app:
        client = await app.connect(path="/?token=ann" if not late else "/")
        if late:
            assert not seen
            await client.ask("authenticate", token="ann")
        assert [(request.token, request.identity) for request in seen] == [("ann", ANN)]
        assert (await client.ask("join_room", room="other"))["code"] == "forbidden"
        assert (await client.ask("join_room", room="allowed"))["type"] == "ack"


@TRANSPORTS
@pytest.mark.parametrize(("code", "close_code"), [("forbidden", 4501), ("unauthorised", 4500), ("mine", 4501)])
async def test_on_connect_refuses_a_client_that_authenticates_late(
    clock: MockClock, transport: str, code: str, close_code: int
) -> None:
    async def on_connect(request: ConnectRequest) -> None:
        raise Refused("not today", code=code)

    async with running(transport=transport, authenticate=by_token, on_connect=on_connect) as app:
        client = await app.connect()
        answer = await client.ask("authenticate", token="ann")
        assert (answer["code"], answer["message"]) == (code, "not today")
        assert (await client.closed())[0] == close_code
        assert not app.switch.connections()


# --- what hooks return is checked


@TRANSPORTS
@pytest.mark.parametrize("answer", [False, True, "ann", 0, {"user": "ann"}, Identity], ids=repr)
@pytest.mark.parametrize("hook", ["on_connect", "authenticate"])
@pytest.mark.parametrize("late", [True, False])
async def test_a_hook_that_returns_no_identity_refuses_the_client(
    clock: MockClock, transport: str, hook: str, late: bool, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def returns(_argument: Any) -> Any:
        return answer

    hooks = {"authenticate": by_token, hook: returns}
    async with running(transport=transport, **hooks) as app:  # type: ignore[arg-type]
        if late:
            client = await app.connect()
            assert (await client.ask("authenticate", token="ann"))["code"] == "internal"
            assert (await client.closed())[0] == 1011
        else:
            peer = RawPeer(await app.stream())
            await peer.send(upgrade("/?token=ann"))
            assert (await peer.answer()).status == 500
            await peer.aclose()
        await settled()
        assert not app.switch.connections()
    assert f"{hook} must return an Identity" in caplog.text


@TRANSPORTS
async def test_authenticate_must_not_return_none(
    clock: MockClock, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def returns_none(_token: str) -> Any:
        return None

    async with running(transport=transport, authenticate=returns_none) as app:
        client = await app.connect()
        assert (await client.ask("authenticate", token="ann"))["code"] == "internal"
        assert (await client.closed())[0] == 1011
    assert "authenticate must return an Identity, not None" in caplog.text


@pytest.mark.parametrize("hook", ["authenticate", "on_connect", "on_disconnect", "on_join", "on_publish"])
@pytest.mark.parametrize("value", [lambda *_: None, 5, "hook", print], ids=["lambda", "int", "str", "print"])
async def test_hooks_must_be_async_functions(clock: MockClock, hook: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{hook} must be an async function"):
        async with running(**{hook: value}):
            pass


# --- names


@TRANSPORTS
@pytest.mark.parametrize("hook", ["authenticate", "on_connect"])
async def test_a_guest_cannot_take_the_name_of_a_user(clock: MockClock, transport: str, hook: str) -> None:
    async def authenticate(token: str) -> Identity:
        return Identity(user="boss" if token == "boss" else None)

    async def on_connect(request: ConnectRequest) -> Identity | None:
        return Identity(user="boss") if request.token == "boss" else None

    hooks: dict[str, Any] = {"authenticate": authenticate} if hook == "authenticate" else {"on_connect": on_connect}
    async with running(transport=transport, **hooks) as app:
        app.switch.add_to_group("staff", "boss")
        await app.switch.send_to_user("boss", "secret")
        guest = await app.connect(path="/?token=guest")
        for fields in ({"room": "r", "user_id": "boss"}, {"room": "r", "user_id": "anybody"}):
            assert (await guest.ask("join_room", **fields))["code"] == "forbidden"
        assert (await guest.ask("join_room", room="r"))["user_id"] == guest.connection_id
        answer = await guest.ask("chat_message", room="r", content="x", user_id="boss")
        assert answer["code"] == "forbidden"
        assert (await guest.ask("group_message", group="staff", content="x"))["code"] == "forbidden"
        await guest.ask("inbox_ack", upto=1)
        boss = await app.connect(path="/?token=boss", welcome=False)
        assert (await boss.receive_until(type="direct_message"))["data"] == "secret"


@TRANSPORTS
async def test_guests_may_choose_names_where_the_application_says_so(clock: MockClock, transport: str) -> None:
    async def on_connect(request: ConnectRequest) -> Identity:
        return Identity(user=None, may_choose_name=True)

    async with running(transport=transport, on_connect=on_connect) as app:
        client = await app.connect()
        assert (await client.ask("join_room", room="r", user_id="ann"))["user_id"] == "ann"


@TRANSPORTS
@pytest.mark.parametrize(
    ("type", "field", "rest"),
    [
        ("join_room", "room", {}),
        ("join_room", "user_id", {"room": "r"}),
        ("presence", "room", {}),
        ("history", "room", {}),
        ("direct_message", "to", {"content": "x"}),
        ("chat_message", "room", {"content": "x"}),
        ("message", "room", {"data": "x"}),
    ],
)
async def test_names_have_up_to_255_bytes(
    clock: MockClock, transport: str, type: str, field: str, rest: dict[str, Any]
) -> None:
    async def on_connect(request: ConnectRequest) -> Identity:
        return Identity(user=None, publish=("*",), may_choose_name=True)

    async with running(transport=transport, on_connect=on_connect) as app:
        client = await app.connect()
        for name, fits in (("a" * 255, True), ("é" * 127, True), ("é" * 128, False), ("😀" * 64, False)):
            answer = await client.ask(type, **{field: name}, **rest)
            assert (answer.get("code") != "invalid") == fits, answer


# --- origins


async def status(app: App, *headers: str, host: str = "test") -> int:
    peer = RawPeer(await app.stream())
    request = upgrade("/ws").replace(b"Host: test\r\n", f"Host: {host}\r\n".encode())
    await peer.send(request[:-2] + "".join(f"{header}\r\n" for header in headers).encode() + b"\r\n")
    answer = (await peer.answer()).status
    await peer.aclose()
    return answer


@TRANSPORTS
@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("example.com", None, True),
        ("example.com", "https://example.com", True),
        ("example.com", "http://example.com", True),
        ("example.com:443", "https://example.com", True),
        ("example.com:8000", "https://example.com:8000", True),
        ("EXAMPLE.com", "https://example.com", True),
        ("example.com:8000", "https://example.com", False),
        ("example.com", "https://evil.example", False),
        ("example.com", "https://example.com.evil.example", False),
        ("example.com", "null", False),
        ("example.com", "", False),
        ("example.com", "https://", False),
        ("example.com", "https://[", False),
        ("example.com", "https://example.com:port", False),
        ("localhost:8765", "http://localhost:3000", True),
        ("127.0.0.1:8765", "http://localhost:3000", True),
        ("[::1]:8765", "http://127.0.0.1", True),
        ("127.0.0.1:8765", "http://evil.example", False),
        ("example.com", "http://localhost:3000", False),
    ],
)
async def test_pages_of_the_own_host_may_connect(
    clock: MockClock, transport: str, host: str, origin: str | None, allowed: bool
) -> None:
    async with running(transport=transport) as app:
        headers = [] if origin is None else [f"Origin: {origin}"]
        got = await status(app, *headers, host=host)
        assert (got == 101) == allowed, got


@TRANSPORTS
@pytest.mark.parametrize(
    ("allow_origins", "origin", "allowed"),
    [
        ("https://example.com", "https://example.com", True),
        (("https://a.example", "https://b.example:81"), "https://b.example:81", True),
        (("https://a.example",), "http://a.example", False),
        (("*",), "https://evil.example", True),
        (("null",), "null", True),
    ],
)
async def test_allowed_origins(
    clock: MockClock, transport: str, allow_origins: Any, origin: str, allowed: bool
) -> None:
    async with running(Options(allow_origins=allow_origins), transport=transport) as app:
        assert (await status(app, f"Origin: {origin}") == 101) == allowed


@pytest.mark.parametrize("transport", ["native", "trio-websocket"])
async def test_a_page_whose_name_leads_to_loopback_may_not_connect(transport: Any) -> None:
    """DNS rebinding: Origin and Host are both the page's, and the socket is on 127.0.0.1."""
    for allow_origins, wanted in (((), 403), (("http://evil.example",), 101)):
        async with listening(Options(allow_origins=allow_origins), transport=transport) as (_switch, server):
            peer = RawPeer(await trio.open_tcp_stream("127.0.0.1", server.port or 0))
            await peer.send(
                upgrade("/ws").replace(b"Host: test\r\n", b"Host: evil.example\r\nOrigin: http://evil.example\r\n")
            )
            assert (await peer.answer()).status == wanted
            await peer.aclose()


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("example.com", ValueError),
        ("https://example.com/", ValueError),
        ("https://Example.com", ValueError),
        (("https://a.example", 5), TypeError),
        ("", ValueError),
        ("https://*.example.com?x", ValueError),
    ],
)
def test_what_is_not_an_origin_is_not_allowed(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="allow_origins"):
        Options(allow_origins=value)


# --- reading and publishing are separate


READ_ONLY = RoomPolicy(pattern="ticker.*", members_publish=False, history=HistoryStorage.MEMORY)
PUBLISH: list[tuple[str, dict[str, Any]]] = [
    ("chat_message", {"content": "x"}),
    ("message", {"data": 1, "priority": 10, "idempotency_key": "k"}),
]


@TRANSPORTS
@pytest.mark.parametrize(("type", "fields"), PUBLISH)
async def test_members_of_a_read_only_room_do_not_publish(
    clock: MockClock, transport: str, type: str, fields: dict[str, Any]
) -> None:
    async def on_connect(request: ConnectRequest) -> Identity:
        return Identity(user=request.query["user"], publish=("ticker.*",) if request.query["user"] == "feed" else None)

    async with running(Options(policies=READ_ONLY), transport=transport, on_connect=on_connect) as app:
        reader, feed = await app.connect(path="/?user=reader"), await app.connect(path="/?user=feed")
        for client in (reader, feed):
            await client.join("ticker.1")
            await client.join("chat")
        assert (await reader.ask(type, room="ticker.1", **fields))["code"] == "forbidden"
        assert not (await app.switch.history("ticker.1")).messages
        assert (await reader.ask(type, room="chat", **fields))["type"] == "ack"
        assert (await feed.ask(type, room="ticker.1", **fields))["type"] == "ack"
        assert (await feed.ask(type, room="chat", **fields))["code"] == "forbidden"
        assert (await feed.ask(type, room="ticker.2", **fields))["type"] == "ack", "it need not have joined"
        await app.switch.publish("ticker.1", "of the server")
        assert len((await app.switch.history("ticker.1")).messages) == 2


@pytest.mark.parametrize(
    ("publish", "as_member", "elsewhere"),
    [(None, True, False), ((), False, False), ("shop.*", True, True), (("other",), False, False)],
)
@pytest.mark.parametrize("members_publish", [True, False])
def test_may_publish(publish: Any, as_member: bool, elsewhere: bool, members_publish: bool) -> None:
    identity = Identity(user="u", publish=publish)
    wanted = members_publish if publish is None else as_member
    assert identity.may_publish("shop.1", as_member=members_publish) == wanted
    assert identity.may_publish("shop.1", as_member=False) == elsewhere


# --- on_join and on_publish


@TRANSPORTS
async def test_on_join_refuses_and_changes(clock: MockClock, transport: str) -> None:
    async def on_join(connection: Connection, request: JoinRequest) -> None:
        if request.room == "closed":
            raise Refused("it is closed", code="mine")
        if request.room == "broken":
            raise ZeroDivisionError
        request.history = min(request.history, 1)

    options = Options(policies=RoomPolicy(history=HistoryStorage.MEMORY, announce=False))
    async with running(options, transport=transport, on_join=on_join) as app:
        for number in range(3):
            await app.switch.publish("open", number)
        client = await app.connect()
        answer = await client.ask("join_room", room="closed")
        assert (answer["code"], answer["message"]) == ("mine", "it is closed")
        assert (await client.ask("join_room", room="broken"))["code"] == "internal"
        await client.send("join_room", room="open", history=3)
        assert (await client.receive_until(type="message"))["data"] == 2
        assert app.switch.connection(client.connection_id).rooms == {"open"}


async def test_on_join_is_asked_again_when_a_session_is_resumed(clock: MockClock) -> None:
    closed: set[str] = set()

    async def on_join(connection: Connection, request: JoinRequest) -> None:
        if request.room in closed:
            raise Refused("it is closed")

    async with running(on_join=on_join) as app:
        client = await app.connect(welcome=False)
        session = (await client.receive())["session"]
        for room in ("a", "b"):
            await client.join(room)
        await client.stream.aclose()
        await settled()
        closed.add("a")
        again = await app.connect()
        answer = await again.ask("resume", session=session)
        assert answer["rooms"].keys() == {"b"}
        assert app.switch.users_in("a") == []


async def say(client: Client, type: str, **fields: Any) -> dict[str, Any]:
    return await client.ask(type, room="r", **fields)


@TRANSPORTS
@pytest.mark.parametrize("subprotocol", [None, "trioswitch.v1.msgpack"])
async def test_on_publish_refuses_and_changes(clock: MockClock, transport: str, subprotocol: str | None) -> None:
    seen: list[tuple[str, Any, int, float | None]] = []

    async def on_publish(connection: Connection, request: PublishRequest) -> None:
        seen.append((request.room, request.data, request.priority, request.expires))
        if request.data == "rude":
            raise Refused("be polite", code="rude")
        if request.data == "broken":
            raise ZeroDivisionError
        request.data = request.data.upper() if isinstance(request.data, str) else {"wrapped": request.data}
        request.priority = 7
        request.expires = 60

    options = Options(policies=RoomPolicy(history=HistoryStorage.STORED, announce=False))
    async with running(options, store=MemoryStore(), transport=transport, on_publish=on_publish) as app:
        client = await app.connect(subprotocol=subprotocol)
        await client.join("r")
        assert (await say(client, "chat_message", content="rude"))["code"] == "rude"
        assert (await say(client, "message", data="broken"))["code"] == "internal"
        assert (await say(client, "chat_message", content="hello", idempotency_key="k"))["offset"] == 1
        assert (await say(client, "chat_message", content="hello", idempotency_key="k"))["duplicate"] is True
        assert (await say(client, "message", data=[1], priority=2, expires=5))["offset"] == 2
        await app.switch.publish("r", "the server's own is not asked about")
        chat, message, own = (await app.switch.history("r")).messages
        assert isinstance(chat, ChatMessage)
        assert isinstance(message, Message)
        assert (chat.content, message.data, own.body) == (
            "HELLO",
            {"wrapped": [1]},
            "the server's own is not asked about",
        )
    assert seen[-1] == ("r", [1], 2, 5.0)


async def test_a_message_is_changed_only_to_what_can_be_sent(clock: MockClock) -> None:
    errors: list[Exception] = []

    async def on_publish(connection: Connection, request: PublishRequest) -> None:
        def attempt(change: Callable[[], None]) -> None:
            try:
                change()
            except (TypeError, ValueError, UnencodableData, AttributeError) as error:
                errors.append(error)

        attempt(lambda: setattr(request, "data", 5))
        attempt(lambda: setattr(request, "data", object()))
        for priority in (11, -1, True, "5"):
            attempt(lambda priority=priority: setattr(request, "priority", priority))
        attempt(lambda: setattr(request, "expires", -1))
        attempt(lambda: setattr(request, "room", "other"))

    async with running(on_publish=on_publish) as app:
        client = await app.connect()
        await client.join("r")
        await client.send("chat_message", room="r", content="hello")
        assert (await client.receive_until(type="chat_message"))["content"] == "hello"
    assert len(errors) == 8


@TRANSPORTS
async def test_the_order_of_a_clients_messages_is_kept_while_hooks_wait(clock: MockClock, transport: str) -> None:
    async def on_publish(connection: Connection, request: PublishRequest) -> None:
        await trio.sleep(1 / (1 + request.data))

    async with running(transport=transport, on_publish=on_publish) as app:
        client = await app.connect()
        await client.join("r")
        for number in range(5):
            await client.send("message", room="r", data=number)
        assert [(await client.receive_until(type="message"))["data"] for _ in range(5)] == list(range(5))
