"""Seed 002's client, written on asyncio by somebody else, talks to the server; ten of them run its simulation.

The asyncio code runs under trio-asyncio, so that its sleeps (75 s of them) pass on a clock that is 20 times as fast.
"""

import ast
import asyncio

import pytest
import trio
import trio_asyncio
from seeds.client_002 import WebSocketClient, simulate_multiple_clients
from support import listening
from trio.testing import MockClock

pytestmark = pytest.mark.slow

FAST = 20


@pytest.fixture
def fast_clock() -> MockClock:
    return MockClock(rate=FAST)


def received(output: str, user: str) -> list[dict[str, object]]:
    """What the client of this user printed as received."""
    marker = f"用户 {user} 收到消息: "
    return [ast.literal_eval(line.removeprefix(marker)) for line in output.splitlines() if line.startswith(marker)]


async def test_the_client_joins_chats_and_gets_heartbeat_answers(
    fast_clock: MockClock, transport: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with listening(transport=transport) as (switch, server), trio_asyncio.open_loop():

        async def converse() -> None:
            ann = WebSocketClient("ann", f"ws://localhost:{server.port}")
            bob = WebSocketClient("bob", f"ws://localhost:{server.port}")
            await ann.connect()
            await bob.connect()
            listener = asyncio.create_task(ann.listen_messages())
            beats = asyncio.create_task(ann.heartbeat())
            await ann.join_room("r")
            while switch.users_in("r") != ["ann"]:
                await asyncio.sleep(0.1)
            await bob.join_room("r")
            await bob.send_message("r", "你好")
            await asyncio.sleep(55)  # two heartbeats
            await bob.websocket.close()
            while switch.users_in("r") != ["ann"]:
                await asyncio.sleep(0.1)
            await ann.websocket.close()
            await listener
            await beats

        await trio_asyncio.aio_as_trio(converse)()
    messages = received(capsys.readouterr().out, "ann")
    kinds = [(m["type"], m.get("action") or m.get("content")) for m in messages]
    assert kinds == [
        ("connected", None),
        ("system", "user_joined"),
        ("system", "user_joined"),
        ("chat_message", "你好"),
        ("heartbeat_ack", None),
        ("heartbeat_ack", None),
        ("system", "user_left"),
    ]
    line = messages[3]
    assert (line["room"], line["user_id"]) == ("r", "bob")
    assert messages[2]["online_count"] == 2


async def test_ten_of_them_run_the_simulation_to_the_end(fast_clock: MockClock) -> None:
    async with listening() as (switch, server), trio_asyncio.open_loop(), switch.subscribe("test_room") as events:
        seen = []

        async def collect() -> None:
            async for event in events:
                seen.append(event)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect)
            await trio_asyncio.aio_as_trio(simulate_multiple_clients)(f"ws://localhost:{server.port}")
            while switch.connections():
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
    lines = [(event.user_id, event.content) for event in seen if event.type == "chat_message"]  # type: ignore[attr-defined]
    assert lines == [(f"user_{i}", f"这是来自 user_{i} 的第 {j + 1} 条消息") for i in range(10) for j in range(5)]
    counts = [event.online_count for event in seen if event.type == "system"]  # type: ignore[attr-defined]
    assert sorted(counts) == sorted([*range(1, 11), *range(10)])
    statistics = switch.statistics()
    assert statistics.closes == {"client_left": 10}
    assert set(statistics.drops) <= {"closed", "write_failed"}  # what was on its way to clients that closed
