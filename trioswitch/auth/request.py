"""The request of a client, as hooks see it before the client is admitted."""

import attrs

from .identity import Identity

__all__ = ["ConnectRequest"]


@attrs.frozen(kw_only=True)
class ConnectRequest:
    """What is known of a client before it is admitted.

    `headers` has lower-case names. The values of a field that was repeated are joined: those of `cookie` by a semicolon
    and a space (RFC 6265, section 5.4), others by a comma and a space (RFC 9110, section 5.3).
    """

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    remote: str
    """Address and port of the client, or a name for what is not a TCP socket."""
    address: str | None = None
    """The client's address, also behind a trusted proxy; of IPv6 its network of 64 bits. None: it is not known."""
    token: str | None
    """From the header `Authorization`, from `?token=`, or from the client's first message."""
    identity: Identity | None = None
    """Who `authenticate` says that it is; None on a server that has no such hook."""
