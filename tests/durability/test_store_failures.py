"""A store that fails: nothing is acknowledged that is not kept, the rest of the server goes on, and health says so."""

from typing import Any

import msgspec
import pytest
import trio
from support import running, settled
from trio.testing import MockClock

from trioswitch import Options, RoomPolicy, StoreError
from trioswitch.stores.memory import MemoryStore
from trioswitch.web import health

OPTIONS = Options(policies=(RoomPolicy(pattern="s*", history="stored"),))


class Broken(MemoryStore):
    """Fails while `broken`."""

    broken = False

    def _check(self) -> None:
        if self.broken:
            raise StoreError("the disk is full")

    async def append(self, *args: Any, **how: Any) -> Any:
        self._check()
        return await super().append(*args, **how)

    async def read(self, *args: Any, **how: Any) -> Any:
        self._check()
        return await super().read(*args, **how)

    async def read_newest(self, *args: Any, **how: Any) -> Any:
        self._check()
        return await super().read_newest(*args, **how)

    async def add_to_inboxes(self, *args: Any, **how: Any) -> Any:
        self._check()
        return await super().add_to_inboxes(*args, **how)

    async def read_inbox(self, *args: Any, **how: Any) -> Any:
        self._check()
        return await super().read_inbox(*args, **how)

    async def sweep(self, *args: Any, **how: Any) -> Any:
        self._check()
        return await super().sweep(*args, **how)


async def test_what_is_not_stored_is_not_acknowledged_and_not_handed_out(clock: MockClock) -> None:
    store = Broken()
    async with running(OPTIONS, store=store) as app:
        client = await app.connect()
        await client.join("s")
        await client.join("plain")
        assert msgspec.json.decode(health(app.switch)().body)["status"] == "ok"
        store.broken = True
        answer = await client.ask("message", room="s", data=1, idempotency_key="k")
        assert (answer["code"], answer["message"]) == ("not_stored", "the disk is full")
        await client.send("message", room="s", data=2)  # nobody asked for an answer, and it is told all the same
        assert (await client.receive())["code"] == "not_stored"
        with pytest.raises(StoreError, match="the disk is full"):
            await app.switch.publish("s", 3)
        page = health(app.switch)()
        found = msgspec.json.decode(page.body)
        assert (page.status, found["status"], found["problem"]) == (200, "degraded", "the disk is full")

        await client.send("message", id="question", room="plain", data=4)
        assert {(await client.receive())["type"] for _ in range(2)} == {"ack", "message"}

        store.broken = False
        await client.send("message", id="question", room="s", data=1, idempotency_key="k")
        came = {message["type"]: message for message in [await client.receive() for _ in range(2)]}
        assert (came["ack"]["offset"], came["ack"].get("duplicate")) == (1, None)
        assert came["message"]["data"] == 1
        assert msgspec.json.decode(health(app.switch)().body)["status"] == "ok"


async def test_a_history_that_cannot_be_read(clock: MockClock) -> None:
    store = Broken()
    async with running(OPTIONS, store=store) as app:
        store.broken = True
        client = await app.connect()
        assert (await client.ask("join_room", room="s"))["code"] == "unavailable"
        assert (await client.ask("history", room="s"))["code"] == "unavailable"
        store.broken = False
        assert (await client.ask("join_room", room="s"))["type"] == "ack"


async def test_inbox_messages_that_cannot_be_kept_or_read(clock: MockClock) -> None:
    store = Broken()
    async with running(store=store) as app:
        ann = await app.connect()
        store.broken = True
        assert (await ann.ask("direct_message", to="bob", data=1))["code"] == "not_stored"
        store.broken = False
        assert (await ann.ask("direct_message", to="bob", data=2))["kept"] == 1
        store.broken = True
        bob = await app.connect()
        await bob.send("join_room", room="r", user_id="bob")
        await settled()
        store.broken = False
        assert (await bob.receive_until(type="direct_message"))["data"] == 2


async def test_health_comes_back_by_itself(clock: MockClock) -> None:
    store = Broken()
    async with running(OPTIONS, store=store) as app:
        store.broken = True
        await trio.sleep(61)
        assert app.switch.store_error == "the disk is full"
        store.broken = False
        await trio.sleep(61)
        assert app.switch.store_error is None


async def test_a_handler_that_could_not_store(clock: MockClock) -> None:
    store = Broken()
    async with running(OPTIONS, store=store) as app:

        @app.switch.handlers.on("roll")
        async def roll(_connection: Any, _fields: Any) -> None:
            await app.switch.publish("s", 1)

        client = await app.connect()
        store.broken = True
        assert (await client.ask("roll"))["code"] == "not_stored"
