"""`serve --workers`: several processes are one server, and whoever of them dies is replaced."""

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_websocket
from servers import PATIENCE, Program, run

from trioswitch.cli import supervisor
from trioswitch.cli.supervisor import Workers
from trioswitch.client import Gap, Message, open_client
from trioswitch.stores import MemoryStore

pytestmark = pytest.mark.slow

STORED = ("--room", "stored*:history=stored,history-size=1000")


def _supervisor(*arguments: str, workers: int = 2) -> AbstractAsyncContextManager[Program]:
    command = ("-m", "trioswitch", "serve", "--port", "0", "--workers", str(workers), *arguments)
    return run(*command, is_up=r"listens on (ws://\S+)")


def _port(server: Program) -> int:
    return int(server.found.split(":")[-1].split("/")[0])


async def _health(server: Program) -> dict[str, Any]:
    async with await trio.open_tcp_stream("127.0.0.1", _port(server)) as stream:  # at any of the workers
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join([data async for data in stream])
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_clients_of_all_workers_are_in_the_same_rooms(tmp_path: Path) -> None:
    async with _supervisor("--store", f"sqlite:{tmp_path / 'x.db'}", *STORED) as server:
        assert len(server.children()) == 2
        async with trio.open_nursery() as nursery:
            async with open_client(server.found, user_id="publisher") as publisher:
                received: dict[int, list[str]] = {number: [] for number in range(8)}
                joined = trio.Event()

                async def member(number: int) -> None:
                    async with (
                        open_client(server.found, user_id=f"user {number}") as client,
                        client.room("stored 1") as room,
                    ):
                        received[number].append("joined")
                        if all(received.values()):
                            joined.set()
                        async for message in room:
                            if isinstance(message, Message) and message.content is not None:
                                received[number].append(message.content)
                            if len(received[number]) == 21:
                                return

                for number in range(8):
                    nursery.start_soon(member, number)
                with trio.fail_after(PATIENCE):
                    await joined.wait()
                async with publisher.room("stored 1") as room:
                    for number in range(20):
                        await room.chat(f"{number}")
                with trio.fail_after(PATIENCE):
                    while any(len(texts) < 21 for texts in received.values()):
                        await trio.sleep(0.05)
        assert all(texts == ["joined", *[f"{number}" for number in range(20)]] for texts in received.values())
        with trio.fail_after(PATIENCE):  # `health` is that of the whole, whoever answers
            while {len((await _health(server))["nodes"]) for _ in range(6)} != {2}:
                await trio.sleep(0.1)


@pytest.mark.kill
async def test_a_killed_worker_is_replaced_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    async with _supervisor("--store", f"sqlite:{tmp_path / 'x.db'}", *STORED) as server:
        acknowledged: list[str] = []
        received: list[str] = []
        done = trio.Event()

        async def publish() -> None:
            async with open_client(server.found, user_id="publisher") as client, client.room("stored") as room:
                for number in range(300):
                    await room.chat(f"{number}")  # it is sent again, with its key, when the connection is lost
                    acknowledged.append(f"{number}")
                    await trio.sleep(0.01)
            done.set()

        async def receive(task_status: trio.TaskStatus[None]) -> None:
            async with open_client(server.found, user_id="receiver") as client, client.room("stored") as room:
                task_status.started()
                async for message in room:
                    if isinstance(message, Gap):
                        received.append("gap")
                    elif isinstance(message, Message) and message.content is not None:
                        received.append(message.content)

        async with trio.open_nursery() as nursery:
            await nursery.start(receive)
            nursery.start_soon(publish)
            for _ in range(3):
                await trio.sleep(1)
                for pid in server.children()[:1]:
                    os.kill(pid, signal.SIGKILL)
            with trio.fail_after(PATIENCE):
                await done.wait()
                while len(received) < 300 and received == acknowledged[: len(received)]:
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        assert received == acknowledged == [f"{number}" for number in range(300)]
        with trio.fail_after(PATIENCE):
            while len(server.children()) < 2:
                await trio.sleep(0.05)
        assert server.said.count("is started again") == 3


@pytest.mark.kill
async def test_workers_end_when_the_supervisor_is_killed() -> None:
    async with _supervisor() as server:
        workers = server.children()
        server.process.kill()
        with trio.fail_after(PATIENCE):
            while any(map(_is_alive, workers)):
                await trio.sleep(0.05)
        assert "the supervisor is gone" in server.said


async def _read_on(websocket: trio_websocket.WebSocketConnection) -> None:
    while True:
        await websocket.get_message()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_all_workers(end: signal.Signals) -> None:
    async with _supervisor("--node-name", "n" * 255, workers=3) as server:
        async with trio.open_nursery() as nursery:
            codes: list[int | None] = []

            async def stay() -> None:
                async with await trio.open_tcp_stream("127.0.0.1", _port(server)) as stream:
                    websocket = await trio_websocket.wrap_client_stream(nursery, stream, "localhost", "/ws")
                    await websocket.get_message()
                    codes.append(None)
                    with pytest.raises(trio_websocket.ConnectionClosed) as closed:
                        await _read_on(websocket)
                    assert closed.value.reason is not None
                    codes.append(closed.value.reason.code)

            for _ in range(6):
                nursery.start_soon(stay)
            with trio.fail_after(PATIENCE):
                while len(codes) < 6:
                    await trio.sleep(0.05)
            server.process.send_signal(end)
            with trio.fail_after(PATIENCE):
                assert await server.process.wait() == 0
        assert codes[6:] == [1001] * 6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--workers", "0"), "argument --workers: '0' is neither a number of processes, 1 to 256, nor auto"),
        (("--workers", "many"), "argument --workers: 'many' is neither a number of processes, 1 to 256, nor auto"),
        (
            ("--workers", "2", "--uds", "x"),
            "argument --workers: not allowed with --uds: processes share a TCP port only",
        ),
        (("--workers", "2", *STORED), "argument --room: history=stored needs a --store that keeps messages"),
    ],
)
def test_wrong_options(arguments: tuple[str, ...], sentence: str) -> None:
    command = [sys.executable, "-m", "trioswitch", "serve", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert sentence in done.stderr


async def test_a_worker_that_cannot_be_started_again_is_tried_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = 0
    signals_send, signals = trio.open_memory_channel[int](1)
    open_process = trio.lowlevel.open_process

    async def open_seldom(command: list[str], **given: Any) -> trio.Process:
        nonlocal attempts
        attempts += 1
        if attempts in (2, 3):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if attempts == 4:
            signals_send.send_nowait(signal.SIGTERM)
        ready = command[command.index("--worker-ready") + 1]
        return await open_process([sys.executable, "-c", f"import os; os.write({ready}, b'1')"], **given)

    monkeypatch.setattr(trio.lowlevel, "open_process", open_seldom)
    monkeypatch.setattr(supervisor, "RESTART_DELAY", 0.01)
    workers = Workers(1, ["serve"], ["127.0.0.1"], 0, "a")
    with trio.fail_after(PATIENCE):
        await workers.run(MemoryStore(), signals, 5.0, lambda _addresses: None, KeyboardInterrupt)
    assert attempts == 4
    assert caplog.text.count("could not be started: Resource temporarily unavailable") == 2


async def test_a_port_that_is_taken() -> None:
    async with _supervisor() as server:
        command = [sys.executable, "-m", "trioswitch", "serve", "--port", str(_port(server))]
        for workers in ((), ("--workers", "2")):
            done = await trio.run_process([*command, *workers], capture_stderr=True, check=False)
            assert done.returncode == 1
            assert b"Address already in use" in done.stderr
