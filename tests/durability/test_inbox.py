"""The inbox: a direct message waits for its user until a client acknowledges it."""

from typing import Any

import pytest
import trio
from support import Client, running, settled
from trio.testing import MockClock

from trioswitch import InboxFull, Options, StoreError
from trioswitch.stores.memory import MemoryStore


async def come(app: Any, user: str) -> Client:
    """A client of this user."""
    client: Client = await app.connect()
    await client.send("join_room", room=f"of {user}", user_id=user, id="come")
    return client


async def inbox_messages(client: Client, count: int) -> list[tuple[int, Any]]:
    got: list[tuple[int, Any]] = []
    while len(got) < count:
        message = await client.receive()
        if message["type"] == "direct_message":
            got.append((message["seq"], message["data"]))
    return got


async def no_inbox_message(client: Client) -> None:
    await settled()
    await client.send("heartbeat", id="end")
    while (message := await client.receive()).get("id") != "end":
        assert message["type"] != "direct_message", message


async def test_a_message_to_a_user_who_is_away_waits(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app:
        ann = await come(app, "ann")
        for number in range(3):
            answer = await ann.ask("direct_message", to="bob", data=number)
            assert (answer["kept"], answer["seq"], answer["delivered"]) == (1, number + 1, 0)
        bob = await come(app, "bob")
        assert await inbox_messages(bob, 3) == [(1, 0), (2, 1), (3, 2)]
        assert (await bob.ask("inbox_ack", upto=2))["upto"] == 2
        again = await come(app, "bob")
        assert await inbox_messages(again, 1) == [(3, 2)]
        await again.ask("inbox_ack", upto=3)
        await no_inbox_message(await come(app, "bob"))


async def test_acknowledged_on_one_device_is_gone_for_all(clock: MockClock) -> None:
    async with running() as app:
        await app.switch.send_to_user("bob", "x")
        phone, desk = await come(app, "bob"), await come(app, "bob")
        assert await inbox_messages(phone, 1) == await inbox_messages(desk, 1) == [(1, "x")]
        await phone.ask("inbox_ack", upto=1)
        await desk.websocket.aclose()
        await no_inbox_message(await come(app, "bob"))


async def test_at_least_once_for_a_client_that_acknowledges(clock: MockClock) -> None:
    """What is written to a connection that is lost comes again."""
    async with running() as app:
        bob = await come(app, "bob")
        await trio.sleep(6)
        receipt = await app.switch.send_to_user("bob", "before it has said so")
        assert receipt.kept == 0
        await bob.ask("inbox_ack", upto=0)
        receipt = await app.switch.send_to_user("bob", "after")
        assert (receipt.kept, receipt.seq) == (1, 1)
        await bob.cut()
        back = await come(app, "bob")
        assert await inbox_messages(back, 1) == [(1, "after")]


async def test_order_while_the_backlog_is_handed_out(clock: MockClock) -> None:
    class Slow(MemoryStore):
        async def read_inbox(self, *args: Any, **how: Any) -> Any:
            found = await super().read_inbox(*args, **how)
            await trio.sleep(1)
            return found

    async with running(Options(inbox_messages=10_000), store=Slow()) as app:
        for number in range(250):
            await app.switch.send_to_user("bob", number)
        bob = await come(app, "bob")

        async def more() -> None:
            for number in range(250, 300):
                await app.switch.send_to_user("bob", number)
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(more)
            got = await inbox_messages(bob, 300)
        assert got == [(number + 1, number) for number in range(300)]


async def test_a_client_that_does_not_read_loses_nothing(clock: MockClock) -> None:
    async with running(Options(outbox_messages=4, inbox_messages=1000)) as app:
        bob = await app.connect(pair=trio.testing.lockstep_stream_pair)
        await bob.send("join_room", room="r", user_id="bob")
        await bob.send("inbox_ack", upto=0)
        await settled()
        for number in range(100):
            assert (await app.switch.send_to_user("bob", number)).kept == 1
        assert await inbox_messages(bob, 100) == [(number + 1, number) for number in range(100)]


async def test_a_full_inbox_refuses_and_forgets_nothing(clock: MockClock) -> None:
    async with running(Options(inbox_messages=2)) as app:
        ann = await come(app, "ann")
        for number in range(2):
            assert (await ann.ask("direct_message", to="bob", data=number))["kept"] == 1
        assert (await ann.ask("direct_message", to="bob", data=2))["code"] == "inbox_full"
        with pytest.raises(InboxFull):
            await app.switch.send_to_user("bob", 3)
        bob = await come(app, "bob")
        assert await inbox_messages(bob, 2) == [(1, 0), (2, 1)]


async def test_a_full_inbox_is_no_obstacle_to_a_client_that_does_not_acknowledge(clock: MockClock) -> None:
    async with running(Options(inbox_messages=2)) as app:
        for number in range(2):
            await app.switch.send_to_user("bob", number)
        bob = await come(app, "bob")
        assert (await app.switch.send_to_user("bob", 2)).kept == 0
        while (message := await bob.receive())["type"] != "direct_message" or message["data"] != 2:
            pass
        assert "seq" not in message


async def test_nothing_is_lost_before_a_client_has_said_that_it_acknowledges(clock: MockClock) -> None:
    async with running() as app:
        bob = await come(app, "bob")
        await settled()
        assert (await app.switch.send_to_user("bob", "x")).kept == 1
        await bob.cut()
        assert await inbox_messages(await come(app, "bob"), 1) == [(1, "x")]


async def test_expires_and_age_hold_in_the_inbox(clock: MockClock, monkeypatch: Any) -> None:
    started = trio.current_time()
    monkeypatch.setattr("trioswitch._util.clock.wall_time", lambda: 1e9 + trio.current_time() - started)
    async with running(Options(inbox_age=1000)) as app:
        ann = await come(app, "ann")
        await ann.ask("direct_message", to="bob", data="short", expires=10)
        await ann.ask("direct_message", to="bob", data="long")
        await trio.sleep(11)
        assert await inbox_messages(await come(app, "bob"), 1) == [(2, "long")]
        await trio.sleep(1100)
        await no_inbox_message(await come(app, "bob"))


async def test_without_an_inbox(clock: MockClock) -> None:
    async with running(Options(inbox_messages=0)) as app:
        ann = await come(app, "ann")
        assert (await ann.ask("direct_message", to="bob", data=1))["code"] == "not_available"
        assert not (await app.switch.send_to_user("bob", 1)).kept
    async with running() as app:
        assert not (await app.switch.send_to_user("bob", 1, keep=False)).kept
        await no_inbox_message(await come(app, "bob"))


async def test_a_retry_of_a_direct_message_is_harmless(clock: MockClock) -> None:
    async with running() as app:
        ann = await come(app, "ann")
        first = await ann.ask("direct_message", to="bob", data=1, idempotency_key="k")
        again = await ann.ask("direct_message", to="bob", data=1, idempotency_key="k")
        assert (first["seq"], again["seq"], again["duplicate"]) == (1, 1, True)
        bob = await come(app, "bob")
        assert await inbox_messages(bob, 1) == [(1, 1)]
        once = await ann.ask("direct_message", to="ann", data=2, idempotency_key="l")
        assert once["delivered"] + once["queued"] == 1
        assert (await ann.ask("direct_message", to="ann", data=2, idempotency_key="l"))["duplicate"]


async def test_a_connection_between_commit_and_delivery_gets_a_message_once(clock: MockClock) -> None:
    class Slow(MemoryStore):
        async def add_to_inboxes(self, *args: Any, **how: Any) -> Any:
            posted = await super().add_to_inboxes(*args, **how)
            await trio.sleep(5)
            return posted

    async with running(store=Slow()) as app, trio.open_nursery() as nursery:
        nursery.start_soon(app.switch.send_to_user, "bob", 1)
        await trio.sleep(1)
        bob = await come(app, "bob")
        assert await inbox_messages(bob, 1) == [(1, 1)]
        await trio.sleep(10)
        await no_inbox_message(bob)


async def test_inboxes_are_bounded_in_bytes(clock: MockClock) -> None:
    async with running(Options(inbox_bytes=3_000, total_inbox_bytes=10_000)) as app:
        ann = await come(app, "ann")

        async def send(user: str, size: int) -> str:
            answer = await ann.ask("direct_message", to=user, content="x" * size)
            return str(answer.get("code", "kept"))

        assert await send("bob", 3_000) == "inbox_full"
        assert [await send("bob", 1_200) for _ in range(3)] == ["kept", "kept", "inbox_full"]
        assert [await send(f"nobody{number}", 1_200) for number in range(4)] == [
            "kept",
            "kept",
            "inbox_full",
            "inbox_full",
        ], "half of the total"
        answer = await ann.ask("direct_message", to="nobody", content="x" * 1_200)
        assert answer["message"] == "your pending direct messages take up your share of the space for them"


async def test_what_waits_for_the_store_is_bounded_in_bytes(clock: MockClock) -> None:
    class Slow(MemoryStore):
        async def add_to_inboxes(self, *args: Any, **how: Any) -> Any:
            await trio.sleep(5)
            return await super().add_to_inboxes(*args, **how)

    async with running(Options(room_bytes=2_000), store=Slow()) as app, trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(app.switch.send_to_user, f"user{number}", "x" * 500)
        await settled()
        assert 5 <= app.switch.statistics().uncommitted_messages <= 10, "4 or 5 wait, and as many at most are committed"
        await trio.sleep(6)
        assert app.switch.statistics().uncommitted_messages
        await trio.sleep(60)
        assert app.switch.statistics().uncommitted_messages == 0
        assert await inbox_messages(await come(app, "user19"), 1) == [(1, "x" * 500)]


async def test_what_waits_is_read_in_pages_of_bytes(clock: MockClock) -> None:
    pages: list[int] = []

    class Counting(MemoryStore):
        async def read_inbox(self, *args: Any, **how: Any) -> Any:
            found = await super().read_inbox(*args, **how)
            pages.append(len(found))
            return found

    async with running(Options(inbox_bytes=1 << 30), store=Counting()) as app:
        for number in range(10):
            await app.switch.send_to_user("bob", [number, "x" * 100_000])
        got = await inbox_messages(await come(app, "bob"), 10)
        assert [data[0] for _seq, data in got] == list(range(10))
        await settled()
        assert pages == [2, 2, 2, 2, 2, 0]


async def test_a_crash_leaves_nothing_lying(clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    class Crashing(MemoryStore):
        crashed = False

        async def add_to_inboxes(self, *args: Any, **how: Any) -> Any:
            if not self.crashed:
                await trio.sleep(1)
                self.crashed = True
                raise RuntimeError("a bug")
            return await super().add_to_inboxes(*args, **how)

    async with running(store=Crashing()) as app, trio.open_nursery() as nursery:

        async def first() -> None:
            with pytest.raises(StoreError):
                await app.switch.send_to_user("bob", 1)

        nursery.start_soon(first)
        await settled()
        with trio.fail_after(10):
            assert (await app.switch.send_to_user("bob", 2)).seq == 1
    assert "a bug" in caplog.text
