"""The address of a server, from a URL: `ws://` and `wss://` over TCP, `ws+unix:` over a Unix socket."""

import ssl
from urllib.parse import quote, urlsplit

import attrs
import trio

__all__ = ["Address"]

UNIX_SCHEME = "ws+unix:"
WEBSOCKET_PATH = "/ws"
ALLOWED = "%/?:@!$&'()*+,;="
"""Characters that a path or a query may contain (RFC 3986, section 3.4), and `%`, so that escapes are kept as they are."""


@attrs.frozen
class Address:
    host: str
    port: int
    target: str
    """Path and query."""
    secure: bool
    """Whether the connection uses TLS."""
    socket_path: str | None = None
    """The path of the Unix socket; then `host` and `port` only fill the Host field."""

    @classmethod
    def parse(cls, url: str) -> "Address":
        """The address in a URL. Raises ValueError with a sentence for a person."""
        if url.startswith(UNIX_SCHEME):
            path = url.removeprefix(UNIX_SCHEME).removeprefix("//")
            if not path:
                raise ValueError(f"{url!r} has no path of a Unix socket, as in ws+unix:/run/trioswitch.sock")
            return cls("localhost", 80, WEBSOCKET_PATH, False, path)
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ValueError(f"{url!r} is not a valid WebSocket URL, such as ws://host:8765/ws or ws+unix:/path")
        try:
            port = parts.port
        except ValueError:
            raise ValueError(f"{url!r} has no valid port (0 to 65535)") from None
        try:
            host = parts.hostname.encode("idna").decode()
        except UnicodeError:
            raise ValueError(f"{url!r} has no valid host name") from None
        secure = parts.scheme == "wss"
        query = f"?{quote(parts.query, safe=ALLOWED)}" if parts.query else ""
        target = quote(parts.path or "/", safe=ALLOWED) + query
        return cls(host, (443 if secure else 80) if port is None else port, target, secure)

    @property
    def host_field(self) -> str:
        """The value of the header field Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @property
    def label(self) -> str:
        """The address for a person: host and port, or the path of the Unix socket."""
        return self.socket_path or self.host_field

    async def open(self, context: ssl.SSLContext | None) -> trio.abc.Stream:
        """Open a stream to the server, with TLS where the URL says so.

        Raises OSError, and BrokenResourceError if the TLS handshake fails. Cancelling is safe.
        """
        if self.socket_path is not None:
            return await trio.open_unix_socket(self.socket_path)
        stream = await trio.open_tcp_stream(self.host, self.port)
        if not self.secure:
            return stream
        secured = trio.SSLStream(
            stream, context or ssl.create_default_context(), server_hostname=self.host, https_compatible=True
        )
        try:
            await secured.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return secured
