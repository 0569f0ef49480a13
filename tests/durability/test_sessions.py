"""Sessions: who comes back in time finds everything as it was; who does not is no ghost."""

from typing import Any

import pytest
import trio
from links import Link
from support import App, Client, running, settled
from trio.testing import MockClock
from wire_support import client_frame

from trioswitch import Connection, ConnectRequest, Identity, Options, Refused, RoomPolicy
from trioswitch.stores.memory import MemoryStore

KEPT = Options(policies=(RoomPolicy(pattern="kept*", history="memory"),))


async def arrive(app: App, user: str | None = None, *rooms: str, **how: Any) -> tuple[Client, str]:
    """A client in rooms, and its session."""
    client = await app.connect(welcome=False, **how)
    welcome = await client.receive()
    client.connection_id = welcome["connection_id"]
    for room in rooms:
        fields = {} if user is None else {"user_id": user}
        assert (await client.ask("join_room", room=room, **fields))["type"] == "ack"
    return client, welcome["session"]


async def vanish(client: Client) -> None:
    await client.cut()
    await settled()


async def announced(client: Client) -> list[tuple[str, str, int]]:
    """What was announced to a client up to now."""
    await client.send("heartbeat", id="end")
    seen = []
    while (message := await client.receive()).get("id") != "end":
        if message["type"] == "system":
            seen.append((message["action"], message["user_id"], message["online_count"]))
    return seen


async def test_a_session_is_resumed_with_user_rooms_groups_and_what_was_missed(clock: MockClock) -> None:
    async with running(KEPT) as app:
        app.switch.add_to_group("staff", "ann")
        ann, session = await arrive(app, "ann", "kept", "plain")
        await app.switch.publish("kept", 1)
        position = {"epoch": (await ann.receive_until(type="message"))["epoch"], "offset": 1}
        await vanish(ann)
        await app.switch.publish("kept", 2)
        await app.switch.publish("plain", "nobody hears it")

        back, _ = await arrive(app)
        await back.send("resume", session=session, rooms={"kept": position}, id=1)
        missed = await back.receive_until(type="message")
        assert (missed["offset"], missed["data"]) == (2, 2)
        await back.send("presence", room="plain", id=2)
        answer = await back.receive_until(id=2)
        assert answer["users"] == ["ann"]
        assert (await app.switch.send_to_group("staff", "hello")).queued == 1
        assert (await back.receive_until(type="group_message"))["data"] == "hello"
        await app.switch.publish("kept", 3)
        await app.switch.publish("plain", 4)
        assert (await back.receive_until(type="message"))["offset"] == 3
        assert (await back.receive_until(type="message"))["data"] == 4


async def test_the_answer_to_resume(clock: MockClock) -> None:
    async with running(KEPT) as app:
        ann, session = await arrive(app, "ann", "kept", "plain")
        epoch = (await app.switch.publish("kept", 1)).epoch
        await vanish(ann)
        back, _ = await arrive(app)
        answer = await back.ask("resume", session=session, rooms={"kept": {"epoch": epoch, "offset": 0}})
        assert answer["session"] == session
        assert answer["user_id"] == "ann"
        assert answer["rooms"] == {
            "kept": {"recovered": True, "online_count": 1, "epoch": epoch, "offset": 1},
            "plain": {"recovered": False, "online_count": 1},
        }
        again = await back.ask("resume", session=session)
        assert again["code"] == "invalid"
        assert (await back.ask("resume", session="made up"))["code"] == "unknown_session"


async def test_a_short_absence_is_not_announced(clock: MockClock) -> None:
    async with running(Options(leave_grace=10)) as app:
        bob, _ = await arrive(app, "bob", "r")
        ann, session = await arrive(app, "ann", "r")
        await announced(bob)
        await vanish(ann)
        await trio.sleep(9)
        assert app.switch.users_in("r") == ["ann", "bob"]
        back, _ = await arrive(app)
        await back.ask("resume", session=session)
        await trio.sleep(60)
        assert await announced(bob) == []
        await back.websocket.aclose()
        await settled()
        assert await announced(bob) == [("user_left", "ann", 1)]


