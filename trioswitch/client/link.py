"""One WebSocket connection, on trio-websocket: its pitfalls are kept in here, and its exceptions are translated.

A stream of our own lies below it. It sees every byte that comes, so that a ping, or a part of a big message, counts as a sign
of life; and it sees the end of a connection in the middle of the handshake, for which trio-websocket would wait forever.
"""

import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from typing import Any
from urllib.parse import quote, urlsplit

import attrs
import msgspec
import trio
import trio_websocket
from wsproto.utilities import ProtocolError

from .errors import CannotConnect, ConnectionLost, Rejected

__all__ = ["Address", "Link", "OpenStream", "with_link"]

OpenStream = Callable[[], Awaitable[trio.abc.Stream]]
"""Opens a stream to the server. Raises OSError."""
_CHUNK = 64 * 1024
_AS_IT_IS = "%/?:@!$&'()*+,;="
"""What a path or a query may have (RFC 3986, section 3.4), and `%`: what is escaped already stays as it is."""
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
"""What OpenSSL says of an answer in plain text: the second from version 3.2 on."""
_FINAL = (401, 403)
"""HTTP statuses that tell a client not to come back."""


@attrs.frozen
class Address:
    host: str
    port: int
    target: str
    """Path and query."""
    secure: bool

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Raises ValueError with a sentence."""
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ValueError(f"{url!r} is no WebSocket URL, like ws://host:8765/ws")
        try:
            port = parts.port
        except ValueError:
            raise ValueError(f"{url!r} has no valid port") from None
        try:
            host = parts.hostname.encode("idna").decode()
        except UnicodeError:
            raise ValueError(f"{url!r} has no valid host") from None
        secure = parts.scheme == "wss"
        target = quote(parts.path or "/", safe=_AS_IT_IS) + (
            f"?{quote(parts.query, safe=_AS_IT_IS)}" if parts.query else ""
        )
        return cls(host, (443 if secure else 80) if port is None else port, target, secure)

    @property
    def name(self) -> str:
        """As it stands in the field Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    async def open(self, context: ssl.SSLContext | None) -> trio.abc.Stream:
        """Raises OSError, and BrokenResourceError where TLS fails."""
        stream = await trio.open_tcp_stream(self.host, self.port)
        if not self.secure:
            return stream
        secured = trio.SSLStream(
            stream, context or ssl.create_default_context(), server_hostname=self.host, https_compatible=True
        )
        try:
            await secured.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return secured


