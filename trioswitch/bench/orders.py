"""Orders and replies between the parent and its client processes: one line of JSON each. Times are CLOCK_MONOTONIC in ns."""

from typing import Final

import msgspec

__all__ = [
    "SLOT",
    "Collect",
    "Connect",
    "Connected",
    "Echo",
    "Failed",
    "Finished",
    "Listen",
    "Order",
    "Publish",
    "Quit",
    "Ready",
    "Reply",
    "Tick",
]

SLOT: Final = 200_000_000
"""ns in one slot of time: a client process reports at the end of each, so that the slots of several processes add up."""


class Order(msgspec.Struct, frozen=True, tag_field="do"):
    """Parent to client process."""


class Connect(Order, frozen=True, tag="connect"):
    """Connect `count` clients, the first of which has number `first`; each joins its room. Answered by `Connected`.

    The ticks until then are of handshakes: how many, and how long each took until the room was joined.
    """

    url: str
    count: int
    first: int
    room: str
    room_each: bool
    """Whether each client has a room of its own: its name is `room`, a hyphen, and the client's number."""
    size: int
    """Bytes of a message's content, stamp included."""
    protocol: str
    """The WebSocket subprotocol."""
    compression: bool
    """Whether permessage-deflate is offered."""
    token: str | None
    ca: str | None
    """File with the certificates that a TLS server is checked against; None: the system's."""
    under_way: int
    """Handshakes at the same time."""


class Listen(Order, frozen=True, tag="listen"):
    """Forget what was counted; count what was sent at `since` or later."""

    since: int


class Publish(Order, frozen=True, tag="publish"):
    """The first client publishes `rate` messages/s from `since` until `until`. Answered by `Finished`."""

    rate: float
    since: int
    until: int


class Echo(Order, frozen=True, tag="echo"):
    """Each client keeps one message in flight from `since` until `until`. Answered by `Finished`."""

    since: int
    until: int


class Collect(Order, frozen=True, tag="collect"):
    """Answered by a `Tick` with this `number`, and in it all that was counted and not reported yet."""

    number: int


class Quit(Order, frozen=True, tag="quit"):
    """Close everything and end."""


class Reply(msgspec.Struct, frozen=True, tag_field="is"):
    """Client process to parent."""


class Ready(Reply, frozen=True, tag="ready"):
    """The process has started, and waits for orders."""


class Connected(Reply, frozen=True, tag="connected"):
    """All handshakes are over: `count` clients are in their rooms; `refused` counts the others by reason."""

    count: int
    refused: dict[str, int]
    server: str
    """The server's name for itself."""
    began: int
    """When the first client was dialled, ns."""
    ended: int
    """When the last one was in its room, ns."""


class Tick(Reply, frozen=True, tag="tick"):
    """What happened since the last one, and how this process fares."""

    since: int
    """That of the `Listen` in force."""
    slot: int
    """In which the time begins that this tells of."""
    sent: int
    received: int
    buckets: list[int]
    """Latencies: which buckets of the histogram have any ..."""
    counts: list[int]
    """... and how many."""
    total: int
    """ns, all latencies together."""
    slowest: int
    """ns."""
    lateness: int
    """ns, all messages together, that they waited for their turn after this process was told of them."""
    busy: float
    """Share of the time in which the process ran, or waited for a processor."""
    open: int
    lost: dict[str, int]
    """Connections that were ended by the server, by reason: all so far."""
    complaint: str
    """The first `error` message of the server; empty: there was none."""
    number: int = 0


class Finished(Reply, frozen=True, tag="finished"):
    """A `Publish` or `Echo` is over, and a `Tick` has told of it."""


class Failed(Reply, frozen=True, tag="failed"):
    """The process cannot go on, and ends."""

    sentence: str
