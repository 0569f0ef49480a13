"""The native transport: WebSocket frames over a byte stream, with the codec in `wire.websocket`."""

from math import inf
from typing import Final

import outcome
import trio

from ..errors import CloseCause, PeerGone
from ..wire.formats import Chunk, Format
from ..wire.frames import PING, frame
from ..wire.handshake import Rejected
from ..wire.websocket import WebSocketCodec
from .port import Receiver, Transport
from .reactor import Reactor
from .streams import ByteStream, SocketByteStream

__all__ = ["NativeTransport", "read_head"]

SILENCE: Final = 0.5
"""Seconds of silence after which a peer counts as having seen our close frame."""
_PING = frame(PING, b"")


async def read_head(channel: ByteStream, max_bytes: int, data: bytes = b"") -> tuple[bytes, bytes]:
    """The head of an HTTP request, up to and with its empty line, and what came after it. `data` has been read already.

    Raises PeerGone when the peer leaves before that, Rejected when the head is too long (431) or no HTTP at all (400).
    """
    # Where accepting was deferred, the head is here already: reading it at once saves a turn of the event loop.
    if not data and isinstance(channel, SocketByteStream):
        data = channel.read_nowait()
    while True:
        if data and not _may_be_http(data):
            raise Rejected(400, "this is an HTTP server")
        end = data.find(b"\r\n\r\n") + 4
        if 4 <= end <= max_bytes:
            return data[:end], data[end:]
        if len(data) > max_bytes:
            raise Rejected(431, f"the head of a request may have {max_bytes} bytes")
        more = await channel.read()
        if not more:
            raise PeerGone(CloseCause.VANISHED)
        data += more


def _may_be_http(data: bytes) -> bool:
    """Whether this can be how a request begins: what speaks another protocol, TLS say, need not wait for the deadline."""
    line, newline, _ = data.partition(b"\n")
    return b" HTTP/1." in line if newline else data[:1].isalpha()


class NativeTransport(Transport):
    """A WebSocket over a channel of bytes, after its handshake. `rest` is what came with the handshake.

    With a reactor, a socket is read there, and `receive` waits for what could not be carried out there.
    """

    __slots__ = ("_channel", "_codec", "_left", "_reactor", "_receiver", "_rest", "_task", "format", "write_nowait")

    def __init__(
        self, channel: ByteStream, codec: WebSocketCodec, format: Format, rest: bytes, reactor: Reactor | None = None
    ) -> None:
        self._channel = channel
        self._codec = codec
        self._rest = rest
        self._reactor = reactor if isinstance(channel, SocketByteStream) else None
        self._receiver: Receiver | None = None
        self._task: trio.lowlevel.Task | None = None  # the one that waits in `receive`
        self._left: list[bytes] | None = None  # what the reactor leaves to it: a command waits, and these come after it
        self.format = format
        self.write_nowait = channel.write_nowait

    def set_receiver(self, receiver: Receiver) -> None:
        if self._reactor is not None:
            self._receiver = receiver

    async def receive(self) -> list[bytes]:
        self._raise_if_ended()
        if self._rest:
            await trio.lowlevel.checkpoint()
            data, self._rest = self._rest, b""
        elif self._codec.has_more:
            await trio.lowlevel.checkpoint()
            return self._codec.feed(b"")
        elif self._receiver is not None:
            return await self._receive_from_reactor()
        else:
            data = await self._channel.read()
        messages = self._feed(data)
        if not messages:
            self._raise_if_ended()
        return messages

    def _feed(self, data: bytes) -> list[bytes]:
        if data:
            return self._codec.feed(data)
        self._codec.eof()
        return []

    def _raise_if_ended(self) -> None:
        ended = self._codec.ended
        if ended is not None:  # a new one: its traceback names frames that name us, and must not be kept with us
            raise PeerGone(ended.cause, ended.code, ended.reason)

    async def _receive_from_reactor(self) -> list[bytes]:
        assert self._reactor is not None
        assert isinstance(self._channel, SocketByteStream)
        reactor, fd = self._reactor, self._channel.fd
        self._task = trio.lowlevel.current_task()
        reactor.watch(fd, self._readable)

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._task = None
            reactor.unwatch(fd)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        left, self._left = self._left, None
        if left is None:
            self._raise_if_ended()
        return left or []

    def _readable(self) -> None:
        """Called by the reactor. Whatever goes wrong is raised in the task of this connection."""
        assert isinstance(self._channel, SocketByteStream)
        assert self._reactor is not None
        assert self._receiver is not None
        try:
            left = self._receiver(self._feed(self._channel.read_ready()))
        except BlockingIOError:
            return
        except Exception as error:
            self._wake(None, outcome.Error(error))
            return
        if left is not None or self._codec.has_more or self._codec.ended is not None:
            self._wake(left, outcome.Value(None))

    def _wake(self, left: list[bytes] | None, result: outcome.Outcome[None]) -> None:
        """Have `receive` go on, with what was not carried out here."""
        assert isinstance(self._channel, SocketByteStream)
        assert self._reactor is not None
        if self._task is None:
            return  # carrying out a command has cancelled it
        self._reactor.unwatch(self._channel.fd)
        self._left = left
        trio.lowlevel.reschedule(self._task, result)
        self._task = None

    def pongs(self) -> bytes:
        codec = self._codec
        if not codec.replies or codec.ended is not None:
            return b""
        replies, codec.replies = codec.replies, b""
        return replies

    async def write(self, chunk: Chunk | memoryview) -> None:
        assert not isinstance(chunk, tuple)
        await self._channel.write(chunk)

    async def wait_writable(self) -> None:
        await self._channel.wait_writable()

    def ping(self) -> bytes | None:
        return _PING

    async def send_close(self, code: int, reason: str) -> None:
        await self._channel.write(self._codec.close(code, reason))
        if self._codec.ended is not None:
            await self._channel.end_writing()

    async def wait_closed(self) -> None:
        # A socket that is closed while bytes of the peer wait in it resets the connection, and the peer may never see
        # why it was closed. So they are read and thrown away until the peer has closed its side; one that could not be
        # told that we have closed ours waits for us, and its silence has to do.
        patience = inf if self._channel.can_end_writing else SILENCE
        while True:
            with trio.move_on_after(patience) as waiting:
                if not await self._channel.read():
                    return
            if waiting.cancelled_caught:
                return

    async def aclose(self) -> None:
        if self._reactor is not None and isinstance(self._channel, SocketByteStream):
            self._reactor.unwatch(self._channel.fd)
        self._receiver = None  # it knows the connection, which knows us: without this, both wait for a full collection
        await self._channel.aclose()
