"""Programs in a pseudo terminal, whose screen is that of a terminal emulator."""

import fcntl
import os
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pyte
import trio

PATIENCE = 30.0
"""Seconds that a test waits for what must appear."""
COLUMNS, ROWS = 100, 20
CTRL_C, CTRL_D, CTRL_Z, UP, LEFT = "\x03", "\x04", "\x1a", "\x1b[A", "\x1b[D"


@attrs.define(eq=False)
class Terminal:
    """The person's side of a program in a pseudo terminal."""

    process: trio.Process
    fd: int
    _screen: pyte.Screen
    _stream: pyte.ByteStream
    output: bytes = b""
    """All that the program has written."""

    @property
    def lines(self) -> list[str]:
        """The lines of the screen that are not empty, without spaces at their ends."""
        return [line.rstrip() for line in self._screen.display if line.strip()]

    @property
    def settings(self) -> list[Any]:
        """The terminal's modes, such as whether it echoes."""
        return termios.tcgetattr(self.fd)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def resize(self, columns: int) -> None:
        self._screen.resize(ROWS, columns)
        _set_size(self.fd, columns)

    def hang_up(self) -> None:
        """Close the terminal."""
        os.close(self.fd)
        self.fd = -1

    def colours(self, text: str) -> set[str]:
        """The colours of the cells that show this text, which is on the screen once."""
        ((row, line),) = [(row, line) for row, line in enumerate(self._screen.display) if text in line]
        start = line.index(text)
        return {self._screen.buffer[row][column].fg for column in range(start, start + len(text))}

    async def wait(self, condition: Callable[[list[str]], bool]) -> None:
        """Read what the program writes until the lines of the screen fulfil a condition.

        A condition that names a line of a screen with fewer lines is not fulfilled. A screen has no lines for a moment when the
        prompt is erased and drawn again.
        """

        def fulfilled() -> bool:
            try:
                return condition(self.lines)
            except IndexError:
                return False

        with trio.move_on_after(PATIENCE) as patience:
            while not fulfilled():
                await self._read()
        assert not patience.cancelled_caught, "\n".join(self.lines)

    async def last_line(self, line: str) -> None:
        """Wait until this is the last line on the screen."""
        await self.wait(lambda lines: lines[-1:] == [line])

    async def end(self) -> int:
        """Read until the program ends. Returns its exit status."""
        with trio.fail_after(PATIENCE):
            while await self._read():
                pass
            status = await self.process.wait()
        assert b"Traceback" not in self.output, self.output.decode()
        return status

    async def _read(self) -> bool:
        await trio.lowlevel.wait_readable(self.fd)
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # the program has closed its side
            return False
        self.output += data
        self._stream.feed(data)
        return bool(data)


@asynccontextmanager
async def in_terminal(*arguments: str, **environment: str) -> AsyncIterator[Terminal]:
    """Run a Python program in a terminal of its own."""
    ours, theirs = os.openpty()
    _set_size(ours, COLUMNS)
    screen = pyte.Screen(COLUMNS, ROWS)
    process = await trio.lowlevel.open_process(
        [sys.executable, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "", **environment},
    )
    terminal = Terminal(process, ours, screen, pyte.ByteStream(screen))
    try:
        os.close(theirs)
        yield terminal
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()
        if terminal.fd >= 0:
            os.close(ours)


def _set_size(fd: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
