"""The server's side of one WebSocket after its handshake, without I/O: frames in, messages and control frames out.

The codec is websockets' `Protocol`. What it leaves to its user is here: messages are put together from fragments
(with a limit on their number), and the data frames that we send come from `wire.frames`, shared by all receivers.
"""

import codecs
import logging
from typing import Final, NamedTuple

from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Protocol, Side
from websockets.speedups import apply_mask

from .._util.checks import carried_text
from ..errors import CloseCause, PeerGone

__all__ = ["Deflate", "TextBytes", "WebSocketCodec"]

_quiet = logging.getLogger(__name__ + ".websockets")
_quiet.setLevel(logging.WARNING)  # websockets tells of every connection at INFO; trioswitch does that itself

_WHOLE_TEXT, _WHOLE_BINARY = 0x81, 0x82
"""First byte of a frame that is a whole message, and not compressed."""
_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_NewDecoder = codecs.getincrementaldecoder("utf-8")
INFLATED: Final = 256 * 1024
"""Bytes of inflated messages after which `feed` returns, so that others get a turn: 64 KiB of frames may hold 60 MiB."""
_PONG: Final = 0x8A
"""First byte of a pong. It says nothing but that something has come."""
_CAUSES = {
    cause.code: cause
    for cause in (CloseCause.PROTOCOL_ERROR, CloseCause.BAD_DATA, CloseCause.TOO_BIG, CloseCause.INTERNAL)
}


class TextBytes(bytes):
    """The payload of a text message, for endpoints that treat text and binary messages differently."""


class Deflate(NamedTuple):
    """permessage-deflate as it was agreed on; `remote` is the client."""

    remote_no_context_takeover: bool
    local_no_context_takeover: bool
    remote_max_window_bits: int
    local_max_window_bits: int


