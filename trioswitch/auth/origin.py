"""Origins: which web pages may connect. A browser sends a page's origin; other clients send none, and are not restricted.

Without this check any page that a user looks at could connect to the server with the user's cookies, or to a server on the
user's own machine. The second needs more than comparing Origin with Host: a page can have its own name resolved to 127.0.0.1
(DNS rebinding), and then both name the page.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Final
from urllib.parse import urlsplit

from ..errors import Refused

__all__ = ["check_origin"]

_LOOPBACK: Final = {"localhost", "127.0.0.1", "::1"}
_PORTS: Final = {"http": 80, "https": 443}


def check_origin(headers: Mapping[str, str], allowed: Collection[str], is_loopback: Callable[[], bool]) -> None:
    """Raises Refused for a page that may not connect.

    A page may when its origin is one of `allowed`; when it comes from the host that the request names, unless the socket is on
    loopback (`is_loopback`) and that host is not; and when both are names of this machine's loopback address, whatever their
    ports.
    """
    origin = headers.get("origin")
    if origin is None or "*" in allowed or origin in allowed:
        return
    scheme = origin.partition("://")[0]
    page, host = _host(origin), _host(f"{scheme}://{headers.get('host', '')}")
    if page is not None and host is not None:
        if page[0] in _LOOPBACK and host[0] in _LOOPBACK:
            return
        if page == host and (host[0] in _LOOPBACK or not is_loopback()):
            return
    raise Refused(f"pages of {origin!r} may not connect to this server: its option allow_origins does not name them")


def _host(origin: str) -> tuple[str, int | None] | None:
    """Host and port; None for what is not an origin, such as `null`."""
    try:
        url = urlsplit(origin)
        if not url.hostname:
            return None
        return url.hostname, url.port if url.port is not None else _PORTS.get(url.scheme)
    except ValueError:
        return None
