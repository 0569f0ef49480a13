"""One HTTP request, answered by h11; then the connection is closed."""

import http
from collections.abc import Callable, Mapping
from email.utils import formatdate

import attrs
import h11

from .._util.checks import check_text
from ..transport.streams import ByteStream
from ..version import __version__
from ..wire.handshake import MAX_HEAD

__all__ = ["Page", "Pages", "Site"]


@attrs.frozen
class Page:
    """A body, its media type, and its status."""

    body: bytes
    content_type: str = "text/html; charset=utf-8"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def text(cls, status: int, text: str, *headers: tuple[str, str]) -> "Page":
        return cls(f"{text}\n".encode(), "text/plain; charset=utf-8", status, headers)


Pages = Mapping[str, Page | Callable[[], Page]]
"""What there is, by path: a page, or a function that makes it for each request."""

WEBSOCKET_PATHS = frozenset({"/ws"})
SECURITY = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    (
        "Content-Security-Policy",
        "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; script-src 'self' 'unsafe-inline'; "
        "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)


class Site:
    """Answers requests from a set of pages: `Switch.serve_stream(http_handler=Site(pages))`."""

    def __init__(self, pages: Pages) -> None:
        """Raises ValueError and TypeError for pages that cannot be served."""
        for path, page in pages.items():
            check_text("the path of a page", path, MAX_HEAD)
            if not path.startswith("/"):
                raise ValueError(f"the path of a page must begin with '/', not {path!r}")
            if not (isinstance(page, Page) or callable(page)):
                raise TypeError(f"the page {path!r} must be a Page, or a function that returns one, not {page!r}")
        self._pages = pages

    async def __call__(self, channel: ByteStream, data: bytes) -> None:
        """Read the request from `data`, and write the answer. Raises PeerGone."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        try:
            connection.receive_data(data)
            request = connection.next_event()
        except h11.RemoteProtocolError as error:
            page, body = Page.text(error.error_status_hint, f"not a valid HTTP request: {error}"), True
        else:
            assert isinstance(request, h11.Request)
            page, body = self._page(request), request.method != b"HEAD"
        await channel.write(self._render(connection, page, body=body))

    def _page(self, request: h11.Request) -> Page:
        path = request.target.decode("ascii").partition("?")[0]
        page = self._pages.get(path)
        if page is None and path in WEBSOCKET_PATHS:
            return Page.text(
                426, "this is a WebSocket: connect to it with a WebSocket client", ("Upgrade", "websocket")
            )
        if page is None:
            return Page.text(404, f"there is nothing at {path}")
        if request.method not in (b"GET", b"HEAD"):
            return Page.text(405, "only GET and HEAD are answered here", ("Allow", "GET, HEAD"))
        return page() if callable(page) else page

    @staticmethod
    def _render(connection: h11.Connection, page: Page, *, body: bool) -> bytes:
        headers = [
            ("Date", formatdate(usegmt=True)),
            ("Server", f"trioswitch/{__version__}"),
            ("Connection", "close"),
            ("Content-Type", page.content_type),
            ("Content-Length", str(len(page.body))),
            ("Cache-Control", "no-cache"),
            *SECURITY,
            *page.headers,
        ]
        head = connection.send(
            h11.Response(status_code=page.status, reason=http.HTTPStatus(page.status).phrase, headers=headers)
        )
        return (head or b"") + (page.body if body else b"")
