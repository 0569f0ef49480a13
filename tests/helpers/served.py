"""A server in a process of its own, as `python -m trioswitch serve` starts it."""

import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

GENEROUS = 30.0
"""Seconds for what takes one at most: the machine may be busy."""
SERVE = (sys.executable, "-X", "dev", "-m", "trioswitch", "serve")


@attrs.define(eq=False)
class Served:
    """A server in a process of its own."""

    process: trio.Process
    lines: list[str]
    """What it has said on stderr so far."""
    urls: list[str]

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2].partition("/")[0])

    async def read_on(self) -> None:
        """Read stderr to its end."""
        assert self.process.stderr is not None
        said = b""
        async for chunk in self.process.stderr:
            said += chunk
        self.lines += said.decode().splitlines()

    async def ended(self) -> int:
        """Wait for the end; returns the exit status. Whatever happens in there, nobody is shown how."""
        with trio.fail_after(GENEROUS):
            await self.read_on()
            status = await self.process.wait()
        shown = "\n".join(self.lines)
        assert "Traceback" not in shown, shown
        assert "Warning" not in shown, shown
        assert "Exception ignored" not in shown, shown
        return status

    async def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return await self.ended()


@asynccontextmanager
async def served(*arguments: str, command: tuple[str, ...] = SERVE, port: str = "0") -> AsyncIterator[Served]:
    """Start a server, and wait for its line. It is killed at the end if it is still there."""
    process = await trio.lowlevel.open_process(
        [*command, "--port", port, *arguments], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        said = b""
        with trio.fail_after(GENEROUS):
            while not said.endswith(b"\n"):
                chunk = await process.stderr.receive_some()
                assert chunk, f"it ended before it listened: {said!r}"
                said += chunk
        lines = said.decode().splitlines()
        yield Served(process, lines, re.findall(r"wss?://[^\s;]+|ws\+unix:\S+", lines[0]))
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        await process.stderr.aclose()
