"""Routes: requests that a function answers, for any method, with a body."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from typing import Any

import attrs
from attrs.validators import ge, instance_of

from .._util.checks import check_text
from .page import Page

__all__ = ["Handler", "Pages", "Request", "Route", "Stream"]

MAX_BODY = 1024 * 1024
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@attrs.frozen(kw_only=True)
class Request:
    """A request that has arrived whole.

    `headers` has lower-case names; the values of a field that was repeated are joined by a comma and a space. Of a name that the
    query has several times, `query` has the last value.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    remote: str
    """Address and port of the client, or a name for what is not a TCP socket."""


@attrs.frozen
class Stream:
    """An answer that comes in pieces: `Stream(numbers())`, where `numbers` is an asynchronous generator of bytes.

    The server closes `chunks` when the client has gone. Each piece is written before the next one is asked for.
    """

    chunks: AsyncGenerator[bytes, None]
    content_type: str = "application/octet-stream"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def head(self) -> Page:
        """What is the same for it and for a page. Raises TypeError and ValueError for what HTTP cannot carry."""
        return Page(b"", self.content_type, self.status, self.headers)


Handler = Callable[[Request], Awaitable[Page | Stream]]
"""Answers a request. It is cancelled when the server ends."""


def _methods(methods: Iterable[str] | str) -> tuple[str, ...]:
    return (methods,) if isinstance(methods, str) else tuple(methods)


def _check_methods(_route: Any, _field: Any, methods: tuple[str, ...]) -> None:
    for method in methods:
        check_text("each method of a route", method, 20)
        if method not in _METHODS:
            raise ValueError(f"{method!r} is not a method that a route can have: {', '.join(_METHODS)}")
    if not methods:
        raise ValueError("a route needs a method")


def _check_callable(_route: Any, _field: Any, handler: Any) -> None:
    if not callable(handler):
        raise TypeError(f"the handler of a route must be an async function, not {handler!r}")


@attrs.frozen
class Route:
    """An async function that answers the requests for a path: `{"/hello": Route(hello, methods="POST")}`.

    A path that ends in `/*` stands for all paths below it; the longest that fits is taken, after those that fit exactly.
    Raises TypeError and ValueError.
    """

    handler: Handler = attrs.field(validator=_check_callable)
    """Gets a `Request`, and returns a `Page` or a `Stream`. What it raises is logged, and answered with 500."""
    methods: tuple[str, ...] = attrs.field(default=("GET",), converter=_methods, validator=_check_methods)
    """`GET` includes `HEAD`."""
    max_body: int = attrs.field(default=MAX_BODY, validator=[instance_of(int), ge(0)], kw_only=True)
    """Bytes that the body of a request may have; a larger one is answered with 413."""
    cross_origin: bool = attrs.field(default=False, validator=instance_of(bool), kw_only=True)
    """Whether pages of the origins in `Options.allow_origins` may read the answers (CORS)."""

    @property
    def allow(self) -> str:
        """The value of the header `Allow`."""
        methods = [*self.methods, *(["HEAD"] if "GET" in self.methods and "HEAD" not in self.methods else [])]
        return ", ".join(methods)

    def takes(self, method: str) -> bool:
        return method in self.methods or (method == "HEAD" and "GET" in self.methods)


Pages = Mapping[str, Page | Callable[[], Page] | Route]
"""What a site serves, by path: a page, a function that makes one for each request, or a route."""
