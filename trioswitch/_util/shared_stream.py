"""A connection to another server, over a stream that many tasks write to, and one task reads.

What all of them write goes out together. What comes is received into the same memory each time: `receive_some(SIZE)` would make a
block of that size for each read, and give most of it back at once; what is made meanwhile, and stays, then lies between holes.
Measured with two workers that published 300 messages of 1 KB a second to rooms with histories (`benchmarks/soak.py` does such
work): each took 22 MiB more every 25 seconds, of which it used 4; with this it is 7.
"""

import abc
from typing import Final

import trio

from .wakeup import Wakeup

__all__ = ["SharedStream", "StreamReceiver"]

SIZE: Final = 256 * 1024
"""Bytes that are received at once, from a socket."""
BLOCK: Final = 16 * 1024
"""Bytes that are received at once from a stream of another kind (TLS), which makes a block for each read."""


class StreamReceiver:
    """Receives from a stream. For one task."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._space = memoryview(bytearray(SIZE)) if isinstance(stream, trio.SocketStream) else memoryview(b"")

    async def receive(self) -> memoryview:
        """What has come; empty at the end. It holds until the next call. Raises trio.BrokenResourceError. Safe to cancel."""
        if not isinstance(self._stream, trio.SocketStream):
            return memoryview(await self._stream.receive_some(BLOCK))
        try:
            return self._space[: await self._stream.socket.recv_into(self._space)]
        except OSError as error:
            raise trio.BrokenResourceError from error


class SharedStream(abc.ABC):
    """`run` is its task. `server` is what it is connected to and `place` where, for people: "Redis", "localhost:6379"."""

    def __init__(self, stream: trio.abc.Stream, server: str, place: str) -> None:
        self.place = place
        self._server = server
        self._stream = stream
        self._to_write: list[bytes] = []
        self._written = Wakeup()
        self._scope = trio.CancelScope()
        self._lost: str | None = None

    @property
    def lost(self) -> str | None:
        """Why the connection was lost, a sentence; None while it is there."""
        return self._lost

    async def run(self) -> str:
        """Send and receive until the connection is lost. Returns why. Safe to cancel: it is closed then."""
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._write_all)
                await self._read_all()
                nursery.cancel_scope.cancel()
        finally:
            self._lose("the connection was closed")
            await trio.aclose_forcefully(self._stream)
        assert self._lost is not None
        return self._lost

    def drop(self, reason: str) -> None:
        """Give the connection up."""
        self._lose(reason)
        self._scope.cancel()

    def write(self, *data: bytes) -> None:
        """Send soon. Nothing bounds what waits: callers do."""
        self._to_write += data
        self._written.notify()

    @abc.abstractmethod
    def _feed(self, data: memoryview) -> None:
        """Handle what has come; it does not hold longer. Raises ValueError for what is not the protocol."""

    @abc.abstractmethod
    def _on_lost(self) -> None:
        """The connection is lost: nobody is to wait for it any more. May be called again."""

    def _lose(self, reason: str) -> None:
        if self._lost is None:
            self._lost = reason
        self._on_lost()

    async def _write_all(self) -> None:
        try:
            while True:
                while not self._to_write:
                    await self._written.wait()
                data, self._to_write = b"".join(self._to_write), []
                await self._stream.send_all(data)
        except trio.BrokenResourceError:
            self.drop(f"the connection to {self._server} at {self.place} was lost")

    async def _read_all(self) -> None:
        receiver = StreamReceiver(self._stream)
        try:
            while data := await receiver.receive():
                self._feed(data)
            self._lose(f"{self._server} at {self.place} has closed the connection")
        except trio.BrokenResourceError:
            self._lose(f"the connection to {self._server} at {self.place} was lost")
        except ValueError as error:
            self._lose(f"what answers at {self.place} is no {self._server}: {error}")
