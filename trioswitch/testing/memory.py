"""A switch in memory, and its clients."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
import trio_websocket

from ..assembly import open_switch
from ..config import Options
from ..switch import Switch

__all__ = ["MemoryClient", "TestSwitch", "mock_clock", "open_test_switch"]

PATIENCE = 60.0
"""Seconds that a client waits for a message, unless told otherwise: on a mock clock, none."""


def mock_clock() -> trio.testing.MockClock:
    """A clock that jumps ahead whenever all tasks wait, for `trio.run(main, clock=mock_clock())`."""
    return trio.testing.MockClock(autojump_threshold=0)


class MemoryClient:
    """A client that speaks `trioswitch.v1` (JSON) over an in-memory stream."""

    def __init__(self, websocket: trio_websocket.WebSocketConnection, stream: trio.abc.Stream, patience: float) -> None:
        self._websocket = websocket
        self._stream = stream
        self._patience = patience
        self.connection_id = ""
        """The id that the server gave to the connection."""
        self.session = ""
        """The id of the session, for `resume`."""

    async def send(self, type: str, **fields: Any) -> None:
        """Send a message of the client protocol."""
        with trio.fail_after(self._patience):
            await self._websocket.send_message(json.dumps({"type": type, **fields}))

    async def receive(self) -> dict[str, Any]:
        """The next message of the server. Raises trio.TooSlowError when none comes, trio_websocket.ConnectionClosed."""
        with trio.fail_after(self._patience):
            message: dict[str, Any] = json.loads(await self._websocket.get_message())
            return message

    async def receive_until(self, **fields: Any) -> dict[str, Any]:
        """Skip messages up to the first that has these fields, and return that."""
        while not fields.items() <= (message := await self.receive()).items():
            pass
        return message

    async def ask(self, type: str, **fields: Any) -> dict[str, Any]:
        """Send a command with an `id`; returns its `ack` or `error`. Messages that come before it are skipped."""
        await self.send(type, id="ask", **fields)
        return await self.receive_until(id="ask")

    async def join(self, room: str, **fields: Any) -> dict[str, Any]:
        """Join a room. Returns the `ack`. Raises AssertionError when the server refuses."""
        answer = await self.ask("join_room", room=room, **fields)
        assert answer["type"] == "ack", answer
        return answer

    async def close(self) -> None:
        """Leave in good order (1000)."""
        await self._websocket.aclose()

    async def cut(self) -> None:
        """Lose the connection: the server sees the end of the stream, and no close frame."""
        await trio.aclose_forcefully(self._stream)
        await trio.testing.wait_all_tasks_blocked()

    async def closed(self) -> tuple[int, str]:
        """Read until the server closes the connection; returns code and reason, 1006 where there was no close frame."""
        with trio.fail_after(self._patience):
            try:
                while True:
                    await self._websocket.get_message()
            except trio_websocket.ConnectionClosed as closed:
                reason = closed.reason
        return (reason.code, reason.reason or "") if reason is not None else (1006, "")


class TestSwitch:
    """A switch whose clients are in memory. Made by `open_test_switch`."""

    __test__ = False  # for pytest: this is not a class of tests

    def __init__(self, switch: Switch, nursery: trio.Nursery, patience: float) -> None:
        self.switch = switch
        self._nursery = nursery
        self._patience = patience

    async def connect(
        self, path: str = "/ws", *, headers: Mapping[str, str] | None = None, slow: bool = False
    ) -> MemoryClient:
        """Connect a client, and read its welcome.

        A `slow` client's stream holds nothing: whatever the client does not receive waits in the server, so that overflow
        policies can be tested. Raises trio_websocket.ConnectionRejected when the server refuses, in an exception group.
        """
        ours, theirs = (trio.testing.lockstep_stream_pair if slow else trio.testing.memory_stream_pair)()
        self._nursery.start_soon(lambda: self.switch.serve_stream(theirs, remote="test"))
        fields = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        with trio.fail_after(self._patience):
            websocket = await trio_websocket.wrap_client_stream(
                self._nursery,
                ours,  # type: ignore[arg-type]  # any stream is good
                "test",
                path,
                extra_headers=fields,
                max_message_size=1 << 30,
            )
        client = MemoryClient(websocket, ours, self._patience)
        welcome = await client.receive()
        client.connection_id, client.session = welcome["connection_id"], welcome["session"]
        return client


@asynccontextmanager
async def open_test_switch(
    options: Options | None = None, *, patience: float = PATIENCE, **arguments: Any
) -> AsyncIterator[TestSwitch]:
    """Run a switch for a test; all `arguments` are those of `open_switch`. Leaving the block ends every connection.

    `patience` is the number of seconds that clients wait for a message before they raise trio.TooSlowError.
    """
    async with open_switch(options, **arguments) as switch, trio.open_nursery() as nursery:
        yield TestSwitch(switch, nursery, patience)
        nursery.cancel_scope.cancel()
