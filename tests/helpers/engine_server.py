"""Servers of a test's own, which are processes: Redis and NATS."""

import abc
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import attrs
import trio

__all__ = ["PATIENCE", "EngineServer", "free_port", "running"]

PATIENCE = 20.0
"""Seconds that a server has to start."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@attrs.define(eq=False)
class EngineServer(abc.ABC):
    directory: Path
    settings: tuple[str, ...]
    port: int = attrs.field(factory=free_port)
    process: trio.Process | None = None

    @abc.abstractmethod
    async def start(self) -> None:
        """Start it, or start it again with the data that it has saved; wait until it listens."""

    async def kill(self) -> None:
        """End it as SIGKILL does."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    def pause(self) -> None:
        """Let it answer nobody; its connections look alive."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


S = TypeVar("S", bound=EngineServer)


@asynccontextmanager
async def running(server: S) -> AsyncIterator[S]:
    await server.start()
    try:
        yield server
    finally:
        if server.process is not None and server.process.returncode is None:
            with trio.CancelScope(shield=True):
                await server.kill()
