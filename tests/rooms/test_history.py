"""History and recovery: what a client missed comes before what comes now, once each and in order."""

from base64 import b64decode
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from links import Link
from support import App, Client, running, settled
from trio.testing import MockClock, memory_stream_pair

from trioswitch import (
    ConnectRequest,
    HistoryStorage,
    Identity,
    Options,
    Overflow,
    Position,
    Receipt,
    RoomPolicy,
    StoreError,
    open_switch,
)
from trioswitch.stores import Store
from trioswitch.stores.memory import MemoryStore

BOTH = pytest.mark.parametrize("keep", [HistoryStorage.MEMORY, HistoryStorage.STORED])


def options(keep: HistoryStorage = HistoryStorage.MEMORY, **policy: Any) -> Options:
    return Options(policies=(RoomPolicy(pattern="r*", history=keep, announce=False, **policy),))


def app_with(keep: HistoryStorage = HistoryStorage.MEMORY, *, store: Store | None = None, **policy: Any) -> Any:
    return running(options(keep, **policy), store=store or MemoryStore())


async def messages(client: Client, count: int) -> list[tuple[int, Any]]:
    """Offset and data of the next messages of a room."""
    got: list[tuple[int, Any]] = []
    while len(got) < count:
        message = await client.receive()
        assert message["type"] != "gap", message
        if message["type"] == "message":
            got.append((message["offset"], message["data"]))
    return got


async def joined(client: Client, **fields: Any) -> tuple[dict[str, Any], list[tuple[int, Any]], list[dict[str, Any]]]:
    """Join room `r`. Returns the ack, what was replayed, and the gaps, whatever came first."""
    await client.send("join_room", room="r", id="join", **fields)
    await client.send("join_room", room="end")
    await client.send("message", room="end", data="end")  # no priority: it is behind what was replayed
    ack, replayed, gaps = {}, [], []
    while (message := await client.receive()).get("data") != "end":
        if message.get("id") == "join":
            ack = message
        elif message["type"] == "message":
            replayed.append((message["offset"], message["data"]))
        elif message["type"] == "gap":
            gaps.append(message)
    return ack, replayed, gaps


@BOTH
async def test_messages_have_positions_and_so_does_the_receipt(clock: MockClock, keep: HistoryStorage) -> None:
    async with app_with(keep) as app:
        ann = await app.connect()
        await ann.join("r")
        first = await app.switch.publish("r", "a")
        second = await ann.ask("message", room="r", data="b")
        assert (first.offset, second["offset"]) == (1, 2)
        assert first.epoch == second["epoch"]
        other = await app.switch.publish("r2", "a")
        assert other.offset == 1
        assert other.epoch != first.epoch


@BOTH
async def test_a_room_without_members_keeps_its_history(clock: MockClock, keep: HistoryStorage) -> None:
    async with app_with(keep) as app:
        for number in range(1, 6):
            await app.switch.publish("r", number)
        await trio.sleep(60)  # nobody is there, and it is not forgotten
        client = await app.connect()
        ack, replayed, gaps = await joined(client, history=3)
        assert (ack["offset"], replayed, gaps) == (5, [(3, 3), (4, 4), (5, 5)], [])
        assert "recovered" not in ack
        await app.switch.publish("r", 6)
        assert await messages(client, 1) == [(6, 6)]


@BOTH
async def test_who_comes_back_gets_what_was_missed(clock: MockClock, keep: HistoryStorage) -> None:
    async with app_with(keep) as app:
        ann = await app.connect()
        ack, _, _ = await joined(ann)
        assert ack["offset"] == 0
        await ann.websocket.aclose()
        for number in range(1, 4):
            await app.switch.publish("r", number)
        back = await app.connect()
        ack, replayed, gaps = await joined(back, since={"epoch": ack["epoch"], "offset": 0})
        assert (ack["recovered"], replayed, gaps) == (True, [(1, 1), (2, 2), (3, 3)], [])
        again = await app.connect()
        ack, replayed, gaps = await joined(again, since={"epoch": ack["epoch"], "offset": 3})
        assert (ack["recovered"], replayed, gaps) == (True, [], [])


