"""The clients of `benchmarks/images/speed.py`: they send images, and note when each was begun and when it was answered."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import trio
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from trioswitch.bench.target import BenchError

__all__ = ["Client", "Send", "connected", "parallel", "serial"]

READ_SIZE: Final = 64 * 1024
PATIENCE: Final = 120.0
"""Seconds that one connection may take for all that it does in the parallel way."""


class Client:
    """One WebSocket to a server, without compression. Every method raises BenchError when the connection ends."""

    def __init__(self, stream: trio.abc.Stream, protocol: ClientProtocol) -> None:
        self._stream = stream
        self._protocol = protocol
        self._messages: list[bytes] = []

    async def send(self, payload: bytes) -> None:
        self._protocol.send_binary(payload)
        await self._write()

    async def receive(self) -> bytes:
        while not self._messages:
            await self._read()
        return self._messages.pop(0)

    async def ask(self, type: str, **fields: Any) -> Any:
        """Send a message of the protocol `trioswitch.v1.msgpack`, and return the `data` of its `ack`."""
        await self.send(msgspec.msgpack.encode({"type": type, "id": 1, **fields}))
        while True:
            message = msgspec.msgpack.decode(await self.receive())
            for answer in message.get("messages", [message]):
                if answer["type"] == "ack":
                    return answer["data"]
                if answer["type"] == "error":
                    raise BenchError(f"the server refused {type!r}: {answer['message']}")

    async def open(self) -> None:
        self._protocol.send_request(self._protocol.connect())
        await self._write()
        while self._protocol.state is State.CONNECTING:
            await self._read()

    async def close(self) -> None:
        """Say good-bye, and wait until the server has closed its side."""
        if self._protocol.state is State.OPEN:  # else the server was first
            self._protocol.send_close(1000)
            await self._write()
        while await self._stream.receive_some(READ_SIZE):
            pass

    async def _write(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                await self._stream.send_all(data)

    async def _read(self) -> None:
        data = await self._stream.receive_some(READ_SIZE)
        if not data:
            raise BenchError("the server closed a connection before it had answered")
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY):
                self._messages.append(bytes(event.data))
        if isinstance(refused := self._protocol.handshake_exc, InvalidHandshake):
            raise BenchError(f"the server refused a connection: {refused}")
        await self._write()  # pongs


@asynccontextmanager
async def connected(url: str, subprotocol: str | None = "trioswitch.v1.msgpack") -> AsyncIterator[Client]:
    """A connection that is open. Raises BenchError."""
    uri = parse_uri(url)
    names = None if subprotocol is None else [Subprotocol(subprotocol)]
    try:
        async with await trio.open_tcp_stream(uri.host, uri.port) as stream:
            client = Client(stream, ClientProtocol(uri, subprotocols=names, max_size=None))
            await client.open()
            yield client
            await client.close()
    except (OSError, trio.BrokenResourceError) as error:
        raise BenchError(f"a connection to {url} broke: {error}") from None


Send = Callable[[Client, int], Awaitable[None]]
"""Sends the image of this number, and waits for the answer."""
Note = Callable[[int, float, float], None]
"""Called for each image that was answered: its number, when it was begun and answered, in seconds of the monotonic clock."""


async def serial(url: str, images: int, send: Send, note: Note) -> None:
    """One long connection, one image after the other. The time of an image is that from its sending to its answer."""
    async with connected(url) as client:
        for number in range(images):
            started = time.monotonic()
            await send(client, number)
            note(number, started, time.monotonic())


async def parallel(
    url: str, images: int, at_once: int, send: Send, note: Note, subprotocol: str | None = "trioswitch.v1.msgpack"
) -> None:
    """A short connection for each image, so many at once. The time of an image is that from connecting to its answer."""
    numbers = iter(range(images))

    async def client() -> None:
        for number in numbers:
            with trio.move_on_after(PATIENCE) as scope:
                started = time.monotonic()
                async with connected(url, subprotocol) as connection:
                    await send(connection, number)
                    note(number, started, time.monotonic())
            if scope.cancelled_caught:
                raise BenchError(f"an image was not answered within {PATIENCE:g} seconds")

    async with trio.open_nursery() as nursery:
        for _ in range(min(at_once, images)):
            nursery.start_soon(client)
