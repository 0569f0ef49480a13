"""The library: what an application calls, and what it is told."""

import socket
import struct
from typing import Any

import pytest
import trio
import trio_websocket
from raw import RawPeer, upgrade
from support import connected, listening, running, settled
from trio.testing import MockClock, memory_stream_pair

from trioswitch import (
    CloseCause,
    Connection,
    ConnectRequest,
    Identity,
    Options,
    Overflow,
    Receipt,
    Refused,
    RoomPolicy,
    UnencodableData,
    UnknownConnection,
    open_switch,
)
from trioswitch.wire.messages import ChatMessage, Gap, Message


async def test_publish_reaches_the_members_and_tells_how_many(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app:
        ann, bob, other = [await app.connect() for _ in range(3)]
        for client in (ann, bob):
            app.switch.join(client.connection_id, "r")
        receipt = await app.switch.publish("r", {"n": 1})
        assert receipt == Receipt(queued=2)
        for client in (ann, bob):
            message = await client.receive_until(type="message")
            assert (message["room"], message["data"]) == ("r", {"n": 1})
            assert "user_id" not in message
        await other.nothing_more()
        assert await app.switch.publish("nobody is here", 1) == Receipt()


async def test_exclude_and_leave(clock: MockClock) -> None:
    async with running() as app:
        ann, bob = await app.connect(), await app.connect()
        for client in (ann, bob):
            app.switch.join(client.connection_id, "r")
        receipt = await app.switch.publish("r", 1, exclude=[ann.connection_id])
        assert receipt.queued == 1
        app.switch.leave(ann.connection_id, "r")
        await app.switch.publish("r", 2)
        assert [(await bob.receive_until(type="message"))["data"] for _ in range(2)] == [1, 2]
        while (message := await ann.receive())["type"] == "system":
            assert message["action"] == "user_joined"
            if message["online_count"] == 2:
                break
        await ann.nothing_more()


async def test_send_to_one_a_user_a_group_some_and_all(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app:
        switch = app.switch
        ann, bob, guest = [await app.connect() for _ in range(3)]
        for client, user in ((ann, "ann"), (bob, "bob")):
            await client.ask("join_room", room=user, user_id=user)
            await client.receive_until(type="system")
        switch.add_to_group("staff", "ann")
        switch.add_to_group("staff", "bob")
        switch.add_to_group("staff", "away")
        assert switch.group("staff") == {"ann", "bob", "away"}

        assert (await switch.send(ann.connection_id, 1)).queued == 1
        assert (await switch.send_to_user("bob", 2)).queued == 1
        assert await switch.send_to_user("away", 2, keep=False) == Receipt()
        assert (await switch.send_to_group("staff", 3)).queued == 2
        assert (await switch.broadcast(4)).queued == 3
        assert (await switch.broadcast(5, connections=[guest.connection_id, "unknown"])).queued == 1
        assert (await switch.broadcast(6, exclude=[guest.connection_id])).queued == 2
        switch.remove_from_group("staff", "bob")
        assert (await switch.send_to_group("staff", 7)).queued == 1
        assert (await switch.broadcast(8)).queued == 3

        async def all_data(client: Any) -> list[tuple[str, int]]:
            got = []
            while not got or got[-1][1] != 8:
                message = await client.receive()
                got.append((message["type"], message["data"]))
            return got

        assert sorted(await all_data(ann), key=lambda item: item[1]) == [
            ("message", 1), ("group_message", 3), ("message", 4), ("message", 6), ("group_message", 7), ("message", 8),
        ]  # fmt: skip
        assert sorted(await all_data(bob), key=lambda item: item[1]) == [
            ("direct_message", 2), ("group_message", 3), ("message", 4), ("message", 6), ("message", 8),
        ]  # fmt: skip
        assert sorted(await all_data(guest), key=lambda item: item[1]) == [
            ("message", 4),
            ("message", 5),
            ("message", 8),
        ]


async def test_an_event_is_sent_as_it_is_and_can_be_used_again(clock: MockClock) -> None:
    async with running() as app:
        client = await app.connect()
        app.switch.join(client.connection_id, "r")
        line = ChatMessage(room="r", content="hello", user_id="bot")
        await app.switch.publish("r", line)
        await app.switch.publish("r", line)
        for _ in range(2):
            message = await client.receive_until(type="chat_message")
            assert (message["content"], message["user_id"]) == ("hello", "bot")
            assert message["timestamp"]
        assert line.timestamp == ""


async def test_bad_arguments_are_the_callers_error(clock: MockClock) -> None:
    async with running() as app:
        client = await app.connect()
        app.switch.join(client.connection_id, "r")
        for data in (object(), {"a": {1, 2}, "b": object()}, 1j):
            with pytest.raises(UnencodableData):
                await app.switch.publish("r", data)
        with pytest.raises(ValueError, match="priority"):
            await app.switch.publish("r", 1, priority=11)
        for call in (app.switch.leave, app.switch.join):
            with pytest.raises(UnknownConnection, match="nobody"):
                call("nobody", "r")
        with pytest.raises(UnknownConnection):
            await app.switch.send("nobody", 1)
        with pytest.raises(UnknownConnection):
            app.switch.kick("nobody")
        with pytest.raises(TypeError, match="priorty"):
            await app.switch.publish("r", 1, priorty=3)  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="expires"):
            await app.switch.publish("r", 1, expires=float("nan"))
        with pytest.raises(ValueError, match="chat_message"):
            app.switch.handlers.on("chat_message")
        with pytest.raises(ValueError):
            Options(linger=-1)
        with pytest.raises(ValueError):
            RoomPolicy(overflow="no such policy")
        await app.switch.publish("r", "still fine")
        assert (await client.receive_until(type="message"))["data"] == "still fine"


async def test_kick(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app:
        client = await app.connect()
        await app.switch.send(client.connection_id, "last words")
        app.switch.kick(client.connection_id, "be nice")
        assert (await client.receive())["data"] == "last words"
        assert await client.closed() == (4502, "be nice")
        await settled()
        assert app.switch.connections() == []
        assert app.switch.statistics().closes == {"kicked": 1}


async def test_on_connect_names_the_user_or_refuses(clock: MockClock, transport: str) -> None:
    seen: list[ConnectRequest] = []

    async def on_connect(request: ConnectRequest) -> Identity | None:
        seen.append(request)
        if request.query.get("name") == "crash":
            raise RuntimeError("a bug in the application")
        if "name" not in request.query:
            raise Refused("tell me your name")
        return Identity(user=request.query["name"])

    async with running(transport=transport, on_connect=on_connect) as app:
        ann = await app.connect(path="/ws?name=ann", headers=[(b"X-Extra", b"1")])
        assert app.switch.connections("ann") == [ann.connection_id]
        assert seen[0].path == "/ws"
        assert seen[0].headers["x-extra"] == "1"
        for path, status in (("/ws", b"403"), ("/ws?name=crash", b"500")):
            stream = await app.stream()
            await stream.send_all(
                b"GET " + path.encode() + b" HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += await stream.receive_some()
            assert answer.startswith(b"HTTP/1.1 " + status)
            await stream.aclose()
        assert app.switch.statistics().refused == 2


async def test_on_disconnect_always_runs_with_the_cause(clock: MockClock, transport: str) -> None:
    causes: list[tuple[str, CloseCause]] = []

    async def on_disconnect(connection: Connection, cause: CloseCause) -> None:
        await trio.sleep(0.1)  # even when it is cancelled from outside, it may finish
        causes.append((connection.user, cause))

    async with running(transport=transport, on_disconnect=on_disconnect) as app:
        clients = {}
        for name in ("leaves", "vanishes", "kicked", "stays"):
            clients[name] = await app.connect()
            await clients[name].join("r", user_id=name)
        await clients["leaves"].websocket.aclose()
        with trio.CancelScope() as scope:
            scope.cancel()
            await clients["vanishes"].websocket.aclose()
        app.switch.kick(clients["kicked"].connection_id)
        await clients["kicked"].closed()
        await trio.sleep(1)
    assert dict(causes) == {
        "leaves": CloseCause.CLIENT_LEFT,
        "vanishes": CloseCause.VANISHED,
        "kicked": CloseCause.KICKED,
        "stays": CloseCause.DRAIN,
    }
    assert len(causes) == 4


async def test_a_hook_that_hangs_or_fails_is_no_ones_problem(clock: MockClock) -> None:
    async def on_disconnect(connection: Connection, cause: CloseCause) -> None:
        if connection.user == "hangs":
            await trio.sleep_forever()
        raise RuntimeError("a bug in the application")

    async with running(Options(hook_timeout=2), on_disconnect=on_disconnect) as app:
        for name in ("hangs", "fails"):
            client = await app.connect()
            await client.join("r", user_id=name)
            await client.websocket.aclose()
        await trio.sleep(3)
        client = await app.connect()
        await client.join("r")


async def test_handlers(clock: MockClock, transport: str) -> None:
    started, cancelled = trio.Event(), trio.Event()
    async with running(transport=transport) as app:

        @app.switch.handlers.on("double")
        async def double(connection: Connection, message: dict[str, Any]) -> Any:
            await trio.sleep(1 / (1 + message["n"]))  # the later ones are quicker, and answered later all the same
            return message["n"] * 2

        @app.switch.handlers.on("refuse")
        async def refuse(connection: Connection, message: dict[str, Any]) -> None:
            raise Refused("not you", code="nope")

        @app.switch.handlers.on("crash")
        async def crash(connection: Connection, message: dict[str, Any]) -> None:
            raise RuntimeError("a bug in the application")

        @app.switch.handlers.on("unencodable")
        async def unencodable(connection: Connection, message: dict[str, Any]) -> Any:
            return object()

        @app.switch.handlers.on("hang")
        async def hang(connection: Connection, message: dict[str, Any]) -> None:
            started.set()
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

        client = await app.connect()
        for number in range(5):
            await client.send("double", id=number, n=number)
        assert [(await client.receive())["data"] for _ in range(5)] == [0, 2, 4, 6, 8]
        assert (await client.ask("refuse"))["code"] == "nope"
        assert (await client.ask("crash"))["code"] == "internal"
        assert (await client.ask("unencodable"))["code"] == "unencodable"
        await client.send("double", n=1)  # no id, no answer
        await client.send("hang")
        await started.wait()
        await client.nothing_more()  # a handler that hangs does not hold up the connection
        await client.websocket.aclose()
        with trio.fail_after(1):
            await cancelled.wait()


async def test_subscribe(clock: MockClock) -> None:
    async with running() as app:
        client = await app.connect()
        await client.join("r", user_id="ann")
        async with app.switch.subscribe("r") as events:
            await client.send("chat_message", room="r", content="one")
            event = await anext(events)
            assert isinstance(event, ChatMessage)
            assert (event.content, event.user_id) == ("one", "ann")
            await app.switch.publish("r", "two")
            event = await anext(events)
            assert isinstance(event, Message)
            assert event.data == "two"
            assert app.switch.users_in("r") == ["ann"]
            answer = await client.ask("presence", room="r")
            assert (answer["count"], answer["online_count"]) == (1, 1)
        statistics = app.switch.room_statistics("r")
        assert statistics is not None
        assert statistics.members == 1
        async with app.switch.subscribe("empty") as events:
            assert app.switch.room_statistics("empty") is not None
        assert app.switch.room_statistics("empty") is None


async def test_a_slow_subscriber_is_told_what_it_missed(clock: MockClock) -> None:
    async with running() as app, app.switch.subscribe("r") as events:
        for number in range(1030):
            await app.switch.publish("r", number)
        first = await anext(events)
        assert first == Gap(room="r", dropped=6)
        event = await anext(events)
        assert isinstance(event, Message)
        assert event.data == 6
        assert app.switch.statistics().drops == {"overflow": 6}


async def test_a_blocking_room_waits_for_its_subscriber(clock: MockClock) -> None:
    policies = (RoomPolicy(overflow=Overflow.BLOCK, block_timeout=5),)
    async with running(Options(policies=policies)) as app, app.switch.subscribe("r") as events:
        async with trio.open_nursery() as nursery:

            async def publish() -> None:
                for number in range(1030):
                    await app.switch.publish("r", number)

            nursery.start_soon(publish)
            await settled()
            for number in range(1030):
                event = await anext(events)
                assert isinstance(event, Message)
                assert event.data == number
        assert trio.current_time() < 1


async def test_flush_all(clock: MockClock) -> None:
    async with running(Options(linger=60)) as app:
        clients = [await app.connect() for _ in range(3)]
        for client in clients:
            app.switch.join(client.connection_id, "r")
        await app.switch.flush_all()
        start = trio.current_time()
        app.switch.publish_nowait("r", "now")
        await app.switch.flush_all()
        for client in clients:
            await client.receive_until(type="message", data="now")
        assert trio.current_time() == start
        assert app.switch.statistics().pending_messages == 0


async def test_max_delay_and_expires(clock: MockClock) -> None:
    async with running(Options(linger=60)) as app:
        client = await app.connect()
        start = trio.current_time()
        await app.switch.send(client.connection_id, "expires", expires=2)
        await app.switch.send(client.connection_id, "hurries", max_delay=3)
        assert (await client.receive())["data"] == "hurries"
        assert trio.current_time() == pytest.approx(start + 3)
        assert app.switch.statistics().drops == {"expired": 1}


async def test_statistics_of_the_switch(clock: MockClock) -> None:
    async with running() as app:
        ann, bob = await app.connect(), await app.connect()
        await ann.join("r", user_id="ann")
        await bob.join("r", user_id="bob")
        await bob.join("q")
        await settled()
        for _ in range(10):
            await app.switch.publish("r", "x")
        await settled()
        statistics = app.switch.statistics()
        assert statistics.active_connections == 2
        assert statistics.rooms == {"r": 2, "q": 1}
        assert statistics.users == 2
        assert statistics.messages_sent == statistics.messages_queued == 2 + 3 + 4 + 20
        assert statistics.pending_messages == 0
        assert 0 < statistics.batches_sent <= statistics.messages_sent
        assert statistics.mean_batch_size == statistics.messages_sent / statistics.batches_sent
        room = app.switch.room_statistics("r")
        assert room is not None
        assert (room.members, room.published, room.waiting) == (2, 12, 0)
        assert room.delivered + room.queued == 20 + 3
        await ann.websocket.aclose()
        await bob.websocket.aclose()
        await settled()
        after = app.switch.statistics()
        assert after.active_connections == 0
        assert after.rooms == {}
        assert after.messages_sent >= statistics.messages_sent
        assert after.closes == {"client_left": 2}


async def test_publishing_when_the_switch_ends_is_answered() -> None:
    """Whoever waits for a receipt when the switch is left gets one."""
    async with trio.open_nursery() as nursery, open_switch() as switch, switch.subscribe("r"):
        receipts: list[Receipt] = []

        async def publish() -> None:
            receipts.append(await switch.publish("r", 1))

        nursery.start_soon(publish)
        await trio.lowlevel.checkpoint()
    assert len(receipts) == 1


async def test_serve_request_embeds_into_a_trio_websocket_program() -> None:
    async with open_switch() as switch, trio.open_nursery() as nursery:
        server = await nursery.start(trio_websocket.serve_websocket, switch.serve_request, "127.0.0.1", 0, None)
        async with connected(f"ws://127.0.0.1:{server.port}/any/path?token=t") as client:
            assert switch.connections() == [client.connection_id]
            assert await switch.drain(5)
            assert (await client.closed())[0] == 1001
        nursery.cancel_scope.cancel()


async def test_serve_follows_nursery_start_and_names_its_port() -> None:
    async with listening() as (_switch, server):
        assert server.port is not None
        assert server.urls == (f"ws://127.0.0.1:{server.port}/ws",)


async def test_who_is_in_a_hook_counts_when_it_comes_out(clock: MockClock) -> None:
    async def on_connect(request: ConnectRequest) -> None:
        await trio.sleep(1)

    async with running(Options(max_connections=2), on_connect=on_connect) as app:
        peers = [RawPeer(await app.stream()) for _ in range(5)]
        for peer in peers:
            await peer.send(upgrade())
        assert [(await peer.answer()).status for peer in peers] == [101] * 5
        for peer in peers[:3]:
            await peer.receive()
        await settled()
        assert app.switch.statistics().active_connections == 5, "three of them are being closed"
        for peer in peers:
            await peer.aclose()
        await trio.sleep(10)
        assert app.switch.statistics().closes["overloaded"] == 3
        assert app.switch.connections() == []


async def test_a_switch_whose_block_was_left_refuses_and_does_not_hang(clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        async with open_switch() as switch:
            stream, theirs = memory_stream_pair()
            nursery.start_soon(switch.serve_stream, theirs)
            peer = RawPeer(stream)
            await peer.send(upgrade())
            assert (await peer.answer()).status == 101
            await settled()
        with pytest.raises(trio.ClosedResourceError):
            switch.join(switch.connections()[0], "r")
        assert await switch.publish("r", 1) == Receipt()
        nursery.cancel_scope.cancel()


async def test_a_client_that_is_gone_is_a_drop_in_the_receipt() -> None:
    async with listening() as (switch, server):
        stream = await trio.open_tcp_stream("127.0.0.1", server.port or 0)
        peer = RawPeer(stream)
        await peer.send(upgrade())
        assert (await peer.answer()).status == 101
        while not switch.connections():
            await trio.sleep(0.01)
        switch.join(switch.connections()[0], "r")
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()  # the next write is refused
        assert await switch.publish("r", 1) == Receipt(dropped=1)


async def test_names_that_nobody_could_say_are_refused_at_once(clock: MockClock) -> None:
    """They would fail in the store, together with others' messages."""
    async with running() as app:
        for name in (None, 7, b"x"):
            with pytest.raises(TypeError, match="must be a str, not"):
                await app.switch.send_to_user(name, 1)  # type: ignore[arg-type]
        for name in ("", "x" * 256, "\ud800"):  # type: ignore[assignment]
            with pytest.raises(ValueError, match="the name of a user"):
                await app.switch.send_to_user(name, 1)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="the name of a room"):
                await app.switch.publish(name, 1)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="limit"):
            await app.switch.history("r", limit=-1)
