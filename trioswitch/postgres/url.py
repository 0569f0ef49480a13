"""The URL of a PostgreSQL database: `postgres://[user[:password]@]host[:port][,host[:port]...]/database[?prefix=name]`."""

from typing import Final
from urllib.parse import unquote, urlencode

import attrs

from .._util.remote import PREFIX, options_of, prefix_of

__all__ = ["PostgresUrl", "parse_postgres_url"]

_OWN: Final = {"prefix"}
_LIBPQ: Final = {"sslmode", "sslrootcert", "sslcert", "sslkey", "passfile", "service"}
"""Options that libpq understands."""


@attrs.frozen
class PostgresUrl:
    libpq: str = attrs.field(repr=False)
    """The URL without the options that libpq does not know."""
    place: str
    """For people: without the password."""
    schema: str = PREFIX
    """The schema with all tables: clusters with different ones may share a database. It is the option `prefix`."""


def parse_postgres_url(url: str) -> PostgresUrl:
    """Raises ValueError with a sentence, in which the password is left out."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("postgres", "postgresql"):
        raise ValueError(f"a URL of PostgreSQL begins with postgres://, not {scheme}:")
    location, _, query = rest.partition("?")
    authority, _, database = location.partition("/")
    login, at, hosts = authority.rpartition("@")
    options = options_of(query, _OWN | _LIBPQ, "PostgreSQL")
    if not hosts or not all(_is_server(host) for host in hosts.split(",")):
        raise ValueError("the URL of PostgreSQL names a host: postgres://HOST[:PORT]/DATABASE")
    if not database:
        raise ValueError("the URL of PostgreSQL names a database: postgres://HOST[:PORT]/DATABASE")
    given = urlencode({name: value for name, value in options.items() if name in _LIBPQ})
    return PostgresUrl(
        libpq=f"postgresql://{login}{at}{hosts}/{database}{'?' + given if given else ''}",
        place=f"{hosts}/{unquote(database)}",
        schema=prefix_of(options, "PostgreSQL"),
    )


def _is_server(text: str) -> bool:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        return bool(text)
    return bool(host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536
