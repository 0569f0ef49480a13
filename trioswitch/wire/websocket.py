"""The server's side of one WebSocket, without I/O: the handshake, then frames in and control frames out.

The codec is websockets' `ServerProtocol`. What it leaves to its user is here: messages are put together from fragments
(with a limit on their number), and the data frames that we send come from `wire.frames`, shared by all receivers.
"""

import http
import logging
import re
from collections.abc import Sequence
from urllib.parse import parse_qsl, urlsplit

from websockets.datastructures import MultipleValuesError
from websockets.exceptions import InvalidHeader, InvalidHeaderValue, SecurityError
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import Opcode
from websockets.headers import parse_subprotocol
from websockets.http11 import Request, Response
from websockets.protocol import Protocol, Side
from websockets.server import ServerProtocol
from websockets.speedups import apply_mask
from websockets.typing import Subprotocol

from ..errors import Cause, PeerGone, Refused
from .protocols import PROTOCOLS, ClientProtocol, choose

__all__ = ["DEFLATE_BITS", "MAX_HEAD", "Handshake", "WebSocketCodec", "is_upgrade", "response"]

MAX_HEAD = 16 * 1024
"""Bytes in the head of a request at most; above it the answer is 431. Browsers send up to 8 KiB of cookies."""
DEFLATE_BITS = 12
"""The compression window that is asked for: 4 KiB cost less memory than 32 and lose little on small messages."""

_log = logging.getLogger(__name__)
_quiet = logging.getLogger(__name__ + ".websockets")
_quiet.setLevel(logging.WARNING)  # websockets tells of every connection at INFO; trioswitch does that itself

_WHOLE_TEXT, _WHOLE_BINARY = 0x81, 0x82
"""First byte of a frame that is a whole message, and not compressed."""
_UPGRADE = re.compile(rb"\r\nupgrade:[ \t]*websocket[ \t]*\r\n", re.IGNORECASE)
_CAUSES = {cause.code: cause for cause in (Cause.PROTOCOL_ERROR, Cause.BAD_DATA, Cause.TOO_BIG, Cause.INTERNAL)}


def is_upgrade(head: bytes) -> bool:
    """Whether a request's head asks for a WebSocket. Everything else is HTTP."""
    return _UPGRADE.search(head) is not None


