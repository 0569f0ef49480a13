"""The URL of a Redis server: `redis://[[user:]password@]host[:port][/database][?prefix=name]`, `rediss://` for TLS."""

import ssl
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import attrs

__all__ = ["RedisUrl", "parse_redis_url"]

PORT: Final = 6379
PREFIX: Final = "trioswitch"
_OPTIONS: Final = {"prefix", "ca"}


@attrs.frozen
class RedisUrl:
    host: str
    port: int
    user: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    database: int = 0
    prefix: str = PREFIX
    """Begins all keys and channels: clusters with different prefixes may share a server."""
    tls: ssl.SSLContext | None = attrs.field(default=None, eq=False, repr=False)

    @property
    def place(self) -> str:
        """For people: without the password."""
        return f"{self.host}:{self.port}"


def parse_redis_url(url: str) -> RedisUrl:
    """Raises ValueError with a sentence, in which the password is left out."""
    try:
        parts = urlsplit(url)
        port = parts.port or PORT
    except ValueError as error:
        raise ValueError(f"not a valid URL of Redis: {error}") from None
    if parts.scheme not in ("redis", "rediss"):
        raise ValueError(f"a URL of Redis begins with redis:// or rediss://, not {parts.scheme}:")
    if not parts.hostname:
        raise ValueError("the URL of Redis names no host: redis://HOST[:PORT][/DATABASE]")
    database = parts.path.lstrip("/") or "0"
    if not database.isascii() or not database.isdigit():
        raise ValueError(f"the database in the URL of Redis is a number, not {database!r}")
    options = parse_qs(parts.query, keep_blank_values=True)
    if unknown := options.keys() - _OPTIONS:
        known = ", ".join(sorted(_OPTIONS))
        raise ValueError(f"unknown option {min(unknown)!r} in the URL of Redis; there are: {known}")
    prefix = options.get("prefix", [PREFIX])[-1]
    if not prefix or not prefix.isascii() or not prefix.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"the prefix in the URL of Redis has letters, digits, - and _, not {prefix!r}")
    return RedisUrl(
        host=parts.hostname,
        port=port,
        user=None if parts.username in (None, "") else unquote(parts.username or ""),
        password=None if parts.password is None else unquote(parts.password),
        database=int(database),
        prefix=prefix,
        tls=_tls(options.get("ca", [None])[-1]) if parts.scheme == "rediss" else None,
    )


def _tls(ca: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ValueError(f"the certificates in {ca!r} cannot be read: {error.strerror or error}") from None
