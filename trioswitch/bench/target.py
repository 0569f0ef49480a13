"""Where a benchmark goes: a WebSocket URL, taken apart."""

import ssl
from urllib.parse import urlsplit

import attrs

__all__ = ["BenchError", "Target", "tls_context"]


class BenchError(Exception):
    """A benchmark cannot be run. The text is one sentence for a person."""


@attrs.frozen
class Target:
    """One server."""

    url: str
    host: str
    port: int
    path: str
    """With the query."""
    tls: bool

    @classmethod
    def parse(cls, url: str) -> "Target":
        """Raises ValueError with a sentence."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"{url!r} is no URL: {error}") from None
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ValueError(f"{url!r} is no WebSocket URL such as ws://127.0.0.1:8765/ws")
        tls = parts.scheme == "wss"
        path = (parts.path or "/ws") + (f"?{parts.query}" if parts.query else "")
        return cls(url, parts.hostname, port or (443 if tls else 80), path, tls)

    @property
    def authority(self) -> str:
        """Host and port, as the `Host` header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def tls_context(ca: str | None) -> ssl.SSLContext:
    """Raises BenchError."""
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise BenchError(f"cannot read the certificates in {ca!r}: {error.strerror or error}") from None
    context.set_alpn_protocols(["http/1.1"])
    return context