def response(status: int, text: str, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """A whole HTTP response in plain text, after which the connection is closed."""
    body = text.encode()
    lines = [
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
        "Connection: close",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


class Rejected(Refused):
    """The request is no acceptable upgrade; `headers` belong to the HTTP answer."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message, status=status)
        self.headers = headers


class Handshake:
    """One upgrade request: reads its head, then either accepts or refuses it."""

    def __init__(self, *, compression: bool, incoming_context_takeover: bool, max_message_bytes: int) -> None:
        deflate = ServerPerMessageDeflateFactory(
            server_no_context_takeover=True,
            client_no_context_takeover=not incoming_context_takeover,
            server_max_window_bits=DEFLATE_BITS,
            client_max_window_bits=DEFLATE_BITS,
        )
        self._protocol = ServerProtocol(
            extensions=[deflate] if compression else None,
            select_subprotocol=_select,
            max_size=max_message_bytes,
            logger=_quiet,
        )
        self._request: Request | None = None
        self._url = urlsplit("")
        self._response: Response | None = None

    def receive(self, head: bytes) -> None:
        """Take the head of a request that `is_upgrade`. Raises Rejected with the HTTP status that fits."""
        self._protocol.receive_data(head)
        events = self._protocol.events_received()
        if not events or not isinstance(events[0], Request):
            fault = self._protocol.handshake_exc
            raise Rejected(431 if isinstance(fault, SecurityError) else 400, f"not a valid HTTP request: {fault}")
        request = self._request = events[0]
        try:
            self._url = urlsplit(request.path)
        except ValueError as invalid:  # `//[`, for one
            raise Rejected(400, f"not a valid request target: {invalid}") from None
        if len(request.headers.get_all("Host")) != 1:
            raise Rejected(400, "a request needs one `Host`")  # RFC 9112, 3.2
        accepted = self._protocol.accept(request)
        if accepted.status_code == 101:
            self._response = accepted
            return
        error = self._protocol.handshake_exc
        if isinstance(error, (InvalidHeader, InvalidHeaderValue)) and error.name == "Sec-WebSocket-Version":
            raise Rejected(426, "this server speaks WebSocket version 13", [("Sec-WebSocket-Version", "13")])
        headers = [(name, accepted.headers[name]) for name in ("Allow", "Upgrade") if name in accepted.headers]
        raise Rejected(accepted.status_code, str(error), headers)

    @property
    def path(self) -> str:
        return self._url.path

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self._url.query))

    @property
    def headers(self) -> dict[str, str]:
        """Header fields by lower-case name; the last one where a name is repeated."""
        assert self._request is not None
        return {name.lower(): value for name, value in self._request.headers.raw_items()}

    @property
    def protocol(self) -> ClientProtocol:
        assert self._request is not None
        try:
            header = self._request.headers.get("Sec-WebSocket-Protocol", "")
        except MultipleValuesError:
            header = ", ".join(self._request.headers.get_all("Sec-WebSocket-Protocol"))
        return choose(parse_subprotocol(header) if header else [])

    def accept(self, max_fragments: int) -> tuple[bytes, "WebSocketCodec"]:
        """The bytes of the answer, and the codec for what follows."""
        assert self._response is not None
        self._protocol.send_response(self._response)
        # A protocol object of its own for what follows: the parser of the one that read the request keeps it for ever.
        protocol = Protocol(Side.SERVER, max_size=self._protocol.max_message_size, logger=_quiet)
        protocol.extensions = self._protocol.extensions
        return b"".join(self._protocol.data_to_send()), WebSocketCodec(protocol, max_fragments)


def _select(_protocol: ServerProtocol, proposed: Sequence[Subprotocol]) -> Subprotocol | None:
    return next((name for name in proposed if name in PROTOCOLS), None)


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

    Nearly all frames are ordinary: a whole text or binary message, masked, not compressed, shorter than 64 KiB. Those are
    read here, in 0.5 us. Every other frame goes to websockets' parser (3.2 us), which judges what is wrong with it, if
    anything: so it always starts at the border of a frame.
    """

    __slots__ = (
        "_foreign",
        "_fragments",
        "_max_fragments",
        "_most",
        "_protocol",
        "_rest",
        "deflate_bits",
        "ended",
        "replies",
    )

    def __init__(self, protocol: Protocol, max_fragments: int) -> None:
        self._protocol = protocol
        self._max_fragments = max_fragments
        self._fragments: list[bytes] | None = None
        self._most = min(protocol.max_message_size or 0, 65535)  # in an ordinary frame, bytes
        self._rest = b""  # the beginning of an ordinary frame, or of the header of any
        self._foreign = 0  # bytes that are still to come of the frame which websockets' parser is reading
        deflate = next((ext for ext in protocol.extensions if isinstance(ext, PerMessageDeflate)), None)
        self.deflate_bits = deflate.local_max_window_bits if deflate is not None else 0
        self.replies = b""
        """Pongs to write, and, when `ended` is set, our close frame after them."""
        self.ended: PeerGone | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes from the peer, return the messages that they complete. Raises nothing."""
        messages: list[bytes] = []
        if self._rest:
            data, self._rest = self._rest + data, b""
        at, end = 0, len(data)
        while at < end and self.ended is None:
            if not self._foreign:
                body, size = _measure(data, at, end)
                if not body:
                    break
                whole = data[at] in (_WHOLE_TEXT, _WHOLE_BINARY) and data[at + 1] & 128
                if whole and size <= self._most and self._fragments is None:
                    if body + size > end:
                        break
                    messages.append(apply_mask(data[body : body + size], data[body - 4 : body]))
                    at = body + size
                    continue
                self._foreign = body + size - at
            stop = min(at + self._foreign, end)
            self._foreign -= stop - at
            self._feed_protocol(data[at:stop], messages)
            at = stop
        if at < end and self.ended is None:
            self._rest = data[at:]
        return messages

    def _feed_protocol(self, data: bytes, messages: list[bytes]) -> None:
        """Let websockets' parser have (a piece of) one frame."""
        protocol = self._protocol
        closing = protocol.close_sent is not None
        protocol.receive_data(data)
        for frame in protocol.events_received():
            assert not isinstance(frame, (Request, Response))
            opcode, payload = frame.opcode, frame.data
            frame.data = b""  # websockets' parser holds on to the last frame until the next one comes
            if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
                if frame.fin:
                    messages.append(payload)  # type: ignore[arg-type]  # bytes, or what msgspec reads as well
                    continue
                self._fragments = [bytes(payload)]
            elif opcode is Opcode.CONT:
                assert self._fragments is not None
                self._fragments.append(bytes(payload))
                if frame.fin:
                    messages.append(b"".join(self._fragments))
                    self._fragments = None
                    continue
            else:
                continue
            if len(self._fragments) >= self._max_fragments:  # and more of them will come
                protocol.fail(Cause.TOO_BIG.code, f"more than {self._max_fragments} fragments")
                break
        if protocol.writes:
            replies = b"".join(protocol.data_to_send())
            if not closing:  # nothing follows a close frame, no pong either
                self.replies += replies
        if protocol.close_sent is not None or protocol.parser_exc is not None:
            self._end()

    def eof(self) -> None:
        """The peer's stream has ended."""
        self._protocol.receive_eof()
        self._protocol.data_to_send()
        if self.ended is None:
            self.ended = PeerGone(Cause.VANISHED)

    def close(self, code: int, reason: str) -> bytes:
        """Our close frame. Empty where one was sent before; where the peer began, its answer is in `replies`."""
        if self._protocol.close_sent is not None or self._protocol.eof_sent:
            replies, self.replies = self.replies, b""
            return replies
        self._protocol.send_close(code, reason.encode()[:123].decode(errors="ignore"))
        return b"".join(self._protocol.data_to_send())

    def _end(self) -> None:
        """The closing handshake has begun; find out who is to blame."""
        sent, received = self._protocol.close_sent, self._protocol.close_rcvd
        if self.ended is not None:
            return
        if received is not None and self._protocol.parser_exc is None:
            self.ended = PeerGone(Cause.CLIENT_LEFT, received.code, received.reason)
        elif self._protocol.eof_sent:  # we failed the connection
            code = sent.code if sent is not None else Cause.PROTOCOL_ERROR.code
            self.ended = PeerGone(_CAUSES.get(code, Cause.PROTOCOL_ERROR), code, sent.reason if sent else "")
