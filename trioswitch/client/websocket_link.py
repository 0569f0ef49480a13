"""One WebSocket connection, on trio-websocket. Its pitfalls are handled here, and its exceptions are translated here.

A stream of our own lies below it. It sees all received bytes, so that a ping, or a part of a large message, counts as a sign of
life. It also sees the end of the connection during the handshake, for which trio-websocket would wait without end.
"""

import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from typing import Any, Final

import h11
import msgspec
import trio
import trio_websocket
from wsproto.utilities import ProtocolError

from ..errors import CloseCause
from .address import Address
from .errors import CannotConnect, ConnectionLost, Rejected, UntrustedCertificate

__all__ = ["OpenStream", "WebSocketLink", "with_link"]

OpenStream = Callable[[], Awaitable[trio.abc.Stream]]
"""Opens a stream to the server. Raises OSError."""
CHUNK: Final = 64 * 1024
TLS_RECORDS: Final = (0x15, 0x16)
"""The first byte of a TLS alert and of a TLS handshake message. No HTTP answer begins with them."""
NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
"""OpenSSL's reasons when the answer to a TLS handshake is plain text; the second one from version 3.2 on."""
HTTPS_EXPECTED: Final = re.compile(rb"https|\bssl\b|\btls\b", re.IGNORECASE)
"""Found in the 400 that web servers send to plain HTTP on a TLS port."""
PERMANENT: Final = {401: CloseCause.UNAUTHORISED.code, 403: CloseCause.FORBIDDEN.code}
"""HTTP statuses that reject a client permanently, and the close codes with the same meaning."""


class _WatchedStream(trio.abc.Stream):
    """A stream that counts how often bytes arrived, and remembers whether it has ended."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.received = 0
        self.speaks_tls = False
        """Whether the first bytes from the server were TLS."""
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
            self.speaks_tls = self.speaks_tls or (not self.received and data[0] in TLS_RECORDS)
            self.received += 1
        else:
            self.ended.set()
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


class WebSocketLink:
    """An open WebSocket. One task may send while another one receives."""

    def __init__(self, websocket: trio_websocket.WebSocketConnection, stream: _WatchedStream) -> None:
        self._websocket = websocket
        self._stream = stream

    @property
    def received(self) -> int:
        """How often bytes have arrived: while it grows, the server is alive."""
        return self._stream.received

    async def send(self, payload: bytes) -> None:
        """Send one text message. Raises ConnectionLost. Cancelling it ends the connection."""
        try:
            await self._websocket.send_message(payload.decode())
        except (trio_websocket.ConnectionClosed, trio.ClosedResourceError, ProtocolError):
            raise self._lost() from None

    async def receive(self) -> tuple[Mapping[str, Any], int]:
        """Return the next message and its size in bytes. Raises ConnectionLost. Cancelling is safe."""
        try:
            payload = await self._websocket.get_message()
        except trio_websocket.ConnectionClosed:
            raise self._lost() from None
        try:
            message = msgspec.json.decode(payload)
        except msgspec.DecodeError:
            message = None
        if not isinstance(message, dict):
            raise ConnectionLost(1007, "the server sent a message that is not a JSON object")
        return message, len(payload)

    async def close(self) -> None:
        """Close with 1000, and wait for the server's answer; the caller sets the deadline."""
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
    use_link: Callable[[WebSocketLink], Awaitable[ConnectionLost]],
) -> ConnectionLost:
    """Connect within `seconds`, and call `use_link` with the link. Return its result.

    Closes the socket in any case. Raises CannotConnect and Rejected. Cancelling is safe.
    """
    lost: ConnectionLost | None = None
    speaks_tls = opened = False
    refusal: trio_websocket.ConnectionRejected | None = None
    with trio.CancelScope(deadline=trio.current_time() + seconds) as deadline:
        stream = _WatchedStream(await _open(address, open_stream))
        try:
            async with trio.open_nursery() as nursery:
                websocket = await _shake_hands(nursery, stream, address, token, max_message_bytes)
                if websocket is not None:
                    opened = True
                    deadline.deadline = inf
                    lost = await use_link(WebSocketLink(websocket, stream))
                nursery.cancel_scope.cancel()
        except* trio_websocket.ConnectionRejected as group:
            refusal = _first(group)
        except* (ProtocolError, h11.LocalProtocolError):  # the second one for an answer that is not HTTP
            lost = ConnectionLost(1002, "the server violated the WebSocket protocol")
        finally:
            speaks_tls = stream.speaks_tls
            await trio.aclose_forcefully(stream)
    if speaks_tls and not address.secure:
        raise CannotConnect(_tls_expected(address))
    if refusal is not None:
        raise _translated(refusal, address)
    if lost is not None and not opened:
        raise CannotConnect(f"{address.label} is not a WebSocket server: its answer is not valid HTTP")
    if lost is not None:
        return lost
    if deadline.cancelled_caught:
        raise CannotConnect(f"{address.label} does not answer")
    hint = "" if address.secure or address.socket_path else ": if it expects TLS, use wss://"
    raise CannotConnect(f"{address.label} closed the connection during the handshake{hint}")


