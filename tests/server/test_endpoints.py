"""Endpoints: WebSocket paths of the application's own, on the same listeners as the switch."""

import logging
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_websocket
from raw import RawPeer, upgrade
from support import PATIENCE, App, Client, running, settled
from trio.testing import MockClock
from wire_support import client_frame

from trioswitch import Identity, Options, Refused, WebSocket, WebSocketClosed, open_switch

ECHO = Path(__file__).parents[2] / "examples" / "echo" / "echo.py"


async def echo(websocket: WebSocket) -> None:
    async for message in websocket:
        await websocket.send(message)


async def connect(app: App, path: str = "/echo", **how: Any) -> trio_websocket.WebSocketConnection:
    return (await connect_client(app, path, **how)).websocket


async def connect_client(app: App, path: str = "/echo", **how: Any) -> Client:
    return await app.connect(path=path, welcome=False, **how)


async def status(app: App, path: str) -> int:
    """The HTTP status that an upgrade is answered with."""
    peer = RawPeer(await app.stream())
    await peer.send(upgrade(path))
    answer = await peer.answer()
    await peer.aclose()
    return answer.status


async def closed(websocket: trio_websocket.WebSocketConnection) -> tuple[int, str]:
    with trio.fail_after(PATIENCE), pytest.raises(trio_websocket.ConnectionClosed) as ended:  # noqa: PT012
        while True:
            await websocket.get_message()
    reason = ended.value.reason
    assert reason is not None
    return reason.code, reason.reason or ""


async def test_text_is_text_and_binary_is_binary(clock: MockClock) -> None:
    async with running(endpoints={"/echo": echo}) as app:
        websocket = await connect(app)
        for message in ("", "text", "\N{SNOWMAN}" * 50_000, b"", b"\x00\xff", b"x" * 100_000):
            await websocket.send_message(message)
            assert await websocket.get_message() == message
        assert app.switch.statistics().active_connections == 1
        assert app.switch.connections() == []  # it is not one of the switch's
        client = await app.connect()  # which are served beside it
        await client.join("r")
        await app.switch.broadcast("to the switch's own clients")
        assert (await client.receive_until(type="message"))["data"] == "to the switch's own clients"
        await websocket.send_message("still alone")
        assert await websocket.get_message() == "still alone"


async def test_a_path_without_an_endpoint_is_answered_with_404(clock: MockClock) -> None:
    async with running(endpoints={"/echo": echo}) as app:
        assert await status(app, "/other") == 404


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([client_frame(1, b"\xff")], id="whole"),
        pytest.param(
            [client_frame(1, "caf\u00e9".encode()[:-1], fin=False), client_frame(0, b"x")], id="in a later fragment"
        ),
        pytest.param([client_frame(1, b"\xed\xa0\x80", fin=False)], id="before the message is complete"),
        pytest.param([client_frame(1, "\u00e9".encode()[:1], fin=False), client_frame(0, b"")], id="cut at the end"),
    ],
)
async def test_text_that_is_not_utf_8_closes_with_1007(clock: MockClock, frames: list[bytes]) -> None:
    async with running(endpoints={"/echo": echo}) as app:
        client = await connect_client(app)
        websocket = client.websocket
        await websocket.send_message("before")
        assert await websocket.get_message() == "before"
        for frame in frames:
            await client.stream.send_all(frame)
        assert (await closed(websocket))[0] == 1007


async def test_text_may_be_cut_anywhere(clock: MockClock) -> None:
    async with running(endpoints={"/echo": echo}) as app:
        client = await connect_client(app)
        websocket = client.websocket
        text = "\u00e9\N{SNOWMAN}\N{PILE OF POO}".encode()
        for cut in range(len(text) + 1):
            await client.stream.send_all(client_frame(1, text[:cut], fin=False) + client_frame(0, text[cut:]))
            assert await websocket.get_message() == text.decode()


