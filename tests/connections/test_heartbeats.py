"""WebSocket pings by one task: who answers stays, who is gone is found."""

import pytest
import trio
from support import PATIENCE, connected, listening, running
from trio.testing import MockClock, lockstep_stream_pair

from trioswitch import Options


async def test_who_answers_stays(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app:
        clients = [await app.connect() for _ in range(5)]
        await trio.sleep(600)
        assert len(app.switch.connections()) == 5
        for client in clients:
            await client.nothing_more()


@pytest.mark.parametrize("reads", [True, False])
async def test_who_does_not_answer_is_closed_in_time(clock: MockClock, transport: str, reads: bool) -> None:
    """One reads on and answers no ping, the other does not even read: both are gone after interval + timeout."""
    async with running(Options(ping_interval=10, ping_timeout=5, close_timeout=2), transport=transport) as app:
        neighbour = await app.connect()
        client = await app.connect(pair=lockstep_stream_pair)
        await client.join("r")
        start = trio.current_time()
        client.stream.reads, client.stream.pongs = reads, False
        while client.connection_id in app.switch.connections():
            assert trio.current_time() - start < 60
            await trio.sleep(0.5)
        assert 10 <= trio.current_time() - start <= 10 + 1 + 5 + 1 + 2 + 1
        assert app.switch.statistics().closes == {"heartbeat_missed": 1}
        await neighbour.nothing_more()


async def test_answers_count_on_a_real_socket() -> None:
    """There it is the reactor that hears them."""
    async with listening(Options(ping_interval=0.1, ping_timeout=0.1)) as (switch, server):
        async with connected(server.urls[0]) as client:
            with trio.fail_after(PATIENCE):
                while client.stream.pings_seen < 5:
                    await trio.sleep(0.05)
            assert switch.connections() == [client.connection_id]
            await client.nothing_more()


async def test_any_sign_of_life_counts(clock: MockClock) -> None:
    async with running(Options(ping_interval=10, ping_timeout=5)) as app:
        client = await app.connect()
        client.stream.pongs = False
        for _ in range(30):
            await trio.sleep(4)
            await client.nothing_more()
        await trio.sleep(30)
        assert app.switch.connections() == []


class CountSteps(trio.abc.Instrument):
    steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1


async def test_heartbeats_do_not_wake_without_connections(clock: MockClock) -> None:
    async with running(Options(ping_interval=1)) as app:
        client = await app.connect()
        await client.websocket.aclose()
        await trio.sleep(10)
        count = CountSteps()
        trio.lowlevel.add_instrument(count)
        await trio.sleep(100)
        assert count.steps < 50, "100 seconds, of which each would have a ping"
