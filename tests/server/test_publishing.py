"""The one publishing path: the outcome of each message is reported exactly once, in every way in which a message can end."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import running, settled
from trio.testing import MockClock

from trioswitch import (
    DeliveryError,
    Identity,
    Options,
    Receipt,
    RoomPolicy,
    StoreError,
    Switch,
    TooManyRetries,
    open_switch,
)
from trioswitch.stores import Append, Appended, InboxLimits, InboxMessage, InboxResult, MemoryStore
from trioswitch.stores.port import UNLIMITED


async def test_a_key_that_met_no_room_is_not_pending_forever(clock: MockClock) -> None:
    async with running() as app:
        app.switch.publish_nowait("nobody-here", 1, idempotency_key="k")
        with trio.fail_after(1):
            assert await app.switch.publish("nobody-here", 1, idempotency_key="k") == Receipt(duplicate=True)


async def test_a_full_room_frees_the_key_of_a_publisher_that_does_not_wait(clock: MockClock) -> None:
    async with running(Options(room_messages=1)) as app, app.switch.subscribe("r"):
        app.switch.publish_nowait("r", 1)
        with pytest.raises(trio.WouldBlock):
            app.switch.publish_nowait("r", 2, idempotency_key="k")
        await settled()
        with trio.fail_after(1):
            receipt = await app.switch.publish("r", 2, idempotency_key="k")
        assert (receipt.queued, receipt.duplicate) == (1, False)


async def test_a_client_that_is_lost_before_its_publish_found_space_frees_its_key(clock: MockClock) -> None:
    """The rest of its command was never begun: it is closed, and reports its outcome all the same."""

    async def ann(_request: object) -> Identity:
        return Identity(user="ann")

    how = Options(room_messages=1, policies=(RoomPolicy(overflow="block", block_timeout=1000),))
    async with running(how, on_connect=ann) as app:
        async with app.switch.subscribe("r") as subscription:
            client, other = await app.connect(), await app.connect()
            await client.join("r")
            while True:  # fill the room
                try:
                    app.switch.publish_nowait("r", 0)
                except trio.WouldBlock:
                    break
                await settled()
            await client.send("message", room="r", data=1, id=1, idempotency_key="k")
            await settled()
            await client.cut()
            await settled()
            await other.send("message", room="r", data=1, id=2, idempotency_key="k")
            with trio.move_on_after(100):
                async for _event in subscription:
                    pass
            answer = await other.receive_until(id=2)
        assert answer["type"] in ("ack", "error"), answer


class Moody(MemoryStore):
    """Takes its time, and fails when it is told to."""

    fails: Exception | None = None

    async def append(self, appends: Sequence[Append], *, total_bytes: int = UNLIMITED) -> list[Appended]:
        await trio.sleep(0.5)
        if self.fails is not None:
            raise self.fails
        return await super().append(appends)

    async def add_to_inboxes(self, inbox_messages: Sequence[InboxMessage], *, limits: InboxLimits) -> list[InboxResult]:
        await trio.sleep(0.5)
        if self.fails is not None:
            raise self.fails
        return await super().add_to_inboxes(inbox_messages, limits=limits)


ROOMS = ("memory", "stored", "none", "blocks", "empty")
POLICIES = (
    RoomPolicy(pattern="memory", history="memory"),
    RoomPolicy(pattern="stored", history="stored"),
    RoomPolicy(pattern="blocks", overflow="block", block_timeout=2),
)
STEP = st.one_of(
    st.tuples(
        st.sampled_from(["publish", "publish_nowait", "user", "cancelled", "cancelled user"]),
        st.sampled_from(ROOMS),
        st.sampled_from([None, None, "a", "b"]),
        st.sampled_from([None, None, 0.0, 1.0]),
    ),
    st.tuples(st.sampled_from(["pass", "read", "store fails", "store crashes", "store works", "leave", "join"])),
)
PROGRAM = st.lists(STEP, min_size=1, max_size=25)


class World:
    """Publishes by every way there is, and counts the outcomes."""

    def __init__(self, switch: Switch, store: Moody, nursery: trio.Nursery) -> None:
        self.switch = switch
        self.store = store
        self.nursery = nursery
        self.begun = self.ended = 0
        self.readers: dict[str, Any] = {}

    async def until_reported(self, publish: Callable[[], Any], patience: float | None) -> None:
        self.begun += 1
        try:
            with trio.move_on_after(100 if patience is None else patience) as scope:
                outcome = await publish()
                assert isinstance(outcome, Receipt)
        except (StoreError, DeliveryError):
            scope = trio.CancelScope()
        if scope.cancelled_caught:
            assert patience is not None, "a publisher hangs"
        self.ended += 1

    def step(self, step: tuple[Any, ...]) -> None:
        match step:
            case ("publish" | "cancelled" as how, room, key, expires):
                patience = 0.2 if how == "cancelled" else None
                call = lambda: self.switch.publish(room, 1, idempotency_key=key, expires=expires)  # noqa: E731
                self.nursery.start_soon(self.until_reported, call, patience)
            case ("user" | "cancelled user" as how, _, key, expires):
                patience = 0.2 if how == "cancelled user" else None
                send = lambda: self.switch.send_to_user("ann", 1, idempotency_key=key, expires=expires)  # noqa: E731
                self.nursery.start_soon(self.until_reported, send, patience)
            case ("publish_nowait", room, key, expires):
                try:
                    self.switch.publish_nowait(room, 1, idempotency_key=key, expires=expires)
                except trio.WouldBlock:
                    pass
            case ("store fails",):
                self.store.fails = StoreError("the disk is full")
            case ("store crashes",):
                self.store.fails = ZeroDivisionError("a fault in the store")
            case ("store works",):
                self.store.fails = None


async def run(program: list[tuple[Any, ...]]) -> None:
    store = Moody()
    options = Options(policies=POLICIES, room_messages=2, inbox_messages=3)
    async with trio.open_nursery() as nursery:
        async with open_switch(options, store=store) as switch:
            world = World(switch, store, nursery)
            subscriptions = {name: switch.subscribe(name) for name in ("memory", "stored", "none", "blocks")}
            inside = {name: await each.__aenter__() for name, each in subscriptions.items()}
            for step in program:
                if step == ("pass",):
                    await trio.sleep(0.7)
                elif step == ("leave",) and inside:
                    name, _ = inside.popitem()
                    await subscriptions.pop(name).__aexit__(None, None, None)
                elif step == ("join",) and "none" not in inside:
                    subscriptions["none"] = switch.subscribe("none")
                    inside["none"] = await subscriptions["none"].__aenter__()
                else:
                    world.step(step)
                    await settled()
            if len(program) % 2:  # else the switch ends in the midst of it
                store.fails = None
                await trio.sleep(60)
                assert world.begun == world.ended
                for room in ROOMS:  # no key is pending: a retry is answered
                    for key in ("a", "b"):
                        with trio.fail_after(30):
                            await switch.publish(room, 1, idempotency_key=key)
            for each in subscriptions.values():
                await each.__aexit__(None, None, None)
        with trio.fail_after(10):
            while world.begun != world.ended:
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()


@settings(max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(PROGRAM)
def test_every_outcome_is_reported_once(program: list[tuple[Any, ...]]) -> None:
    trio.run(run, program, clock=MockClock(autojump_threshold=0))


async def test_too_many_retries_are_refused(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trioswitch.durability.idempotency.MAX_WAITING", 2)
    store = Moody()
    outcomes: list[object] = []

    async def publish(switch: Switch) -> None:
        try:
            outcomes.append(await switch.publish("stored", 1, idempotency_key="k"))
        except TooManyRetries as error:
            outcomes.append(type(error))

    async with running(Options(policies=POLICIES), store=store) as app, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(publish, app.switch)
    assert len(outcomes) == 5
    assert outcomes.count(TooManyRetries) == 2
