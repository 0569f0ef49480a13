"""Programs that serve until they are told to end, as an operator starts them; what they say can be read meanwhile."""

import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

PATIENCE = 60.0
"""Seconds until a program is up, has ended, or has said something."""


@attrs.define(eq=False)
class Program:
    """A program that runs: made by `run`."""

    process: trio.Process
    found: str = ""
    """The part of what it has said that shows that it is up."""
    _said: bytearray = attrs.field(factory=bytearray)

    @property
    def said(self) -> str:
        return self._said.decode()

    def children(self) -> list[int]:
        """The ids of the processes that it has started."""
        children = [path.read_text() for path in Path(f"/proc/{self.process.pid}/task").glob("*/children")]
        return sorted(int(pid) for pid in " ".join(children).split())

    async def wait_said(self, text: str) -> None:
        with trio.fail_after(PATIENCE):
            while text not in self.said:
                await trio.sleep(0.05)

    async def read(self) -> None:
        """The task that reads what it says."""
        assert self.process.stdout is not None
        async for data in self.process.stdout:
            self._said.extend(data)


@asynccontextmanager
async def run(*arguments: str | Path, is_up: str, end: signal.Signals = signal.SIGTERM) -> AsyncIterator[Program]:
    """Run a Python program until it has said what the pattern `is_up` finds; its first group is `found`.

    At the end of the block the program gets the signal `end` and must end well, unless the test has killed it. No traceback may
    be among what it has said.
    """
    process = await trio.lowlevel.open_process(
        [sys.executable, "-X", "dev", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    program = Program(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(program.read)
            with trio.fail_after(PATIENCE):
                while (found := re.search(is_up, program.said)) is None:
                    assert process.poll() is None, program.said
                    await trio.sleep(0.02)
            program.found = found[1]
            yield program
            if process.poll() is None:
                process.send_signal(end)
            with trio.fail_after(PATIENCE):
                assert await process.wait() in (0, -signal.SIGKILL), program.said
            nursery.cancel_scope.cancel()
        assert "Traceback" not in program.said, program.said
    finally:
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.terminate()
                with trio.move_on_after(20):  # it ends what it has started
                    await process.wait()
                process.kill()
            await process.wait()
            assert process.stdout is not None
            await process.stdout.aclose()


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """Accepts connections, and says nothing. Yields its port."""

    async def ignore(stream: trio.SocketStream) -> None:
        async for _ in stream:
            pass

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, ignore, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()
