"""The example with nginx in front and Redis behind: the chat survives the death of any one process."""

import os
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio
from engine_server import free_port
from servers import PATIENCE, Program, run

from trioswitch.client import ClientError, Message, Room, open_client

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster" / "cluster.py"


def cluster(directory: Path, port: int) -> AbstractAsyncContextManager[Program]:
    arguments = ("--port", str(port), "--directory", str(directory))
    return run(CLUSTER, *arguments, is_up="(on 3 servers)", end=signal.SIGINT)


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
        first = running.children()
        assert len(first) == 5
        await nursery.start(listen)
        async with open_client(url + "bob") as bob, bob.room("lobby") as room:
            await say(room, "begin")
            for pid in first:
                os.kill(pid, signal.SIGKILL)
                for number in range(5):
                    await say(room, f"{pid}:{number}")
                with trio.fail_after(PATIENCE):
                    while len(running.children()) < 5:
                        await trio.sleep(0.05)
                await trio.sleep(1)
        said = ["begin", *[f"{pid}:{number}" for pid in first for number in range(5)]]
        with trio.fail_after(PATIENCE):
            while len(received) < len(said):
                await trio.sleep(0.05)
        assert received == said
        nursery.cancel_scope.cancel()
