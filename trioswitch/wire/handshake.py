"""The upgrade request and its answer, without I/O.

Nearly all requests are ordinary: what browsers and WebSocket libraries send. They are read here, in a tenth of the
time. Every other request goes to websockets' `ServerProtocol`, which finds out what is wrong with it, if anything.
Where both can read a request, they agree on it.
"""

import http
import logging
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from urllib.parse import parse_qsl, urlsplit

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader, InvalidHeaderValue, SecurityError
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.headers import parse_subprotocol
from websockets.http11 import MAX_LINE_LENGTH, MAX_NUM_HEADERS, Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.utils import accept_key

from ..errors import TrioswitchError
from .protocols import JSON, PROTOCOLS
from .protocols.port import ClientProtocol
from .websocket import Deflate, WebSocketCodec

__all__ = ["DEFLATE_BITS", "Handshake", "Rejected", "is_upgrade", "joined", "response"]

_ESSENTIAL = {"host", "connection", "upgrade"}
DEFLATE_BITS = 12
"""The compression window that is asked for: 4 KiB cost less memory than 32 and lose little on small messages."""

_quiet = logging.getLogger(__name__ + ".websockets")
_quiet.setLevel(logging.WARNING)  # websockets tells of every connection at INFO; trioswitch does that itself

_UPGRADE = re.compile(rb"\r\nupgrade:[ \t]*websocket[ \t]*\r\n", re.IGNORECASE)
_ORDINARY = re.compile(
    rb"GET (/(?!/)[!\"$-~]*) HTTP/1\.1\r\n"  # the path of a URL, and its query: `#` is in neither
    rb"((?:[-!#$%&'*+.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*\r\n)+)\r\n"
)
_NAME = re.compile("[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_KEY = re.compile("[A-Za-z0-9+/]{21}[AQgw]==")
_CONNECTION = {"upgrade", "keep-alive, upgrade"}
_BODY = {"content-length", "transfer-encoding"}
_LOWER = {
    name: name.lower()
    for name in (
        "Host", "Connection", "Upgrade", "Origin", "Sec-WebSocket-Key", "Sec-WebSocket-Version",
        "Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol", "User-Agent", "Cookie", "Authorization", "Accept",
        "Accept-Encoding", "Accept-Language", "Cache-Control", "Pragma", "X-Forwarded-For",
    )
}  # fmt: skip
"""Usual names: every connection keeps its headers, and need not keep their names too."""
_OFFERS = {
    takeover: ServerPerMessageDeflateFactory(
        server_no_context_takeover=True,
        client_no_context_takeover=not takeover,
        server_max_window_bits=DEFLATE_BITS,
        client_max_window_bits=DEFLATE_BITS,
    )
    for takeover in (False, True)
}


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


class Rejected(TrioswitchError):
    """The request is not an acceptable upgrade: what to answer, with `headers` beside those that every answer has."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


class Handshake:
    """One upgrade request: reads its head, then either accepts or refuses it."""

    __slots__ = (
        "_accept", "_deflate", "_extensions", "_max_message_bytes", "_offer", "_query", "_subprotocol",
        "headers", "path",
    )  # fmt: skip

    path: str
    headers: dict[str, str]
    """Header fields by lower-case name (`joined`)."""
    _query: str
    _accept: str
    _extensions: str | None
    _deflate: Deflate | None
    _subprotocol: str | None

    def __init__(self, *, compression: bool, incoming_context_takeover: bool, max_message_bytes: int) -> None:
        self._offer = _OFFERS[incoming_context_takeover] if compression else None
        self._max_message_bytes = max_message_bytes

    def receive(self, head: bytes) -> None:
        """Take the head of a request that `is_upgrade`. Raises Rejected with the HTTP status that fits."""
        if not self.read_ordinary(head):
            self.read_any(head)

    def read_ordinary(self, head: bytes) -> bool:
        """Take an ordinary request. Returns False for any other, good or bad, of which nothing is to be used then."""
        ordinary = _ORDINARY.fullmatch(head)
        if ordinary is None:
            return False
        lines = ordinary[2].decode("latin-1").split("\r\n")[:-1]
        self.headers = headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[_LOWER.get(name) or name.lower()] = value.strip(" \t")
        if (
            len(headers) < len(lines)  # one is repeated
            or len(lines) > MAX_NUM_HEADERS
            or not headers.keys().isdisjoint(_BODY)
            or "host" not in headers
            or headers.get("connection", "").lower() not in _CONNECTION
            or headers.get("upgrade", "").lower() != "websocket"
            or headers.get("sec-websocket-version") != "13"
            or not _KEY.fullmatch(headers.get("sec-websocket-key", ""))
        ):
            return False
        proposed, offers = headers.get("sec-websocket-protocol"), headers.get("sec-websocket-extensions")
        try:
            self._subprotocol = None if proposed is None else _first_known(parse_subprotocol(proposed))
            self._extensions, self._deflate = _negotiate(offers, self._offer) if offers is not None else (None, None)
        except InvalidHeader:
            return False
        self.path, _, self._query = ordinary[1].decode("ascii").partition("?")
        self._accept = accept_key(headers["sec-websocket-key"])
        return True

    def read_any(self, head: bytes) -> None:
        """Have websockets take the request. Raises Rejected."""
        offered = [] if self._offer is None else [self._offer]
        protocol = ServerProtocol(extensions=offered, select_subprotocol=_select, logger=_quiet)
        head, long = _without_long_lines(head)
        protocol.receive_data(head)
        events = protocol.events_received()
        if not events or not isinstance(events[0], Request):
            fault = protocol.handshake_exc
            raise Rejected(431 if isinstance(fault, SecurityError) else 400, f"not a valid HTTP request: {fault}")
        request = events[0]
        try:
            url = urlsplit(request.path)
        except ValueError as invalid:  # `//[`, for one
            raise Rejected(400, f"not a valid request target: {invalid}") from None
        if len(request.headers.get_all("Host")) != 1:
            raise Rejected(400, "a request needs one `Host`")  # RFC 9112, 3.2
        accepted = protocol.accept(request)
        if accepted.status_code != 101:
            error = protocol.handshake_exc
            if isinstance(error, (InvalidHeader, InvalidHeaderValue)) and error.name == "Sec-WebSocket-Version":
                raise Rejected(426, "this server speaks WebSocket version 13", [("Sec-WebSocket-Version", "13")])
            fields = [(name, accepted.headers[name]) for name in ("Allow", "Upgrade") if name in accepted.headers]
            raise Rejected(accepted.status_code, str(error), fields)
        self.path, self._query = url.path, url.query
        self.headers = joined([*request.headers.raw_items(), *long])
        self._accept = accepted.headers["Sec-WebSocket-Accept"]
        self._extensions = accepted.headers.get("Sec-WebSocket-Extensions")
        self._deflate = _agreed(protocol)
        self._subprotocol = protocol.subprotocol

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self._query)) if self._query else {}

    @property
    def protocol(self) -> ClientProtocol:
        """JSON v1 for a client that names none that is known."""
        return JSON if self._subprotocol is None else PROTOCOLS[self._subprotocol]

    def accept(self, max_fragments: int, *, raw: bool = False) -> tuple[bytes, WebSocketCodec]:
        """The bytes of the answer, and the codec for what follows; `raw` as in `WebSocketCodec`."""
        answer = (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {self._accept}\r\n"
        )
        if self._extensions is not None:
            answer += f"Sec-WebSocket-Extensions: {self._extensions}\r\n"
        if self._subprotocol is not None and not raw:
            answer += f"Sec-WebSocket-Protocol: {self._subprotocol}\r\n"
        return f"{answer}\r\n".encode(), WebSocketCodec(self._max_message_bytes, max_fragments, self._deflate, raw=raw)


def joined(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Header fields by lower-case name. The values of a repeated one are joined: those of `cookie` by `; `, others by `, `.

    See RFC 9110, section 5.3, and RFC 6265, section 5.4.
    """
    headers: dict[str, str] = {}
    for name, value in fields:
        name = name.lower()
        before = headers.get(name)
        headers[name] = value if before is None else f"{before}{'; ' if name == 'cookie' else ', '}{value}"
    return headers


def _without_long_lines(head: bytes) -> tuple[bytes, list[tuple[str, str]]]:
    """The head without the fields that are too long for websockets, such as a long cookie; and these fields.

    What belongs to the handshake stays, so that websockets refuses it.
    """
    lines, long = head.split(b"\r\n"), list[tuple[str, str]]()
    kept = lines[:1]
    for line in lines[1:]:
        name, colon, value = line.decode("latin-1").partition(":")
        belongs = name.lower() in _ESSENTIAL or name.lower().startswith("sec-websocket-") or not _NAME.fullmatch(name)
        if len(line) < MAX_LINE_LENGTH - 2 or not colon or belongs:
            kept.append(line)
        else:
            long.append((name, value.strip(" \t")))
    return b"\r\n".join(kept), long


def _first_known(proposed: Sequence[Subprotocol]) -> Subprotocol | None:
    return next((name for name in proposed if name in PROTOCOLS), None)


def _select(_protocol: ServerProtocol, proposed: Sequence[Subprotocol]) -> Subprotocol | None:
    return _first_known(proposed)


@lru_cache(maxsize=64)  # browsers send one of a handful of values; each of them takes websockets 20 us
def _negotiate(offers: str, offer: ServerPerMessageDeflateFactory | None) -> tuple[str | None, Deflate | None]:
    """What is agreed on: the header field of the answer, and its meaning. Raises InvalidHeader."""
    protocol = ServerProtocol(extensions=[] if offer is None else [offer], logger=_quiet)
    header, protocol.extensions = protocol.process_extensions(Headers({"Sec-WebSocket-Extensions": offers}))
    return header, _agreed(protocol)


def _agreed(protocol: ServerProtocol) -> Deflate | None:
    for extension in protocol.extensions:
        if isinstance(extension, PerMessageDeflate):
            return Deflate(
                extension.remote_no_context_takeover,
                extension.local_no_context_takeover,
                extension.remote_max_window_bits,
                extension.local_max_window_bits,
            )
    return None
