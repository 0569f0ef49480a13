"""HTTP on a connection: one request after the other, each answered by a page or a route."""

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Final

import trio

from .._util.checks import check_text
from ..errors import PeerGone
from ..transport.native import read_head
from ..transport.streams import ByteStream
from ..wire.handshake import is_upgrade
from .exchange import Exchange, NotHttp, begin
from .page import Page
from .pages import browser_client
from .route import Pages, Request, Route, Stream

__all__ = ["Site"]

_log = logging.getLogger(__name__)

MAX_PATH: Final = 4096
KEEP_ALIVE: Final = 60.0
"""Seconds that a connection is kept for the next request: nginx reuses its own for as long by default."""
MAX_IDLE: Final = 1024
"""Connections that are kept for a next request; each is an open file."""
MAX_PREFLIGHT_AGE: Final = 600


class Site:
    """Answers requests from a set of pages and routes: `Switch.serve_stream(http_handler=Site(pages))`.

    The files of each page are served with it, and so is the browser client at `/trioswitch.js`. What `pages` itself has for a
    path is served in preference to these.
    """

    def __init__(
        self,
        pages: Pages,
        *,
        websocket_path: str = "/ws",
        max_head_bytes: int = 16 * 1024,
        allow_origins: Collection[str] = (),
        timeout: float = 10.0,
    ) -> None:
        """`websocket_path` is answered with 426. Raises ValueError and TypeError for pages that cannot be served.

        Heads of requests may have `max_head_bytes`. Pages of `allow_origins` may read the answers of routes that say so.
        The body of a request may take `timeout` seconds to arrive, and each piece of an answer as long to be taken.
        """
        for path, page in pages.items():
            check_text("the path of a page", path, MAX_PATH)
            if not path.startswith("/"):
                raise ValueError(f"the path of a page must begin with '/', not {path!r}")
            if not (isinstance(page, Page | Route) or callable(page)):
                raise TypeError(
                    f"the page {path!r} must be a Page, a Route, or a function that returns a Page, not {page!r}"
                )
        self._websocket_path = websocket_path
        self._max_head_bytes = max_head_bytes
        self._timeout = timeout
        self._allow_origins = frozenset(allow_origins)
        files = {path: file for page in pages.values() if isinstance(page, Page) for path, file in page.files.items()}
        self._pages: Pages = {"/trioswitch.js": browser_client(), **files, **pages}
        self._prefixes = sorted((path[:-1] for path in pages if path.endswith("/*")), key=len, reverse=True)
        self._idle: set[trio.CancelScope] = set()
        self._stopping = False

    def stop(self) -> None:
        """Close the connections that wait for a next request, and every other after its answer."""
        self._stopping = True
        for scope in self._idle:
            scope.cancel()

    async def __call__(self, channel: ByteStream, data: bytes) -> bytes | None:
        """Answer the request that `data` begins with, and those that follow on the same connection.

        Returns None when the connection is to be closed, or what was read of a request for a WebSocket, which goes to others.
        Raises PeerGone, and Rejected for what is not HTTP.
        """
        head, rest = await read_head(channel, self._max_head_bytes, data)
        while True:
            left = await self._answer(channel, head, rest)
            if left is None:
                return None
            if left:
                await trio.lowlevel.checkpoint()  # requests that came together: others get their turn
            with trio.CancelScope(deadline=trio.current_time() + KEEP_ALIVE) as patience:
                self._idle.add(patience)
                try:
                    head, rest = await read_head(channel, self._max_head_bytes, left)
                except PeerGone:
                    return None
                finally:
                    self._idle.discard(patience)
            if patience.cancelled_caught:
                return None
            if is_upgrade(head):
                return head + rest

    async def _answer(self, channel: ByteStream, head: bytes, rest: bytes) -> bytes | None:
        """Answer one request. Returns what was read beyond it; None: the connection is to be closed."""
        exchange = begin(channel, head, rest, self._timeout)
        answer: Page | Stream
        try:
            if not exchange.has_body:
                await exchange.read_body(0)
            answer, extra = await self._respond(exchange)
        except NotHttp as error:
            answer, extra = Page.text(error.status, str(error)), ()
        except trio.TooSlowError:
            answer, extra = Page.text(408, "the body took too long"), ()
        exchange.may_go_on = not self._stopping and len(self._idle) < MAX_IDLE
        await exchange.send(answer, extra)
        return exchange.left

    async def _respond(self, exchange: Exchange) -> tuple[Page | Stream, Sequence[tuple[str, str]]]:
        """The answer, and more headers for it.

        Raises NotHttp, PeerGone and TooSlowError, when the body is not valid, ends early or takes too long.
        """
        page = self._find(exchange.path)
        if page is None:
            return Page.text(404, f"there is nothing at {exchange.path}"), ()
        if isinstance(page, Route):
            extra = self._cross_origin(exchange, page) if "origin" in exchange.headers else ()
            return await self._follow(page, exchange), extra
        if exchange.method not in ("GET", "HEAD"):
            return Page.text(405, "only GET and HEAD are answered here", ("Allow", "GET, HEAD")), ()
        if await exchange.read_body(0) is None:
            return Page.text(413, "a request for a page has no body"), ()
        if not callable(page):
            return page, ()
        try:
            made = page()
            if not isinstance(made, Page):
                raise TypeError(f"the function must return a Page, not {made!r}")
        except Exception:
            _log.exception("the function of the page %s failed", exchange.path)
            return Page.text(500, "internal error"), ()
        return made, ()

    async def _follow(self, route: Route, exchange: Exchange) -> Page | Stream:
        if exchange.method == "OPTIONS" and "OPTIONS" not in route.methods:
            return Page(b"", status=204, headers=(("Allow", f"{route.allow}, OPTIONS"),))
        if not route.takes(exchange.method):
            return Page.text(405, f"{exchange.method} is not answered here", ("Allow", route.allow))
        body = await exchange.read_body(route.max_body)
        if body is None:
            return Page.text(413, f"the body of a request may have {route.max_body} bytes")
        return await self._run(route, exchange.request(body))

    def _find(self, path: str) -> Page | Route | Callable[[], Page] | None:
        page = self._pages.get(path)
        if page is None and path == self._websocket_path:
            return Page.text(
                426, "this is a WebSocket: connect to it with a WebSocket client", ("Upgrade", "websocket")
            )
        if page is None:
            prefix = next((prefix for prefix in self._prefixes if path.startswith(prefix)), None)
            return None if prefix is None else self._pages[f"{prefix}*"]
        return page

    @staticmethod
    async def _run(route: Route, request: Request) -> Page | Stream:
        try:
            answer = await route.handler(request)
            if not isinstance(answer, Page | Stream):
                raise TypeError(f"the handler of a route must return a Page or a Stream, not {answer!r}")
            if isinstance(answer, Stream):
                answer.head  # noqa: B018  # raises for what HTTP cannot carry
        except Exception:
            _log.exception("the handler of %s failed", request.path)
            return Page.text(500, "internal error")
        return answer

    def _cross_origin(self, exchange: Exchange, route: Route) -> Sequence[tuple[str, str]]:
        """The headers with which a page of another origin may read the answer."""
        origin = exchange.headers["origin"]
        if not route.cross_origin:
            return ()
        if origin not in self._allow_origins and "*" not in self._allow_origins:
            return [("Vary", "Origin")]
        headers = [("Access-Control-Allow-Origin", origin), ("Vary", "Origin")]
        if exchange.method == "OPTIONS":
            headers += [
                ("Access-Control-Allow-Methods", route.allow),
                ("Access-Control-Allow-Headers", "authorization, content-type, x-api-key"),
                ("Access-Control-Max-Age", str(MAX_PREFLIGHT_AGE)),
            ]
        return headers
