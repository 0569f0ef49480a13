"""Where a terminal session reads lines and shows text: the interface, and the plain one for pipes and simple terminals."""

import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Final, Protocol

import trio

__all__ = ["Console", "PlainConsole", "read_lines"]

CHUNK: Final = 64 * 1024
LONGEST_LINE: Final = 1024 * 1024
"""Bytes after which a line from stdin is cut."""


class Lines(Protocol):
    """An iterator over lines that is closed after use."""

    def __aiter__(self) -> AsyncIterator[str]: ...

    def __anext__(self) -> Awaitable[str]: ...

    def aclose(self) -> Awaitable[object]: ...


class Console(Protocol):
    def lines(self) -> Lines:
        """Iterate over the lines that are entered. Cancelling is safe."""

    def show(self, line: str) -> None:
        """Show an event."""

    def note(self, line: str) -> None:
        """Show a line about the client itself."""

    def set_prompt(self, prompt: str) -> None:
        """Set the text in front of the line that is edited."""


class PlainConsole:
    """Reads lines from stdin, and prints events on stdout and notes on stderr.

    It calls `on_closed` when nobody reads one of them any more.
    """

    def __init__(self, on_closed: Callable[[], None]) -> None:
        self._on_closed = on_closed

    def lines(self) -> Lines:
        return read_lines(0)

    def show(self, line: str) -> None:
        self._print("stdout", line)

    def note(self, line: str) -> None:
        self._print("stderr", line)

    def set_prompt(self, prompt: str) -> None:
        """There is no prompt."""

    def _print(self, stream: str, line: str) -> None:
        file = getattr(sys, stream)
        if file is None:
            return
        try:
            print(line, file=file, flush=True)
        except OSError:
            # The rest of the buffer would fail again when the interpreter ends, and make the exit status 120.
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
            self._on_closed()


async def read_lines(descriptor: int) -> AsyncGenerator[str, None]:
    """Iterate over the lines of a file of any kind. A thread reads it; when this is cancelled, the thread is abandoned."""
    rest = b""
    while chunk := await trio.to_thread.run_sync(os.read, descriptor, CHUNK, abandon_on_cancel=True):
        *complete, rest = (rest + chunk).split(b"\n")
        if len(rest) > LONGEST_LINE:
            complete, rest = [*complete, rest], b""
        for line in complete:
            yield line.decode("utf-8", "replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", "replace")
