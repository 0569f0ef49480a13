"""The byte budget of all outboxes: who holds most gives way, the lowest priorities first, and who reads is not touched."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trioswitch import Options
from trioswitch.testing import MemoryClient, TestSwitch, open_test_switch

KB = 1024
BUDGET = 200 * KB
OPTIONS = Options(total_outbox_bytes=BUDGET, outbox_bytes=10 * BUDGET, outbox_messages=10_000)


async def _member(app: TestSwitch, room: str, *, slow: bool = False) -> MemoryClient:
    client = await app.connect(slow=slow)
    await client.join(room, user_id=room)
    return client


async def _texts(client: MemoryClient, until: str) -> list[str]:
    """What it gets, `gap` for a gap, up to a text."""
    found: list[str] = []
    while not found or found[-1] != until:
        event = await client.receive()
        if event["type"] in ("message", "gap"):
            found.append("gap" if event["type"] == "gap" else event["data"][:10].strip())
    return found


def _text(name: Any) -> str:
    return f"{name:<10}{'x' * KB}"


async def test_who_reads_gets_everything_while_the_slowest_gives_way(autojump_clock: MockClock) -> None:
    async with open_test_switch(OPTIONS) as app:
        fast = await _member(app, "fast")
        slow = [await _member(app, f"slow {number}", slow=True) for number in range(3)]
        for number in range(300):
            for index in range(3):
                if not number % 4**index:  # the first gets most
                    await app.switch.publish(f"slow {index}", _text(number))
            await app.switch.publish("fast", _text(number))
            await trio.sleep(0.01)
            assert app.switch.statistics().pending_bytes < BUDGET
        assert await _texts(fast, "299") == [str(number) for number in range(300)]
        statistics = app.switch.statistics()
        assert set(statistics.drops) == {"shed"}
        dropped = [await _dropped(client) for client in slow]
        assert sum(dropped) == statistics.drops["shed"]
        assert dropped[0] > 100
        assert dropped[1:] == [0, 0]


async def _dropped(client: MemoryClient) -> int:
    """How many messages the client is told that it has missed."""
    count = 0
    with trio.move_on_after(1):
        while True:
            event = await client.receive()
            count += event.get("dropped", 0) if event["type"] == "gap" else 0
    return count


async def test_low_priorities_go_first_though_others_hold_more(autojump_clock: MockClock) -> None:
    async with open_test_switch(OPTIONS) as app:
        much, little = await _member(app, "much", slow=True), await _member(app, "little", slow=True)
        for number in range(40):
            await app.switch.publish("little", _text(number), priority=0)
        for number in range(140):
            await app.switch.publish("much", _text(number), priority=2)
        await app.switch.publish("much", _text("last"), priority=2)
        await trio.sleep(1)
        await app.switch.publish("little", _text("end"))
        texts = await _texts(little, "end")
        assert texts.count("gap") == 1
        assert len(texts) < 40
        assert "gap" not in await _texts(much, "last")


async def test_answers_to_commands_are_never_shed(autojump_clock: MockClock) -> None:
    async with open_test_switch(OPTIONS) as app:
        slow = await _member(app, "slow", slow=True)
        for number in range(60):
            await slow.send("message", room="slow", data=_text(number), id=number)
        for number in range(400):
            await app.switch.publish("slow", _text(number))
            await trio.sleep(0.01)
        acknowledged: list[Any] = []
        with trio.move_on_after(5):
            while len(acknowledged) < 60:
                event = await slow.receive()
                if event["type"] == "ack":
                    acknowledged.append(event["id"])
        assert acknowledged == list(range(60))
        assert app.switch.statistics().drops["shed"] > 100


@pytest.mark.parametrize("leaves", [True, False])
async def test_it_ends_when_there_is_space_again(leaves: bool, autojump_clock: MockClock) -> None:
    async with open_test_switch(OPTIONS) as app:
        slow = await _member(app, "slow", slow=True)
        for number in range(400):
            await app.switch.publish("slow", _text(number))
            await trio.sleep(0.01)
        before = app.switch.statistics().drops["shed"]
        if leaves:
            await slow.cut()
            await trio.sleep(1)
        else:
            assert (await _texts(slow, "399")).count("gap") == 1
        fast = await _member(app, "fast")
        for number in range(400):
            await app.switch.publish("fast", _text(number))
            await fast.receive_until(data=_text(number))
        assert app.switch.statistics().drops["shed"] == before
        assert app.switch.statistics().pending_bytes == 0
