"""The URL of NATS servers: `nats://[[user:]password@]host[:port][,host[:port]...][?prefix=name]`, `tls://` for TLS."""

import ssl
from typing import Final
from urllib.parse import unquote, urlsplit

import attrs

from .._util.remote import PREFIX, options_of, prefix_of, trusted

__all__ = ["NatsUrl", "parse_nats_url"]

PORT: Final = 4222
MAX_REPLICAS: Final = 5
_OPTIONS: Final = {"prefix", "ca", "replicas"}


@attrs.frozen
class NatsUrl:
    servers: tuple[tuple[str, int], ...]
    """Host and port of servers of one NATS cluster: any of them will do."""
    user: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    """Without a user, it is a token."""
    prefix: str = PREFIX
    """Begins all subjects, and names the stream: clusters with different prefixes may share NATS."""
    replicas: int = 1
    """How many servers of a NATS cluster hold the stream."""
    tls: ssl.SSLContext | None = attrs.field(default=None, eq=False, repr=False)


def parse_nats_url(url: str) -> NatsUrl:
    """Raises ValueError with a sentence, in which the password is left out."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("nats", "tls"):
        raise ValueError(f"a URL of NATS begins with nats:// or tls://, not {scheme}:")
    authority, _, query = rest.partition("?")
    login, _, hosts = authority.rstrip("/").rpartition("@")
    user, colon, password = login.partition(":")
    options = options_of(query, _OPTIONS, "NATS")
    replicas = options.get("replicas", "1")
    if replicas not in map(str, range(1, MAX_REPLICAS + 1)):
        raise ValueError(f"replicas in the URL of NATS is a number from 1 to {MAX_REPLICAS}, not {replicas!r}")
    return NatsUrl(
        servers=tuple(_server(host) for host in hosts.split(",")),
        user=unquote(user) if colon and user else None,
        password=unquote(password if colon else user) if login else None,
        prefix=prefix_of(options, "NATS"),
        replicas=int(replicas),
        tls=trusted(options.get("ca")) if scheme == "tls" else None,
    )


def _server(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port or PORT
    except ValueError as error:
        raise ValueError(f"not a valid URL of NATS: {error}") from None
    if not host or parts.path:
        raise ValueError("the URL of NATS names hosts: nats://HOST[:PORT][,HOST[:PORT]...]")
    return host, port
