"""TLS on a plain socket, with `ssl`'s sans-I/O objects.

`trio.SSLStream` delivers one record for each wait and cannot be written to without waiting. Measured with 500 receivers, that
kept windows at one message, and a delivery at 20 us. This is a socket like any other: read as far as it goes, by the reactor,
and written straight through.
"""

import os
import socket
import ssl
from contextlib import suppress
from typing import Final

from ..errors import CloseCause, PeerGone
from .streams import READ_SIZE, SocketByteStream

__all__ = ["TlsByteStream"]

PIECE: Final = 64 * 1024
"""Bytes that are encrypted at once, four records: what a full socket does not take of them is kept here."""


class TlsByteStream(SocketByteStream):
    """A connected, non-blocking socket that speaks TLS as the server. The first `read` shakes hands."""

    __slots__ = ("_ahead", "_incoming", "_outgoing", "_shaken", "_tls", "_unsent")

    can_end_writing = False

    def __init__(self, connected: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(connected)
        self.write_nowait = self._write
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._shaken = False
        self._unsent = memoryview(b"")  # encrypted, and not yet taken by the socket
        self._ahead = 0  # bytes of the caller that are in it, and were not reported as written

    async def read(self) -> bytes:
        if not self._shaken:
            await self._shake_hands()
        while True:
            try:
                return self._decrypt()
            except BlockingIOError:
                self._feed(await super().read())

    def read_ready(self) -> bytes:
        self._feed(super().read_ready())
        return self._decrypt()

    def read_nowait(self) -> bytes:
        return b""  # there are hands to shake first

    def _feed(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _decrypt(self) -> bytes:
        """All that has arrived, empty at the end. Raises BlockingIOError, PeerGone."""
        parts: list[bytes] = []
        try:
            while part := self._tls.read(READ_SIZE):
                parts.append(part)
        except ssl.SSLWantReadError:
            if not parts:
                raise BlockingIOError from None
        except ssl.SSLEOFError:
            pass  # browsers do not say goodbye to TLS, only to the WebSocket
        except OSError:
            raise PeerGone(CloseCause.VANISHED) from None
        if self._outgoing.pending > PIECE:
            raise PeerGone(CloseCause.VANISHED)  # answers of TLS itself, to a peer that keeps asking and does not read
        return b"".join(parts)

    def _write(self, data: bytes | memoryview) -> int:
        """Encrypt and write what fits. As with OpenSSL: whoever has to write the rest later writes that next."""
        view, written = memoryview(data), 0
        try:
            while True:
                self._send()
                taken = min(self._ahead, len(view) - written)
                self._ahead -= taken
                written += taken
                if written == len(view):
                    return written
                self._ahead = self._tls.write(view[written : written + PIECE])
        except BlockingIOError:
            if not written:
                raise
            return written

    def _send(self) -> None:
        """Write what is encrypted. Raises BlockingIOError when the socket does not take all of it, or another OSError."""
        while self._unsent or self._outgoing.pending:
            if not self._unsent:
                self._unsent = memoryview(self._outgoing.read())
            self._unsent = self._unsent[os.write(self.fd, self._unsent) :]

    async def _shake_hands(self) -> None:
        while not self._shaken:
            try:
                self._tls.do_handshake()
                self._shaken = True
            except ssl.SSLWantReadError:
                pass
            except OSError:
                with suppress(OSError):
                    self._send()  # the reason, as an alert
                raise PeerGone(CloseCause.VANISHED) from None
            await self.write(b"")
            if not self._shaken:
                self._feed(await super().read())

    async def end_writing(self) -> None:
        """The peer is not told: it sees the end when the channel is closed."""

    async def aclose(self) -> None:
        await super().aclose()
        self.write_nowait = None  # it refers to this channel
