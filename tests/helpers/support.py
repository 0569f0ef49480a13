"""What several tests use: a switch with clients on in-memory streams or real sockets, and raw peers."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

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
class Client:
    """A client of the tests, on trio-websocket."""

    websocket: trio_websocket.WebSocketConnection
    binary: bool = False
    connection_id: str = ""
    _batched: list[dict[str, Any]] = attrs.field(factory=list)

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
        if not self._batched:
            payload = await self.receive_raw()
            message = msgspec.msgpack.decode(payload) if isinstance(payload, bytes) else json.loads(payload)
            if message["type"] != "batch":
                return message
            assert message["count"] == len(message["messages"])
            self._batched = message["messages"]
        return self._batched.pop(0)

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
        self.nursery.start_soon(lambda: self.switch.serve_byte_stream(channel, transport=self.transport))
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
        stream = await self.stream(pair)
        with trio.fail_after(PATIENCE):
            websocket = await trio_websocket.wrap_client_stream(
                self.nursery,
                stream,
                "test",
                path,
                subprotocols=[subprotocol] if subprotocol else None,
                extra_headers=headers or [],
            )
        client = Client(websocket, binary=websocket.subprotocol == "trioswitch.v1.msgpack")
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
async def connected(url: str, **how: Any) -> AsyncIterator[Client]:
    """A client on a real socket."""
    async with trio_websocket.open_websocket_url(
        url, connect_timeout=PATIENCE, disconnect_timeout=2, **how
    ) as websocket:
        try:
            client = Client(websocket, binary=websocket.subprotocol == "trioswitch.v1.msgpack")
            client.connection_id = (await client.receive())["connection_id"]
            yield client
        finally:
            if websocket.closed:  # trio-websocket leaves its socket open when the server has closed first
                await trio.aclose_forcefully(websocket._stream)


async def settled() -> None:
    """Let every task run until all of them wait."""
    await trio.testing.wait_all_tasks_blocked()
