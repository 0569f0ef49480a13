"""What every broker must do. An engine passes when a subclass of `BrokerContract` with a fixture `connect` does."""

from collections.abc import Awaitable, Callable, Collection, Sequence

import attrs
import pytest
import trio

from trioswitch.brokers import Broker

__all__ = ["PATIENCE", "BrokerContract", "Client", "Connect"]

PATIENCE = 20.0
"""Seconds that a test waits for what must come."""


@attrs.define(eq=False)
class Client:
    """A broker, and what its receiver is told."""

    broker: Broker
    wanted: list[str] = attrs.field(factory=list)
    """What it subscribes to on each connection."""
    connections: int = 0
    connected: bool = False
    reasons: list[str] = attrs.field(factory=list)
    payloads: list[tuple[str, bytes]] = attrs.field(factory=list)
    _changed: trio.Event = attrs.field(factory=trio.Event)

    # --- the receiver

    def topics(self) -> Collection[str]:
        return self.wanted

    def on_connected(self, topics: Collection[str]) -> None:
        self.connections += 1
        self.connected = True
        self._notify()

    def on_payloads(self, payloads: Sequence[tuple[str, bytes]]) -> None:
        self.payloads += payloads
        self._notify()

    def on_disconnected(self, reason: str) -> None:
        self.connected = False
        self.reasons.append(reason)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- the test

    async def wait(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE):
            while not condition():
                await self._changed.wait()

    async def receive(self, count: int) -> list[tuple[str, bytes]]:
        """The first so many payloads."""
        await self.wait(lambda: len(self.payloads) >= count)
        assert len(self.payloads) == count
        return self.payloads


Connect = Callable[..., Awaitable[Client]]
"""Connects a client that subscribes to topics."""


class BrokerContract:
    async def test_subscribers_get_what_is_published(self, connect: Connect) -> None:
        a, b, publisher = await connect("t"), await connect("t", "u"), await connect()
        await publisher.broker.publish([("t", b"1"), ("u", b"2"), ("v", b"3")])
        assert await a.receive(1) == [("t", b"1")]
        assert sorted(await b.receive(2)) == [("t", b"1"), ("u", b"2")]
        assert publisher.payloads == []

    async def test_a_publisher_gets_its_own(self, connect: Connect) -> None:
        client = await connect("t")
        await client.broker.publish([("t", b"1")])
        assert await client.receive(1) == [("t", b"1")]

    async def test_all_get_a_topic_in_one_order(self, connect: Connect) -> None:
        clients = [await connect("t") for _ in range(3)]

        async def publish(number: int, client: Client) -> None:
            for count in range(100):
                await client.broker.publish([("t", b"%d:%d" % (number, count)), ("t", b"%d:%d+" % (number, count))])

        async with trio.open_nursery() as nursery:
            for number, client in enumerate(clients):
                nursery.start_soon(publish, number, client)
        received = [await client.receive(600) for client in clients]
        assert received[0] == received[1] == received[2]
        for number in range(3):
            own = [payload for _topic, payload in received[0] if payload.startswith(b"%d:" % number)]
            assert own == [b"%d:%d%s" % (number, count, plus) for count in range(100) for plus in (b"", b"+")]

    async def test_from_the_return_of_subscribe_on_everything_arrives(self, connect: Connect) -> None:
        client, publisher = await connect(), await connect()
        for number in range(50):
            await client.broker.subscribe([f"t{number}"])
            await publisher.broker.publish([(f"t{number}", b"x")])
        assert [topic for topic, _ in await client.receive(50)] == [f"t{number}" for number in range(50)]

    async def test_unsubscribed_topics_do_not_arrive(self, connect: Connect) -> None:
        client, publisher = await connect("t", "u"), await connect()
        await client.broker.unsubscribe(["t", "never"])
        await client.broker.subscribe(["u"])  # again: it arrives once
        await publisher.broker.publish([("t", b"1"), ("u", b"2")])
        await publisher.broker.publish([("u", b"3")])
        assert await client.receive(2) == [("u", b"2"), ("u", b"3")]
        await client.broker.subscribe(["t"])
        await publisher.broker.publish([("t", b"4")])
        assert (await client.receive(3))[2] == ("t", b"4")

    async def test_counts_are_right_where_there_are_some(self, connect: Connect) -> None:
        a, _b = await connect("t"), await connect("t", "u")
        counts = await a.broker.publish([("t", b"1"), ("u", b"2"), ("nobody", b"3")])
        assert all(count in (expected, None) for count, expected in zip(counts, (2, 1, 0), strict=True))

    async def test_nothing_to_do(self, connect: Connect) -> None:
        client = await connect()
        assert list(await client.broker.publish([])) == []
        await client.broker.subscribe([])
        await client.broker.unsubscribe([])

    @pytest.mark.parametrize(
        "topic",
        [
            "room:*",
            "room:>",
            "room:a.b",
            "room:a b",
            "room:\r\nPUB",
            "room:{a}",
            "room:é\U0001f600",
            "r" * 260,
            "room:",
        ],
    )
    async def test_topics_are_any_text(self, connect: Connect, topic: str) -> None:
        client, other = await connect(topic), await connect("room:x", "room:ab")
        await client.broker.publish([(topic, b"1"), ("room:x", b"2")])
        assert await client.receive(1) == [(topic, b"1")]
        assert await other.receive(1) == [("room:x", b"2")]

    @pytest.mark.parametrize("size", [0, 1, 100_000, 900_000])
    async def test_payloads_are_any_bytes(self, connect: Connect, size: int) -> None:
        client = await connect("t")
        payload = bytes(range(256)) * (size // 256) + b"\r\n" * (size % 2)
        await client.broker.publish([("t", payload)])
        assert await client.receive(1) == [("t", payload)]

    async def test_many_topics(self, connect: Connect) -> None:
        topics = [f"room:{number}" for number in range(3000)]
        client, publisher = await connect(*topics[:1500]), await connect()
        await client.broker.subscribe(topics[1500:])
        await publisher.broker.publish([(topic, b"x") for topic in topics])
        assert sorted(topic for topic, _ in await client.receive(3000)) == sorted(topics)

    async def test_a_lost_connection_is_told_and_made_again(self, connect: Connect) -> None:
        client, publisher = await connect("t"), await connect()
        client.broker.drop_connection("dropped by the test")
        await client.wait(lambda: client.connections == 2)
        assert client.reasons[0] == "dropped by the test"
        await publisher.broker.publish([("t", b"after")])
        assert (await client.receive(1)) == [("t", b"after")]

    async def test_what_is_wanted_anew_is_subscribed_to_on_the_next_connection(self, connect: Connect) -> None:
        client, publisher = await connect("old"), await connect()
        client.wanted = ["new"]
        client.broker.drop_connection("dropped by the test")
        await client.wait(lambda: client.connections == 2)
        await publisher.broker.publish([("old", b"1"), ("new", b"2")])
        assert await client.receive(1) == [("new", b"2")]

    async def test_calls_can_be_cancelled(self, connect: Connect) -> None:
        client = await connect("t")
        with trio.move_on_after(0):
            await client.broker.publish([("t", b"cancelled")])
        with trio.move_on_after(0):
            await client.broker.subscribe(["u"])
        await client.broker.publish([("t", b"last")])
        await client.wait(lambda: ("t", b"last") in client.payloads)
        assert client.payloads[-1] == ("t", b"last")
