"""What several tests use: a switch with clients on in-memory streams or real sockets, and raw peers."""

import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import attrs
import msgspec
import trio
import trio.testing
import trio_websocket

import trioswitch
from trioswitch.transport.streams import TrioByteStream

PATIENCE = 20.0
"""Seconds that a test waits for something that must come: on the mock clock they pass at once."""


@attrs.define(eq=False)
class ClientStream(trio.abc.Stream):
    """The stream of a client: a test stops its reads and its pongs here, and sees its pings."""

    stream: trio.abc.Stream
    reads: bool = True
    """False: after what it waits for, the client reads no more."""
    pongs: bool = True
    pings_seen: int = 0
    """Empty pings that came in a read of their own."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.pongs or data[0] != 0x8A:
            await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self.stream.receive_some(max_bytes)
        if not self.reads:
            await trio.sleep_forever()
        self.pings_seen += bytes(data).count(b"\x89\x00")
        return data

    async def aclose(self) -> None:
        await self.stream.aclose()


@attrs.define(eq=False)
class Client:
    """A client of the tests, on trio-websocket."""

    websocket: trio_websocket.WebSocketConnection
    stream: ClientStream
    binary: bool = False
    connection_id: str = ""
    batched: list[dict[str, Any]] = attrs.field(factory=list)
    """What came in a batch and was not received yet."""

    async def cut(self) -> None:
        """Lose the connection without a close frame."""
        await trio.aclose_forcefully(self.stream)

    async def send(self, type: str, **fields: Any) -> None:
        message = {"type": type, **fields}
        await self.send_raw(msgspec.msgpack.encode(message) if self.binary else json.dumps(message))

    async def send_raw(self, payload: str | bytes) -> None:
        with trio.fail_after(PATIENCE):
            await self.websocket.send_message(payload)

    async def receive_raw(self) -> str | bytes:
        with trio.fail_after(PATIENCE):
            return await self.websocket.get_message()

    async def receive(self) -> dict[str, Any]:
        """The next message, whether it came alone or in a batch."""
        if not self.batched:
            payload = await self.receive_raw()
            message = msgspec.msgpack.decode(payload) if isinstance(payload, bytes) else json.loads(payload)
            if message["type"] != "batch":
                return message
            assert message["count"] == len(message["messages"])
            self.batched = message["messages"]
        return self.batched.pop(0)

    async def receive_until(self, **wanted: Any) -> dict[str, Any]:
        """Skip to the first message that has these fields."""
        while True:
            message = await self.receive()
            if wanted.items() <= message.items():
                return message

    async def ask(self, type: str, **fields: Any) -> dict[str, Any]:
        """Send a command with an id, and return its `ack` or `error`; what comes before it is lost."""
        await self.send(type, id="question", **fields)
        return await self.receive_until(id="question")

    async def join(self, room: str, **fields: Any) -> None:
        """Join, and read on up to the client's own announcement."""
        answer = await self.ask("join_room", room=room, **fields)
        assert answer["type"] == "ack", answer

    async def nothing_more(self) -> None:
        """Assert that nothing comes: a heartbeat is answered first."""
        await self.send("heartbeat")
        message = await self.receive()
        assert message["type"] == "heartbeat_ack", message

    async def closed(self) -> tuple[int, str]:
        """Read until the connection is closed; returns the code and reason."""
        with trio.fail_after(PATIENCE):
            try:
                while True:
                    await self.websocket.get_message()
            except trio_websocket.ConnectionClosed as closed:
                reason = closed.reason
        return (reason.code, reason.reason or "") if reason is not None else (1006, "")


@attrs.define(eq=False)
class App:
    """A switch, and a nursery in which its connections are served."""

    switch: trioswitch.Switch
    nursery: trio.Nursery
    transport: str = "native"

    async def stream(self, pair: Callable[[], Any] = trio.testing.memory_stream_pair) -> trio.abc.Stream:
        """The client's end of a new stream to the switch."""
        ours, theirs = pair()
        channel = TrioByteStream(theirs, "test")
        self.nursery.start_soon(lambda: self.switch.serve_byte_stream(channel, transport=self.transport))  # type: ignore[arg-type]
        return ours

    async def connect(
        self,
        *,
        subprotocol: str | None = None,
        path: str = "/ws",
        headers: list[tuple[bytes, bytes]] | None = None,
        welcome: bool = True,
        pair: Callable[[], Any] = trio.testing.memory_stream_pair,
    ) -> Client:
        stream = ClientStream(await self.stream(pair))
        with trio.fail_after(PATIENCE):
            websocket = await trio_websocket.wrap_client_stream(
                self.nursery,
                stream,  # type: ignore[arg-type]
                "test",
                path,
                subprotocols=[subprotocol] if subprotocol else None,
                extra_headers=headers or [],
            )
        client = Client(websocket, stream, binary=websocket.subprotocol == "trioswitch.v1.msgpack")
        if welcome:
            first = await client.receive()
            assert first["type"] == "connected", first
            client.connection_id = first["connection_id"]
        return client


@asynccontextmanager
async def running(
    options: trioswitch.Options | None = None, *, transport: str = "native", **hooks: Any
) -> AsyncIterator[App]:
    """A switch on in-memory streams. Leaving the block ends every connection."""
    async with trioswitch.open_switch(options, **hooks) as switch, trio.open_nursery() as nursery:
        yield App(switch, nursery, transport)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def listening(
    options: trioswitch.Options | None = None, *, hooks: dict[str, Any] | None = None, **how: Any
) -> AsyncIterator[tuple[trioswitch.Switch, trioswitch.Server]]:
    """A switch on a real socket."""
    async with trioswitch.open_switch(options, **(hooks or {})) as switch, trio.open_nursery() as nursery:
        server = await nursery.start(lambda **status: trioswitch.serve(switch, **{"port": 0, **how}, **status))
        yield switch, server
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(
    url: str, *, subprotocols: list[str] | None = None, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[Client]:
    """A client on a real socket."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with trio.fail_after(PATIENCE):
        raw: trio.abc.Stream = await trio.open_tcp_stream(parts.hostname, parts.port)
    if ssl_context is not None:
        raw = trio.SSLStream(raw, ssl_context, server_hostname=parts.hostname, https_compatible=True)
    async with client_over(raw, parts.netloc, resource, subprotocols=subprotocols) as client:
        yield client


@asynccontextmanager
async def client_over(
    raw: trio.abc.Stream, host: str = "localhost", resource: str = "/ws", *, subprotocols: list[str] | None = None
) -> AsyncIterator[Client]:
    """A client on an open stream, which is closed at the end."""
    stream = ClientStream(raw)
    async with trio.open_nursery() as nursery:
        try:
            with trio.fail_after(PATIENCE):
                websocket = await trio_websocket.wrap_client_stream(
                    nursery,
                    stream,  # type: ignore[arg-type]
                    host,
                    resource,
                    subprotocols=subprotocols,
                )
            client = Client(websocket, stream, binary=websocket.subprotocol == "trioswitch.v1.msgpack")
            client.connection_id = (await client.receive())["connection_id"]
            yield client
            with trio.move_on_after(2):
                await websocket.aclose()
        finally:
            await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()


async def settled() -> None:
    """Let every task run until all of them wait."""
    await trio.testing.wait_all_tasks_blocked()
