"""`trioswitch.testing`, as an application's own tests use it."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trioswitch import Connection, ConnectRequest, Handlers, Identity, Options, Overflow, RoomPolicy
from trioswitch.testing import mock_clock, open_test_switch

handlers = Handlers()


@handlers.on("order")
async def order(connection: Connection, message: dict[str, Any]) -> dict[str, Any]:
    identity = connection.identity
    assert identity is not None
    await connection.switch.publish("kitchen", {"by": connection.user, "what": message["what"]})
    return {"table": identity.info["table"]}


@handlers.on("mark", room="kitchen")
async def mark(connection: Connection, message: dict[str, Any]) -> None:
    connection.join(f"order {message['number']}")
    await connection.send({"marked": message["number"]})


async def by_name(request: ConnectRequest) -> Identity:
    return Identity(user=request.query["name"], info={"table": 7})


async def test_handlers_and_rooms(clock: MockClock) -> None:
    async with open_test_switch(handlers=handlers, on_connect=by_name) as app:
        ann, cook = await app.connect("/ws?name=ann"), await app.connect("/ws?name=cook")
        await cook.join("kitchen")
        answer = await ann.ask("order", what="soup")
        assert answer["data"] == {"table": 7}
        assert (await cook.receive_until(type="message"))["data"] == {"by": "ann", "what": "soup"}
        assert (await ann.ask("mark", room="kitchen", number=1))["code"] == "not_joined"
        assert (await ann.ask("mark", room="elsewhere", number=1))["code"] == "unknown_type"
        await cook.send("mark", room="kitchen", number=1, id=2)
        assert (await cook.receive_until(type="message"))["data"] == {"marked": 1}
        assert app.switch.connection(cook.connection_id).rooms == {"kitchen", "order 1"}
        assert sorted(app.switch.rooms()) == ["kitchen", "order 1"]


async def test_a_connection_as_applications_hold_it(clock: MockClock) -> None:
    async with open_test_switch(on_connect=by_name) as app:
        ann = await app.connect("/ws?name=ann", headers={"X-Extra": "1"})
        connection = app.switch.connection(ann.connection_id)
        assert (connection.id, connection.user, connection.cause) == (ann.connection_id, "ann", None)
        assert connection.request.headers["x-extra"] == "1"
        assert connection == app.switch.connection(ann.connection_id)
        assert connection in {connection}
        app.switch.join(connection, "r")
        assert connection.rooms == {"r"}
        assert (await app.switch.broadcast(1, connections=[connection])).queued == 1
        assert (await app.switch.broadcast(1, exclude=[connection])).queued == 0
        connection.leave("r")
        assert connection.rooms == frozenset()
        connection.close("enough")
        connection.close("once more does nothing")
        assert await ann.closed() == (4502, "enough")
        await trio.sleep(1)
        assert connection.cause is not None
        assert connection.user == "ann"


async def test_a_lost_connection_and_its_session(clock: MockClock) -> None:
    async with open_test_switch(on_connect=by_name) as app:
        ann = await app.connect("/ws?name=ann")
        await ann.join("r")
        await ann.cut()
        assert app.switch.connections() == []
        assert app.switch.users_in("r") == ["ann"]  # her place is reserved
        back = await app.connect("/ws?name=ann")
        answer = await back.ask("resume", session=ann.session)
        assert set(answer["rooms"]) == {"r"}
        await back.close()


async def test_a_slow_reader_gets_a_gap(clock: MockClock) -> None:
    options = Options(outbox_messages=2, policies=RoomPolicy(overflow=Overflow.DROP_OLDEST))
    async with open_test_switch(options) as app:
        slow = await app.connect(slow=True)
        app.switch.join(slow.connection_id, "r")
        receipts = [await app.switch.publish("r", "x" * 100_000) for _ in range(10)]
        assert receipts[-1].queued == 1
        assert (await slow.receive_until(type="gap"))["dropped"] > 0


async def test_patience_ends(clock: MockClock) -> None:
    async with open_test_switch(patience=5) as app:
        client = await app.connect()
        with pytest.raises(trio.TooSlowError):
            await client.receive()


def test_a_mock_clock_needs_no_time() -> None:
    trio.run(trio.sleep, 1e6, clock=mock_clock())
