"""What is known of a client before it is admitted."""

import attrs

__all__ = ["ConnectRequest"]


@attrs.frozen(kw_only=True)
class ConnectRequest:
    """What is known of a client before it is let in. `headers` has lower-case names; a repeated one keeps its last value."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    remote: str
    """Where it comes from: `host:port`, or a name for what is no TCP socket."""
    token: str | None
    """From `Authorization: Bearer` or `?token=`."""
