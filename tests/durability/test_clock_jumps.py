"""The wall clock is set, by an hour: what is measured in time passed does not notice, and what a store keeps does.

Messages in a store carry the wall clock's time, as Trio's clock begins anew with each process. So their age and expiry
are off by as much as that clock was set while they were kept there; everything else is on Trio's clock.
"""

from typing import Any

import attrs
import pytest
import trio
from links import Link
from support import running, settled
from trio.testing import MockClock

from trioswitch import HistoryStorage, Options, RoomPolicy
from trioswitch.stores.memory import MemoryStore

HOUR = 3600.0
BOTH_WAYS = pytest.mark.parametrize("jump", [HOUR, -HOUR])


@attrs.define
class WallClock:
    """Follows Trio's clock, but for what it was set by."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return 1_700_000_000.0 + trio.current_time() + self.ahead


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    wall = WallClock()
    monkeypatch.setattr("trioswitch._util.clock.wall_time", wall)
    return wall


async def pipe(app: Any, user: str = "ann") -> tuple[Link, str]:
    """A client in the rooms `r` and `plain`, and its session."""
    link = Link.open(app.switch, app.nursery)
    await settled()
    (welcome,) = link.take()
    for room in ("r", "plain"):
        link.send("join_room", room=room, user_id=user)
    await settled()
    link.take()
    return link, welcome["session"]


def how(keep: HistoryStorage, **policy: Any) -> Options:
    return Options(policies=(RoomPolicy(pattern="r", history=keep, **policy),), leave_grace=10, session_time=120)


async def data(app: Any) -> list[Any]:
    return [event.data for event in (await app.switch.history("r")).messages]


@BOTH_WAYS
async def test_sessions_and_places_follow_time_passed(clock: MockClock, wall: WallClock, jump: float) -> None:
    async with running(how(HistoryStorage.MEMORY)) as app:
        link, session = await pipe(app)
        link.vanish()
        await settled()
        wall.ahead = jump
        await trio.sleep(9)
        assert app.switch.users_in("plain") == ["ann"]
        await trio.sleep(2)
        assert app.switch.users_in("plain") == []
        await trio.sleep(100)
        back, _ = await pipe(app, "bob")
        back.send("leave_room", room="plain")
        back.send("leave_room", room="r")
        back.send("resume", session=session, id=1)
        await settled()
        assert back.take()[-1]["user_id"] == "ann"
        assert app.switch.users_in("plain") == ["ann"]


@BOTH_WAYS
async def test_history_in_memory_follows_time_passed(clock: MockClock, wall: WallClock, jump: float) -> None:
    async with running(how(HistoryStorage.MEMORY, history_age=100)) as app:
        await app.switch.publish("r", "short", expires=50)
        await app.switch.publish("r", "long")
        wall.ahead = jump
        await trio.sleep(49)
        assert await data(app) == ["short", "long"]
        await trio.sleep(2)
        assert await data(app) == ["long"]
        await trio.sleep(50)
        assert await data(app) == []


@BOTH_WAYS
async def test_what_waits_in_an_outbox_expires_by_time_passed(clock: MockClock, wall: WallClock, jump: float) -> None:
    async with running(how(HistoryStorage.STORED), store=MemoryStore()) as app:
        link, _ = await pipe(app)
        link.pause()
        for room in ("plain", "r"):
            await app.switch.publish(room, "fills the socket")
            await app.switch.publish(room, "short", expires=10)
            await app.switch.publish(room, "long", expires=30)
        wall.ahead = jump
        await trio.sleep(11)
        link.go_on()
        await settled()
        got = [message["data"] for message in link.take() if message["type"] == "message"]
        assert got == ["fills the socket", "long", "fills the socket", "long"]


@pytest.mark.parametrize(("jump", "there"), [(HOUR, []), (-HOUR, ["short", "long"])])
async def test_what_is_stored_keeps_to_the_wall_clock(
    clock: MockClock, wall: WallClock, jump: float, there: list[str]
) -> None:
    """Where somebody is in the room, it is in memory as well, by time passed; else there is only what the store says."""
    store = MemoryStore()
    async with running(how(HistoryStorage.STORED, history_age=100), store=store) as app:
        await pipe(app)
        await app.switch.publish("r", "short", expires=50)
        await app.switch.publish("r", "long")
        wall.ahead = jump
        await trio.sleep(40)
        link, _ = await pipe(app, "bob")
        link.send("join_room", room="r", history=10)
        await settled()
        assert [message["data"] for message in link.take() if message["type"] == "message"] == ["short", "long"]
    async with running(how(HistoryStorage.STORED, history_age=100), store=store) as app:
        assert await data(app) == there
        await trio.sleep(30)  # 70 s have passed, and 70 s with the jump
        assert await data(app) == there
        wall.ahead = 0.0  # it is set right again
        assert (await app.switch.publish("r", "new")).offset == 3
        page = await store.read("r", after=0, limit=10, max_bytes=10_000, now=wall())
        assert [record.offset for record in page.records] == ([3] if jump > 0 else [2, 3])


@pytest.mark.parametrize(("jump", "there"), [(HOUR, ["long"]), (-HOUR, ["short", "long"])])
async def test_inbox_messages_keep_to_the_wall_clock(
    clock: MockClock, wall: WallClock, jump: float, there: list[str]
) -> None:
    async with running() as app:
        await app.switch.send_to_user("bob", "short", expires=10)
        await app.switch.send_to_user("bob", "long")
        wall.ahead = jump
        await trio.sleep(11)
        link = Link.open(app.switch, app.nursery)
        await settled()
        link.send("join_room", room="plain", user_id="bob")
        await settled()
        got = [message["data"] for message in link.take() if message["type"] == "direct_message"]
        assert got == there


@BOTH_WAYS
async def test_idempotency_keys_follow_time_passed(clock: MockClock, wall: WallClock, jump: float) -> None:
    async with running(how(HistoryStorage.STORED), store=MemoryStore()) as app:
        first = await app.switch.publish("r", 1, idempotency_key="k")
        wall.ahead = jump
        await trio.sleep(590)
        again = await app.switch.publish("r", 1, idempotency_key="k")
        assert (again.offset, again.duplicate) == (first.offset, True)
