"""Clients without tasks: what the server writes waits in a buffer until the test looks at it.

So a test decides byte by byte how slow a client is, and a program of a hundred steps takes milliseconds.
"""

import json
from math import inf
from typing import Any

import attrs
import trio
from raw import CLOSE, PING, PONG, TEXT, frame, upgrade

from trioswitch import Switch
from trioswitch.errors import CloseCause, PeerGone
from trioswitch.transport.streams import ByteStream

__all__ = ["Link", "Pipe"]


class Pipe(ByteStream):
    """The server's end of a connection in memory. `capacity` is how many bytes the client lets wait.

    `direct`: it can be written to at once, as a socket can be.
    """

    def __init__(self, *, direct: bool = True) -> None:
        self.to_server = bytearray()
        self.to_client = bytearray()
        self.capacity: float = inf
        self.ended_by_client = self.ended_by_server = self.broken = False
        self._changed = trio.Event()
        if direct:
            self.write_nowait = self._write_nowait

    def changed(self) -> None:
        """Something of it was changed: whoever waits looks again."""
        self._changed.set()
        self._changed = trio.Event()

    async def read(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while not (self.to_server or self.ended_by_client or self.broken):
            await self._changed.wait()
        if self.broken:
            raise PeerGone(CloseCause.VANISHED)
        data = bytes(self.to_server)
        self.to_server.clear()
        return data

    def _write_nowait(self, data: bytes) -> int:
        if self.broken or self.ended_by_server:
            raise BrokenPipeError
        count = int(min(len(data), max(0, self.capacity - len(self.to_client))))
        if not count:
            raise BlockingIOError
        self.to_client += data[:count]
        return count

    async def write(self, data: bytes | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        while view:
            await self.wait_writable()
            view = view[self._write_nowait(bytes(view)) :]

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self.broken and len(self.to_client) >= self.capacity:
            await self._changed.wait()
        if self.broken or self.ended_by_server:
            raise PeerGone(CloseCause.VANISHED)

    async def end_writing(self) -> None:
        await trio.lowlevel.checkpoint()
        self.ended_by_server = True

    async def aclose(self) -> None:
        self.ended_by_server = True

    @property
    def remote(self) -> str:
        return "pipe"


@attrs.define(eq=False)
class Link:
    """A client's end. Nothing of it waits: let the server run (`settled`) before you look."""

    pipe: Pipe
    closed: int | None = None
    """The code with which the server has closed, 1006 where it has just ended."""
    _data: bytearray = attrs.field(factory=bytearray)
    _upgraded: bool = False

    @classmethod
    def open(cls, switch: Switch, nursery: trio.Nursery, path: str = "/ws", *, direct: bool = True) -> "Link":
        link = cls(Pipe(direct=direct))
        nursery.start_soon(switch.serve_byte_stream, link.pipe)
        link.pipe.to_server += upgrade(path)
        return link

    def send(self, type: str, **fields: Any) -> None:
        self._put(frame(TEXT, json.dumps({"type": type, **fields}).encode()))

    def _put(self, data: bytes) -> None:
        self.pipe.to_server += data
        self.pipe.changed()

    def pause(self, capacity: int = 0) -> None:
        """Read nothing any more; so many bytes still find a place on the way."""
        self.pipe.capacity = capacity

    def go_on(self) -> None:
        self.pipe.capacity = inf
        self.pipe.changed()

    def vanish(self) -> None:
        self.pipe.broken = True
        self.pipe.changed()

    def close(self, code: int = 1000) -> None:
        self._put(frame(CLOSE, code.to_bytes(2, "big")))

    def take(self) -> list[dict[str, Any]]:
        """The messages that have come."""
        self._data += self.pipe.to_client
        self.pipe.to_client.clear()
        self.pipe.changed()
        if not self._upgraded:
            head, empty, rest = self._data.partition(b"\r\n\r\n")
            if not empty:
                return []
            assert head.startswith(b"HTTP/1.1 101"), head
            self._upgraded, self._data = True, rest
        messages: list[dict[str, Any]] = []
        while (parsed := self._frame()) is not None:
            opcode, payload = parsed
            if opcode == TEXT:
                message = json.loads(payload)
                messages += message["messages"] if message["type"] == "batch" else [message]
            elif opcode == PING:
                self._put(frame(PONG, payload))
            elif opcode == CLOSE:
                self.closed = int.from_bytes(payload[:2], "big")
                self._put(frame(CLOSE, payload[:2]))
                self.pipe.ended_by_client = True
                self.pipe.changed()
        if self.pipe.ended_by_server and self.closed is None:
            self.closed = 1006
        return messages

    def _frame(self) -> tuple[int, bytes] | None:
        data = self._data
        if len(data) < 2:
            return None
        size, start = data[1], 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(data[2:10], "big"), 10
        if len(data) < start + size:
            return None
        opcode, payload = data[0] & 0x0F, bytes(data[start : start + size])
        del data[: start + size]
        return opcode, payload
