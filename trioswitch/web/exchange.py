"""One HTTP/1.1 request and its answer.

Nearly all requests are ordinary: a head that one expression can read, a body whose length is given, and an answer that is a page.
They take a third of the time that h11 takes. Every other request goes to h11, which also says what is wrong with one. Where both
can read a request, they agree on it.
"""

import abc
import http
import re
import time
from collections.abc import Sequence
from contextlib import aclosing
from email.utils import formatdate
from typing import Final
from urllib.parse import parse_qsl, unquote

import h11
import trio

from ..errors import CloseCause, PeerGone
from ..transport.streams import ByteStream
from ..version import __version__
from ..wire.handshake import joined
from .page import Page
from .route import Request, Stream

__all__ = ["USUAL_HEADERS", "Exchange", "NotHttp", "begin"]

USUAL_HEADERS: Final = {
    "Server": f"trioswitch/{__version__}",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
"""Every page has these headers, unless it brings its own. Scripts and styles come from files: inline ones are not allowed."""
_WITHOUT_BODY: Final = (204, 304)
_ORDINARY: Final = re.compile(
    rb"([A-Z]{3,7}) (/[!\"$-~]*) HTTP/1\.1\r\n((?:[-!#$%&'*+.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*\r\n)+)\r\n"
)
_STRANGE: Final = frozenset({"transfer-encoding", "expect", "connection", "upgrade", "te", "trailer"})
"""Headers of requests that h11 reads."""
_USUAL: Final = {name.lower(): f"{name}: {value}\r\n" for name, value in USUAL_HEADERS.items()}
_ALL_USUAL: Final = "".join(_USUAL.values())
_STATUS_LINES: Final = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n" for each in http.HTTPStatus}
_date: tuple[int, str] = (0, "")


class NotHttp(Exception):
    """A request that is not valid; `status` is that of the answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(f"not a valid HTTP request: {message}")
        self.status = status


class Exchange(abc.ABC):
    """A request whose head has arrived, and the way to its answer."""

    method: str
    path: str
    headers: dict[str, str]
    has_body: bool
    may_go_on = True
    """Whether the connection may carry another request."""
    left: bytes | None = None
    """After `send`: what was read beyond the request; None: the connection is to be closed."""

    def __init__(self, channel: ByteStream, query: str, timeout: float) -> None:
        self._channel = channel
        self._query = query
        self._timeout = timeout

    @abc.abstractmethod
    async def read_body(self, limit: int) -> bytes | None:
        """The body; None when it has more bytes than `limit`. Raises NotHttp, PeerGone and TooSlowError."""

    @abc.abstractmethod
    async def send(self, answer: Page | Stream, extra: Sequence[tuple[str, str]]) -> None:
        """Write the answer, with more headers. Raises PeerGone."""

    def request(self, body: bytes) -> Request:
        query = dict(parse_qsl(self._query, keep_blank_values=True)) if self._query else {}
        return Request(
            method=self.method,
            path=self.path,
            query=query,
            headers=self.headers,
            body=body,
            remote=self._channel.remote,
        )

    async def _write(self, data: bytes) -> None:
        write_nowait = self._channel.write_nowait
        if write_nowait is not None:
            try:
                data = data[write_nowait(data) :]
            except BlockingIOError:
                pass  # nothing fits yet
            except OSError:
                raise PeerGone(CloseCause.VANISHED) from None
            if not data:
                return
        with trio.move_on_after(self._timeout) as patience:
            await self._channel.write(data)
        if patience.cancelled_caught:
            raise PeerGone(CloseCause.VANISHED)


def begin(channel: ByteStream, head: bytes, rest: bytes, timeout: float) -> Exchange:
    """The exchange that begins with a head, after which `rest` was read.

    The body may take `timeout` seconds to arrive, and each piece of the answer as long to be taken.
    """
    found = _ORDINARY.fullmatch(head)
    if found is not None:
        method, target, lines = found.groups()
        headers: dict[str, str] = {}
        for line in lines.decode("latin-1").split("\r\n")[:-1]:
            name, _, value = line.partition(":")
            name = name.lower()
            if name in headers or name in _STRANGE:
                break
            headers[name] = value.strip(" \t")
        else:
            length = headers.get("content-length", "0")
            if "host" in headers and length.isdigit() and length.isascii() and len(length) < 16:
                return _OrdinaryExchange(channel, method.decode(), target.decode(), headers, int(length), rest, timeout)
    return _H11Exchange(channel, head, rest, timeout)


def _split(target: str) -> tuple[str, str]:
    """The path, and the query."""
    path, _, query = target.partition("?")
    return (unquote(path) if "%" in path else path), query


def _now() -> str:
    """The value of `Date`: its text is kept for a second."""
    global _date
    second = int(time.time())
    if second != _date[0]:
        _date = second, formatdate(second, usegmt=True)
    return _date[1]


def _head(page: Page, extra: Sequence[tuple[str, str]], length: int | None, *, close: bool) -> str:
    own = page.headers
    if own:
        names = {name.lower() for name, _ in own}
        usual = "".join([line for name, line in _USUAL.items() if name not in names])
    else:
        usual = _ALL_USUAL
    parts = [_STATUS_LINES[page.status], "Date: ", _now(), "\r\n", usual]
    parts += [f"{name}: {value}\r\n" for name, value in (*own, *extra)]
    if page.status not in _WITHOUT_BODY:
        parts.append(f"Content-Type: {page.content_type}\r\n")
        if length is not None:
            parts.append(f"Content-Length: {length}\r\n")
    parts.append("Connection: close\r\n\r\n" if close else "\r\n")
    return "".join(parts)


class _OrdinaryExchange(Exchange):
    """A request whose body has a known length."""

    def __init__(
        self,
        channel: ByteStream,
        method: str,
        target: str,
        headers: dict[str, str],
        length: int,
        rest: bytes,
        timeout: float,
    ) -> None:
        self.path, query = _split(target)
        super().__init__(channel, query, timeout)
        self.method = method
        self.headers = headers
        self.has_body = length > 0
        self._length = length
        self._rest = rest
        self._complete = False

    async def read_body(self, limit: int) -> bytes | None:
        if self._complete:
            return b""
        length = self._length
        if length > limit:
            return None
        if len(self._rest) < length:
            await self._read_on(length)
        body, self._rest = self._rest[:length], self._rest[length:]
        self._complete = True
        return body

    async def _read_on(self, length: int) -> None:
        pieces, size = [self._rest], len(self._rest)
        with trio.fail_after(self._timeout):
            while size < length:
                data = await self._channel.read()
                if not data:
                    raise PeerGone(CloseCause.VANISHED)
                pieces.append(data)
                size += len(data)
        self._rest = b"".join(pieces)

    async def send(self, answer: Page | Stream, extra: Sequence[tuple[str, str]]) -> None:
        close = not (self.may_go_on and self._complete)
        if isinstance(answer, Page):
            head = _head(answer, extra, len(answer.body), close=close)
            has_body = self.method != "HEAD" and answer.status not in _WITHOUT_BODY
            await self._write(head.encode("latin-1") + (answer.body if has_body else b""))
        else:
            await self._send_stream(answer, extra, close=close)
        if not close:
            self.left = self._rest

    async def _send_stream(self, answer: Stream, extra: Sequence[tuple[str, str]], *, close: bool) -> None:
        page = answer.head
        has_body = self.method != "HEAD" and page.status not in _WITHOUT_BODY
        chunked = [("Transfer-Encoding", "chunked")] if page.status not in _WITHOUT_BODY else []
        async with aclosing(answer.chunks) as chunks:
            await self._write(_head(page, [*extra, *chunked], None, close=close).encode("latin-1"))
            if has_body:
                async for chunk in chunks:
                    if chunk:
                        await self._write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                await self._write(b"0\r\n\r\n")


class _H11Exchange(Exchange):
    """Any other request, and what is none."""

    def __init__(self, channel: ByteStream, head: bytes, rest: bytes, timeout: float) -> None:
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(head) + len(rest) + 1)
        self._complete = False
        self.method, self.path, self.headers = "GET", "/", {}
        self._problem: NotHttp | None = None
        query = ""
        try:
            if b"\r\n " in head or b"\r\n\t" in head:
                raise NotHttp("a header in several lines")
            self._connection.receive_data(head + rest)
            request = self._connection.next_event()
            assert isinstance(request, h11.Request)
            self.method = request.method.decode("ascii")
            self.path, query = _split(request.target.decode("ascii"))
            self.headers = joined((name.decode(), value.decode("latin-1")) for name, value in request.headers)
            if "transfer-encoding" in self.headers and "content-length" in self.headers:
                raise NotHttp("two lengths of the body")
        except NotHttp as problem:
            self._problem = problem
        except h11.RemoteProtocolError as error:
            self._problem = NotHttp(str(error), error.error_status_hint)
        super().__init__(channel, query, timeout)

    @property
    def has_body(self) -> bool:  # type: ignore[override]
        return "transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0"

    async def read_body(self, limit: int) -> bytes | None:
        if self._problem is not None:
            raise self._problem
        if self._complete:
            return b""
        length = self.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            return None
        try:
            with trio.fail_after(self._timeout):
                return await self._read_body(limit)
        except h11.RemoteProtocolError as error:
            raise NotHttp(str(error), error.error_status_hint) from None

    async def _read_body(self, limit: int) -> bytes | None:
        connection, pieces, size = self._connection, [], 0
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    await self._send(h11.InformationalResponse(status_code=100, headers=[]))
                connection.receive_data(await self._channel.read())
            elif isinstance(event, h11.Data):
                pieces.append(event.data)
                size += len(event.data)
                if size > limit:
                    return None
            elif isinstance(event, h11.EndOfMessage):
                self._complete = True
                return b"".join(pieces)
            else:
                raise PeerGone(CloseCause.VANISHED)

    async def send(self, answer: Page | Stream, extra: Sequence[tuple[str, str]]) -> None:
        page = answer if isinstance(answer, Page) else answer.head
        own = {name.lower() for name, _ in page.headers}
        headers = [
            ("Date", _now()),
            *((name, value) for name, value in USUAL_HEADERS.items() if name.lower() not in own),
            *page.headers,
            *extra,
        ]
        if page.status not in _WITHOUT_BODY:
            headers.append(("Content-Type", page.content_type))
            if isinstance(answer, Page):
                headers.append(("Content-Length", str(len(page.body))))
        if not (self.may_go_on and self._complete):
            headers.append(("Connection", "close"))
        reason = http.HTTPStatus(page.status).phrase
        response = h11.Response(status_code=page.status, reason=reason, headers=headers)
        has_body = self.method != "HEAD" and page.status not in _WITHOUT_BODY
        if isinstance(answer, Page):
            await self._send(response, *([h11.Data(data=page.body)] if has_body else []), h11.EndOfMessage())
        else:
            async with aclosing(answer.chunks) as chunks:
                await self._send(response)
                if has_body:
                    async for chunk in chunks:
                        await self._send(h11.Data(data=chunk))
                await self._send(h11.EndOfMessage())
        if self._connection.our_state is h11.DONE and self._complete:
            self.left = self._connection.trailing_data[0]

    async def _send(self, *events: h11.Event) -> None:
        await self._write(b"".join([self._connection.send(event) or b"" for event in events]))
