"""What is published is what it was at the call: for all receivers, codecs, histories, stores and subscribers, now and later."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support import Client, running
from trio.testing import MockClock

from trioswitch import Connection, Handlers, HistoryStorage, Options, RoomPolicy, Switch
from trioswitch.messages import ChatMessage, Event, Message, Published
from trioswitch.stores.memory import MemoryStore

POLICIES = (
    RoomPolicy(pattern="memory", history=HistoryStorage.MEMORY),
    RoomPolicy(pattern="stored", history=HistoryStorage.STORED),
)
BOTH = pytest.mark.parametrize("subprotocol", ["trioswitch.v1", "trioswitch.v1.msgpack"])
WANTED = [{"count": [0]}, {"count": [0, 1]}, {"count": [0, 1, 2]}]


async def counted(publish: Callable[[Any], object]) -> None:
    """Publish one and the same object three times, changed in between, and change it again afterwards."""
    data: dict[str, list[int]] = {"count": []}
    for number in range(3):
        data["count"].append(number)
        result = publish(data)
        if isinstance(result, Awaitable):
            await result
    data["count"].append(-1)


async def received(client: Client) -> list[Any]:
    got: list[Any] = []
    while len(got) < 3:
        message = await client.receive()
        if "data" in message:
            got.append(message["data"])
    return got


@BOTH
@pytest.mark.parametrize("room", ["plain", "memory", "stored"])
@pytest.mark.parametrize("nowait", [True, False])
async def test_rooms_their_histories_and_their_subscribers(
    clock: MockClock, subprotocol: str, room: str, nowait: bool
) -> None:
    async with running(Options(policies=POLICIES), store=MemoryStore()) as app:
        switch, client = app.switch, await app.connect(subprotocol=subprotocol)
        await client.join(room)
        async with switch.subscribe(room) as one, switch.subscribe(room) as other:
            await counted(lambda data: (switch.publish_nowait if nowait else switch.publish)(room, data))
            assert await received(client) == WANTED
            for subscription in (one, other):
                got = []
                while len(got) < 3:
                    event = await anext(subscription)
                    if isinstance(event, Message):
                        got.append(event.data)
                        assert event.data is event.body
                assert got == WANTED
                got[0]["count"].append("changed by a subscriber")
        if room != "plain":
            for _ in range(2):
                page = await switch.history(room)
                assert [message.body for message in page.messages if isinstance(message, Message)] == WANTED
                page.messages[0].body["count"].append("changed by a reader")


@BOTH
@pytest.mark.parametrize(
    "send",
    [
        lambda switch, client, data: switch.send(client.connection_id, data),
        lambda switch, client, data: switch.connection(client.connection_id).send(data),
        lambda switch, client, data: switch.send_to_user("ann", data),
        lambda switch, client, data: switch.send_to_user("ann", data, keep=False),
        lambda switch, client, data: switch.send_to_group("staff", data),
        lambda switch, client, data: switch.broadcast(data),
    ],
)
async def test_users_groups_and_connections(
    clock: MockClock, subprotocol: str, send: Callable[[Switch, Client, Any], Awaitable[Any]]
) -> None:
    """A linger holds the messages back while the data is changed."""
    async with running(Options(linger=1)) as app:
        client = await app.connect(subprotocol=subprotocol)
        await client.join("r", user_id="ann")
        app.switch.add_to_group("staff", "ann")
        await counted(lambda data: send(app.switch, client, data))
        assert await received(client) == WANTED


@BOTH
async def test_the_inbox(clock: MockClock, subprotocol: str) -> None:
    async with running() as app:
        await counted(lambda data: app.switch.send_to_user("ann", data))
        client = await app.connect(subprotocol=subprotocol)
        await client.join("r", user_id="ann")
        assert await received(client) == WANTED


@BOTH
async def test_what_a_handler_answers(clock: MockClock, subprotocol: str) -> None:
    handlers, answer = Handlers(), {"count": [0]}

    @handlers.on("ask")
    async def ask(connection: Connection, fields: dict[str, Any]) -> Any:
        return answer

    async with running(Options(linger=1), handlers=handlers) as app:
        client = await app.connect(subprotocol=subprotocol)
        await client.send("ask", id=1)
        await client.send("ask", id=2)
        assert (await client.receive_until(id=1))["data"] == {"count": [0]}
        answer["count"].append(1)
        assert (await client.receive_until(id=2))["data"] == {"count": [0]}


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: Message(data={"a": 1}, room="r"), lambda event: event.data.update(a=2)),
        (lambda: Message(data={"a": 1}, room="r"), lambda event: setattr(event, "data", 2)),
        (lambda: ChatMessage(content="a", room="r", user_id="u"), lambda event: setattr(event, "content", "b")),
    ],
)
async def test_an_event_of_the_application_stays_the_applications(
    clock: MockClock, make: Callable[[], Published], change: Callable[[Event], None]
) -> None:
    async with running() as app, app.switch.subscribe("r") as subscription:
        event = make()
        body = make().body
        app.switch.publish_nowait("r", event)
        assert event == make(), "publishing does not change it"
        change(event)
        got = await anext(subscription)
        assert isinstance(got, Published)
        assert (type(got), got.body) == (type(event), body)
        change(got)
        app.switch.publish_nowait("r", got)
        again = await anext(subscription)
        assert isinstance(again, Published)
        assert again.body == event.body
