"""Several nodes are one server to their clients: rooms, presence, direct messages, groups, sessions."""

import pytest
import trio
from cluster_support import texts
from trio.testing import MockClock

from trioswitch import ConnectRequest, Identity, Options, RoomPolicy, open_switch
from trioswitch._util import clock
from trioswitch.brokers import Exchange
from trioswitch.cluster.messages import ALL, Beat, encode_parcel
from trioswitch.stores import MemoryStore
from trioswitch.testing import open_test_cluster

STORED = Options(
    policies=(RoomPolicy(pattern="stored*", history="stored"), RoomPolicy(pattern="kept*", history="memory"))
)
ROOMS = ["plain", "stored", "kept"]


async def by_name(request: ConnectRequest) -> Identity:
    return Identity(user=request.query["name"])


# --- rooms


@pytest.mark.parametrize("room", ROOMS)
async def test_members_on_all_nodes_get_everything_in_one_order(room: str, autojump_clock: MockClock) -> None:
    async with open_test_cluster(3, STORED) as nodes:
        clients = [await nodes.join(index, room, f"user {index}") for index in range(3)]
        for number in range(20):
            for index, client in enumerate(clients):
                await client.send("chat_message", room=room, content=f"{index}:{number}")
        received = [await texts(client, 60) for client in clients]
        assert received[0] == received[1] == received[2]
        assert sorted(received[0]) == sorted(f"{index}:{number}" for index in range(3) for number in range(20))
        for index in range(3):
            of_one = [text for text in received[0] if text.startswith(f"{index}:")]
            assert of_one == [f"{index}:{number}" for number in range(20)]


@pytest.mark.parametrize("room", ROOMS)
async def test_a_node_without_members_publishes(room: str, autojump_clock: MockClock) -> None:
    async with open_test_cluster(2, STORED) as nodes:
        client = await nodes.join(0, room, "ann")
        receipt = await nodes[1].app.switch.publish(room, {"n": 1})
        assert (await client.receive_until(type="message"))["data"] == {"n": 1}
        assert (receipt.offset is not None) == (room != "plain")


@pytest.mark.parametrize("room", ROOMS)
async def test_a_subscription_gets_what_is_published_elsewhere(room: str, autojump_clock: MockClock) -> None:
    async with open_test_cluster(2, STORED) as nodes, nodes[0].app.switch.subscribe(room) as events:
        for number in range(3):
            await nodes[1].app.switch.publish(room, number)
        received = [await anext(events) for _ in range(3)]
        assert [getattr(event, "data", None) for event in received] == [0, 1, 2]