@BOTH
async def test_a_position_that_is_gone(clock: MockClock, keep: HistoryStorage) -> None:
    async with app_with(keep, history_size=3) as app:
        epoch = (await app.switch.publish("r", 1)).epoch
        for number in range(2, 8):
            await app.switch.publish("r", number)
        ack, replayed, gaps = await joined(await app.connect(), since={"epoch": epoch, "offset": 2})
        assert (ack["recovered"], replayed) == (False, [(5, 5), (6, 6), (7, 7)])
        assert gaps == [{"type": "gap", "room": "r", "epoch": epoch, "from": 3, "to": 4, "lost": True}]
        ack, replayed, gaps = await joined(await app.connect(), since={"epoch": "another", "offset": 6})
        assert (ack["recovered"], replayed) == (False, [(5, 5), (6, 6), (7, 7)])
        assert gaps == [{"type": "gap", "room": "r", "epoch": epoch, "lost": True}]
        ack, replayed, gaps = await joined(await app.connect(), since={"epoch": epoch, "offset": 99})
        assert (ack["recovered"], ack["offset"]) == (False, 7)


async def test_a_room_without_history_says_that_nothing_is_recovered(clock: MockClock) -> None:
    async with running() as app:
        ack, replayed, gaps = await joined(await app.connect(), since={"epoch": "e", "offset": 1})
        assert (ack["recovered"], replayed, gaps) == (False, [], [])
        assert "offset" not in ack


@BOTH
async def test_age_and_expiry_hold_in_the_history(clock: MockClock, keep: HistoryStorage, monkeypatch: Any) -> None:
    wall = 1_000_000.0
    started = trio.current_time()
    monkeypatch.setattr("trioswitch._util.clock.wall_time", lambda: wall + trio.current_time() - started)
    async with app_with(keep, history_age=100) as app:
        await app.switch.publish("r", "old")
        await trio.sleep(60)
        await app.switch.publish("r", "short", expires=10)
        await app.switch.publish("r", "new")
        await trio.sleep(60)
        ack, replayed, gaps = await joined(await app.connect(), history=10)
        assert (ack["offset"], replayed, gaps) == (3, [(3, "new")], [])
        client = await app.connect()
        answer = await client.ask("history", room="r")
        assert [message["data"] for message in answer["messages"]] == ["new"]


@BOTH
async def test_history_in_pages(clock: MockClock, keep: HistoryStorage) -> None:
    async with app_with(keep, history_size=5000) as app:
        for number in range(1, 2501):
            app.switch.publish_nowait("r", number)
            if not number % 500:
                await app.switch.flush_all()
        await app.switch.publish("r", 2501)
        client = await app.connect()
        newest = await client.ask("history", room="r", limit=2)
        assert [message["offset"] for message in newest["messages"]] == [2500, 2501]
        assert (newest["offset"], newest["more"]) == (2501, False)
        since, got = {"epoch": newest["epoch"], "offset": 0}, []
        while True:
            page = await client.ask("history", room="r", since=since, limit=1000)
            assert page["recovered"]
            got += [message["data"] for message in page["messages"]]
            if not page["more"]:
                break
            since["offset"] = page["messages"][-1]["offset"]
        assert got == list(range(1, 2502))
        ack, replayed, gaps = await joined(client, since={"epoch": newest["epoch"], "offset": 0})
        assert (ack["recovered"], [offset for offset, _ in replayed], gaps) == (True, list(range(1, 2502)), [])


async def test_a_page_has_a_size(clock: MockClock) -> None:
    async with app_with(history_size=10) as app:
        for _ in range(5):
            await app.switch.publish("r", "x" * 100_000)
        client = await app.connect()
        newest = await client.ask("history", room="r")
        assert [message["offset"] for message in newest["messages"]] == [4, 5]
        page = await client.ask("history", room="r", since={"epoch": newest["epoch"], "offset": 0})
        assert [message["offset"] for message in page["messages"]] == [1, 2]
        assert page["more"]


