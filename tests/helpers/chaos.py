"""What goes wrong on purpose: a server process that can be killed, and a network that cuts connections at any byte."""

import random
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

START = 20.0
"""Seconds that a server has to start."""


class ServerProcess:
    """`python -m trioswitch serve` on one port and one store, however often it is killed."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._arguments = arguments
        self._log = folder / "server.log"
        self._process: trio.Process | None = None
        self.port = 0

    async def start(self) -> None:
        command = [sys.executable, "-m", "trioswitch", "serve", "--port", str(self.port), *self._arguments]
        with self._log.open("wb") as log:
            self._process = await trio.lowlevel.open_process(command, stderr=log)
        with trio.fail_after(START):
            while not (found := re.search(r"listens on ws://[^:]+:(\d+)/", self._log.read_text())):
                assert self._process.returncode is None, self._log.read_text()
                await trio.sleep(0.01)
        self.port = int(found[1])

    async def stop(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            await process.wait()

    def log(self) -> str:
        return self._log.read_text()


@asynccontextmanager
async def server_process(folder: Path, *arguments: str) -> AsyncIterator[ServerProcess]:
    server = ServerProcess(folder, *arguments)
    await server.start()
    try:
        yield server
    finally:
        with trio.CancelScope(shield=True):
            await server.stop(signal.SIGKILL)


class Network:
    """Forwards connections to a port, and cuts each after a random number of bytes, while `cutting`."""

    def __init__(self, to_port: int, seed: int, most: int) -> None:
        self.cutting = True
        self.cuts = 0
        self.port = 0
        self._to_port = to_port
        self._random = random.Random(seed)
        self._most = most

    async def run(self, task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._forward, listeners, task_status=task_status)

    async def _forward(self, client: trio.SocketStream) -> None:
        try:
            async with client, await trio.open_tcp_stream("127.0.0.1", self._to_port) as server:
                left = [self._random.randrange(1, self._most) for _ in range(2)]
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, client, server, left[0], nursery.cancel_scope)
                    nursery.start_soon(self._pump, server, client, left[1], nursery.cancel_scope)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            self.cuts += 1

    async def _pump(
        self, source: trio.SocketStream, target: trio.SocketStream, left: int, scope: trio.CancelScope
    ) -> None:
        async for data in source:
            if self.cutting and len(data) >= left:
                await target.send_all(data[:left])
                self.cuts += 1
                break
            left -= len(data)
            await target.send_all(data)
        scope.cancel()
