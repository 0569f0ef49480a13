"""What the clients of other servers share (Redis, NATS, PostgreSQL): options in their URLs, TLS, and why a connection failed."""

import os
import ssl
from collections.abc import Collection
from typing import Final
from urllib.parse import parse_qs

__all__ = ["PREFIX", "options_of", "prefix_of", "reason_of", "trusted"]

PREFIX: Final = "trioswitch"
"""What begins all names on a server that others use as well."""


def options_of(query: str, known: Collection[str], server: str) -> dict[str, str]:
    """The options of a URL of a `server` (its name, for people). Raises ValueError for one that is not in `known`."""
    options = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    if unknown := options.keys() - known:
        raise ValueError(
            f"unknown option {min(unknown)!r} in the URL of {server}; there are: {', '.join(sorted(known))}"
        )
    return options


def prefix_of(options: dict[str, str], server: str) -> str:
    """The option `prefix`. Raises ValueError."""
    prefix = options.get("prefix", PREFIX)
    if not prefix or not prefix.isascii() or not prefix.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"the prefix in the URL of {server} has letters, digits, - and _, not {prefix!r}")
    return prefix


def trusted(ca: str | None) -> ssl.SSLContext:
    """TLS with the certificates in the file `ca`, None: those of the system. Raises ValueError."""
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ValueError(f"the certificates in {ca!r} cannot be read: {error.strerror or error}") from None


def reason_of(error: BaseException) -> str:
    """What the system says of a connection that could not be made; Trio has tried each address of the host."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    number = getattr(cause or error, "errno", None)
    return os.strerror(number) if number else str(error)
