"""A server that does what the test says, on in-memory streams, for the client."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import attrs
import trio
import trio.testing
import trio_websocket

from trioswitch.client import Client, ClientOptions, Message, Room, open_client

PATIENCE = 60.0
"""Seconds that a test waits for something that must come; on the mock clock they pass at once."""
WELCOME = {
    "type": "connected",
    "connection_id": "c",
    "user_id": "ann",
    "heartbeat": 25.0,
    "max_message_bytes": 1048576,
    "server": "fake/1",
    "session": "s1",
}


class Highest(Random):
    """Every wait is as long as it may be."""

    def uniform(self, a: float, b: float) -> float:
        return b


@attrs.define(eq=False)
class Peer:
    """The server's end of one connection."""

    stream: trio.abc.Stream
    websocket: trio_websocket.WebSocketConnection
    nursery: trio.Nursery
    token: str | None

    async def send(self, type: str, **fields: Any) -> None:
        await self.websocket.send_message(json.dumps({"type": type, **fields}))

    async def message(self, offset: int, *, epoch: str = "a", room: str = "r") -> None:
        await self.send("message", room=room, data=offset, epoch=epoch, offset=offset, timestamp="")

    async def direct(self, seq: int, time: str = "") -> None:
        await self.send("direct_message", to="ann", data=seq, seq=seq, timestamp=time)

    async def receive(self) -> dict[str, Any]:
        """The client's next command, heartbeats left out."""
        with trio.fail_after(PATIENCE):
            while True:
                command: dict[str, Any] = json.loads(await self.websocket.get_message())
                if command["type"] != "heartbeat":
                    return command

    async def expect(self, type: str, **fields: Any) -> dict[str, Any]:
        command = await self.receive()
        assert command["type"] == type, command
        assert fields.items() <= command.items(), command
        return command

    async def ack(self, command: dict[str, Any], **fields: Any) -> None:
        await self.send("ack", id=command["id"], **fields)

    async def error(self, command: dict[str, Any], code: str) -> None:
        await self.send("error", id=command["id"], code=code, message="no")

    async def let_join(
        self, room: str = "r", *, offset: int | None = 0, epoch: str = "a", **ack: Any
    ) -> dict[str, Any]:
        """Answer the join that must come next; with an offset the room has a history."""
        command = await self.expect("join_room", room=room)
        position = {} if offset is None else {"epoch": epoch, "offset": offset}
        await self.ack(command, room=room, user_id="ann", online_count=1, **position, **ack)
        return command

    async def nothing(self) -> None:
        """Assert that the client says nothing for half a second."""
        with trio.move_on_after(0.5):
            command = await self.receive()
            raise AssertionError(f"the client says {command}")

    async def close(self, code: int, reason: str = "") -> None:
        await self.websocket.aclose(code, reason)

    async def vanish(self) -> None:
        await trio.aclose_forcefully(self.stream)

    async def closed(self) -> int:
        """Read to the end; returns the close code."""
        with trio.fail_after(PATIENCE):
            try:
                while True:
                    await self.websocket.get_message()
            except trio_websocket.ConnectionClosed as closed:
                return 1006 if closed.reason is None else closed.reason.code


@attrs.define(eq=False)
class FakeServer:
    nursery: trio.Nursery
    down: bool = False
    refuse: tuple[int, list[tuple[bytes, bytes]], bytes] | None = None
    """Status, fields and body for every handshake."""
    attempts: list[float] = attrs.field(factory=list)
    """When the client tried to connect."""

    _peers: tuple[trio.MemorySendChannel[Peer], trio.MemoryReceiveChannel[Peer]] = attrs.field(
        factory=lambda: trio.open_memory_channel[Peer](100)
    )

    async def open_stream(self) -> trio.abc.Stream:
        self.attempts.append(trio.current_time())
        if self.down:
            raise OSError(111, "Connection refused")
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            request = await trio_websocket.wrap_server_stream(nursery, stream)
            if self.refuse is not None:
                status, fields, body = self.refuse
                await request.reject(status, extra_headers=fields, body=body)
                return
            token = dict(request.headers).get(b"authorization")
            websocket = await request.accept(subprotocol="trioswitch.v1")
            self._peers[0].send_nowait(Peer(stream, websocket, self.nursery, None if token is None else token.decode()))

    async def accept(self, **welcome: Any) -> Peer:
        """Wait for the next connection, and greet it; fields that are None are left out."""
        with trio.fail_after(PATIENCE):
            peer = await self._peers[1].receive()
        fields = {name: value for name, value in {**WELCOME, **welcome}.items() if value is not None}
        await peer.send(**fields)
        return peer

    def client(self, token: str | None = None, user_id: str | None = None, **options: Any) -> Any:
        return open_client(
            "ws://test/ws",
            token,
            user_id,
            open_stream=self.open_stream,
            random=Highest(),
            options=ClientOptions(**options),
        )


@asynccontextmanager
async def fake_server() -> AsyncIterator[FakeServer]:
    async with trio.open_nursery() as nursery:
        yield FakeServer(nursery)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def client_of(
    server: FakeServer, user_id: str | None = None, *, welcome: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Client, Peer]]:
    """A client that has been greeted."""
    peers: list[Peer] = []

    async def greet() -> None:
        peers.append(await server.accept(**(welcome or {})))

    server.nursery.start_soon(greet)
    async with server.client(user_id=user_id, **options) as client:
        yield client, peers[0]


@asynccontextmanager
async def connected(user_id: str | None = None, **how: Any) -> AsyncIterator[tuple[FakeServer, Client, Peer]]:
    """A server, and a client that has been greeted."""
    async with fake_server() as server, client_of(server, user_id, **how) as (client, peer):
        yield server, client, peer


@asynccontextmanager
async def in_room(client: Client, peer: Peer, **how: Any) -> AsyncIterator[Room]:
    """In the room `r`; `offset` None: it has no history."""
    offset = how.pop("offset", 0)
    peer.nursery.start_soon(lambda: peer.let_join(offset=offset))
    async with client.room("r", **how) as room:
        yield room


async def received(reader: AsyncIterator[Any], count: int) -> list[Any]:
    """The next items: messages as their data."""
    with trio.fail_after(PATIENCE):
        items = [await anext(reader) for _ in range(count)]
    return [item.data if isinstance(item, Message) else item for item in items]


@asynccontextmanager
async def reading(reader: AsyncIterator[Any]) -> AsyncIterator[list[Any]]:
    """A task reads on and on; yields the list that gets what it read."""
    items: list[Any] = []

    async def read() -> None:
        async for item in reader:
            items.append(item)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        yield items
        nursery.cancel_scope.cancel()
