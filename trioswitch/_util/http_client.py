"""The client for HTTP requests of our own, which is an extra."""

from typing import Any

__all__ = ["import_httpx"]


def import_httpx() -> Any:
    """The module `httpx`. Raises ImportError with a sentence."""
    try:
        import httpx
    except ImportError:
        raise ImportError("calls over HTTP need a package that is missing: pip install 'trioswitch[http]'") from None
    return httpx
