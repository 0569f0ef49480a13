"""The client and the server of this repository, over real sockets that the tests cut and freeze."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import attrs
import pytest
import trio
from client_support import reading
from support import listening, settled

import trioswitch
from trioswitch import Identity, Options, Overflow, Refused, RoomPolicy
from trioswitch.client import CannotConnect, Client, ClientOptions, Gap, Message, Rejected, RequestFailed, open_client
from trioswitch.stores.open import open_store

PATIENCE = 20.0


class Quick(Random):
    """No wait takes long."""

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.random() / 50


@attrs.define(eq=False)
class Frozen(trio.abc.Stream):
    """A stream that is read only while it is thawed."""

    inner: trio.SocketStream
    thawed: trio.Event = attrs.field(factory=trio.Event)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await self.thawed.wait()
        return bytes(await self.inner.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self.inner.aclose()


@attrs.define(eq=False)
class Wire:
    """What lies between the clients and the server: the server may move, and connections may be cut and frozen."""

    port: int = 0
    streams: list[Frozen] = attrs.field(factory=list)

    async def open(self) -> trio.abc.Stream:
        socket = trio.socket.socket()
        socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 16384)
        try:
            await socket.connect(("127.0.0.1", self.port))
        except BaseException:
            socket.close()
            raise
        stream = Frozen(trio.SocketStream(socket))
        stream.thawed.set()
        self.streams.append(stream)
        return stream

    async def cut(self) -> None:
        streams, self.streams = self.streams, []
        for stream in streams:
            await trio.aclose_forcefully(stream)

    def freeze(self) -> None:
        for stream in self.streams:
            stream.thawed = trio.Event()

    def thaw(self) -> None:
        for stream in self.streams:
            stream.thawed.set()

    def client(self, user_id: str | None = None, token: str | None = None, **options: Any) -> Any:
        return open_client(
            "ws://test/ws",
            token,
            user_id,
            open_stream=self.open,
            random=Quick(0),
            options=ClientOptions(**options),
        )


@asynccontextmanager
async def served(*policies: RoomPolicy, hooks: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Any]:
    """A switch, and a wire to it."""
    with trio.fail_after(PATIENCE):
        async with (
            open_store("memory") as store,
            listening(Options(policies=policies, **options), hooks={"store": store, **(hooks or {})}) as (
                switch,
                server,
            ),
        ):
            assert server.port is not None
            yield switch, Wire(server.port)


MEMORY = RoomPolicy(history="memory", history_size=5000)
STORED = RoomPolicy(history="stored", history_size=5000)


async def items(reader: AsyncIterator[Any], count: int) -> list[Any]:
    got = [await anext(reader) for _ in range(count)]
    return [item.data if isinstance(item, Message) else item for item in got]


async def until(condition: Any) -> None:
    while not condition():
        await trio.sleep(0.005)


async def lost(client: Client, wire: Wire) -> None:
    """Cut its connections, and wait until it knows."""
    before = client.statistics().connections
    await wire.cut()
    await until(lambda: not client.connected or client.statistics().connections > before)


# --- rooms, users, groups


async def test_rooms_users_and_groups_with_the_real_server() -> None:
    async with served() as (switch, wire), wire.client("ann") as ann, wire.client("bob") as bob:
        async with ann.room("r", announcements=True) as hers, bob.room("r") as his:
            assert (ann.user_id, bob.user_id) == ("ann", "bob")
            receipt = await hers.publish({"x": 1}, key="k")
            assert receipt.delivered + receipt.queued == 2
            await his.chat("hello")
            message = await anext(his)
            assert (message.user_id, message.data, message.key) == ("ann", {"x": 1}, "k")
            assert (await anext(his)).content == "hello"
            kinds = [type(await anext(hers)).__name__ for _ in range(4)]
            assert sorted(kinds) == ["Announcement", "Announcement", "Message", "Message"]
            presence = await hers.presence()
            assert (presence.users, presence.count, presence.connections) == (("ann", "bob"), 2, 2)
            assert hers.online_count == 2
            switch.add_to_group("g", "bob")
            switch.add_to_group("g", "ann")
            assert (await ann.send_to_group("g", text="all")).delivered == 2
            assert (await anext(bob.direct())).content == "all"
            with pytest.raises(RequestFailed, match="not_available"):
                await hers.history()
            with pytest.raises(RequestFailed, match="unknown_type"):
                await ann.request("roll")
        with pytest.raises(RequestFailed, match="not_joined"):
            await ann.chat("r", "after")


async def test_rejected_and_kicked_clients_get_rejected() -> None:
    async def authenticate(token: str) -> Identity:
        if token != "t":
            raise Refused("no such token")
        return Identity(user="ann")

    async with served(hooks={"authenticate": authenticate}) as (switch, wire):
        with pytest.raises(Rejected, match=r"4500.*no such token"):
            async with wire.client(token="x"):
                pass

        async def be_kicked() -> None:
            async with wire.client(token="t") as client, reading(client.direct()):
                assert client.user_id == "ann"
                switch.kick(switch.connections()[0], reason="enough")
                await trio.sleep_forever()

        with pytest.raises(Rejected, match=r"4502.*enough"):
            await be_kicked()
        await wire.cut()
        wire.port = 1
        with pytest.raises(CannotConnect, match="refused"):
            async with wire.client(token="t"):
                pass


async def test_leaving_is_announced_at_once() -> None:
    async with served() as (_switch, wire), wire.client("ann") as ann, ann.room("r", announcements=True) as room:
        async with wire.client("bob") as bob, bob.room("r"):
            pass
        assert [(await anext(room)).user_id for _ in range(3)] == ["ann", "bob", "bob"]


# --- coming back


@pytest.mark.parametrize("policy", [MEMORY, STORED], ids=["memory", "stored"])
async def test_messages_published_while_offline_arrive_after_resume(policy: RoomPolicy) -> None:
    async with served(policy) as (switch, wire), wire.client("ann") as ann, ann.room("r") as room:
        await switch.publish("r", 0)
        assert await items(room, 1) == [0]
        wire.port, port = 1, wire.port
        await lost(ann, wire)
        for number in range(1, 300):
            await switch.publish("r", number)
        wire.port = port
        assert await items(room, 299) == list(range(1, 300))
        await switch.publish("r", 300)
        assert await items(room, 1) == [300]
        assert (await ann.presence("r")).users == ("ann",)


async def test_history_gives_the_newest_messages() -> None:
    async with served(MEMORY) as (switch, wire), wire.client("ann") as ann:
        for number in range(50):
            await switch.publish("r", number)
        async with ann.room("r", history=3) as room:
            await room.publish(50)
            assert await items(room, 4) == [47, 48, 49, 50]
            page = await room.history(limit=2)
            assert [message.data for message in page.messages] == [49, 50]
            first = await room.history(since=page.messages[0].position)
            assert [message.data for message in first.messages] == [50]


async def test_reconnecting_without_history_gives_a_gap() -> None:
    async with served() as (switch, wire), wire.client("ann") as ann, ann.room("r") as room:
        await lost(ann, wire)
        await until(lambda: ann.connected)
        await switch.publish("r", 1)
        assert await items(room, 2) == [Gap(room="r", dropped=None), 1]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_client_survives_a_server_restart(kind: str, tmp_path: Path) -> None:
    wire = Wire()
    policy = STORED if kind == "sqlite" else MEMORY
    store = f"sqlite:{tmp_path / 'store.db'}" if kind == "sqlite" else "memory"
    options = Options(policies=(policy,))

    @asynccontextmanager
    async def server() -> AsyncIterator[trioswitch.Switch]:
        async with open_store(store) as opened, listening(options, hooks={"store": opened}) as (switch, listener):
            wire.port = listener.port or 0
            yield switch

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            got: list[Any] = []
            inbox: list[Any] = []
            started, restarted, done = trio.Event(), trio.Event(), trio.Event()

            async def client() -> None:
                await started.wait()
                async with wire.client("ann") as ann, ann.room("r") as room, reading(ann.direct()) as direct:
                    await room.publish(1)
                    await ann.send_to_user("ann", "a")
                    got.extend(await items(room, 1))
                    await until(lambda: direct)
                    restarted.set()
                    got.extend(await items(room, 2))
                    inbox.extend(message.data for message in direct)
                done.set()

            nursery.start_soon(client)
            async with server():
                started.set()
                await restarted.wait()
                wire.port = 1
            async with server() as switch:
                await switch.publish("r", 2)
                await switch.publish("r", 3)
                await done.wait()
    expected = [1, Gap(room="r", dropped=None), 2] if kind == "memory" else [1, 2, 3]
    assert got == expected
    assert inbox == ["a"]


@pytest.mark.parametrize("overflow", [Overflow.DROP_OLDEST, Overflow.DROP_NEWEST, Overflow.RESYNC])
async def test_messages_dropped_by_the_server_are_fetched(overflow: Overflow) -> None:
    policy = RoomPolicy(history="memory", history_size=5000, overflow=overflow)
    async with served(policy, outbox_messages=16, history_bytes=2**25) as (switch, wire):
        async with wire.client("ann", max_message_bytes=2**24) as ann, ann.room("r") as room:
            wire.freeze()
            for number in range(400):
                await switch.publish("r", [number, "x" * 20_000])
            wire.thaw()
            for number in range(400):
                message = await anext(room)
                assert isinstance(message, Message)
                assert message.data[0] == number
            await switch.publish("r", "end")
            assert await items(room, 1) == ["end"]


async def test_slow_reader_loses_nothing() -> None:
    async with served(MEMORY) as (switch, wire), wire.client("ann", buffer_messages=16) as ann, ann.room("r") as room:
        async with trio.open_nursery() as nursery:

            async def publish() -> None:
                for number in range(1000):
                    await switch.publish("r", number)

            nursery.start_soon(publish)
            for number in range(1000):
                assert await items(room, 1) == [number]
                assert ann.statistics().buffered["r"] <= 16
                if number % 100 == 0:
                    await trio.sleep(0.01)


@pytest.mark.parametrize("policy", [MEMORY, STORED], ids=["memory", "stored"])
async def test_random_disconnects_lose_and_duplicate_nothing(policy: RoomPolicy) -> None:
    """Both ends lose their connections again and again, in the middle of publishes and of what they receive."""
    count, tasks = 30, 4
    async with served(policy) as (_switch, wire), wire.client("ann") as ann, wire.client("bob") as bob:
        async with ann.room("r") as hers, bob.room("r") as his, trio.open_nursery() as nursery:

            async def publish(task: int) -> None:
                for number in range(count):
                    await hers.publish([task, number])

            for task in range(tasks):
                nursery.start_soon(publish, task)
            got = []
            for number in range(count * tasks):
                got += await items(his, 1)
                if number % 17 == 0:
                    await wire.cut()
        assert ann.statistics().connections > 2
    for task in range(tasks):
        assert [number for whose, number in got if whose == task] == list(range(count))


# --- the inbox


async def test_direct_messages_are_kept_and_delivered_at_least_once() -> None:
    async with served() as (_switch, wire), wire.client("bob") as bob, bob.room("lobby"):
        for number in range(3):
            assert (await bob.send_to_user("ann", number)).kept == 1
        async with wire.client("ann") as ann, ann.room("lobby"):
            assert await items(ann.direct(), 2) == [0, 1]  # it goes before it is done with the second one
        async with wire.client("ann") as ann, ann.room("lobby"), reading(ann.direct()) as got:
            await until(lambda: len(got) == 2)
            assert [message.data for message in got] == [1, 2]
            await bob.send_to_user("ann", 3)
            await until(lambda: len(got) == 3)
            await settled()  # it has asked for the next one
        async with wire.client("ann") as ann, ann.room("lobby"), reading(ann.direct()) as got:
            await bob.send_to_user("ann", 4)
            await until(lambda: got)
            assert [message.data for message in got] == [4]


async def test_direct_messages_across_disconnects() -> None:
    async with served() as (_switch, wire), wire.client("bob") as bob, wire.client("ann") as ann:
        async with bob.room("lobby"), ann.room("lobby"), reading(ann.direct()) as got:
            for number in range(60):
                if number % 7 == 0:
                    await wire.cut()
                await bob.send_to_user("ann", number)
            await until(lambda: len(got) >= 60)
        assert [message.data for message in got] == list(range(60))


# --- the end of the server


async def test_drain_makes_the_client_reconnect_later() -> None:
    async with served() as (switch, wire), wire.client("ann") as ann:
        await switch.drain(5)
        await until(lambda: not ann.connected)
        async for state in ann.states():
            assert not state.connected
            if state.retry_in is not None:
                assert "1001" in state.reason
                break