async def test_a_long_absence_is_no_ghost(clock: MockClock) -> None:
    async with running(Options(leave_grace=10, session_time=120)) as app:
        bob, _ = await arrive(app, "bob", "r")
        ann, session = await arrive(app, "ann", "r")
        await announced(bob)
        await vanish(ann)
        await trio.sleep(11)
        assert await announced(bob) == [("user_left", "ann", 1)]
        assert app.switch.users_in("r") == ["bob"]
        back, _ = await arrive(app)
        assert "r" in (await back.ask("resume", session=session))["rooms"]
        assert await announced(bob) == [("user_joined", "ann", 2)]


async def test_a_session_ends_with_its_time(clock: MockClock) -> None:
    async with running(Options(session_time=120)) as app:
        ann, session = await arrive(app, "ann", "r")
        await vanish(ann)
        await trio.sleep(121)
        back, _ = await arrive(app)
        assert (await back.ask("resume", session=session))["code"] == "unknown_session"
        assert app.switch.statistics().rooms == {}


@pytest.mark.parametrize(("code", "kept"), [(1000, False), (1001, True), (None, False), (3000, False)])
async def test_goodbye_ends_a_session_and_going_away_does_not(
    clock: MockClock, transport: str, code: int | None, kept: bool
) -> None:
    async with running(transport=transport) as app:
        bob, _ = await arrive(app, "bob", "r")
        ann, session = await arrive(app, "ann", "r")
        await announced(bob)
        if code is None:
            await ann.stream.send_all(client_frame(8, b""))
        else:
            await ann.websocket.aclose(code)
        await settled()
        assert await announced(bob) == ([] if kept else [("user_left", "ann", 1)])
        back, _ = await arrive(app)
        answer = await back.ask("resume", session=session)
        assert answer["type"] == ("ack" if kept else "error")


async def test_kicked_is_over(clock: MockClock) -> None:
    async with running() as app:
        ann, session = await arrive(app, "ann", "r")
        app.switch.kick(ann.connection_id)
        assert (await ann.closed())[0] == 4502
        back, _ = await arrive(app)
        assert (await back.ask("resume", session=session))["code"] == "unknown_session"
        assert app.switch.users_in("r") == []


async def test_a_second_connection_takes_a_session_over(clock: MockClock, transport: str) -> None:
    async with running(KEPT, transport=transport) as app:
        bob, _ = await arrive(app, "bob", "kept")
        ann, session = await arrive(app, "ann", "kept")
        await announced(bob)
        second, _ = await arrive(app)
        answer = await second.ask("resume", session=session)
        assert answer["user_id"] == "ann"
        assert await ann.closed() == (4002, "session taken over")
        await settled()
        assert await announced(bob) == []
        assert app.switch.users_in("kept") == ["ann", "bob"]
        await app.switch.publish("kept", 1)
        assert (await second.receive_until(type="message"))["data"] == 1
        third, _ = await arrive(app)
        assert (await third.ask("resume", session=session))["type"] == "ack"
        assert (await second.closed())[0] == 4002


async def test_a_session_belongs_to_its_user(clock: MockClock) -> None:
    async def identify(request: ConnectRequest) -> Identity | None:
        if request.token == "bad":
            raise Refused("no")
        return Identity(user=request.token)

    async with running(on_connect=identify) as app:
        ann, session = await arrive(app, None, "r", path="/ws?token=ann")
        await vanish(ann)
        thief, _ = await arrive(app, None, path="/ws?token=eve")
        assert (await thief.ask("resume", session=session))["code"] == "forbidden"
        nobody, _ = await arrive(app)
        assert (await nobody.ask("resume", session=session))["code"] == "forbidden"
        back, _ = await arrive(app, None, path="/ws?token=ann")
        assert "r" in (await back.ask("resume", session=session))["rooms"]