async def test_the_end_is_seen_by_both_sides(clock: MockClock) -> None:
    ends: list[tuple[int, str]] = []

    async def endpoint(websocket: WebSocket) -> None:
        try:
            while True:
                if await websocket.receive() == "close":
                    websocket.close(3000, "as you say")
        except WebSocketClosed as error:
            ends.append((error.code, error.reason))
            assert websocket.closed
            with pytest.raises(WebSocketClosed):
                await websocket.send("too late")
            raise

    async def short(websocket: WebSocket) -> None:
        await websocket.send("bye")

    async def broken(_websocket: WebSocket) -> None:
        raise ZeroDivisionError("a fault in the application")

    endpoints = {"/ws2": endpoint, "/short": short, "/broken": broken}
    async with running(endpoints=endpoints) as app:
        websocket = await connect(app, "/ws2")
        await websocket.aclose(4001, "that is all")
        websocket = await connect(app, "/ws2")
        await websocket.send_message("close")
        assert await closed(websocket) == (3000, "as you say")
        client = await connect_client(app, "/ws2")
        websocket = client.websocket
        await client.cut()
        await settled()
        assert ends == [(4001, "that is all"), (3000, "as you say"), (1006, "the connection was lost")]
        websocket = await connect(app, "/short")
        assert await websocket.get_message() == "bye"
        assert (await closed(websocket))[0] == 1000
        assert (await closed(await connect(app, "/broken")))[0] == 1011
        await settled()
        statistics = app.switch.statistics()
        assert statistics.active_connections == 0
        assert statistics.closes == {"client_left": 1, "application": 2, "vanished": 1, "internal": 1}


async def test_an_endpoint_may_finish_when_its_client_has_gone_but_not_forever(clock: MockClock) -> None:
    done: list[str] = []

    async def endpoint(websocket: WebSocket) -> None:
        try:
            async for _message in websocket:
                pass
            await trio.sleep(1)
            done.append("a second of work")
            await trio.sleep_forever()
        finally:
            done.append(f"cancelled after {trio.current_time()} s")

    async with running(Options(hook_timeout=3), endpoints={"/e": endpoint}) as app:
        client = await connect_client(app, "/e")
        await client.cut()
        await trio.sleep(10)
    assert done == ["a second of work", "cancelled after 3.0 s"]


async def test_a_client_that_is_not_received_is_pushed_back_on(clock: MockClock) -> None:
    received: list[str | bytes] = []
    begin = trio.Event()

    async def endpoint(websocket: WebSocket) -> None:
        await begin.wait()
        async for message in websocket:
            received.append(message)

    async with running(endpoints={"/e": endpoint}) as app:
        websocket = await connect(app, "/e", pair=trio.testing.lockstep_stream_pair)
        sent = 0
        with trio.move_on_after(5):
            for number in range(1000):
                await websocket.send_message(f"{number}")
                sent += 1
        assert 64 <= sent < 1000
        begin.set()
        await settled()
        assert received[:sent] == [f"{number}" for number in range(sent)]


async def test_a_slow_client_pushes_back_on_its_endpoint_only(clock: MockClock) -> None:
    sent = {"slow": 0, "fast": 0}

    async def endpoint(websocket: WebSocket) -> None:
        who = websocket.request.query["who"]
        for _ in range(20):
            await websocket.send(b"x" * 100_000)
            sent[who] += 1

    async with running(Options(outbox_bytes=300_000), endpoints={"/e": endpoint}) as app:
        await connect(app, "/e?who=slow", pair=trio.testing.lockstep_stream_pair)
        fast = await connect(app, "/e?who=fast")
        for _ in range(20):
            assert await fast.get_message() == b"x" * 100_000
        assert sent["fast"] == 20
        assert sent["slow"] < 8


