"""Endpoints of the application's own: WebSocket paths with another protocol, on the same listeners as the switch.

The connection is that of any client: limits, compression, heartbeats, backpressure and graceful shutdown are the same. The
messages are the application's: text as str, binary data as bytes.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import trio

from ._util.checks import check_async, check_text
from ._util.wakeup import Wakeup
from .auth.request import ConnectRequest
from .config import Options
from .connections.directory import ConnectionDirectory
from .connections.driver import ConnectionDriver
from .connections.heartbeats import Heartbeats
from .connections.outbox import OfferResult
from .errors import CloseCause, WebSocketClosed
from .wire.commands import Command
from .wire.protocols.raw import RawMessage
from .wire.raw import RawPrepared

__all__ = ["Endpoint", "Endpoints", "WebSocket", "check_endpoints"]

_log = logging.getLogger(__name__)

Endpoint = Callable[["WebSocket"], Awaitable[object]]
"""`async def endpoint(websocket)`: serves one client; the WebSocket is closed with 1000 when it returns."""

MAX_PENDING: Final = 64
"""Messages that wait to be received; then, as beyond `outbox_bytes`, nothing more is read from the client."""
MAX_PATH: Final = 1024
_EXTERNAL_CODES: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})


class WebSocket:
    """The WebSocket of one client of an endpoint. Iterate over it for its messages, until it is closed."""

    def __init__(self, connection: ConnectionDriver, options: Options) -> None:
        self._connection = connection
        self._max_bytes = options.outbox_bytes
        self._messages: deque[str | bytes] = deque()
        self._bytes = 0
        self._changed = Wakeup()  # a message came, or one was received, or the connection has ended
        self._ended = False

    @property
    def id(self) -> str:
        """The connection's id: a random string."""
        return self._connection.id

    @property
    def request(self) -> ConnectRequest:
        """The request with which the client came; `request.path` is the endpoint's path."""
        return self._connection.request

    @property
    def closed(self) -> bool:
        """Whether it is closed, or about to be: `send` raises WebSocketClosed."""
        return self._ended or self._connection.cause is not None

    async def receive(self) -> str | bytes:
        """The next message: a str for text, bytes for binary data.

        Raises WebSocketClosed when the WebSocket is closed and all messages were received. Safe to cancel: then no message is
        lost. While nothing is received, the client is pushed back on (TCP), and its pings are not answered.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._messages:
            if self._ended:
                raise WebSocketClosed(*self._connection.close_code)
            await self._changed.wait()
        message = self._messages.popleft()
        self._bytes -= len(message)
        self._changed.notify()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return message

    async def send(self, data: str | bytes) -> None:
        """Send a message: a str as text, bytes as binary data. Waits while the client's outbox is full.

        Raises WebSocketClosed, TypeError for other data, and ValueError for a str that UTF-8 cannot carry. Safe to cancel:
        then the message was not sent. Messages arrive in the order in which they were sent.
        """
        if not isinstance(data, str | bytes | bytearray | memoryview):
            raise TypeError(f"a message must be a str or bytes, not {type(data).__name__}")
        try:
            message = RawPrepared(data if isinstance(data, str) else bytes(data))
        except UnicodeEncodeError:
            raise ValueError("the text of a message must be text that UTF-8 can carry") from None
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.closed or await self._connection.outbox.put(message) is OfferResult.DROPPED:
            raise WebSocketClosed(*self._connection.close_code)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Begin to close it, after what is pending for the client; returns at once. Does nothing when it is closed already.

        `code` is 1000 to 1003, 1007 to 1014, or 3000 to 4999; `reason` is text of up to 123 bytes in UTF-8. Raises ValueError
        for others.
        """
        if not (code in _EXTERNAL_CODES or 3000 <= code <= 4999):
            raise ValueError(f"{code} is not a code that an endpoint may close with (1000-1003, 1007-1014, 3000-4999)")
        if len(reason.encode(errors="surrogatepass")) > 123:
            raise ValueError("the reason must have at most 123 bytes in UTF-8")
        self._connection.close(CloseCause.APPLICATION, reason, code=code)

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        return self

    async def __anext__(self) -> str | bytes:
        try:
            return await self.receive()
        except WebSocketClosed:
            raise StopAsyncIteration from None

    # --- from the connection

    def on_message(self, _connection: ConnectionDriver, command: Command, _size: int) -> Any:
        """Take a message. Returns what has to be awaited before the next one is read."""
        assert isinstance(command, RawMessage)
        self._messages.append(command.data)
        self._bytes += len(command.data)
        self._changed.notify()
        return self._wait_space() if self._full else None

    @property
    def _full(self) -> bool:
        return len(self._messages) >= MAX_PENDING or (self._bytes >= self._max_bytes and len(self._messages) > 1)

    async def _wait_space(self) -> None:
        while self._full:
            await self._changed.wait()

    def on_end(self) -> None:
        """The connection has ended: what was received before can still be read."""
        self._ended = True
        self._changed.notify()


class Endpoints:
    """Serves clients at the application's own paths."""

    def __init__(self, by_path: Mapping[str, Endpoint], options: Options, heartbeats: Heartbeats) -> None:
        self._by_path = by_path
        self._options = options
        self._heartbeats = heartbeats
        self.connections = ConnectionDirectory(options.direct_overflow)
        """The open connections at these paths. Messages of the switch do not go to them."""

    def __contains__(self, path: str) -> bool:
        return path in self._by_path

    async def serve(self, connection: ConnectionDriver) -> None:
        """Run an endpoint for a connection. Returns when both have ended. Raises nothing but Cancelled."""
        websocket = WebSocket(connection, self._options)
        opened = trio.Event()

        def on_open(connection: ConnectionDriver) -> None:
            self.connections.add(connection)
            self._heartbeats.add(connection)
            opened.set()

        async def drive() -> None:
            try:
                await connection.run(websocket.on_message, on_open)
            finally:
                self._heartbeats.remove(connection)
                self.connections.remove(connection)
                websocket.on_end()
                opened.set()
                # The endpoint may finish what it is doing: its next `receive` and `send` raise WebSocketClosed.
                nursery.cancel_scope.deadline = trio.current_time() + self._options.hook_timeout

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drive)
            await opened.wait()
            try:
                await self._by_path[connection.request.path](websocket)
            except WebSocketClosed:
                _log.debug(
                    "the endpoint %s ended with its connection %s",
                    connection.request.path,
                    connection.id,
                    extra={"connection": connection.id},
                )
            except Exception:
                _log.exception(
                    "the endpoint %s failed for connection %s",
                    connection.request.path,
                    connection.id,
                    extra={"connection": connection.id},
                )
                connection.close(CloseCause.INTERNAL)
            else:
                websocket.close()


def check_endpoints(endpoints: Mapping[str, Endpoint]) -> None:
    """Raises TypeError and ValueError for endpoints that cannot be served."""
    for path, endpoint in endpoints.items():
        check_text("the path of an endpoint", path, MAX_PATH)
        if not path.startswith("/"):
            raise ValueError(f"the path of an endpoint must begin with '/', not {path!r}")
        check_async(f"the endpoint {path!r}", endpoint)