async def test_who_goes_in_the_middle_of_resuming_can_resume_again(clock: MockClock) -> None:
    """The store is slow: the client has one of its rooms again, and vanishes while it waits for the next."""

    class Slow(MemoryStore):
        async def read(self, *args: Any, **how: Any) -> Any:
            await trio.sleep(5)
            return await super().read(*args, **how)

    policy = RoomPolicy(pattern="stored*", history="stored", history_size=2000)
    async with running(Options(policies=(policy,)), store=Slow()) as app:
        for room in ("stored1", "stored2"):
            for number in range(1, 1101):
                app.switch.publish_nowait(room, number)
            await app.switch.flush_all()
        ann, session = await arrive(app, "ann", "stored1", "stored2")
        epochs = {room: (await app.switch.publish(room, 0)).epoch for room in ("stored1", "stored2")}
        await vanish(ann)
        start = {room: {"epoch": epoch, "offset": 50} for room, epoch in epochs.items()}
        broken, _ = await arrive(app)
        await broken.send("resume", session=session, rooms=start)
        await trio.sleep(7)
        await vanish(broken)
        await trio.sleep(3)
        assert app.switch.users_in("stored1") == app.switch.users_in("stored2") == ["ann"]
        back, _ = await arrive(app)
        await back.send("resume", session=session, rooms=start, id=1)
        got: dict[str, list[int]] = {"stored1": [], "stored2": []}
        while len(got["stored1"]) + len(got["stored2"]) < 2 * (1101 - 50):
            message = await back.receive()
            if message["type"] == "message":
                got[message["room"]].append(message["offset"])
        for offsets in got.values():
            assert offsets == list(range(51, 1102))


async def test_sessions_are_bounded(clock: MockClock) -> None:
    async with running(Options(max_sessions=2)) as app:
        sessions = []
        for name in ("a", "b", "c"):
            client, session = await arrive(app, name, "r")
            sessions.append(session)
            await vanish(client)
        assert app.switch.users_in("r") == ["b", "c"]
        back, _ = await arrive(app)
        assert (await back.ask("resume", session=sessions[0]))["code"] == "unknown_session"
        assert (await back.ask("resume", session=sessions[1]))["type"] == "ack"


async def test_sessions_are_bounded_in_bytes_and_the_largest_ends(clock: MockClock) -> None:
    async with running(Options(total_session_bytes=40_000, max_rooms=1000)) as app:
        ann, session = await arrive(app, "ann", "r")
        await vanish(ann)
        sessions = []
        for number in range(4):
            eve, one = await arrive(app, f"eve{number}")
            for room in range(30):
                app.switch.join(eve.connection_id, f"{number} {room}")
            sessions.append(one)
            await vanish(eve)
        back, _ = await arrive(app)
        assert (await back.ask("resume", session=session))["rooms"].keys() == {"r"}
        answers = [(await (await app.connect()).ask("resume", session=one))["type"] for one in sessions]
        assert answers.count("error") > 0
        assert app.switch.statistics().sessions < 4
        await trio.sleep(1000)
        assert app.switch.statistics().sessions == 0


async def test_a_user_is_counted_once(clock: MockClock) -> None:
    async with running() as app:
        bob, _ = await arrive(app, "bob", "r")
        first, _ = await arrive(app, "ann", "r")
        await announced(bob)
        second, _ = await arrive(app, "ann", "r")
        answer = await second.ask("presence", room="r")
        assert (answer["users"], answer["count"], answer["online_count"], answer["connections"]) == (
            ["ann", "bob"], 2, 2, 3,
        )  # fmt: skip
        await first.websocket.aclose()
        await settled()
        assert await announced(bob) == []
        await second.websocket.aclose()
        await settled()
        assert await announced(bob) == [("user_left", "ann", 1)]


async def test_the_hook_hears_of_every_connection(clock: MockClock) -> None:
    gone: list[str] = []

    async def on_disconnect(connection: Connection, _cause: Any) -> None:
        gone.append(connection.user)

    async with running(on_disconnect=on_disconnect) as app:
        ann, session = await arrive(app, "ann", "r")
        await vanish(ann)
        assert gone == ["ann"]
        back, _ = await arrive(app)
        await back.ask("resume", session=session)
        await back.websocket.aclose()
        await settled()
        assert gone == ["ann", "ann"]


async def test_a_second_ghost_goes_in_its_time_too(clock: MockClock) -> None:
    """While one session waits for its end, the places of another that was lost later are due long before that."""
    async with running(Options(leave_grace=10, session_time=120)) as app:
        ann, _ = await arrive(app, "ann", "r")
        bob, _ = await arrive(app, "bob", "r")
        await vanish(ann)
        await trio.sleep(35)
        assert app.switch.users_in("r") == ["bob"]
        await vanish(bob)
        await trio.sleep(11)
        assert app.switch.users_in("r") == []


