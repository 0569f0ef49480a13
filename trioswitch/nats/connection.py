"""A connection to a NATS server on Trio. What all tasks write goes out together.

The protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol. There is no client library for Trio.
"""

import json
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import attrs
import trio

from .._util.remote import reason_of
from .._util.shared_stream import SharedStream
from ..errors import TrioswitchError
from ..version import __version__
from .url import NatsUrl

__all__ = ["Message", "NatsConnection", "NatsLost", "connect"]

MAX_MESSAGE: Final = 80 * 1024 * 1024
"""Bytes of a message at most: NATS takes 64 MiB, and adds headers."""
MAX_LINE: Final = 64 * 1024
"""Bytes of a line at most: INFO names all servers of a NATS cluster."""


class NatsLost(TrioswitchError):
    """There is no connection, or it was lost, or cannot be made; the text is a sentence."""


@attrs.define
class Message:
    """What arrives for a subscription. `headers` are as NATS sends them, empty where there are none."""

    subject: str
    subscription: int
    headers: bytes
    payload: bytes


class NatsConnection(SharedStream):
    """Made by `connect`; `run` is its task, which gives what arrives to `on_message`."""

    def __init__(
        self, stream: trio.abc.Stream, info: dict[str, Any], place: str, on_message: Callable[[Message], None]
    ) -> None:
        super().__init__(stream, "NATS", place)
        self.info = info
        """What the server says of itself."""
        self._on_message = on_message
        self._buffer = bytearray()
        self._needed = 0  # bytes in the buffer without which a message is not complete
        self._flushing: deque[trio.Event] = deque()

    # --- in

    def _feed(self, data: memoryview) -> None:
        self._buffer += data
        if len(self._buffer) >= self._needed:
            self._parse()

    def _on_lost(self) -> None:
        while self._flushing:
            self._flushing.popleft().set()

    def _parse(self) -> None:
        """Handle all that is complete in the buffer. Raises ValueError for what is not the protocol."""
        buffer, position, self._needed = self._buffer, 0, 0
        while (end := buffer.find(b"\r\n", position, position + MAX_LINE)) >= 0:
            line = bytes(buffer[position:end])
            start = end + 2
            if line.startswith((b"MSG ", b"HMSG ")):
                parts = line.split()
                with_headers = parts[0] == b"HMSG"
                if len(parts) < 4 + with_headers:
                    raise ValueError(f"it says {line[:60]!r}")
                size = int(parts[-1])
                headers_size = int(parts[-2]) if with_headers else 0
                if not 0 <= headers_size <= size <= MAX_MESSAGE:
                    raise ValueError(f"a message of {size} bytes, {headers_size} of them headers")
                stop = start + size
                if len(buffer) < stop + 2:
                    self._needed = stop + 2 - position
                    break
                body = start + headers_size
                headers, payload = bytes(buffer[start:body]), bytes(buffer[body:stop])
                self._on_message(Message(parts[1].decode(), int(parts[2]), headers, payload))
                start = stop + 2
            else:
                self._take(line)
            position = start
        else:
            if len(buffer) - position > MAX_LINE:
                raise ValueError("a line that does not end")
        del buffer[:position]

    def _take(self, line: bytes) -> None:
        verb = line.split(b" ", 1)[0].upper()
        if verb == b"PING":
            self.write(b"PONG\r\n")
        elif verb == b"PONG":
            if self._flushing:
                self._flushing.popleft().set()
        elif verb == b"-ERR":
            reason = line[4:].decode(errors="replace").strip(" '")
            self.drop(f"NATS at {self.place} refuses it: {reason}")
        elif verb not in (b"+OK", b"INFO"):
            raise ValueError(f"it says {line[:60]!r}")

    # --- out

    async def flush(self) -> None:
        """Wait until the server has read what was written. Raises NatsLost. Safe to cancel."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.lost is None:
            answered = trio.Event()
            self._flushing.append(answered)
            self.write(b"PING\r\n")
            await answered.wait()
        if self.lost is not None:
            raise NatsLost(self.lost)


async def connect(url: NatsUrl, server: tuple[str, int], on_message: Callable[[Message], None]) -> NatsConnection:
    """Connect to one of the servers, with TLS where it is wanted. Raises NatsLost. Safe to cancel.

    Whether the server takes the password is known after the first `flush`.
    """
    host, port = server
    place = f"{host}:{port}"
    try:
        stream: trio.abc.Stream = await trio.open_tcp_stream(host, port)
    except OSError as error:
        raise NatsLost(f"NATS at {place} cannot be reached: {reason_of(error)}") from None
    try:
        info = await _read_info(stream, place)
        if url.tls is not None:
            tls = trio.SSLStream(stream, url.tls, server_hostname=host, https_compatible=True)
            stream = tls
            await tls.do_handshake()
        elif info.get("tls_required"):
            raise NatsLost(f"NATS at {place} wants TLS: tls://{place}")
        await stream.send_all(b"CONNECT %b\r\n" % json.dumps(_introduction(url)).encode())
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(stream)
        raise NatsLost(f"NATS at {place} cannot be reached: {error.__cause__ or error}") from None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return NatsConnection(stream, info, place, on_message)


async def _read_info(stream: trio.abc.Stream, place: str) -> dict[str, Any]:
    line = bytearray()
    while not line.endswith(b"\r\n"):
        data = await stream.receive_some(MAX_LINE)
        line += data
        if not data or len(line) > MAX_LINE or not b"INFO ".startswith(line[:5]):
            raise NatsLost(f"what answers at {place} is no NATS")
    try:
        info = json.loads(line[5:])
    except ValueError:
        info = None
    if not isinstance(info, dict):
        raise NatsLost(f"what answers at {place} is no NATS")
    return info


def _introduction(url: NatsUrl) -> dict[str, Any]:
    login = {"auth_token": url.password} if url.user is None else {"user": url.user, "pass": url.password}
    return {
        **(login if url.password is not None else {}),
        "verbose": False,
        "pedantic": False,
        "headers": True,
        "no_responders": True,
        "protocol": 1,
        "lang": "python",
        "name": "trioswitch",
        "version": __version__,
    }
