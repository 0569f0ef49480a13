"""The URL of a Redis server: `redis://[[user:]password@]host[:port][/database][?prefix=name]`, `rediss://` for TLS."""

import ssl
from typing import Final
from urllib.parse import unquote, urlsplit

import attrs

from .._util.remote import PREFIX, options_of, prefix_of, trusted

__all__ = ["RedisUrl", "parse_redis_url"]

PORT: Final = 6379
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
    options = options_of(parts.query, _OPTIONS, "Redis")
    return RedisUrl(
        host=parts.hostname,
        port=port,
        user=None if parts.username in (None, "") else unquote(parts.username or ""),
        password=None if parts.password is None else unquote(parts.password),
        database=int(database),
        prefix=prefix_of(options, "Redis"),
        tls=trusted(options.get("ca")) if parts.scheme == "rediss" else None,
    )