async def test_who_may_not_join_may_not_look_back(clock: MockClock) -> None:
    async with app_with() as app:
        client = await app.connect()
        assert (await client.ask("history", room="other"))["code"] == "not_available"
        await client.send("history", room="r")
        assert (await client.receive())["code"] == "invalid"


@pytest.mark.slow
@BOTH
async def test_no_hole_while_others_publish_at_full_speed(clock: MockClock, keep: HistoryStorage) -> None:
    """Clients come and go, and say where they were; a publisher never stops. Everybody gets everything, once, in order."""
    count, rounds = 3000, 12
    async with app_with(keep, history_size=count) as app:

        async def publish() -> None:
            for number in range(1, count + 1):
                await app.switch.publish("r", number)
                if not number % 7:
                    await trio.lowlevel.checkpoint()

        async def come_and_go(number: int) -> None:
            client = await app.connect()
            ack = await client.ask("join_room", room="r", since={"epoch": "", "offset": 0})
            epoch, got = ack.get("epoch"), list[int]()
            await client.websocket.aclose(1001)
            while len(got) < count:
                client = await app.connect()
                position = {"epoch": epoch or "", "offset": len(got)}
                await client.send("join_room", room="r", since=position, id=1)
                wanted = min(len(got) + count // rounds + number, count)
                while len(got) < wanted:
                    message = await client.receive()
                    assert message["type"] != "gap", (message, position)
                    if message["type"] == "message":
                        got.append(message["data"])
                        epoch = message["epoch"]
                        assert message["offset"] == message["data"] == len(got)
                await client.websocket.aclose(1001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            for number in range(8):
                nursery.start_soon(come_and_go, number)


async def test_what_overflowed_can_be_fetched_on_the_same_connection(clock: MockClock) -> None:
    how = Options(
        policies=(RoomPolicy(pattern="r", history="memory", overflow=Overflow.RESYNC, announce=False),),
        outbox_messages=5,
    )
    async with running(how) as app:
        client = await app.connect(pair=lambda: trio.testing.lockstep_stream_pair())
        await client.join("r")
        for number in range(1, 31):
            await app.switch.publish("r", number)
        await settled()
        got: dict[int, int] = {}
        gaps: list[dict[str, Any]] = []
        while max(got, default=0) < 30 and (not gaps or gaps[-1]["to"] < 30):
            message = await client.receive()
            if message["type"] == "gap":
                gaps.append(message)
            elif message["type"] == "message":
                got[message["offset"]] = message["data"]
        assert gaps
        for gap in gaps:
            assert gap["to"] - gap["from"] + 1 >= gap["dropped"]
            since = {"epoch": gap["epoch"], "offset": gap["from"] - 1}
            page = await client.ask("history", room="r", since=since)
            got.update({message["offset"]: message["data"] for message in page["messages"]})
        assert got == {number: number for number in range(1, 31)}


async def test_priority_does_not_reorder_where_there_is_a_history(clock: MockClock) -> None:
    how = Options(policies=(RoomPolicy(pattern="r", history="memory", announce=False),))
    async with running(how) as app:
        client = await app.connect(pair=memory_stream_pair)
        await client.join("r")
        for number in range(1, 21):
            app.switch.publish_nowait("r", number, priority=number % 11)
        assert await messages(client, 20) == [(number, number) for number in range(1, 21)]


@BOTH
async def test_a_retry_is_harmless(clock: MockClock, keep: HistoryStorage) -> None:
    async with app_with(keep) as app:
        client = await app.connect()
        await client.join("r")
        await client.send("message", room="r", data=1, idempotency_key="k", id="a")
        await client.send("message", room="r", data=1, idempotency_key="k", id="b")  # the first is still under way
        answers: dict[str, dict[str, Any]] = {}
        seen: list[int] = []
        while len(answers) < 2:
            message = await client.receive()
            if message["type"] == "ack":
                answers[message["id"]] = message
            elif message["type"] == "message":
                seen.append(message["offset"])
        later = await client.ask("message", room="r", data=1, idempotency_key="k")
        assert answers["a"]["offset"] == answers["b"]["offset"] == later["offset"] == 1
        assert [answer.get("duplicate") for answer in (answers["a"], answers["b"], later)] == [None, True, True]
        other = await client.ask("message", room="r", data=2, idempotency_key="l")
        assert other["offset"] == 2
        assert seen in ([1], [])


async def test_publishers_to_a_stored_room_wait_and_go_on(clock: MockClock) -> None:
    """The room holds two messages, its store is slow, and twenty publishers push: all of them get through."""

    class Slow(MemoryStore):
        async def append(self, *args: Any, **how: Any) -> Any:
            await trio.sleep(1)
            return await super().append(*args, **how)

    how = Options(policies=(RoomPolicy(pattern="r", history="stored", announce=False),), room_messages=2)
    async with running(how, store=Slow()) as app:
        client = await app.connect()
        await client.join("r")
        offsets: list[int | None] = []

        async def publish(number: int) -> None:
            offsets.append((await app.switch.publish("r", number)).offset)

        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(publish, number)
        assert sorted(offsets, key=lambda offset: offset or 0) == list(range(1, 21))
        assert [offset for offset, _ in await messages(client, 20)] == list(range(1, 21))


async def test_conflating_keeps_the_order_of_offsets(clock: MockClock) -> None:
    """Elsewhere a message takes the place of the one that it replaces; here it would come before older ones."""
    policy = RoomPolicy(pattern="r", history="memory", overflow=Overflow.CONFLATE, announce=False)
    async with running(Options(policies=(policy,))) as app:
        client = await app.connect(pair=trio.testing.lockstep_stream_pair)
        await client.join("r")
        for number in range(1, 31):
            await app.switch.publish("r", number, key=f"key {number % 3}")
            await settled()
        got = [offset for offset, _ in await messages(client, 1)]
        while got[-1] < 30:
            got += [offset for offset, _ in await messages(client, 1)]
        assert got == sorted(set(got)), "never back"
        assert len(got) < 30, "nothing was conflated"
        assert got[-3:] == [28, 29, 30]


async def test_the_servers_own_code_is_told_where_its_gap_is(clock: MockClock) -> None:
    async with app_with() as app, app.switch.subscribe("r") as events:
        for number in range(1, 1031):
            await app.switch.publish("r", number)
        gap = await anext(events)
        assert (gap.dropped, gap.start, gap.to) == (6, 1, 6)
        page = await app.switch.history("r", since=Position(gap.epoch, 0))
        assert page.position.offset == 1030


async def test_a_member_that_joins_again_gets_the_past_and_the_present_in_order(clock: MockClock) -> None:
    async with app_with(history_size=3000) as app:
        epoch = (await app.switch.publish("r", 1)).epoch
        for number in range(2, 1501):
            await app.switch.publish("r", number)
        client = await app.connect()
        await client.join("r")
        await client.send("join_room", room="r", since={"epoch": epoch, "offset": 0}, id=1)

        async def publish() -> None:
            for number in range(1501, 2001):
                await app.switch.publish("r", number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            got = await messages(client, 2000)
        assert [offset for offset, _ in got] == list(range(1, 2001))
        await client.websocket.aclose()
        await settled()
        assert app.switch.users_in("r") == []


async def test_the_room_that_takes_most_gives_way_when_histories_are_too_big(clock: MockClock) -> None:
    how = Options(policies=(RoomPolicy(pattern="r*", history="memory", announce=False),), history_bytes=300_000)
    async with running(how) as app:
        for room in range(20):
            for number in range(4):
                await app.switch.publish(f"r{room}", "x" * 100 + str(number))
        for number in range(60):
            await app.switch.publish(f"rowdy{number % 2}", "x" * 10_000)

        async def kept(room: str) -> int:
            return len((await app.switch.history(room)).messages)

        assert [await kept(f"r{room}") for room in range(20)] == [4] * 20
        assert 0 < await kept("rowdy0") + await kept("rowdy1") < 20
        assert app.switch.statistics().history_bytes <= 300_000


@pytest.mark.parametrize("keep", [HistoryStorage.MEMORY, HistoryStorage.STORED])
async def test_binary_data_is_the_same_in_the_room_the_history_and_the_store(
    clock: MockClock, keep: HistoryStorage
) -> None:
    data = {"pixels": bytes(range(256)), "at": [1, None, True]}
    store = MemoryStore()
    for start in (True, False):
        async with app_with(keep, store=store) as app:
            text, binary = await app.connect(), await app.connect(subprotocol="trioswitch.v1.msgpack")
            if start:
                for client in (text, binary):
                    await client.join("r")
                await binary.send("message", room="r", data=data)
                assert (await binary.receive_until(type="message"))["data"] == data
                assert b64decode((await text.receive_until(type="message"))["data"]["pixels"]) == data["pixels"]
            elif keep is HistoryStorage.MEMORY:
                break
            [message] = (await binary.ask("history", room="r"))["messages"]
            assert message["data"] == data
            [message] = (await text.ask("history", room="r"))["messages"]
            assert b64decode(message["data"]["pixels"]) == data["pixels"]
            [event] = (await app.switch.history("r")).messages
            assert event.body == data


async def pipe(app: App, *, capacity: int | None = None) -> Link:
    """A client that reads when the test says so; `capacity`: not at first."""
    link = Link.open(app.switch, app.nursery)
    await settled()
    assert [message["type"] for message in link.take()] == ["connected"]
    if capacity is not None:
        link.pause(capacity)
    return link


def told(messages: list[dict[str, Any]]) -> list[Any]:
    """Offsets of messages, and ranges of gaps."""
    return [
        message["offset"] if message["type"] == "message" else (message.get("from"), message.get("to"))
        for message in messages
        if message["type"] in ("message", "gap")
    ]


async def test_a_gap_that_fills_the_socket_does_not_double_what_follows(clock: MockClock) -> None:
    how = Options(
        policies=(RoomPolicy(pattern="r", history="memory", history_size=3, announce=False),), outbox_messages=2
    )
    async with running(how) as app:
        for number in range(1, 5):
            epoch = (await app.switch.publish("r", number)).epoch
        link = await pipe(app, capacity=10)
        link.send("join_room", room="r", since={"epoch": epoch, "offset": 0}, id=1)
        await settled()
        link.go_on()
        await settled()
        assert told(link.take()) == [(1, 1), 2, 3, 4]


async def test_what_is_trimmed_while_a_client_catches_up_is_told_each_time(clock: MockClock) -> None:
    how = Options(
        policies=(RoomPolicy(pattern="r", history="memory", history_size=3, announce=False),), outbox_messages=1
    )
    async with running(how) as app:
        for number in range(1, 6):
            epoch = (await app.switch.publish("r", number)).epoch
        for since in ({"epoch": epoch, "offset": 1}, {"epoch": "another", "offset": 1}):
            link = await pipe(app, capacity=0)
            link.send("join_room", room="r", since=since)
            await settled()
            for number in range(10):
                await app.switch.publish("r", number)
            link.go_on()
            await settled()
            got = told(link.take())
            have = {one for one in got if isinstance(one, int)}
            for first, to in [one for one in got if isinstance(one, tuple) and one[0] is not None]:
                have.update(range(first, to + 1))
            assert have == set(range(min(have), max(have) + 1)), got
            assert max(have) % 10 == 5


@BOTH
async def test_nothing_follows_what_is_beyond_the_end(clock: MockClock, keep: HistoryStorage) -> None:
    async with app_with(keep) as app:
        epoch = (await app.switch.publish("r", 1)).epoch
        client, future = await app.connect(), {"epoch": epoch, "offset": 99}
        ack, replayed, gaps = await joined(client, since=future)
        assert (ack["recovered"], ack["offset"], replayed) == (False, 1, [])
        assert gaps == [{"type": "gap", "room": "r", "epoch": epoch, "lost": True}]
        page = await client.ask("history", room="r", since=future)
        assert (page["messages"], page["more"], page["recovered"], page["offset"]) == ([], False, False, 1)


async def test_a_page_says_nothing_of_what_is_committed_but_not_handed_out(clock: MockClock) -> None:
    """Who joins at the end of a page is at a position that the room has reached."""
    policy = RoomPolicy(pattern="r", history="stored", overflow=Overflow.BLOCK, block_timeout=10, announce=False)
    how = Options(policies=(policy,), outbox_messages=1, history_bytes=5_000)
    async with running(how, store=MemoryStore()) as app:
        slow, client = await pipe(app), await app.connect()
        slow.send("join_room", room="r")
        await settled()
        for number in range(1, 13):  # then the room waits for the slow one, and some of them before it
            if number == 9:
                slow.pause()
            app.switch.publish_nowait("r", number)
            await settled()
        since = {"epoch": "", "offset": 0}
        page = await client.ask("history", room="r", since=since)
        offsets = [message["offset"] for message in page["messages"]]
        assert offsets == list(range(page["offset"] - len(offsets) + 1, page["offset"] + 1))
        assert 8 < page["offset"] < 12
        since = {"epoch": page["epoch"], "offset": page["offset"]}
        ack, replayed, gaps = await joined(client, since=since)
        assert (ack["recovered"], replayed, gaps) == (True, [], [])
        slow.go_on()
        await settled()
        rest = range(page["offset"] + 1, 13)
        assert [offset for offset, _ in await messages(client, len(rest))] == list(rest)


async def test_announcements_take_no_place_that_was_promised_to_what_is_stored(clock: MockClock, caplog: Any) -> None:
    class Slow(MemoryStore):
        async def append(self, *args: Any, **how: Any) -> Any:
            await trio.sleep(0.1)
            return await super().append(*args, **how)

    policy = RoomPolicy(pattern="r", history="stored", overflow=Overflow.BLOCK, block_timeout=10)
    how = Options(policies=(policy,), room_messages=4, outbox_messages=1)
    async with running(how, store=Slow()) as app, trio.open_nursery() as nursery:
        slow = await pipe(app)
        slow.send("join_room", room="r")
        await settled()
        slow.pause()
        receipts: list[Receipt] = []

        async def publish(number: int) -> None:
            receipts.append(await app.switch.publish("r", number))

        for number in range(3):
            nursery.start_soon(publish, number)
        await trio.sleep(0.15)  # the room waits for the slow one
        for number in range(3, 7):
            nursery.start_soon(publish, number)
        await trio.sleep(0.01)
        for _ in range(6):
            link = await pipe(app)
            link.send("join_room", room="r")
            await settled()
        with trio.fail_after(100):
            while len(receipts) < 7:
                await trio.sleep(1)
    assert sorted(receipt.offset or 0 for receipt in receipts) == list(range(1, 8))
    assert "crashed" not in caplog.text


async def test_who_waits_for_space_when_the_server_ends_is_told_that_nothing_was_stored(clock: MockClock) -> None:
    class Stuck(MemoryStore):
        async def append(self, *args: Any, **how: Any) -> Any:
            await trio.sleep_forever()

    outcomes: list[Receipt | StoreError] = []

    async def publish(number: int) -> None:
        try:
            outcomes.append(await switch.publish("r", number))
        except StoreError as error:
            outcomes.append(error)

    how = Options(policies=(RoomPolicy(pattern="r", history="stored"),), room_messages=2)
    async with trio.open_nursery() as nursery:
        async with open_switch(how, store=Stuck()) as switch:
            for number in range(4):
                nursery.start_soon(publish, number)
            await settled()
    assert [type(outcome) for outcome in outcomes] == [StoreError] * 4


@pytest.mark.parametrize("there", [True, False], ids=["its room is there", "its room would have to be made"])
async def test_a_publish_that_meets_the_end_of_the_switch_is_answered(clock: MockClock, there: bool) -> None:

    async def anybody(request: ConnectRequest) -> Identity:
        return Identity(user=None, publish=("*",))

    async with trio.open_nursery() as nursery:
        async with open_switch(options(HistoryStorage.STORED), store=MemoryStore(), on_connect=anybody) as switch:
            client = await App(switch, nursery).connect()
            if there:
                await client.join("r")
        for id in (1, None):
            await client.send("message", room="r", data=1, id=id)
            error = await client.receive_until(type="error")
            assert error["code"] == "not_stored"
            assert error.get("id") == id
        assert (await client.ask("heartbeat"))["type"] == "ack"
        nursery.cancel_scope.cancel()


async def test_a_room_that_is_closed_while_it_is_loaded_takes_no_memory(clock: MockClock) -> None:
    class Slow(MemoryStore):
        seconds = 0.0

        async def read_newest(self, *args: Any, **how: Any) -> Any:
            await trio.sleep(self.seconds)
            return await super().read_newest(*args, **how)

    store = Slow()
    async with running(options(HistoryStorage.STORED), store=store) as app:
        await app.switch.publish("r", 1)
        await trio.sleep(30)
        store.seconds = 15.0
        assert len((await app.switch.history("r")).messages) == 1
        await trio.sleep(60)
        assert app.switch.statistics().rooms == {}
        assert app.switch.statistics().history_bytes == 0


async def test_what_was_committed_though_the_store_could_not_say_so_is_handed_out_by_the_retry(
    clock: MockClock,
) -> None:
    class Uncertain(MemoryStore):
        fails = False

        async def append(self, *args: Any, **how: Any) -> Any:
            appended = await super().append(*args, **how)
            if self.fails:
                raise StoreError("the connection was lost")
            return appended

    store = Uncertain()
    async with running(options(HistoryStorage.STORED), store=store) as app:
        client, other = await app.connect(), await app.connect()
        await client.join("r")
        await other.join("r")
        await app.switch.publish("r", 1)
        store.fails = True
        assert (await client.ask("message", room="r", data=2, idempotency_key="k"))["code"] == "not_stored"
        store.fails = False
        assert (await client.ask("message", room="r", data=2, idempotency_key="k"))["offset"] == 2
        assert (await client.ask("message", room="r", data=2, idempotency_key="k"))["duplicate"]
        await app.switch.publish("r", 3)
        assert await messages(other, 3) == [(1, 1), (2, 2), (3, 3)]


async def test_the_position_goes_past_what_expired_on_its_way(clock: MockClock) -> None:
    class Slow(MemoryStore):
        async def append(self, *args: Any, **how: Any) -> Any:
            await trio.sleep(1)
            return await super().append(*args, **how)

    async with running(options(HistoryStorage.STORED), store=Slow()) as app:
        receipt = await app.switch.publish("r", 1, expires=0.5)
        ack, _, _ = await joined(await app.connect())
        assert ack["offset"] == receipt.offset == 1


async def test_joining_again_during_a_fan_out_delivers_nothing_twice(clock: MockClock) -> None:
    """The room has recorded the message, and is on its way through its members: this one is the last."""
    async with app_with() as app, AsyncExitStack() as stack:
        for _ in range(3000):
            await stack.enter_async_context(app.switch.subscribe("r"))
        client = await app.connect()
        epoch = (await client.ask("join_room", room="r"))["epoch"]
        got: list[Any] = []

        async def join_again() -> None:
            while not (await app.switch.history("r")).messages:
                await trio.lowlevel.checkpoint()
            await client.send("join_room", room="r", since={"epoch": epoch, "offset": 0}, id="again")
            while (message := await client.receive()).get("id") != "again":
                if message["type"] == "message":
                    got.append((message["offset"], message["data"]))
            room = app.switch.room_statistics("r")
            assert room is not None
            assert room.published == 0, "it was delivered to all members already"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(join_again)
            await app.switch.publish("r", "first")
        await app.switch.publish("r", "second")
        assert got + await messages(client, 1) == [(1, "first"), (2, "second")]


async def test_long_histories_are_not_gone_through_for_a_page(clock: MockClock) -> None:
    async with app_with(history_size=20_000) as app:
        for number in range(1, 20_001):
            app.switch.publish_nowait("r", number)
            if not number % 1000:
                await app.switch.flush_all()
        client = await app.connect()
        epoch = (await client.ask("history", room="r", limit=1))["epoch"]
        for offset in (0, 9_999, 19_990):
            page = await client.ask("history", room="r", since={"epoch": epoch, "offset": offset}, limit=5)
            assert [message["data"] for message in page["messages"]] == list(range(offset + 1, offset + 6))
        await client.send("join_room", room="r", since={"epoch": epoch, "offset": 0}, id=1)
        assert [offset for offset, _ in await messages(client, 20_000)] == list(range(1, 20_001))


async def test_a_member_that_is_made_to_leave_while_it_joins_again(clock: MockClock) -> None:
    class Slow(MemoryStore):
        async def read(self, *args: Any, **how: Any) -> Any:
            await trio.sleep(5)
            return await super().read(*args, **how)

    async with running(options(HistoryStorage.STORED, history_size=2000), store=Slow()) as app:
        for number in range(1, 1201):
            app.switch.publish_nowait("r", number)
        await app.switch.flush_all()
        client = await app.connect()
        epoch = (await client.ask("join_room", room="r"))["epoch"]
        await client.send("join_room", room="r", since={"epoch": epoch, "offset": 1}, id=1)
        await trio.sleep(1)
        app.switch.leave(client.connection_id, "r")
        assert app.switch.users_in("r") == []
        await client.receive_until(id=1)
        assert app.switch.users_in("r") == [client.connection_id]
        await client.websocket.aclose()
        await settled()
        assert app.switch.users_in("r") == []


async def test_what_one_codec_cannot_carry_spoils_no_page(clock: MockClock) -> None:
    """The one message is replaced, at its position, and the others come."""
    async with app_with() as app:
        text, binary = await app.connect(), await app.connect(subprotocol="trioswitch.v1.msgpack")
        for client in (text, binary):
            await client.join("r")
        await text.ask("message", room="r", data=1)
        await binary.ask("message", room="r", data=b"2")
        await text.send_raw('{"type": "message", "room": "r", "id": "i", "data": ' + str(2**70) + "}")
        await text.receive_until(id="i")
        await text.ask("message", room="r", data=4)
        for client, bad in ((text, None), (binary, 3)):
            answer = await client.ask("history", room="r")
            assert (answer["type"], answer["offset"], len(answer["messages"])) == ("ack", 4, 4)
            assert [message["offset"] for message in answer["messages"]] == [1, 2, 3, 4]
            types = [message["type"] for message in answer["messages"]]
            assert types == ["error" if offset == bad else "message" for offset in (1, 2, 3, 4)]
            if bad is None:
                continue
            instead = answer["messages"][bad - 1]
            assert (instead["code"], instead["room"], instead["epoch"]) == ("unencodable", "r", answer["epoch"])


async def test_a_room_that_is_published_to_while_another_is_loaded(clock: MockClock) -> None:
    class Slow(MemoryStore):
        async def read_newest(self, room: str, **how: Any) -> Any:
            await trio.sleep(1)
            return await super().read_newest(room, **how)

    receipts: list[Receipt] = []
    async with app_with(HistoryStorage.STORED, store=Slow()) as app:

        async def publish(room: str, after: float) -> None:
            await trio.sleep(after)
            receipts.append(await app.switch.publish(room, 1))

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(publish, f"r{number}", number * 0.5)
    assert [receipt.offset for receipt in receipts] == [1] * 5
