"""A Redis server of a test's own."""

import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

__all__ = ["RedisServer", "free_port", "redis_server"]

PATIENCE = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@attrs.define(eq=False)
class RedisServer:
    port: int
    directory: Path
    settings: tuple[str, ...]
    process: trio.Process | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, or start it again with the data that it has saved."""
        # In Debian, all programs of Redis are one, which looks at its name; the package `redis-tools` has it under another.
        program = shutil.which("redis-server") or shutil.which("redis-check-rdb")
        assert program is not None, "the Debian package redis-tools is missing"
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""]
        self.process = await trio.lowlevel.open_process(
            ["redis-server", *options, *self.settings], executable=program, stdout=subprocess.DEVNULL
        )
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    stream = await trio.open_tcp_stream("127.0.0.1", self.port)
                except OSError:
                    await trio.sleep(0.02)
                else:
                    await stream.aclose()
                    return

    async def kill(self) -> None:
        """End it as SIGKILL does."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def command(self, *arguments: str) -> str:
        """Execute a command, as `redis-cli` does."""
        done = await trio.run_process(["redis-cli", "-p", str(self.port), *arguments], capture_stdout=True)
        return done.stdout.decode()


@asynccontextmanager
async def redis_server(directory: Path, *settings: str) -> AsyncIterator[RedisServer]:
    server = RedisServer(free_port(), directory, settings)
    await server.start()
    try:
        yield server
    finally:
        if server.process is not None and server.process.returncode is None:
            with trio.CancelScope(shield=True):
                await server.kill()
