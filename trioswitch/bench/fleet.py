"""The client processes: the parent starts them, sends orders and reads replies."""

import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import msgspec
import trio

from .orders import Connected, Failed, Finished, Order, Ready, Reply, Tick
from .target import BenchError

__all__ = ["FILES_IN_RESERVE", "Fleet", "clients_in_one_process", "open_fleet"]

FILES_IN_RESERVE: Final = 64
"""Open files of a client process that are no connections."""
GRACE: Final = 5.0
"""Seconds in which the processes must end when they are told to."""
WAITING_REPLIES: Final = 1000

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Ready | Connected | Tick | Finished | Failed).decode


def clients_in_one_process() -> int:
    """How many connections the limit on open files leaves to one process."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if hard == resource.RLIM_INFINITY else max(1, hard - FILES_IN_RESERVE)


class Fleet:
    """Client processes 0, 1, 2 ...; made by `open_fleet`."""

    def __init__(self, processes: list[trio.Process], replies: trio.MemoryReceiveChannel[tuple[int, Reply]]) -> None:
        self._processes = processes
        self._replies = replies

    def __len__(self) -> int:
        return len(self._processes)

    async def order(self, index: int, order: Order) -> None:
        """Tell one process what to do. Raises BenchError when it is gone."""
        stdin = self._processes[index].stdin
        assert stdin is not None
        try:
            await stdin.send_all(_encode(order) + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # why it is gone comes with the replies

    async def order_all(self, order: Order) -> None:
        for index in range(len(self)):
            await self.order(index, order)

    async def reply(self) -> tuple[int, Reply]:
        """The next reply, and whose it is. Raises BenchError when a process cannot go on."""
        index, reply = await self._replies.receive()
        if isinstance(reply, Failed):
            raise BenchError(reply.sentence)
        return index, reply


@asynccontextmanager
async def open_fleet(count: int) -> AsyncIterator[Fleet]:
    """Run client processes; they end with the block. Each says `Ready` first."""
    send, receive = trio.open_memory_channel[tuple[int, Reply]](WAITING_REPLIES)
    command = [sys.executable, "-m", "trioswitch.bench.worker"]
    start = partial(trio.lowlevel.open_process, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    processes = list[trio.Process]()
    async with trio.open_nursery() as nursery:
        try:
            for index in range(count):
                processes.append(process := await start(command))
                nursery.start_soon(_listen, index, process, send)
            yield Fleet(processes, receive)
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await _end(processes)


async def _listen(index: int, process: trio.Process, send: trio.MemorySendChannel[tuple[int, Reply]]) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    unread = b""
    async for data in process.stdout:
        *lines, unread = (unread + data).split(b"\n")
        for line in lines:
            await send.send((index, _decode(line)))
    said = b"".join([data async for data in process.stderr]).decode(errors="replace").strip().splitlines()
    why = f": {said[-1]}" if said else ""
    await send.send((index, Failed(f"a client process ended, with status {await process.wait()}{why}")))


async def _end(processes: list[trio.Process]) -> None:
    """Let them end by closing their stdin; kill those that do not."""
    for process in processes:
        if process.stdin is not None:
            await process.stdin.aclose()
    with trio.move_on_after(GRACE):
        for process in processes:
            await process.wait()
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                await stream.aclose()
