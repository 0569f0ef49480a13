"""The example with nginx in front and Redis behind: the chat survives the death of any one process."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from redis_server import free_port

from trioswitch.client import ClientError, Message, Room, open_client

PATIENCE = 60.0
CLUSTER = Path(__file__).parents[2] / "examples" / "cluster" / "cluster.py"


@asynccontextmanager
async def cluster(directory: Path, port: int) -> AsyncIterator[trio.Process]:
    command = [sys.executable, str(CLUSTER), "--port", str(port), "--directory", str(directory)]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    said = bytearray()

    async def read() -> None:
        assert process.stdout is not None
        async for data in process.stdout:
            said.extend(data)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            with trio.fail_after(PATIENCE):
                while b"on 3 servers" not in said:
                    assert process.poll() is None, said.decode()
                    await trio.sleep(0.05)
            yield process
            process.send_signal(signal.SIGINT)
            with trio.fail_after(PATIENCE):
                assert await process.wait() == 0, said.decode()
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.terminate()
                with trio.move_on_after(20):
                    await process.wait()
                process.kill()
            await process.stdout.aclose()


def processes(cluster: trio.Process) -> list[int]:
    """What it runs: Redis, the chats and nginx."""
    children = [path.read_text() for path in Path(f"/proc/{cluster.pid}/task").glob("*/children")]
    return sorted(int(pid) for pid in " ".join(children).split())


async def say(room: Room, text: str) -> None:
    """Say something until it is acknowledged."""
    while True:
        try:
            await room.chat(text, idempotency_key=text)
        except ClientError:
            await trio.sleep(0.2)
        else:
            return


@pytest.mark.kill
async def test_the_chat_survives_the_death_of_any_one_process(tmp_path: Path) -> None:
    port = free_port()
    url = f"ws://127.0.0.1:{port}/ws?name="
    received: list[str] = []

    async def listen(task_status: trio.TaskStatus[None]) -> None:
        async with open_client(url + "ann") as ann, ann.room("lobby") as room:
            task_status.started()
            async for message in room:
                if isinstance(message, Message) and message.content is not None:
                    received.append(message.content)

    async with cluster(tmp_path, port) as running, trio.open_nursery() as nursery:
        first = processes(running)
        assert len(first) == 5
        await nursery.start(listen)
        async with open_client(url + "bob") as bob, bob.room("lobby") as room:
            await say(room, "begin")
            for pid in first:
                os.kill(pid, signal.SIGKILL)
                for number in range(5):
                    await say(room, f"{pid}:{number}")
                with trio.fail_after(PATIENCE):
                    while len(processes(running)) < 5:
                        await trio.sleep(0.05)
                await trio.sleep(1)
        said = ["begin", *[f"{pid}:{number}" for pid in first for number in range(5)]]
        with trio.fail_after(PATIENCE):
            while len(received) < len(said):
                await trio.sleep(0.05)
        assert received == said
        nursery.cancel_scope.cancel()
