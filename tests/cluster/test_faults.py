"""A cluster whose broker loses connections and messages: nothing is missing without being told, and all of it is mended."""

import pytest
import trio
from cluster_support import texts
from trio.testing import MockClock

from trioswitch import Options, RoomPolicy
from trioswitch.brokers import Exchange, InProcessBroker
from trioswitch.cluster.messages import Committed, Live, decode_parcel
from trioswitch.stores import MemoryStore
from trioswitch.testing import open_test_cluster

STORED = Options(policies=(RoomPolicy(pattern="stored*", history="stored"),))


def lose(exchange: Exchange, kind: type, skip: int = 0, count: int = 1) -> None:
    """Let the exchange lose parcels with messages of a kind, after some."""
    publish, left = exchange.publish, [skip, count]

    def losing(topic: str, payload: bytes, publisher: InProcessBroker | None = None) -> int:
        if any(isinstance(message, kind) for message in decode_parcel(payload)[1]):
            if left[0]:
                left[0] -= 1
            elif left[1]:
                left[1] -= 1
                return 1
        return publish(topic, payload, publisher)

    exchange.publish = losing  # type: ignore[method-assign]


async def test_stored_messages_that_the_broker_loses_are_read_from_the_store(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2, STORED) as nodes:
        _ann, bob = await nodes.join(0, "stored", "ann"), await nodes.join(1, "stored", "bob")
        lose(nodes.exchange, Committed, skip=1, count=3)
        for number in range(6):
            await nodes[0].app.switch.publish("stored", f"{number}")
        before = trio.current_time()
        assert await texts(bob, 6) == ["0", "1", "2", "3", "4", "5"]
        assert trio.current_time() - before < 1


async def test_the_last_stored_message_that_the_broker_loses_is_found(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2, STORED) as nodes:
        _ann, bob = await nodes.join(0, "stored", "ann"), await nodes.join(1, "stored", "bob")
        lose(nodes.exchange, Committed)
        await nodes[0].app.switch.publish("stored", "last")
        assert await texts(bob, 1) == ["last"]
        assert trio.current_time() < 15


