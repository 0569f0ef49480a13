"""Long answers are charged to the client that asks for them."""

from typing import Any

import pytest
import trio
from support import running
from trio.testing import MockClock

from trioswitch import HistoryStorage, Options, RoomPolicy
from trioswitch.connections.allowance import ANSWER_BURST, ANSWER_RATE, Allowance


async def test_a_burst_then_a_rate(clock: MockClock) -> None:
    allowance = Allowance()
    allowance.charge(ANSWER_BURST)
    assert not allowance.exceeded
    allowance.charge(ANSWER_RATE // 2)
    assert allowance.exceeded
    start = trio.current_time()
    await allowance.wait()
    assert trio.current_time() - start == pytest.approx(0.5)
    await trio.sleep(2)
    allowance.charge(ANSWER_RATE)
    await allowance.wait()
    assert trio.current_time() - start == pytest.approx(2.5), "time that passed counts"


async def test_nobody_waits_longer_than_a_second(clock: MockClock) -> None:
    allowance = Allowance()
    allowance.charge(100 * ANSWER_BURST)
    start = trio.current_time()
    await allowance.wait()
    assert trio.current_time() - start == pytest.approx(1.0)


async def test_an_old_allowance_does_not_save_up(clock: MockClock) -> None:
    allowance = Allowance()
    await trio.sleep(50_000)
    allowance.charge(ANSWER_BURST + 1)
    await allowance.wait()
    allowance.charge(ANSWER_BURST + ANSWER_RATE)
    start = trio.current_time()
    await allowance.wait()
    assert trio.current_time() - start == pytest.approx(1.0)


QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("history", {"room": "r", "limit": 1000}),
    ("join_room", {"room": "r", "history": 100}),
    ("presence", {"room": "crowd"}),
]


@pytest.mark.parametrize("transport", ["native", "trio-websocket"])
@pytest.mark.parametrize(("type", "fields"), QUESTIONS)
async def test_a_client_that_asks_for_much_gets_it_at_a_rate(
    clock: MockClock, transport: str, type: str, fields: dict[str, Any]
) -> None:
    options = Options(policies=RoomPolicy(pattern="r", history=HistoryStorage.MEMORY), total_session_bytes=1 << 30)
    async with running(options, transport=transport) as app:
        for _ in range(40):
            await app.switch.publish("r", "x" * 20_000)
        members = [await app.connect() for _ in range(5 if type == "presence" else 0)]
        for number, member in enumerate(members):
            await member.ask("join_room", room="crowd", user_id=str(number) * 250)
        client = await app.connect()
        start, size, count = trio.current_time(), 0, 0
        while trio.current_time() - start < 5 and count < 300:
            await client.send(type, id="q", **fields)
            answered = False
            while not answered:
                payload = await client.receive_raw()
                size += len(payload)
                answered = b'"id":"q"' in (payload if isinstance(payload, bytes) else payload.encode())
            count += 1
        elapsed = trio.current_time() - start
        if type == "presence":
            assert elapsed < 0.1, "five long names are no long answer"
        else:
            assert size > ANSWER_BURST
            assert size < ANSWER_BURST + (elapsed + 1) * ANSWER_RATE * 1.2
            other = await app.connect()
            before = trio.current_time()
            await other.ask("heartbeat")
            assert trio.current_time() == before, "nobody else waits"


async def test_an_answer_to_presence_names_64_kib_at_most(clock: MockClock) -> None:
    async with running(Options(max_connections=2000)) as app:
        for number in range(300):
            member = await app.connect()
            await member.ask("join_room", room="crowd", user_id=f"{number:03}" + "n" * 252)
        answer = await (await app.connect()).ask("presence", room="crowd")
        assert answer["count"] == 300
        assert 250 <= len(answer["users"]) <= 257
