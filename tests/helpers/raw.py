"""Peers that are not clients: bytes by hand, over any Trio stream."""

import base64
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio
from support import PATIENCE, App, Client

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "PING",
    "PONG",
    "TEXT",
    "Answer",
    "RawPeer",
    "deflated",
    "frame",
    "good_neighbours",
    "upgrade",
]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def upgrade(path: str = "/ws", *, method: str = "GET", version: str = "HTTP/1.1", **changes: str | None) -> bytes:
    """The head of an upgrade request. `Sec_WebSocket_Version="8"` changes a field, None leaves it out."""
    fields: dict[str, str | None] = {
        "Host": "test",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
        "Sec-WebSocket-Version": "13",
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    lines = [f"{method} {path} {version}", *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    return "\r\n".join([*lines, "", ""]).encode()


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    masked: bool = True,
    rsv1: bool = False,
    size: int | None = None,
) -> bytes:
    """A client's frame; `size` is what its head claims, where that is not the truth."""
    claimed = len(payload) if size is None else size
    mask_bit = 0x80 if masked else 0
    head = bytes(((0x80 if fin else 0) | (0x40 if rsv1 else 0) | opcode,))
    if claimed < 126:
        head += bytes((mask_bit | claimed,))
    elif claimed < 65536:
        head += struct.pack("!BH", mask_bit | 126, claimed)
    else:
        head += struct.pack("!BQ", mask_bit | 127, claimed)
    if not masked:
        return head + payload
    return head + bytes(4) + payload  # a mask of zeros leaves the payload readable


def deflated(payload: bytes) -> bytes:
    """A message's payload as permessage-deflate sends it."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -12)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


@attrs.frozen
class Answer:
    """An HTTP answer; `fields` have lower-case names."""

    status: int
    fields: dict[str, str]
    body: bytes


@attrs.define(eq=False)
class RawPeer:
    """Somebody at the other end of a stream. Everything waits `PATIENCE` seconds at most."""

    stream: trio.abc.Stream
    _data: bytes = b""

    async def send(self, data: bytes) -> None:
        with trio.fail_after(PATIENCE):
            await self.stream.send_all(data)

    async def _more(self) -> bool:
        """Whether there was more. A reset counts as the end: what matters is what was said before it."""
        with trio.fail_after(PATIENCE):
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                return False
        self._data += data
        return bool(data)

    async def _take(self, count: int) -> bytes:
        while len(self._data) < count:
            if not await self._more():
                raise EOFError
        taken, self._data = self._data[:count], self._data[count:]
        return bytes(taken)

    async def answer(self) -> Answer:
        """Read one HTTP answer, with the body that its Content-Length gives."""
        while b"\r\n\r\n" not in self._data:
            if not await self._more():
                raise EOFError(self._data)
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self._take(int(fields.get("content-length", 0))) if "101" not in status else b""
        return Answer(int(status.split()[1]), fields, body)

    async def open(self, **changes: str | None) -> Answer:
        """Become a WebSocket, and read the welcome."""
        await self.send(upgrade(**changes))  # type: ignore[arg-type]
        answer = await self.answer()
        assert answer.status == 101, answer
        _opcode, payload = await self.receive()
        assert b'"connected"' in payload
        return answer

    async def say(self, text: str) -> None:
        await self.send(frame(TEXT, text.encode()))

    async def receive(self) -> tuple[int, bytes]:
        """The next frame: opcode and payload. Raises EOFError at the end."""
        first, size = await self._take(2)
        assert not size & 0x80, "a server's frame is not masked"
        if size == 126:
            (size,) = struct.unpack("!H", await self._take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self._take(8))
        return first & 0x0F, await self._take(size)

    async def receive_until(self, word: bytes) -> bytes:
        """Skip to the first frame that has this word in it."""
        while True:
            _opcode, payload = await self.receive()
            if word in payload:
                return payload

    async def close_code(self) -> int:
        """Skip to the close frame, and return its code; 1006 where there is none before the end."""
        try:
            while True:
                opcode, payload = await self.receive()
                if opcode == CLOSE:
                    return int.from_bytes(payload[:2], "big")
        except EOFError:
            return 1006

    async def end(self) -> bytes:
        """Read to the end, and return what came."""
        while await self._more():
            pass
        data, self._data = self._data, b""
        return bytes(data)

    async def join(self, room: str) -> None:
        await self.say(f'{{"type": "join_room", "room": "{room}", "id": "joined"}}')
        await self.receive_until(b'"ack"')

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


@attrs.define(eq=False)
class Neighbours:
    """Two good clients in the room `r`: whatever the peer beside them does, they chat."""

    ann: Client
    bob: Client
    _lines: int = 0

    async def chat(self) -> None:
        """A line from ann reaches both."""
        self._lines += 1
        await self.ann.send("chat_message", room="r", content=f"line {self._lines}")
        for client in (self.ann, self.bob):
            line = await client.receive_until(type="chat_message")
            assert line["content"] == f"line {self._lines}"


@asynccontextmanager
async def good_neighbours(app: App) -> AsyncIterator[Neighbours]:
    """They chat before, whenever the test asks, and after; and they are all who is left then."""
    ann, bob = await app.connect(), await app.connect()
    for client in (ann, bob):
        await client.join("r")
    neighbours = Neighbours(ann, bob)
    await neighbours.chat()
    yield neighbours
    await neighbours.chat()
    assert set(app.switch.connections()) == {ann.connection_id, bob.connection_id}