async def test_messages_that_the_broker_loses_are_counted(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        ann, bob = await nodes.join(0, "r", "ann"), await nodes.join(1, "r", "bob")
        await nodes[0].app.switch.publish("r", "first")
        lose(nodes.exchange, Live, count=3)
        for number in range(3):
            await nodes[0].app.switch.publish("r", f"{number}")
            await trio.sleep(0.1)
        await nodes[0].app.switch.publish("r", "last")
        assert (await bob.receive_until(type="message"))["data"] == "first"
        gap = await bob.receive()
        assert (gap["type"], gap["room"], gap["dropped"]) == ("gap", "r", 3)
        assert (await bob.receive())["data"] == "last"
        # Its own node delivers what has not come back when the next one has.
        assert await texts(ann, 5) == ["first", "0", "1", "2", "last"]


async def test_without_a_broker_members_of_one_node_go_on(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        ann, bob = await nodes.join(0, "r", "ann"), await nodes.join(1, "r", "bob")
        cat = await nodes.join(0, "r", "cat")
        await nodes[0].app.switch.publish("r", "before")
        nodes[0].broker.disconnect()
        for number in range(2):
            await nodes[0].app.switch.publish("r", f"alone {number}")
        assert nodes[0].app.switch.broker_error == "disconnected by the test"
        assert nodes[1].app.switch.broker_error is None
        nodes[0].broker.reconnect()
        await trio.sleep(1)
        await nodes[0].app.switch.publish("r", "after")
        for client in (ann, cat):
            assert await texts(client, 4) == ["before", "alone 0", "alone 1", "after"]
        assert (await bob.receive_until(type="message"))["data"] == "before"
        gap = await bob.receive()
        assert (gap["type"], gap["dropped"]) == ("gap", 2)
        assert await texts(bob, 1) == ["after"]


async def test_what_was_lost_is_told_though_nothing_follows(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        _ann, bob = await nodes.join(0, "r", "ann"), await nodes.join(1, "r", "bob")
        await nodes[0].app.switch.publish("r", "before")
        nodes[1].broker.disconnect()
        await nodes[0].app.switch.publish("r", "lost")
        nodes[1].broker.reconnect()
        await bob.receive_until(type="message")
        assert (await bob.receive_until(type="gap"))["dropped"] == 1


async def test_stored_rooms_go_on_without_a_broker(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2, STORED) as nodes:
        ann, bob = await nodes.join(0, "stored", "ann"), await nodes.join(1, "stored", "bob")
        for node in nodes.nodes:
            node.broker.disconnect()
        for number in range(3):
            await nodes[0].app.switch.publish("stored", f"a{number}")
            await nodes[1].app.switch.publish("stored", f"b{number}")
        assert sorted(await texts(ann, 6)) == sorted(f"{who}{number}" for who in "ab" for number in range(3))
        for node in nodes.nodes:
            node.broker.reconnect()
        await nodes[0].app.switch.publish("stored", "after")
        assert (await texts(bob, 7))[-1] == "after"


async def test_presence_is_right_after_an_outage(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        ann, bob = await nodes.join(0, "r", "ann"), await nodes.join(1, "r", "bob")
        nodes[1].broker.disconnect()
        await ann.close()
        await nodes.join(0, "r", "cat")
        await trio.sleep(60)  # longer than a dead node is waited for
        assert nodes[1].app.switch.users_in("r") == ["ann", "bob"]  # as far as it knows
        nodes[1].broker.reconnect()
        await trio.sleep(3)
        for node in nodes.nodes:
            assert node.app.switch.users_in("r") == ["bob", "cat"]
        assert (await bob.receive_until(type="system", action="count"))["online_count"] == 2


async def test_a_node_that_was_taken_for_dead_comes_back(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        ann, _bob = await nodes.join(0, "r", "ann"), await nodes.join(1, "r", "bob")
        nodes[1].broker.disconnect()
        assert (await ann.receive_until(action="user_left"))["user_id"] == "bob"
        nodes[1].broker.reconnect()
        await trio.sleep(5)
        for node in nodes.nodes:
            assert node.app.switch.users_in("r") == ["ann", "bob"]
        await nodes[1].app.switch.publish("r", "again")
        assert await texts(ann, 1) == ["again"]


async def test_direct_messages_wait_for_the_broker(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        ann = await nodes.join(1, "r", "ann")
        nodes[1].broker.disconnect()
        await nodes[0].app.switch.send_to_user("ann", 1)
        nodes[1].broker.reconnect()
        assert (await ann.receive_until(type="direct_message"))["data"] == 1


async def test_who_joins_while_there_is_no_broker_is_a_member(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        nodes[0].broker.disconnect()
        ann = await nodes.join(0, "r", "ann")
        await nodes[0].app.switch.publish("r", "alone")
        assert await texts(ann, 1) == ["alone"]
        nodes[0].broker.reconnect()
        await trio.sleep(1)
        await nodes[1].app.switch.publish("r", 1)
        assert (await ann.receive_until(type="message"))["data"] == 1


async def test_a_connection_that_only_looks_alive_is_made_anew(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        _ann, bob = await nodes.join(0, "r", "ann"), await nodes.join(1, "r", "bob")
        await trio.sleep(2)
        nodes.exchange.forget(nodes[1].broker)  # it gets nothing any more, and nobody tells it
        await nodes[0].app.switch.publish("r", "lost")
        await trio.sleep(15)
        await nodes[0].app.switch.publish("r", "after")
        assert await texts(bob, 2) == ["gap", "after"]


async def test_a_slow_node_is_disconnected_and_told_so(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trioswitch.brokers.in_process.MAX_PENDING", 3)
    async with open_test_cluster(2, STORED) as nodes:
        _ann, bob = await nodes.join(0, "stored", "ann"), await nodes.join(1, "stored", "bob")
        for number in range(50):
            await nodes[0].app.switch.publish("stored", f"{number}")
        assert await texts(bob, 50) == [f"{number}" for number in range(50)]


class Forgetful(MemoryStore):
    def forget(self) -> None:
        super().__init__()


async def test_a_store_that_forgets_begins_anew(autojump_clock: MockClock) -> None:
    store = Forgetful()
    async with open_test_cluster(2, STORED, store=store) as nodes:
        ann, bob = await nodes.join(0, "stored", "ann"), await nodes.join(1, "stored", "bob")
        await nodes[0].app.switch.publish("stored", "old")
        assert await texts(bob, 1) == ["old"]
        store.forget()
        await nodes[0].app.switch.publish("stored", "new")
        gap = await bob.receive_until(type="gap")
        assert gap["lost"]
        assert gap["epoch"]
        assert await texts(bob, 1) == ["new"]
        assert await texts(ann, 3) == ["old", "gap", "new"]


async def test_parcels_of_other_versions_and_garbage_are_left_out(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    import msgspec

    async with open_test_cluster(2) as nodes:
        _ann, bob = await nodes.join(0, "r", "ann"), await nodes.join(1, "r", "bob")
        for payload in (
            b"", b"\xc1", b"garbage", msgspec.msgpack.encode([99, "n", []]), msgspec.msgpack.encode([1, "n", [["live"]]]),
            msgspec.msgpack.encode([1, "n", [["live", 1, 1, 0.0, [b"{}"]]]]), msgspec.msgpack.encode([1, "n", [[7], []]]),
        ):  # fmt: skip
            nodes.exchange.publish("room:r", payload)
        unknown = msgspec.msgpack.encode([1, "newer", [["from_the_future", 1], ["streams", 1, 0, 0.0, "more"]]])
        nodes.exchange.publish("room:r", unknown)
        await nodes[0].app.switch.publish("r", "good")
        assert await texts(bob, 1) == ["good"]
        complaints = [record for record in caplog.records if "cannot be read" in record.message]
        assert len(complaints) == 2  # one of each node: the others within a minute are left out


async def test_a_node_that_had_no_time_to_listen_blames_nobody(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_test_cluster(2) as nodes:
        await nodes.join(0, "r", "ann")
        await trio.sleep(5)
        for _ in range(3):
            autojump_clock.jump(60)  # as after a minute in which the process did not run
            await trio.sleep(1)
        assert [len(node.app.switch.nodes()) for node in nodes.nodes] == [2, 2]
        assert all(node.app.switch.broker_error is None for node in nodes.nodes)
    assert "does not come back" not in caplog.text
    assert "was silent" not in caplog.text


async def test_what_is_lost_right_after_a_join_is_told(autojump_clock: MockClock) -> None:
    async with open_test_cluster(2) as nodes:
        ann, bob = await nodes.join(0, "r", "ann"), await nodes.join(1, "r", "bob")
        nodes[1].broker.disconnect()
        for number in range(3):
            await bob.send("chat_message", room="r", content=f"{number}")
        await trio.sleep(1)
        nodes[1].broker.reconnect()
        assert (await ann.receive_until(type="gap"))["dropped"] == 3
