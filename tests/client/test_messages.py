"""What goes through a connection: publishes and their receipts, rooms, gaps, the inbox, slow readers."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from client_support import PATIENCE, Peer, connected, in_room, reading, received
from trio.testing import MockClock

from trioswitch import UnencodableData
from trioswitch.client import Announcement, ClientError, ConnectionLost, Gap, Position, Presence, Receipt, RequestFailed
from trioswitch.client.inbox import ACK_EVERY


class Later:
    """Something that is asked in a task of its own."""

    def __init__(self, nursery: trio.Nursery, ask: Callable[[], Awaitable[Any]]) -> None:
        self._done = trio.Event()
        self._ask = ask
        self._error: Exception | None = None
        self._result: Any = None
        self.scope = trio.CancelScope()
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        with self.scope:
            try:
                self._result = await self._ask()
            except Exception as error:
                self._error = error
        self._done.set()

    async def result(self) -> Any:
        with trio.fail_after(PATIENCE):
            await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result


# --- publishes


async def test_publish_returns_the_receipt(clock: MockClock) -> None:
    async with connected() as (server, client, peer):
        receipt = Later(server.nursery, lambda: client.publish("r", None, priority=3, expires=2, key="k"))
        command = await peer.receive()
        assert len(command.pop("idempotency_key")) == 36
        expected = {"type": "message", "id": 1, "room": "r", "data": None, "priority": 3, "expires": 2, "key": "k"}
        assert command == expected
        await peer.ack(command, delivered=3, queued=2, dropped=1, epoch="e", offset=5)
        assert await receipt.result() == Receipt(delivered=3, queued=2, dropped=1, epoch="e", offset=5)


async def test_concurrent_publishes_are_answered_in_any_order(clock: MockClock) -> None:
    async with connected() as (server, client, peer):
        asked = [Later(server.nursery, lambda text=str(n): client.chat("r", text)) for n in range(20)]
        commands = [await peer.expect("chat_message") for _ in asked]
        for command in reversed(commands):
            await peer.ack(command, delivered=int(command["content"]))
        assert [(await ask.result()).delivered for ask in asked] == list(range(20))


async def test_unacknowledged_publish_is_repeated_with_its_key(clock: MockClock) -> None:
    async with connected() as (server, client, peer), in_room(client, peer) as room:
        receipt = Later(server.nursery, lambda: room.publish(1))
        first = await peer.expect("message")
        await peer.vanish()
        waiting = Later(server.nursery, lambda: room.publish(2))
        peer = await server.accept()
        await peer.ack(await peer.expect("resume"), rooms={"r": {"recovered": True, "epoch": "a", "offset": 0}})
        again = await peer.expect("message", data=1)
        assert again["idempotency_key"] == first["idempotency_key"]
        second = await peer.expect("message", data=2)
        assert second["idempotency_key"] != first["idempotency_key"]
        await peer.ack(again, duplicate=True)
        await peer.ack(second)
        assert await receipt.result() == Receipt(duplicate=True)
        assert await waiting.result() == Receipt()


@pytest.mark.parametrize("code", ["not_stored", "unavailable"])
async def test_temporary_failures_are_retried(code: str, clock: MockClock) -> None:
    async with connected() as (server, client, peer):
        receipt = Later(server.nursery, lambda: client.publish("r", 1, idempotency_key="key"))
        for _ in range(3):
            await peer.error(await peer.expect("message", idempotency_key="key"), code)
        assert trio.current_time() == 0.5 + 1
        await peer.ack(await peer.expect("message", idempotency_key="key"))
        assert trio.current_time() == 0.5 + 1 + 2
        await receipt.result()


async def test_retries_end_after_retry_for(clock: MockClock) -> None:
    async with connected() as (server, client, peer):
        receipt = Later(server.nursery, lambda: client.publish("r", 1, retry_for=3))
        for _ in range(3):
            await peer.error(await peer.expect("message"), "not_stored")
        with pytest.raises(RequestFailed, match="not_stored: no"):
            await receipt.result()
        await peer.nothing()


async def test_error_answers_raise_request_failed(clock: MockClock) -> None:
    async with connected() as (server, client, peer):
        receipt = Later(server.nursery, lambda: client.publish("r", 1))
        await peer.error(await peer.expect("message"), "forbidden")
        with pytest.raises(RequestFailed) as failed:
            await receipt.result()
        assert (failed.value.code, failed.value.message) == ("forbidden", "no")


async def test_publish_cancelled_before_sending_is_not_sent(clock: MockClock) -> None:
    async with connected(welcome={"session": None}) as (server, client, peer):
        await peer.vanish()
        await trio.sleep(0.1)
        with trio.move_on_after(0.1):
            await client.publish("r", 1)
        assert client.statistics().unanswered == 0
        await (await server.accept(session=None)).nothing()


async def test_invalid_publishes_fail_at_once(clock: MockClock) -> None:
    async with connected(welcome={"max_message_bytes": 500}) as (_server, client, peer):
        with pytest.raises(RequestFailed, match="too_big"):
            await client.chat("r", "x" * 500)
        for data in (object(), {"x": {1, lambda: 0}}, "\ud800"):
            with pytest.raises(UnencodableData):
                await client.publish("r", data)
        with pytest.raises(ValueError, match="either"):
            await client.send_to_user("bob", 1, text="x")
        await peer.nothing()


async def test_requests_are_sent_once(clock: MockClock) -> None:
    async with connected(welcome={"session": None}) as (server, client, peer):
        roll = Later(server.nursery, lambda: client.request("roll", dice="2d6"))
        await peer.ack(await peer.expect("roll", dice="2d6"), data=7)
        assert (await roll.result())["data"] == 7
        roll = Later(server.nursery, lambda: client.request("roll", dice="1d6"))
        await peer.expect("roll")
        await peer.vanish()
        with pytest.raises(ConnectionLost, match="1006"):
            await roll.result()
        await (await server.accept()).nothing()


async def test_presence_and_history(clock: MockClock) -> None:
    async with connected() as (server, client, peer):
        presence = Later(server.nursery, lambda: client.presence("r"))
        await peer.ack(await peer.expect("presence", room="r"), room="r", users=["ann"], count=1, connections=2)
        assert await presence.result() == Presence(room="r", users=("ann",), count=1, connections=2)
        history = Later(server.nursery, lambda: client.history("r", since=Position("e", 3), limit=7))
        command = await peer.expect("history", room="r", since={"epoch": "e", "offset": 3}, limit=7)
        event = {"type": "message", "room": "r", "data": 1, "epoch": "e", "offset": 4}
        await peer.ack(command, room="r", epoch="e", offset=9, messages=[event], more=True, recovered=True)
        page = await history.result()
        assert (page.position, page.more, page.recovered) == (Position("e", 9), True, True)
        assert [message.position for message in page.messages] == [Position("e", 4)]


# --- rooms


async def test_room_is_joined_once_and_left(clock: MockClock) -> None:
    async with connected("ann") as (server, client, peer):
        join = Later(server.nursery, lambda: peer.let_join(offset=7))
        async with client.room("r", history=5) as room:
            assert {**await join.result(), "id": 0} == {
                "type": "join_room",
                "id": 0,
                "room": "r",
                "user_id": "ann",
                "history": 5,
            }
            assert (room.name, room.online_count, room.position) == ("r", 1, Position("a", 2))
            with pytest.raises(ClientError, match="already in"):
                async with client.room("r"):
                    pass
        await peer.expect("leave_room", room="r")
        assert [item async for item in room] == []
        async with in_room(client, peer):
            pass


async def test_refused_join_raises_request_failed(clock: MockClock) -> None:
    async with connected() as (server, client, peer):

        async def refuse() -> None:
            await peer.error(await peer.expect("join_room"), "forbidden")

        server.nursery.start_soon(refuse)
        with pytest.raises(RequestFailed, match="forbidden"):
            async with client.room("r"):
                pass
        async with in_room(client, peer):
            pass


async def test_join_waits_for_the_connection(clock: MockClock) -> None:
    async with connected(welcome={"session": None}) as (server, client, peer):
        await peer.vanish()
        await trio.sleep(0.1)

        async def let_join() -> None:
            await (await server.accept()).let_join()

        server.nursery.start_soon(let_join)
        with trio.fail_after(PATIENCE):
            async with client.room("r"):
                assert client.connected


async def test_announcements(clock: MockClock) -> None:
    async with connected() as (_server, client, peer):
        async with in_room(client, peer, announcements=True) as room:
            await peer.send("system", action="user_joined", room="r", user_id="bob", online_count=2, timestamp="t")
            expected = Announcement(room="r", action="user_joined", user_id="bob", online_count=2, timestamp="t")
            assert await received(room, 1) == [expected]
            assert room.online_count == 2


async def test_unknown_events_are_ignored(clock: MockClock) -> None:
    async with connected() as (_server, client, peer), in_room(client, peer) as room:
        await peer.send("news", room="r")
        await peer.send("message", room="other", data=1)
        await peer.send("system", room="other", action="count", online_count=1)
        await peer.send("gap", room="other", dropped=1)
        await peer.send("ack", id=77)
        await peer.send("error", code="malformed", message="x")
        await peer.message(1)
        assert await received(room, 1) == [1]


# --- gaps


def pages(peer: Peer, kept: list[int], *, most: int = 1000) -> Callable[[], Awaitable[None]]:
    """Answers `history` from what is kept, a few at a time."""

    async def answer() -> None:
        while True:
            command = await peer.expect("history", room="r")
            since = command["since"]["offset"]
            wanted = [offset for offset in kept if offset > since]
            part = wanted[: min(most, command["limit"])]
            events = [{"type": "message", "room": "r", "data": o, "epoch": "a", "offset": o} for o in part]
            more, recovered = len(wanted) > len(part), not kept or since >= kept[0] - 1
            await peer.ack(
                command, room="r", epoch="a", offset=kept[-1], messages=events, more=more, recovered=recovered
            )
            if not more:
                return

    return answer


@pytest.mark.parametrize("first", [1, 3])
async def test_gap_is_fetched(first: int, clock: MockClock) -> None:
    """drop_oldest: what is missing came before all that still waits. drop_newest: after some of it."""
    async with connected() as (server, client, peer), in_room(client, peer) as room:
        await peer.send("gap", room="r", dropped=2, epoch="a", **{"from": first, "to": first + 1})
        for offset in {1, 2, 3, 4} - {first, first + 1}:
            await peer.message(offset)
        server.nursery.start_soon(pages(peer, [1, 2, 3, 4, 5], most=2))
        assert await received(room, 5) == [1, 2, 3, 4, 5]
        await peer.message(5)
        await peer.message(6)
        assert await received(room, 1) == [6]
        await peer.nothing()


async def test_messages_that_cannot_be_fetched_become_a_gap(clock: MockClock) -> None:
    async with connected() as (server, client, peer), in_room(client, peer) as room:
        await peer.message(1)
        await peer.send("gap", room="r", dropped=2, epoch="a", **{"from": 2, "to": 3})
        server.nursery.start_soon(pages(peer, [3, 4]))
        assert await received(room, 4) == [1, Gap(room="r", dropped=1), 3, 4]


@pytest.mark.parametrize("placed", [True, False])
async def test_unreadable_messages_of_a_page_become_a_gap(clock: MockClock, placed: bool) -> None:
    """With its position it is a gap; without one, nobody knows what it was."""
    async with connected() as (_server, client, peer), in_room(client, peer) as room:
        await peer.send("gap", room="r", dropped=3, epoch="a", **{"from": 1, "to": 3})
        events: list[dict[str, Any]] = [
            {"type": "message", "room": "r", "data": offset, "epoch": "a", "offset": offset} for offset in (1, 2, 3)
        ]
        events[1] = {"type": "error", "room": "r", "code": "unencodable", "message": "x"}
        if placed:
            events[1] |= {"epoch": "a", "offset": 2}
        await peer.ack(await peer.expect("history"), room="r", epoch="a", offset=3, messages=events)
        await peer.message(4)
        expected = [1, Gap(room="r", dropped=1), 3, 4] if placed else [1, 3, 4]
        assert await received(room, len(expected)) == expected


async def test_unavailable_history_is_fetched_again(clock: MockClock) -> None:
    async with connected() as (server, client, peer), in_room(client, peer) as room:
        await peer.send("gap", room="r", dropped=1, epoch="a", **{"from": 1, "to": 1})
        for _ in range(2):
            await peer.error(await peer.expect("history"), "unavailable")
        server.nursery.start_soon(pages(peer, [1]))
        assert await received(room, 1) == [1]
        await peer.send("gap", room="r", dropped=1, epoch="a", **{"from": 2, "to": 2})
        await peer.error(await peer.expect("history"), "forbidden")
        await peer.message(3)
        assert await received(room, 2) == [Gap(room="r", dropped=None), 3]


async def test_gap_is_fetched_after_a_reconnect(clock: MockClock) -> None:
    async with connected() as (server, client, peer), in_room(client, peer) as room:
        await peer.send("gap", room="r", dropped=1, epoch="a", **{"from": 1, "to": 1})
        await peer.expect("history")
        await peer.vanish()
        peer = await server.accept()
        resume = await peer.expect("resume", rooms={})
        await peer.message(2)
        await peer.ack(resume, rooms={"r": {"recovered": True, "epoch": "a", "offset": 2}})
        server.nursery.start_soon(pages(peer, [1, 2]))
        assert await received(room, 2) == [1, 2]


async def test_gap_in_a_room_without_history(clock: MockClock) -> None:
    async with connected() as (_server, client, peer), in_room(client, peer, offset=None) as room:
        await peer.send("gap", room="r", dropped=17)
        await peer.send("message", room="r", data="x")
        await peer.send("error", code="unencodable", message="x", room="r")
        assert await received(room, 3) == [Gap(room="r", dropped=17), "x", Gap(room="r", dropped=1)]


# --- slow readers


async def test_slow_reader_does_not_delay_receipts(clock: MockClock) -> None:
    async with connected(buffer_messages=8) as (server, client, peer), in_room(client, peer) as room:
        for offset in range(1, 101):
            await peer.message(offset)
        receipt = Later(server.nursery, lambda: room.publish("x"))
        await peer.ack(await peer.expect("message"), delivered=1)
        assert (await receipt.result()).delivered == 1
        assert client.statistics().buffered == {"r": 8}
        server.nursery.start_soon(pages(peer, list(range(1, 101))))
        assert await received(room, 100) == list(range(1, 101))


async def test_slow_reader_without_history_gets_the_newest_messages(clock: MockClock) -> None:
    async with connected(buffer_messages=8) as (_server, client, peer), in_room(client, peer, offset=None) as room:
        for number in range(20):
            await peer.send("message", room="r", data=number)
        await trio.sleep(0.1)
        assert await received(room, 9) == [Gap(room="r", dropped=12), *range(12, 20)]


# --- the inbox


async def test_direct_message_is_acknowledged_when_the_next_is_asked_for(clock: MockClock) -> None:
    async with connected(welcome={"session": "s1"}) as (_server, client, peer):
        await peer.direct(1)
        await trio.sleep(0.1)
        direct = client.direct()
        await peer.expect("inbox_ack", upto=0)
        await peer.direct(1)
        await peer.direct(2)
        assert await received(direct, 1) == [1]
        await peer.nothing()
        assert await received(direct, 1) == [2]
        await peer.nothing()  # it waits for more of them, or for a reader that waits
        async with reading(direct):
            await peer.expect("inbox_ack", upto=2)


async def test_direct_messages_are_acknowledged_in_batches(clock: MockClock) -> None:
    async with connected() as (_server, client, peer):
        direct = client.direct()
        await peer.expect("inbox_ack", upto=0)
        for seq in range(1, 2 * ACK_EVERY + 1):
            await peer.direct(seq)
        assert await received(direct, 2 * ACK_EVERY) == list(range(1, 2 * ACK_EVERY + 1))
        await peer.expect("inbox_ack", upto=ACK_EVERY)
        await peer.nothing()


async def test_unacknowledged_messages_are_redelivered_without_duplicates(clock: MockClock) -> None:
    async with connected() as (server, client, peer):
        direct = client.direct()
        await peer.expect("inbox_ack", upto=0)
        for seq in (1, 2, 3):
            await peer.direct(seq)
        assert await received(direct, 2) == [1, 2]
        await peer.vanish()
        peer = await server.accept()
        await peer.ack(await peer.expect("resume"), rooms={})
        await peer.expect("inbox_ack", upto=1)  # made up for
        for seq in (2, 3, 4):
            await peer.direct(seq)
        assert await received(direct, 2) == [3, 4]


async def test_new_session_starts_without_acknowledgements(clock: MockClock) -> None:
    async with connected() as (server, client, peer):
        direct = client.direct()
        await peer.expect("inbox_ack", upto=0)
        await peer.direct(7)
        assert await received(direct, 1) == [7]
        async with reading(direct):
            await peer.expect("inbox_ack", upto=7)
        await peer.vanish()
        peer = await server.accept()
        await peer.error(await peer.expect("resume"), "unknown_session")
        await peer.expect("inbox_ack", upto=0)
        await peer.direct(1)  # it counts from the beginning again
        assert await received(direct, 1) == [1]


async def test_failed_acknowledgement_is_repeated(clock: MockClock) -> None:
    async with connected() as (_server, client, peer):
        direct = client.direct()
        await peer.ack(await peer.expect("inbox_ack", upto=0), upto=0)
        await peer.direct(1)
        async with reading(direct):
            await peer.error(await peer.expect("inbox_ack", upto=1), "unavailable")
            await trio.sleep(0.1)
            await peer.send("group_message", group="g", data="x")
            await peer.expect("inbox_ack", upto=1)


async def test_redelivery_after_a_restart_is_seen_once(clock: MockClock) -> None:
    async with connected() as (server, client, peer):
        direct = client.direct()
        await peer.ack(await peer.expect("inbox_ack", upto=0), upto=0)
        for seq in range(1, 6):
            await peer.direct(seq, time="before")
        assert await received(direct, 3) == [1, 2, 3]
        await peer.vanish()
        peer = await server.accept()
        await peer.error(await peer.expect("resume"), "unknown_session")
        await peer.expect("inbox_ack", upto=0)
        for seq in range(2, 6):
            await peer.direct(seq, time="before")
        await peer.direct(6, time="after")
        async with reading(direct) as items:
            await peer.expect("inbox_ack", upto=6)
        assert [item.data for item in items] == [4, 5, 6]


async def test_inbox_with_new_numbers_is_a_new_inbox(clock: MockClock) -> None:
    async with connected() as (server, client, peer):
        direct = client.direct()
        await peer.expect("inbox_ack", upto=0)
        for seq in range(1, 6):
            await peer.direct(seq, time="before")
        assert await received(direct, 2) == [1, 2]
        await peer.vanish()
        peer = await server.accept()
        await peer.error(await peer.expect("resume"), "unknown_session")
        await peer.expect("inbox_ack", upto=0)
        for seq in (1, 2):
            await peer.direct(seq, time="after")
        await trio.sleep(0.1)
        assert await received(direct, 4) == [3, 4, 5, 1]
        await peer.nothing()
        async with reading(direct) as items:
            await peer.expect("inbox_ack", upto=2)
        assert [item.data for item in items] == [2]


async def test_refused_messages_arrive_on_another_connection(clock: MockClock) -> None:
    async with connected(buffer_messages=4) as (server, client, peer):
        direct = client.direct()
        await peer.expect("inbox_ack", upto=0)
        for seq in range(1, 7):
            await peer.direct(seq)
        await trio.sleep(0.1)
        async with reading(direct) as items:
            peer = await server.accept()
            await peer.ack(await peer.expect("resume"), rooms={})
            await peer.expect("inbox_ack")
            for seq in range(3, 7):
                await peer.direct(seq)
            await trio.sleep(0.1)
            assert [item.data for item in items] == [1, 2, 3, 4, 5, 6]


async def test_messages_that_are_not_kept_are_dropped_and_counted(clock: MockClock) -> None:
    async with connected(buffer_messages=2) as (_server, client, peer):
        for number in range(5):
            await peer.send("group_message", group="g", user_id="bob", data=number)
        await trio.sleep(0.1)
        direct = client.direct()
        assert await received(direct, 3) == [0, 1, Gap(room=None, dropped=3)]
        await peer.expect("inbox_ack")
        await peer.send("gap", dropped=1)
        await peer.send("message", data="to this connection")
        assert await received(direct, 2) == [Gap(room=None, dropped=1), "to this connection"]


async def test_sending_to_users_and_groups(clock: MockClock) -> None:
    async with connected() as (server, client, peer):
        sent = Later(server.nursery, lambda: client.send_to_user("bob", text="Psst", expires=60))
        command = await peer.expect("direct_message", to="bob", content="Psst", expires=60)
        assert "data" not in command
        assert "idempotency_key" in command
        await peer.ack(command, kept=1, seq=3)
        assert await sent.result() == Receipt(kept=1, seq=3)
        sent = Later(server.nursery, lambda: client.send_to_user("bob", None))
        await peer.ack(await peer.expect("direct_message", data=None), delivered=1)
        await sent.result()
        sent = Later(server.nursery, lambda: client.send_to_group("g", {"x": 1}))
        await peer.ack(await peer.expect("group_message", group="g", data={"x": 1}), delivered=2)
        assert await sent.result() == Receipt(delivered=2)
