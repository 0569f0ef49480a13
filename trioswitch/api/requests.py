"""The requests of the HTTP API. Names and meanings are those of Centrifugo, where it has the method.

https://centrifugal.dev/docs/server/server_api (seen in November 2026, version 6). What it has and we do not is refused rather
than ignored, but for `delta`, which is an optimisation.
"""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta

__all__ = ["REQUESTS", "Request"]

Name = Annotated[str, Meta(min_length=1, max_length=255)]
"""Of a room, a user or a group; it may have 255 bytes in UTF-8."""
Key = Annotated[str, Meta(min_length=1, max_length=255)]


class Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A request. Subclasses are named as their methods."""


class Since(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A position in a room's history."""

    offset: Annotated[int, Meta(ge=0)]
    epoch: str


class _Publication(Request, kw_only=True):
    data: Any = UNSET
    """What JSON can carry."""
    b64data: str | None = None
    """Bytes in base64, in the place of `data`: receivers that speak MessagePack get bytes, those that speak JSON this text."""
    idempotency_key: Key | None = None
    """Makes a retry harmless: the same key within 10 minutes publishes nothing again, and gets the answer of the first."""
    delta: bool | None = None
    """Accepted, and without effect."""
    priority: Annotated[int, Meta(ge=0, le=10)] = 0
    expires: Annotated[float, Meta(gt=0)] | None = None
    """Seconds after which it is not delivered any more."""
    key: str | None = None
    """What it is the newest state of, for rooms with the policy `conflate`."""


class Publish(_Publication, kw_only=True):
    """Publish to a room. The answer has the position, in a room with history, and the numbers of receivers on this node."""

    channel: Name


class Broadcast(_Publication, kw_only=True):
    """Publish the same to several rooms."""

    channels: Annotated[list[Name], Meta(min_length=1, max_length=10_000)]


class Subscribe(Request, kw_only=True):
    """Make the connections of a user, or one of them, members of a room."""

    user: str = ""
    channel: Name
    client: str | None = None
    """The id of a connection."""


class Unsubscribe(Request, kw_only=True):
    """End the memberships of a user's connections, or of one of them, in a room."""

    user: str = ""
    channel: Name
    client: str | None = None


class DisconnectWith(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    code: int = 0
    """Without effect: a client of ours is closed with 4502, and does not come back."""
    reason: Annotated[str, Meta(max_length=123)] = ""


class Disconnect(Request, kw_only=True):
    """Close the connections of a user, or one of them; not those in `whitelist`."""

    user: str = ""
    client: str | None = None
    whitelist: list[str] = []
    disconnect: DisconnectWith | None = None


class Refresh(Request, kw_only=True):
    """Let the tokens of a user's connections run out now (`expired`), at a time in seconds since 1970, or never."""

    user: str = ""
    client: str | None = None
    expired: bool = False
    expire_at: float | None = None


class Presence(Request, kw_only=True):
    """Who is in a room, by connection."""

    channel: Name


class PresenceStats(Request, kw_only=True):
    """How many connections and users are in a room."""

    channel: Name


class History(Request, kw_only=True):
    """Messages of a room's history: `limit` of them, 0 for the position alone, -1 for as many as one answer has (1,000)."""

    channel: Name
    limit: Annotated[int, Meta(ge=-1, le=1000)] = 0
    since: Since | None = None
    reverse: bool = False


class Channels(Request, kw_only=True):
    """The rooms that are open, with the number of their connections: at most 10,000 of each node."""

    pattern: str = "*"


class Info(Request, kw_only=True):
    """The nodes."""


class Batch(Request, kw_only=True):
    """Several requests in one: `{"commands": [{"publish": {...}}, ...]}`. `parallel`: not one after the other."""

    commands: Annotated[list[dict[str, msgspec.Raw]], Meta(min_length=1, max_length=1000)]
    parallel: bool = False


class SendToUser(Request, kw_only=True):
    """Send to all connections of a user; the inbox keeps it for a user who is offline, unless `keep` is false."""

    user: Name
    data: Any = UNSET
    keep: bool = True
    expires: Annotated[float, Meta(gt=0)] | None = None
    idempotency_key: Key | None = None


class Groups(Request, kw_only=True):
    """The users in a group, after adding and removing some."""

    group: Name
    add: list[Name] = []
    remove: list[Name] = []


class SendToGroup(Request, kw_only=True):
    """Send to all connections of all users in a group."""

    group: Name
    data: Any = UNSET


class Connections(Request, kw_only=True):
    """Connections of a user, in a room, or one: at most 10,000 of each node."""

    user: str | None = None
    channel: str | None = None
    client: str | None = None


class RevokeToken(Request, kw_only=True):
    """Close the connections of tokens and accept these no more: by user, by id (`jti`), or all that were issued before a time."""

    user: str | None = None
    token_id: str | None = None
    issued_before: float | None = None


class Trace(Request, kw_only=True):
    """What has become of messages to a user, or in a room, since the last request with this name of a trace.

    The first one begins it. It ends when nobody has asked for 10 seconds.
    """

    trace: Name
    user: Name | None = None
    channel: Name | None = None


class Statistics(Request, kw_only=True):
    """What this node counts, and samples of the process and the machine."""


REQUESTS: dict[str, type[Request]] = {
    "publish": Publish, "broadcast": Broadcast, "subscribe": Subscribe, "unsubscribe": Unsubscribe, "disconnect": Disconnect,
    "refresh": Refresh, "presence": Presence, "presence_stats": PresenceStats, "history": History, "channels": Channels,
    "info": Info, "batch": Batch, "send_to_user": SendToUser, "send_to_group": SendToGroup, "groups": Groups,
    "connections": Connections, "revoke_token": RevokeToken, "trace": Trace, "statistics": Statistics,
}  # fmt: skip
"""By method."""
