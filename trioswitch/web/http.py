"""One HTTP request, answered by h11; then the connection is closed."""

import http
import logging
from email.utils import formatdate

import h11

from .._util.checks import check_text
from ..transport.streams import ByteStream
from ..version import __version__
from .page import Page, Pages
from .pages import browser_client

__all__ = ["Site"]


_log = logging.getLogger(__name__)

MAX_PATH = 4096
USUAL_HEADERS = {
    "Server": f"trioswitch/{__version__}",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
"""Every page has these headers, unless it brings its own. Scripts and styles come from files: inline ones are not allowed."""


class Site:
    """Answers requests from a set of pages: `Switch.serve_stream(http_handler=Site(pages))`.

    The files of each page are served with it, and so is the browser client at `/trioswitch.js`. What `pages` itself has for a
    path is served in preference to these.
    """

    def __init__(self, pages: Pages, *, websocket_path: str = "/ws") -> None:
        """`websocket_path` is answered with 426. Raises ValueError and TypeError for pages that cannot be served."""
        for path, page in pages.items():
            check_text("the path of a page", path, MAX_PATH)
            if not path.startswith("/"):
                raise ValueError(f"the path of a page must begin with '/', not {path!r}")
            if not (isinstance(page, Page) or callable(page)):
                raise TypeError(f"the page {path!r} must be a Page, or a function that returns one, not {page!r}")
        self._websocket_path = websocket_path
        files = {path: file for page in pages.values() if isinstance(page, Page) for path, file in page.files.items()}
        self._pages: Pages = {"/trioswitch.js": browser_client(), **files, **pages}

    async def __call__(self, channel: ByteStream, data: bytes) -> None:
        """Read the request from `data`, and write the answer. Raises PeerGone."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(data) + 1)
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
        if page is None and path == self._websocket_path:
            return Page.text(
                426, "this is a WebSocket: connect to it with a WebSocket client", ("Upgrade", "websocket")
            )
        if page is None:
            return Page.text(404, f"there is nothing at {path}")
        if request.method not in (b"GET", b"HEAD"):
            return Page.text(405, "only GET and HEAD are answered here", ("Allow", "GET, HEAD"))
        if not callable(page):
            return page
        try:
            made = page()
            if not isinstance(made, Page):
                raise TypeError(f"the function must return a Page, not {made!r}")
        except Exception:
            _log.exception("the function of the page %s failed", path)
            return Page.text(500, "internal error")
        return made

    @staticmethod
    def _render(connection: h11.Connection, page: Page, *, body: bool) -> bytes:
        own = {name.lower() for name, _ in page.headers}
        headers = [
            ("Date", formatdate(usegmt=True)),
            ("Connection", "close"),
            ("Content-Type", page.content_type),
            ("Content-Length", str(len(page.body))),
            *((name, value) for name, value in USUAL_HEADERS.items() if name.lower() not in own),
            *page.headers,
        ]
        head = connection.send(
            h11.Response(status_code=page.status, reason=http.HTTPStatus(page.status).phrase, headers=headers)
        )
        return (head or b"") + (page.body if body else b"")
