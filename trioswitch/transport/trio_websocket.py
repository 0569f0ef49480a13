"""The trio-websocket transport: a connection that a program accepted with trio-websocket.

What that library does not offer is missing here too: no compression, one write for each message. Its pitfalls are kept in:
every call that can hang has a deadline from its caller, and a ping waits in a task of its own (`ping()` never returns when
the peer goes away).
"""

from collections.abc import Callable
from typing import Any

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from ..errors import CloseCause, PeerGone
from ..wire.formats import Chunk, Format
from .port import Transport

__all__ = ["TrioWebsocketTransport"]

_CAUSES = {
    cause.code: cause
    for cause in (
        CloseCause.CLIENT_AWAY,
        CloseCause.VANISHED,
        CloseCause.PROTOCOL_ERROR,
        CloseCause.BAD_DATA,
        CloseCause.TOO_BIG,
    )
}
"""All but the first of these codes trio-websocket gives where it has ended the connection itself."""


class TrioWebsocketTransport(Transport):
    """`start_soon` starts a task in the connection's nursery; `heard` is called when a ping was answered, `lost` when it
    could not be sent."""

    def __init__(
        self,
        connection: WebSocketConnection,
        format: Format,
        *,
        start_soon: Callable[..., Any],
        ping_timeout: float,
        heard: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self._connection = connection
        self.format = format
        self._start_soon = start_soon
        self._ping_timeout = ping_timeout
        self._heard = heard
        self._lost = lost

    async def receive(self) -> list[bytes]:
        try:
            message = await self._connection.get_message()
        except ConnectionClosed:
            raise self._gone() from None
        return [message.encode() if isinstance(message, str) else message]

    def pongs(self) -> bytes:
        return b""  # trio-websocket sends them by itself

    async def write(self, chunk: Chunk | memoryview) -> None:
        assert isinstance(chunk, tuple)
        try:
            for payload in chunk:
                await self._connection.send_message(payload)
        except (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._gone() from None

    async def wait_writable(self) -> None:
        """It cannot be asked: writing waits by itself."""
        await trio.lowlevel.checkpoint()

    def ping(self) -> bytes | None:
        self._start_soon(self._ping)
        return None

    async def _ping(self) -> None:
        with trio.move_on_after(self._ping_timeout):
            try:
                await self._connection.ping()
            except (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
                self._lost()
            else:
                self._heard()

    async def send_close(self, code: int, reason: str) -> None:
        """This waits for the peer's answer too: trio-websocket's `aclose` does both."""
        await self._connection.aclose(code, reason)

    async def wait_closed(self) -> None:
        """`send_close` has waited."""

    async def aclose(self) -> None:
        # Its own `aclose` would write a close frame first, perhaps behind half of another, and there is no other way to
        # close at once.
        with trio.CancelScope() as scope:
            scope.cancel()
            await self._connection._close_stream()

    def _gone(self) -> PeerGone:
        closed = self._connection.closed
        if closed is None:
            return PeerGone(CloseCause.VANISHED)
        return PeerGone(_CAUSES.get(closed.code, CloseCause.CLIENT_LEFT), closed.code, closed.reason or "")