def _measure(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Where the payload of the frame at `at` begins, and its size. (0, 0): its length has not arrived whole."""
    if end - at < 2:
        return 0, 0
    size = data[at + 1]
    if size < 128:
        return end, 0  # it is not masked: nothing more needs to be known of it
    size, body = size & 127, at + 6  # two bytes of header, four of mask
    if size == 126:
        return (0, 0) if end - at < 4 else (body + 2, int.from_bytes(data[at + 2 : at + 4], "big"))
    if size == 127:
        return (0, 0) if end - at < 10 else (body + 8, int.from_bytes(data[at + 2 : at + 10], "big"))
    return body, size


class WebSocketCodec:
    """Frames in, messages out. After each `feed`, `replies` holds what is to be written, and `ended` why it is over.

    Nearly all frames are ordinary: a whole text or binary message, masked, not compressed, shorter than 64 KiB; or a
    pong. Those are read here, in 0.5 us. Every other frame goes to websockets' parser (3.2 us), which judges what is
    wrong with it, if anything: so it always starts at the border of a frame. It is made for the first of them: many
    connections have none before their last.
    """

    __slots__ = (
        "_decoder", "_foreign", "_fragments", "_fragments_are_text", "_max_fragments", "_max_message_bytes",
        "_most", "_protocol", "_rest", "_takes_all", "deflate", "ended", "has_more", "replies",
    )  # fmt: skip

    def __init__(
        self, max_message_bytes: int, max_fragments: int, deflate: Deflate | None, *, raw: bool = False
    ) -> None:
        """`raw`: messages are `TextBytes` or bytes, and text is checked. Client protocols check text when they decode it."""
        self._takes_all = not raw
        self._decoder: codecs.IncrementalDecoder | None = None  # of the text message whose fragments are coming
        self._fragments_are_text = False
        self._max_message_bytes = max_message_bytes
        self._max_fragments = max_fragments
        self.deflate = deflate
        self._protocol: Protocol | None = None  # see `_websockets`
        self._fragments: list[bytes] | None = None
        self._most = min(max_message_bytes, 65535)  # in an ordinary frame, bytes
        self._rest = b""  # the beginning of an ordinary frame, or of the header of any
        self._foreign = 0  # bytes that are still to come of the frame which websockets' parser is reading
        self.has_more = False
        """Whether messages have arrived that `feed` has yet to return."""
        self.replies = b""
        """Pongs to write, and, when `ended` is set, our close frame after them."""
        self.ended: PeerGone | None = None

    @property
    def deflate_bits(self) -> int:
        """The window for compressed messages to the client; 0: it takes none."""
        return 0 if self.deflate is None else self.deflate.local_max_window_bits

    def _websockets(self) -> Protocol:
        if self._protocol is None:
            self._protocol = Protocol(Side.SERVER, max_size=self._max_message_bytes, logger=_quiet)
            if self.deflate is not None:
                self._protocol.extensions = [PerMessageDeflate(*self.deflate)]
        return self._protocol

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes from the peer, return the messages that they complete. Raises nothing.

        With `has_more`, the rest is inflated at the next call, which may come without bytes.
        """
        messages: list[bytes] = []
        self.has_more, inflated = False, 0
        if self._rest:
            data, self._rest = self._rest + data, b""
        at, end = 0, len(data)
        while at < end and self.ended is None:
            if not self._foreign:
                body, size = _measure(data, at, end)
                if not body:
                    break
                first, masked = data[at], data[at + 1] & 128
                whole = first in (_WHOLE_TEXT, _WHOLE_BINARY) and size <= self._most and self._fragments is None
                if masked and (whole or (first == _PONG and size < 126)):
                    if body + size > end:
                        break
                    if whole:
                        payload = apply_mask(data[body : body + size], data[body - 4 : body])
                        if not self._takes_all:
                            checked = self._checked(payload, first == _WHOLE_TEXT)
                            if checked is None:
                                break
                            payload = checked
                        messages.append(payload)
                    at = body + size
                    continue
                self._foreign = body + size - at
                if first & 0x0F == Opcode.CLOSE and self._protocol is not None:
                    self._protocol.current_size = None  # a message may be left incomplete (RFC 6455, 5.4 and 5.5.1)
            if inflated > INFLATED:
                self.has_more = True
                break
            stop, before = min(at + self._foreign, end), len(messages)
            self._foreign -= stop - at
            self._feed_protocol(data[at:stop], messages)
            inflated += sum([len(message) for message in messages[before:]])
            at = stop
        if at < end and self.ended is None:
            self._rest = data[at:]
        return messages

    def _feed_protocol(self, data: bytes, messages: list[bytes]) -> None:
        """Let websockets' parser have (a piece of) one frame."""
        protocol = self._websockets()
        closing = protocol.close_sent is not None
        protocol.receive_data(data)
        for frame in protocol.events_received():
            assert not isinstance(frame, (Request, Response))
            opcode, payload = frame.opcode, frame.data
            frame.data = b""  # websockets' parser holds on to the last frame until the next one comes
            if not self._takes_all and opcode in _DATA and not self._is_text_so_far(opcode, bytes(payload), frame.fin):
                break
            if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
                if frame.fin:
                    messages.append(self._marked(payload, opcode is Opcode.TEXT))
                    continue
                self._fragments = [bytes(payload)]
                self._fragments_are_text = opcode is Opcode.TEXT
            elif opcode is Opcode.CONT:
                assert self._fragments is not None
                self._fragments.append(bytes(payload))
                if frame.fin:
                    messages.append(self._marked(b"".join(self._fragments), self._fragments_are_text))
                    self._fragments = None
                    continue
            else:
                continue
            if len(self._fragments) >= self._max_fragments:  # and more of them will come
                protocol.fail(CloseCause.TOO_BIG.code, f"more than {self._max_fragments} fragments")
                break
        if protocol.writes:
            replies = b"".join(protocol.data_to_send())
            if not closing:  # nothing follows a close frame, no pong either
                self.replies += replies
        if protocol.close_sent is not None or protocol.parser_exc is not None:
            self._end(protocol)

    # --- what an endpoint of the application's own needs to know: is it text, and is that UTF-8

    def _marked(self, payload: bytes | bytearray | memoryview, text: bool) -> bytes:
        if self._takes_all:
            return payload  # type: ignore[return-value]  # bytes, or what msgspec reads as well
        return TextBytes(payload) if text else bytes(payload)

    def _checked(self, payload: bytes, text: bool) -> bytes | None:
        """A whole message. None for text that is not UTF-8: it ends the connection."""
        if text:
            try:
                payload.decode()
            except UnicodeDecodeError:
                protocol = self._websockets()
                protocol.fail(CloseCause.BAD_DATA.code, "the text is not UTF-8")
                self.replies += b"".join(protocol.data_to_send())
                self._end(protocol)
                return None
        return TextBytes(payload) if text else payload

    def _is_text_so_far(self, opcode: Opcode, payload: bytes, fin: bool) -> bool:
        """Check a frame of a message, so that text that is not UTF-8 ends the connection before the message does."""
        if opcode is not Opcode.CONT:
            self._decoder = _NewDecoder() if opcode is Opcode.TEXT else None
        if self._decoder is None:
            return True
        try:
            self._decoder.decode(payload, fin)
        except UnicodeDecodeError:
            self._websockets().fail(CloseCause.BAD_DATA.code, "the text is not UTF-8")
            return False
        return True

    def eof(self) -> None:
        """The peer's stream has ended."""
        if self.ended is None:
            self.ended = PeerGone(CloseCause.VANISHED)

    def close(self, code: int, reason: str) -> bytes:
        """Our close frame. Empty where one was sent before; where the peer began, its answer is in `replies`."""
        protocol = self._websockets()
        if self.ended is not None or protocol.close_sent is not None:
            replies, self.replies = self.replies, b""
            return replies
        protocol.send_close(code, carried_text(reason).encode()[:123].decode(errors="ignore"))
        return b"".join(protocol.data_to_send())

    def _end(self, protocol: Protocol) -> None:
        """The closing handshake has begun; find out who is to blame."""
        sent, received = protocol.close_sent, protocol.close_rcvd
        if self.ended is not None:
            return
        if received is not None and protocol.parser_exc is None:
            cause = CloseCause.CLIENT_AWAY if received.code == CloseCause.CLIENT_AWAY.code else CloseCause.CLIENT_LEFT
            self.ended = PeerGone(cause, received.code, received.reason)
        elif protocol.eof_sent:  # we failed the connection
            code = sent.code if sent is not None else CloseCause.PROTOCOL_ERROR.code
            self.ended = PeerGone(_CAUSES.get(code, CloseCause.PROTOCOL_ERROR), code, sent.reason if sent else "")
