"""HTTP requests of our own: to a backend, to the server of a key set, to a webhook. Their library is an extra."""

from typing import Any
from urllib.parse import urlsplit

__all__ = ["check_http_url", "import_httpx", "read_at_most"]


def import_httpx() -> Any:
    """The module `httpx`. Raises ImportError with a sentence."""
    try:
        import httpx
    except ImportError:
        raise ImportError("calls over HTTP need a package that is missing: pip install 'trioswitch[http]'") from None
    return httpx


def check_http_url(what: str, url: object) -> str:
    """Raises TypeError and ValueError unless it is a URL of http or https."""
    if not isinstance(url, str):
        raise TypeError(f"{what} must be a str, not {url!r}")
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return url
    except ValueError as error:
        raise ValueError(f"{what} is not valid: {error}") from None
    raise ValueError(f"{what} must be a URL such as https://example.com/path, not {url!r}")


async def read_at_most(response: Any, limit: int) -> bytes:
    """The body of a response that is streamed. Raises ValueError when it has more bytes than `limit`."""
    announced = response.headers.get("content-length", "0")
    data = bytearray()
    if announced.isdigit() and int(announced) > limit:
        raise ValueError(f"the answer has more than {limit} bytes")
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > limit:
            raise ValueError(f"the answer has more than {limit} bytes")
    return bytes(data)