@pytest.mark.parametrize("room", ROOMS)
async def test_a_flood_makes_publishers_wait(
    room: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trioswitch.cluster.link.MAX_PENDING", 5)
    async with open_test_cluster(2, STORED) as nodes, nodes[0].app.switch.subscribe(room) as events:
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(nodes[1].app.switch.publish, room, number)
            received = [await anext(events) for _ in range(200)]
        assert sorted(getattr(event, "data", -1) for event in received) == list(range(200))


async def test_excluded_connections_are_excluded_on_other_nodes(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        ann, bob = await nodes.join(0, "r", "ann"), await nodes.join(0, "r", "bob")
        await nodes[1].app.switch.publish("r", 1, exclude=[ann.connection_id])
        await nodes[1].app.switch.publish("r", 2)
        assert (await bob.receive_until(type="message"))["data"] == 1
        assert (await ann.receive_until(type="message"))["data"] == 2


async def test_expired_messages_and_priorities_travel(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        client = await nodes.join(0, "r", "ann")
        await nodes[1].app.switch.publish("r", "expired", expires=0.0)
        await nodes[1].app.switch.publish("r", "good", expires=60.0, priority=9)
        assert (await client.receive_until(type="message"))["data"] == "good"


async def test_a_retry_on_another_node_is_published_once(autojump_clock: MockClock) -> None:
    async with open_test_cluster(3, STORED) as nodes:
        for room in ROOMS:
            client = await nodes.join(2, room, "ann")
            for index in (0, 1):
                await nodes[index].app.switch.publish(room, "once", idempotency_key="k")
            await nodes[0].app.switch.publish(room, "last")
            received = [(await client.receive_until(type="message"))["data"] for _ in range(2)]
            assert received == ["once", "last"]


async def test_who_joins_gets_what_was_published_elsewhere(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2, STORED) as nodes:
        ann = await nodes.join(0, "stored", "ann")
        for number in range(5):
            await ann.ask("chat_message", room="stored", content=f"{number}")
        bob = await nodes[1].app.connect()
        await bob.send("join_room", room="stored", user_id="bob", history=3, id=1)
        assert await texts(bob, 3) == ["2", "3", "4"]
        answer = await bob.ask("history", room="stored", limit=2)
        assert [message["content"] for message in answer["messages"]] == ["3", "4"]


# --- presence


async def test_a_user_on_two_nodes_is_there_once(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        watcher = await nodes.join(0, "r", "watcher")
        first, second = await nodes.join(0, "r", "ann"), await nodes.join(1, "r", "ann")
        await watcher.receive_until(action="user_joined", user_id="ann", online_count=2)
        answer = await watcher.ask("presence", room="r")
        assert (answer["users"], answer["online_count"], answer["connections"]) == (["ann", "watcher"], 2, 3)
        await first.close()
        await trio.sleep(1)
        await second.close()
        left = await watcher.receive_until(action="user_left")
        assert (left["user_id"], left["online_count"]) == ("ann", 1)
        await nodes[1].app.switch.publish("r", "end")
        assert (await watcher.receive())["data"] == "end"


async def test_who_joins_is_told_of_users_elsewhere(autojump_clock: MockClock) -> None:
    async with open_test_cluster(3) as nodes:
        for index in range(2):
            await nodes.join(index, "r", f"user {index}")
        client = await nodes[2].app.connect()
        assert (await client.join("r", user_id="last"))["online_count"] == 3


async def test_presence_of_a_room_of_other_nodes(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        await nodes.join(0, "r", "ann")
        client = await nodes[1].app.connect()
        answer = await client.ask("presence", room="r")
        assert (answer["users"], answer["connections"]) == (["ann"], 1)
        for number in range(20):
            assert (await client.ask("presence", room=f"nobody {number}"))["users"] == []
        assert nodes[1].app.switch.rooms() == []  # looking into rooms leaves nothing behind


async def test_the_users_of_a_dead_node_leave_once(autojump_clock: MockClock) -> None:
    async with open_test_cluster(3) as nodes:
        clients = [await nodes.join(index, "r", f"user {index}") for index in range(3)]
        nodes[2].kill()
        killed_at = trio.current_time()
        for client in clients[:2]:
            left = await client.receive_until(action="user_left")
            assert (left["user_id"], left["online_count"]) == ("user 2", 2)
            assert trio.current_time() - killed_at < 13
        await nodes[0].app.switch.publish("r", "end")
        for client in clients[:2]:
            assert (await client.receive())["data"] == "end"
        assert [len(node.app.switch.nodes()) for node in nodes.nodes[:2]] == [2, 2]


async def test_a_renamed_user_is_renamed_everywhere(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        watcher = await nodes.join(0, "r", "watcher")
        guest = await nodes[1].app.connect()
        await guest.join("r")
        await watcher.receive_until(action="user_joined", user_id=guest.connection_id)
        await guest.send("chat_message", room="r", content="hi", user_id="ann")
        assert (await watcher.receive_until(action="user_left"))["user_id"] == guest.connection_id
        assert (await watcher.receive_until(action="user_joined"))["user_id"] == "ann"


# --- users, groups, everybody


async def test_direct_messages_reach_all_nodes(autojump_clock: MockClock) -> None:
    async with open_test_cluster(3) as nodes:
        anns = [await nodes.join(index, "r", "ann") for index in (0, 1)]
        bob = await nodes.join(2, "r", "bob")
        ack = await bob.ask("direct_message", to="ann", content="hi")
        assert ack["kept"] == 1
        for ann in anns:
            assert (await ann.receive_until(type="direct_message"))["content"] == "hi"
        await nodes[2].app.switch.send_to_user("ann", {"n": 1}, keep=False)
        for ann in anns:
            assert (await ann.receive_until(type="direct_message"))["data"] == {"n": 1}


async def test_direct_messages_to_a_client_without_a_name(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        guest = await nodes[0].app.connect()
        await nodes[1].app.switch.send_to_user(guest.connection_id, "hi")
        assert (await guest.receive_until(type="direct_message"))["data"] == "hi"


async def test_an_inbox_is_read_and_acknowledged_on_any_node(autojump_clock: MockClock) -> None:
    async with open_test_cluster(3, on_connect=by_name) as nodes:
        for number in range(3):
            await nodes[0].app.switch.send_to_user("ann", number)
        first = await nodes[1].app.connect("/ws?name=ann")
        received = [await first.receive_until(type="direct_message") for _ in range(3)]
        assert [(message["data"], message["seq"]) for message in received] == [(0, 1), (1, 2), (2, 3)]
        await first.ask("inbox_ack", upto=2)
        await first.close()
        second = await nodes[2].app.connect("/ws?name=ann")
        assert (await second.receive_until(type="direct_message"))["seq"] == 3
        await second.ask("inbox_ack", upto=3)
        await second.close()
        third = await nodes[0].app.connect("/ws?name=ann")
        await nodes[1].app.switch.send_to_user("ann", "new")
        assert (await third.receive_until(type="direct_message"))["data"] == "new"


async def test_what_clients_that_do_not_acknowledge_got_is_not_sent_again(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        ann = await nodes.join(0, "r", "ann")
        await trio.sleep(6)  # until it is clear that it does not acknowledge
        for number in range(3):
            await nodes[1].app.switch.send_to_user("ann", number)
            assert (await ann.receive_until(type="direct_message"))["data"] == number
        await ann.close()
        await trio.sleep(1)
        again = await nodes.join(1, "r", "ann")
        await nodes[0].app.switch.send_to_user("ann", "new")
        assert (await again.receive_until(type="direct_message"))["data"] == "new"


async def test_groups_and_broadcasts(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        ann, bob = await nodes.join(0, "r", "ann"), await nodes.join(1, "r", "bob")
        nodes[0].app.switch.add_to_group("staff", "ann")
        nodes[1].app.switch.add_to_group("staff", "bob")
        await trio.sleep(1)
        assert nodes[0].app.switch.group("staff") == nodes[1].app.switch.group("staff") == {"ann", "bob"}
        await ann.send("group_message", group="staff", content="to staff")
        for client in (ann, bob):
            assert (await client.receive_until(type="group_message"))["content"] == "to staff"
        await nodes[1].app.switch.broadcast("to all")
        for client in (ann, bob):
            assert (await client.receive_until(type="message"))["data"] == "to all"
        nodes[0].app.switch.remove_from_group("staff", "bob")
        await trio.sleep(1)
        assert (await bob.ask("group_message", group="staff", content="x"))["type"] == "error"


async def test_groups_are_known_to_a_node_that_comes_later(autojump_clock: MockClock) -> None:
    async with open_test_cluster(1) as nodes:
        nodes[0].app.switch.add_to_group("staff", "ann")
        await trio.sleep(1)
        late = await nodes.start()
        await trio.sleep(1)
        assert late.app.switch.group("staff") == {"ann"}


async def test_a_connection_on_another_node_is_kicked(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        ann = await nodes.join(0, "r", "ann")
        nodes[1].app.switch.kick(ann.connection_id, "enough")
        assert await ann.closed() == (4502, "enough")


# --- sessions


async def test_a_session_is_resumed_on_another_node(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2, STORED) as nodes:
        watcher = await nodes.join(1, "stored", "watcher")
        ann = await nodes.join(0, "stored", "ann")
        await ann.join("plain")
        await nodes[0].app.switch.publish("stored", 0)
        seen = await ann.receive_until(type="message")
        await ann.cut()
        await nodes[1].app.switch.publish("stored", 1)
        back = await nodes[1].app.connect()
        await back.send(
            "resume",
            session=ann.session,
            rooms={"stored": {"epoch": seen["epoch"], "offset": seen["offset"]}},
            id="back",
        )
        assert (await back.receive_until(type="message"))["data"] == 1
        answer = await back.receive_until(id="back")
        assert answer["user_id"] == "ann"
        assert answer["rooms"].keys() == {"plain", "stored"}
        assert answer["rooms"]["stored"]["recovered"]
        await trio.sleep(20)
        await nodes[0].app.switch.publish("stored", 2)
        assert (await watcher.receive_until(action="user_joined", user_id="ann"))["online_count"] == 2
        for expected in (0, 1, 2):  # and nobody has left, or joined again
            assert (await watcher.receive())["data"] == expected


async def test_a_session_is_taken_over_from_another_node(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        ann = await nodes.join(0, "r", "ann")
        await trio.sleep(1)
        back = await nodes[1].app.connect()
        answer = await back.ask("resume", session=ann.session)
        assert answer["user_id"] == "ann"
        assert (await ann.closed())[0] == 4002


async def test_a_dead_node_is_not_waited_for(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        ann = await nodes.join(0, "r", "ann")
        await trio.sleep(1)  # until the session is saved
        nodes[0].kill()
        began = trio.current_time()
        back = await nodes[1].app.connect()
        assert (await back.ask("resume", session=ann.session))["user_id"] == "ann"
        assert trio.current_time() - began < 0.5


async def test_a_session_of_a_dead_node_is_resumed(autojump_clock: MockClock) -> None:
    async with open_test_cluster(3, STORED) as nodes:
        watcher = await nodes.join(2, "stored", "watcher")
        ann = await nodes.join(0, "stored", "ann")
        await ann.join("plain")
        receipt = await nodes[0].app.switch.publish("stored", 0)
        await trio.sleep(1)
        nodes[0].kill()
        await nodes[1].app.switch.publish("stored", 1)
        back = await nodes[1].app.connect()
        await back.send(
            "resume",
            session=ann.session,
            rooms={"stored": {"epoch": receipt.epoch, "offset": receipt.offset}},
            id="back",
        )
        assert (await back.receive_until(type="message"))["data"] == 1
        assert (await back.receive_until(id="back"))["rooms"].keys() == {"plain", "stored"}
        await trio.sleep(20)
        await nodes[1].app.switch.publish("stored", 2)
        await watcher.receive_until(action="user_joined", user_id="ann")
        for expected in (0, 1, 2):
            assert (await watcher.receive())["data"] == expected


async def test_a_session_belongs_to_its_user_on_any_node(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2, on_connect=by_name) as nodes:
        ann = await nodes[0].app.connect("/ws?name=ann")
        await ann.join("r")
        await trio.sleep(1)
        eve = await nodes[1].app.connect("/ws?name=eve")
        assert (await eve.ask("resume", session=ann.session))["code"] == "forbidden"
        await ann.ask("presence", room="r")


async def test_a_session_that_ended_is_ended_everywhere(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2, Options(session_time=60)) as nodes:
        left, lost = await nodes.join(0, "r", "ann"), await nodes.join(0, "r", "bob")
        await trio.sleep(1)
        await left.close()
        await lost.cut()
        await trio.sleep(61)
        for client in (left, lost):
            answer = await (await nodes[1].app.connect()).ask("resume", session=client.session)
            assert answer["code"] == "unknown_session"


async def test_sessions_of_a_node_that_drains_are_resumed_elsewhere(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        ann = await nodes.join(0, "r", "ann")
        await nodes[0].app.switch.drain(5)
        assert (await ann.closed())[0] == 1001
        await nodes[0].stop()
        back = await nodes[1].app.connect()
        assert (await back.ask("resume", session=ann.session))["user_id"] == "ann"


# --- the cluster


async def test_nodes_are_listed(autojump_clock: MockClock) -> None:
    async with open_test_cluster(3) as nodes:
        await nodes.join(1, "r", "ann")
        await trio.sleep(15)
        lists = [node.app.switch.nodes() for node in nodes.nodes]
        assert {frozenset(node.id for node in listed) for listed in lists} == {frozenset(node.id for node in lists[0])}
        assert [sum(node.statistics["connections"] for node in listed) for listed in lists] == [1, 1, 1]
        sums = [node.app.switch.statistics().cluster for node in nodes.nodes]
        assert sums[0] == sums[1] == sums[2]
        assert (sums[0]["connections"], sums[0]["users"]) == (1, 1)
        assert sums[0]["messages_sent"] > 0
        await nodes[2].stop()
        await trio.sleep(0.1)
        assert [len(node.app.switch.nodes()) for node in nodes.nodes[:2]] == [2, 2]


async def test_a_broker_needs_a_store(autojump_clock: MockClock) -> None:

    with pytest.raises(ValueError, match="a store that they share"):
        async with open_switch(broker=Exchange().broker()):
            pass
    with pytest.raises(TypeError, match="broker must be of the type Broker"):
        async with open_switch(broker="redis://", store=MemoryStore()):  # type: ignore[arg-type]
            pass


@pytest.mark.parametrize(("reached_after", "seconds"), [(None, 5), (0, 0), (1, 1)])
async def test_a_node_waits_for_its_broker_before_it_takes_clients(
    reached_after: float | None, seconds: float, autojump_clock: MockClock
) -> None:
    broker = Exchange().broker()
    broker.disconnect()
    async with trio.open_nursery() as nursery:

        async def reconnect() -> None:
            if reached_after is not None:
                await trio.sleep(reached_after)
                broker.reconnect()

        nursery.start_soon(reconnect)
        began = trio.current_time()
        async with open_switch(broker=broker, store=MemoryStore()):
            assert trio.current_time() - began == seconds


async def test_clocks_that_differ_are_told(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with open_test_cluster(1) as nodes:
        for seconds in (-600, 2):
            beat = Beat("two", "1", 0.0, {}, clock.wall_time() + seconds)
            nodes.exchange.publish(ALL, encode_parcel(f"node{seconds}", [beat]))
        await trio.sleep(1)
    assert caplog.text.count("the clock of node two (node-600) differs by -600 s") == 1
    assert "node2) differs" not in caplog.text