@pytest.mark.parametrize("kicked", [False, True])
async def test_what_has_ended_cannot_be_resumed_while_its_connection_still_closes(
    clock: MockClock, kicked: bool
) -> None:
    """The client does not read, so that closing takes its time."""
    async with running() as app:
        ann, welcome = await pipe(app)
        ann.send("join_room", room="r", user_id="ann")
        await settled()
        ann.take()
        ann.pause()
        if kicked:
            app.switch.kick(welcome["connection_id"])
        else:
            ann.close(1000)
        await settled()
        assert welcome["connection_id"] in app.switch.connections()
        back, _ = await arrive(app)
        assert (await back.ask("resume", session=welcome["session"]))["code"] == "unknown_session"
        await trio.sleep(10)
        assert app.switch.users_in("r") == []


async def test_taken_over_in_the_middle_of_resuming(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its places are another's from then on, though what it waits for comes back."""

    class Slow(MemoryStore):
        async def read(self, *args: Any, **how: Any) -> Any:
            await trio.sleep(5)
            return await super().read(*args, **how)

    monkeypatch.setattr("trioswitch._util.clock.wall_time", lambda: 1e9 + trio.current_time())
    policy = RoomPolicy(pattern="stored", history="stored", history_age=30)
    async with running(Options(policies=(policy,), ping_interval=1e6), store=Slow()) as app:
        ann, session = await arrive(app, "ann", "stored")
        epoch = (await app.switch.publish("stored", 1)).epoch
        await trio.sleep(60)  # it is too old, and the store has to say so
        await vanish(ann)
        start = {"stored": {"epoch": epoch, "offset": 0}}
        second, _ = await pipe(app)
        second.send("resume", session=session, rooms=start)
        await trio.sleep(2)
        second.pause()
        third, _ = await arrive(app)
        answer = await third.ask("resume", session=session, rooms=start)
        assert answer["rooms"]["stored"]["offset"] == 1
        await trio.sleep(20)
        assert app.switch.users_in("stored") == ["ann"]
        answer = await third.ask("presence", room="stored")
        assert (answer["count"], answer["connections"]) == (1, 1)
        await third.websocket.aclose()
        await settled()
        assert app.switch.users_in("stored") == []


async def pipe(app: App) -> tuple[Link, dict[str, Any]]:
    """A client that reads when the test says so, and its welcome."""
    link = Link.open(app.switch, app.nursery)
    await settled()
    (welcome,) = link.take()
    return link, welcome


async def test_a_position_of_the_servers_own_is_no_promise(clock: MockClock) -> None:
    """What was written to a connection that was lost may not have arrived: only the client knows."""
    async with running(KEPT) as app:
        ann, session = await arrive(app, "ann", "kept")
        await app.switch.publish("kept", 1)
        await vanish(ann)
        await app.switch.publish("kept", 2)
        back, _ = await arrive(app)
        await back.send("resume", session=session, id=1)
        assert (await back.receive_until(type="message"))["offset"] == 2
        assert (await back.receive_until(id=1))["rooms"]["kept"]["recovered"] is False


async def test_a_room_that_is_joined_before_it_is_resumed_has_no_ghost(clock: MockClock) -> None:
    async with running(KEPT) as app:
        watch, _ = await arrive(app, "watch", "kept")
        ada, session = await arrive(app, "ada", "kept")
        await vanish(ada)
        back, _ = await arrive(app, "ada", "kept")
        await back.ask("resume", session=session)
        assert (await watch.ask("presence", room="kept"))["connections"] == 2
        await back.websocket.aclose()
        await settled()
        assert app.switch.users_in("kept") == ["watch"]


async def test_a_first_name_after_resuming_without_one(clock: MockClock) -> None:
    async with running() as app:
        nobody, session = await arrive(app)
        await nobody.ask("join_room", room="r")
        await vanish(nobody)
        back, _ = await arrive(app)
        assert (await back.ask("resume", session=session))["user_id"] == nobody.connection_id
        assert (await back.ask("join_room", room="s", user_id="ada"))["user_id"] == "ada"
        assert app.switch.users_in("r") == app.switch.users_in("s") == ["ada"]
        again = await back.ask("join_room", room="s", user_id="eve")
        assert (again["type"], again["code"]) == ("error", "forbidden")
        await vanish(back)
        third, _ = await arrive(app)
        assert (await third.ask("resume", session=session))["user_id"] == "ada"
        refused = await third.ask("join_room", room="s", user_id="eve")  # what it was called is kept, too
        assert (refused["type"], refused["code"]) == ("error", "forbidden")