async def test_limits_heartbeats_and_compression_are_those_of_the_switch(clock: MockClock) -> None:
    options = Options(max_message_bytes=1000, ping_interval=5, ping_timeout=5, max_connections=2)
    async with running(options, endpoints={"/echo": echo}) as app:
        client = await connect_client(app)
        websocket = client.websocket
        await websocket.send_message("x" * 1001)
        assert (await closed(websocket))[0] == 1009
        await client.cut()
        await settled()
        silent, _other = await app.stream(), await connect(app)
        await silent.send_all(upgrade("/echo"))
        assert b"101" in await silent.receive_some()
        assert await status(app, "/echo") == 503
        await trio.sleep(40)
        assert app.switch.statistics().closes == {"too_big": 1, "heartbeat_missed": 1}
        await trio.aclose_forcefully(silent)


async def test_a_message_may_be_left_incomplete_by_a_close(clock: MockClock) -> None:
    async with running(endpoints={"/echo": echo}) as app:
        client = await connect_client(app)
        websocket = client.websocket
        await client.stream.send_all(
            client_frame(1, b"first", fin=False) + client_frame(8, b"\x03\xe8") + client_frame(0, b"last")
        )
        assert (await closed(websocket))[0] == 1000


async def test_hooks_decide_who_may_come(clock: MockClock) -> None:
    seen: list[str] = []

    async def authenticate(token: str) -> Identity:
        if token != "secret":
            raise Refused("wrong token", code="unauthorised")
        return Identity(user="ann")

    async def endpoint(websocket: WebSocket) -> None:
        seen.append(websocket.request.path)

    async with running(endpoints={"/e": endpoint}, authenticate=authenticate) as app:
        for path in ("/e", "/e?token=wrong"):
            assert await status(app, path) == 401
        assert (await closed(await connect(app, "/e?token=secret")))[0] == 1000
    assert seen == ["/e"]


async def test_a_drain_closes_endpoints_with_1001(clock: MockClock) -> None:
    async with running(endpoints={"/echo": echo}) as app:
        websocket = await connect(app)
        assert await app.switch.drain()
        assert (await closed(websocket))[0] == 1001


async def test_what_is_not_a_message_is_an_error_of_the_caller(clock: MockClock) -> None:
    errors: list[str] = []

    async def endpoint(websocket: WebSocket) -> None:
        for call in (
            lambda: websocket.send(7),  # type: ignore[arg-type]
            lambda: websocket.send("\ud800"),
        ):
            try:
                await call()
            except (TypeError, ValueError) as error:
                errors.append(str(error))
        for code, reason in ((1005, ""), (1006, ""), (999, ""), (2000, ""), (5000, ""), (1000, "x" * 124)):
            with pytest.raises(ValueError, match=str(code) if not reason else "123 bytes"):
                websocket.close(code, reason)
        await websocket.send(bytearray(b"still open"))  # type: ignore[arg-type]

    async with running(endpoints={"/e": endpoint}) as app:
        assert await (await connect(app, "/e")).get_message() == b"still open"
    assert errors == [
        "a message must be a str or bytes, not int",
        "the text of a message must be text that UTF-8 can carry",
    ]


@pytest.mark.parametrize(
    ("endpoints", "error"),
    [
        ({"echo": echo}, "must begin with '/'"),
        ({"/e": print}, "must be an async function"),
        ({7: echo}, "must be a str"),
    ],
)
async def test_endpoints_are_checked_when_the_switch_is_opened(endpoints: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        async with open_switch(endpoints=endpoints):
            pass


async def test_the_example(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "trio-websocket")
    process = await trio.lowlevel.open_process([sys.executable, str(ECHO), "0"], stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        with trio.fail_after(PATIENCE):
            first = (await process.stderr.receive_some()).decode()
            found = re.search(r"ws://[\d.:]+", first)
            assert found, first
            async with trio_websocket.open_websocket_url(f"{found[0]}/", max_message_size=1 << 25) as websocket:
                for message in ("text", b"binary", b"x" * (16 * 1024 * 1024)):
                    await websocket.send_message(message)
                    assert await websocket.get_message() == message
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0
            rest = b""
            async for data in process.stderr:
                rest += data
            assert b"Traceback" not in rest
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE):
            await process.wait()
            await process.stderr.aclose()
