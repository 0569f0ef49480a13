"""The orderly end: nobody new, everything written, everybody told."""

from collections import Counter
from contextlib import suppress

import trio
import trio_websocket
from raw import RawPeer, upgrade
from support import running
from trio.testing import MockClock, lockstep_stream_pair

from trioswitch import Options
from trioswitch.testing import MemoryClient, open_test_switch


async def test_a_drain_writes_what_waits_and_closes_with_1001(clock: MockClock, transport: str) -> None:
    async with running(Options(linger=60), transport=transport) as app:
        clients = [await app.connect() for _ in range(5)]
        for client in clients:
            app.switch.join(client.connection_id, "r")
        for number in range(100):
            app.switch.publish_nowait("r", number)
        drained = trio.Event()

        async def drain() -> None:
            assert await app.switch.drain(5)
            drained.set()

        app.nursery.start_soon(drain)
        for client in clients:
            for number in range(100):
                assert (await client.receive_until(type="message"))["data"] == number
            reconnect = await client.receive_until(type="reconnect")
            assert reconnect["after"] > 0
            assert (await client.closed())[0] == 1001
        with trio.fail_after(1):
            await drained.wait()
        assert app.switch.draining
        assert app.switch.statistics().closes == {"drain": 5}
        assert app.switch.statistics().drops == {}


async def test_a_drain_ends_in_time_whoever_does_not_read(clock: MockClock, transport: str) -> None:
    async with running(Options(close_timeout=3), transport=transport) as app:
        good = await app.connect()
        stuck = await app.connect(pair=lockstep_stream_pair)
        await stuck.join("r")
        stuck.stream.reads = False
        start = trio.current_time()
        app.switch.publish_nowait("r", "x" * 1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.switch.drain, 10)
            assert (await good.closed())[0] == 1001
        assert trio.current_time() - start <= 10


async def test_nobody_is_let_in_during_a_drain(clock: MockClock) -> None:
    async with running() as app:
        assert await app.switch.drain(1)
        stream = await app.stream()
        await stream.send_all(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        answer = bytes(await stream.receive_some())
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After" in answer


async def test_who_is_in_the_middle_of_the_handshake_is_not_let_in(clock: MockClock, transport: str) -> None:
    waiting, go = trio.Event(), trio.Event()

    async def on_connect(request: object) -> None:
        waiting.set()
        await go.wait()

    async with running(on_connect=on_connect, transport=transport) as app:
        peer = RawPeer(await app.stream())
        await peer.send(upgrade())
        await waiting.wait()
        assert await app.switch.drain(1)
        go.set()
        assert (await peer.answer()).status == 503
        await peer.aclose()


async def test_many_clients_are_sent_away_in_waves(autojump_clock: MockClock) -> None:
    async with open_test_switch() as app, trio.open_nursery() as nursery:
        clients = [await app.connect() for _ in range(250)]
        times: list[float] = []

        async def read(client: MemoryClient) -> None:
            reconnect = await client.receive_until(type="reconnect")
            times.append(round(trio.current_time() - started, 2))
            assert 0.5 <= reconnect["after"] <= 5
            with suppress(trio_websocket.ConnectionClosed):
                await client.receive()

        started = trio.current_time()
        for client in clients:
            nursery.start_soon(read, client)
        assert await app.switch.drain(10)
        assert Counter(times) == {0.0: 100, 0.67: 100, 1.33: 50}