class _Watched(trio.abc.Stream):
    """A stream that counts how often bytes came, and remembers that it has ended."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.heard = 0
        self.ended = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            self.ended.set()
            raise

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError:
            self.ended.set()
            raise
        if data:
            self.heard += 1
        else:
            self.ended.set()
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


class Link:
    """An open connection. One task sends, one receives; to cancel a `send` ends the connection."""

    def __init__(self, websocket: trio_websocket.WebSocketConnection, stream: _Watched) -> None:
        self._websocket = websocket
        self._stream = stream

    @property
    def heard(self) -> int:
        """How often bytes came so far: as long as it grows, the server is alive."""
        return self._stream.heard

    async def send(self, payload: bytes) -> None:
        """Send one message. Raises ConnectionLost."""
        try:
            await self._websocket.send_message(payload.decode())
        except (trio_websocket.ConnectionClosed, trio.ClosedResourceError, ProtocolError):
            raise self._lost() from None

    async def receive(self) -> tuple[Mapping[str, Any], int]:
        """The next message, and its bytes. Cancelling is safe. Raises ConnectionLost."""
        try:
            payload = await self._websocket.get_message()
        except trio_websocket.ConnectionClosed:
            raise self._lost() from None
        try:
            message = msgspec.json.decode(payload)
        except msgspec.DecodeError:
            message = None
        if not isinstance(message, dict):
            raise ConnectionLost(1007, "the server sent what is no message")
        return message, len(payload)

    async def close(self) -> None:
        """Say goodbye with 1000, and wait for the answer: the caller sets the deadline."""
        await self._websocket.aclose(1000)

    def _lost(self) -> ConnectionLost:
        closed = self._websocket.closed
        return ConnectionLost(1006, "") if closed is None else ConnectionLost(closed.code, closed.reason or "")


async def with_link(
    address: Address,
    open_stream: OpenStream,
    token: str | None,
    seconds: float,
    max_message_bytes: int,
    converse: Callable[[Link], Awaitable[ConnectionLost]],
) -> ConnectionLost:
    """Connect within `seconds`, and let `converse` have the link until it returns, or is cancelled.

    The socket is closed in the end, whatever happens. Raises CannotConnect and Rejected.
    """
    lost: ConnectionLost | None = None
    refusal: trio_websocket.ConnectionRejected | None = None
    with trio.CancelScope(deadline=trio.current_time() + seconds) as deadline:
        stream = _Watched(await _opened(address, open_stream))
        try:
            async with trio.open_nursery() as nursery:
                websocket = await _upgraded(nursery, stream, address, token, max_message_bytes)
                if websocket is not None:
                    deadline.deadline = inf
                    lost = await converse(Link(websocket, stream))
                nursery.cancel_scope.cancel()
        except* trio_websocket.ConnectionRejected as group:
            refusal = _first(group)
        except* ProtocolError:
            lost = ConnectionLost(1002, "the server broke the WebSocket protocol")
        finally:
            await trio.aclose_forcefully(stream)
    if refusal is not None:
        raise _translated(refusal)
    if lost is not None:
        return lost
    if deadline.cancelled_caught:
        raise CannotConnect(f"{address.name} does not answer")
    raise CannotConnect(f"{address.name} hung up" if address.secure else f"{address.name} hung up: it may want wss://")


async def _opened(address: Address, open_stream: OpenStream) -> trio.abc.Stream:
    """Raises CannotConnect."""
    try:
        return await open_stream()
    except (OSError, trio.BrokenResourceError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None or isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__ or cause
        raise CannotConnect(f"cannot connect to {address.name}: {_why(cause)}") from None


def _why(cause: BaseException) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is no good: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
        return "it does not speak TLS: it may want ws://"
    if isinstance(cause, OSError) and not isinstance(cause, (socket.gaierror, ssl.SSLError)) and cause.errno:
        return os.strerror(cause.errno)  # its own text has the address once more
    return getattr(cause, "strerror", None) or str(cause) or "the connection broke"


async def _upgraded(
    nursery: trio.Nursery, stream: _Watched, address: Address, token: str | None, max_message_bytes: int
) -> trio_websocket.WebSocketConnection | None:
    """Shake hands. None: the stream ended instead."""
    with trio.CancelScope() as scope:
        nursery.start_soon(_cancel_at, stream.ended, scope)
        return await trio_websocket.wrap_client_stream(
            nursery,
            stream,  # type: ignore[arg-type]  # any stream will do
            address.name,
            address.target,
            subprotocols=["trioswitch.v1"],
            extra_headers=[] if token is None else [(b"Authorization", b"Bearer " + token.encode())],
            max_message_size=max_message_bytes,
            receive_buffer_size=_CHUNK,
        )
    return None


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _first(group: BaseExceptionGroup[trio_websocket.ConnectionRejected]) -> trio_websocket.ConnectionRejected:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, trio_websocket.ConnectionRejected)
    return error


def _translated(refusal: trio_websocket.ConnectionRejected) -> CannotConnect | Rejected:
    status = refusal.status_code
    said = (refusal.body or b"").decode("utf-8", "replace").strip().split("\n", 1)[0][:200]
    if status in _FINAL:
        return Rejected(status, said)
    after = dict(refusal.headers).get(b"retry-after", b"")
    if status < 400 or said.startswith("<"):
        said = "as one where there is no WebSocket"
    return CannotConnect(f"the server answered {status} {said}".rstrip(), float(after) if after.isdigit() else None)