def _tls_expected(address: Address) -> str:
    hint = "which is not supported over a Unix socket" if address.socket_path else "use wss://"
    return f"{address.label} expects TLS: {hint}"


async def _open(address: Address, open_stream: OpenStream) -> trio.abc.Stream:
    """Raises CannotConnect."""
    try:
        return await open_stream()
    except (OSError, trio.BrokenResourceError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None or isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__ or cause
        prefix = f"cannot connect to {address.label}"
        if isinstance(cause, ssl.SSLCertVerificationError):
            sentence = f"{prefix}: its certificate is not trusted: {cause.verify_message}"
            raise UntrustedCertificate(sentence) from None
        raise CannotConnect(f"{prefix}: {_reason(cause)}") from None


def _reason(cause: BaseException) -> str:
    if isinstance(cause, ssl.SSLError) and cause.reason in NOT_TLS:
        return "it does not use TLS: use ws://"
    if isinstance(cause, ssl.SSLEOFError):
        return "it closed the connection during the TLS handshake: if it does not use TLS, use ws://"
    if isinstance(cause, OSError) and not isinstance(cause, (socket.gaierror, ssl.SSLError)) and cause.errno:
        return os.strerror(cause.errno)  # the exception's own text repeats the address
    return getattr(cause, "strerror", None) or str(cause) or "the connection broke"


async def _shake_hands(
    nursery: trio.Nursery, stream: _WatchedStream, address: Address, token: str | None, max_message_bytes: int
) -> trio_websocket.WebSocketConnection | None:
    """The open WebSocket; None if the stream ended instead."""
    with trio.CancelScope() as scope:
        nursery.start_soon(_cancel_when, stream.ended, scope)
        return await trio_websocket.wrap_client_stream(
            nursery,
            stream,  # type: ignore[arg-type]  # it takes any stream
            address.host_field,
            address.target,
            subprotocols=["trioswitch.v1"],
            extra_headers=[] if token is None else [(b"Authorization", b"Bearer " + token.encode())],
            max_message_size=max_message_bytes,
            receive_buffer_size=CHUNK,
        )
    return None


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _first(group: BaseExceptionGroup[trio_websocket.ConnectionRejected]) -> trio_websocket.ConnectionRejected:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, trio_websocket.ConnectionRejected)
    return error


def _translated(refusal: trio_websocket.ConnectionRejected, address: Address) -> CannotConnect | Rejected:
    status, body = refusal.status_code, refusal.body or b""
    text = body.decode("utf-8", "replace").strip().split("\n", 1)[0][:200]
    if status in PERMANENT:
        return Rejected(PERMANENT[status], text)
    if status == 400 and not address.secure and HTTPS_EXPECTED.search(body):
        return CannotConnect(_tls_expected(address))
    after = dict(refusal.headers).get(b"retry-after", b"")
    if status < 400 or text.startswith("<"):
        text = "and does not offer a WebSocket at this address"
    return CannotConnect(
        f"{address.label} answered {status} {text}".rstrip(), float(after) if after.isdigit() else None
    )
