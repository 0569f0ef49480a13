"""Counting: what was queued, written and dropped, and the frozen objects in which it is reported."""

import enum
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Final

import attrs

__all__ = [
    "CompressionStatistics",
    "Distribution",
    "Drop",
    "Histogram",
    "OutboxStatistics",
    "RoomStatistics",
    "SwitchStatistics",
    "Traffic",
]


WAIT_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds."""
BATCH_BOUNDS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Drop(enum.Enum):
    """Why a message did not reach a receiver."""

    __hash__ = object.__hash__  # the one of `Enum` is Python code, and drops are counted by cause
    OVERFLOW = "overflow"
    """The outbox was full (policies drop_oldest, drop_newest, conflate and disconnect)."""
    CONFLATED = "conflated"
    """A newer message with the same key took its place."""
    RESYNC = "resync"
    """The outbox was full and the member starts again from the room's present (policy resync)."""
    BLOCK_TIMEOUT = "block_timeout"
    """The room has waited long enough (policy block)."""
    EXPIRED = "expired"
    """It was not written before its `expires`."""
    WRITE_FAILED = "write_failed"
    """It was being written when the connection broke: it may have arrived or not."""
    CLOSED = "closed"
    """It was waiting when the connection, or the switch, ended."""
    SHED = "shed"
    """All outboxes together held too much, and this one more than others, or the message had a low priority."""
    CRASHED = "crashed"
    """The room failed while it handed the message out."""
    BEHIND = "behind"
    """It came from another node while the room held as much as it may."""


@attrs.frozen
class CompressionStatistics:
    """What permessage-deflate did: `tried` compressions, of which `used` made the message smaller, in bytes before and after."""

    tried: int
    used: int
    bytes_before: int
    bytes_after: int

    @property
    def ratio(self) -> float:
        """The share of bytes that compression saved in the messages that it was used for, 0.0 to 1.0 (as in seed 000)."""
        return 1.0 - self.bytes_after / self.bytes_before if self.bytes_before else 0.0


@attrs.frozen
class Distribution:
    """How many values were at most each of `bounds`, in `counts`, of which the last one is for those above; and their sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


class Histogram:
    """Counts values by size. `add` takes 0.2 us."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def distribution(self) -> Distribution:
        return Distribution(self._bounds, tuple(self._counts), self._sum)


@attrs.frozen
class OutboxStatistics:
    """One connection's way out. `depth` messages of `bytes` wait, the oldest for `oldest_age` seconds (0.0: nothing waits)."""

    depth: int
    bytes: int
    oldest_age: float
    messages_sent: int
    batches_sent: int
    bytes_sent: int
    messages_dropped: int


@attrs.frozen
class RoomStatistics:
    """One room since it was opened. `waiting` messages are in its queue; `drops` counts receivers by cause."""

    name: str
    members: int
    waiting: int
    published: int
    windows: int
    delivered: int
    queued: int
    crashes: int
    drops: Mapping[str, int]


@attrs.frozen
class SwitchStatistics:
    """The whole switch since it was opened.

    Messages are counted once for each receiver: `messages_queued` were delivered to a connection, `messages_sent` of them
    were written to its socket, in `batches_sent` writes of `bytes_sent` bytes; `pending_messages` wait now.
    """

    active_connections: int
    connections_opened: int
    rooms: Mapping[str, int]
    """Members by room."""
    users: int
    groups: int
    messages_queued: int
    messages_sent: int
    batches_sent: int
    bytes_sent: int
    pending_messages: int
    pending_bytes: int
    messages_received: int
    """Messages of clients."""
    bytes_received: int
    outbox_waits: Distribution
    """Seconds that messages waited in an outbox: for each batch of a flusher, those of its oldest message."""
    outbox_batches: Distribution
    """Messages in each batch of a flusher."""
    drops: Mapping[str, int]
    """Receivers that missed a message, by cause."""
    drops_by_policy: Mapping[tuple[str, str], int]
    """The same by the pattern of the room's policy, empty without a room, and by cause."""
    closes: Mapping[str, int]
    """Ended connections, by cause."""
    refused: int
    """Clients that were turned away."""
    refusals: Mapping[str, int]
    """The same by cause: `unauthorised`, `forbidden`, `rate_limited`, `unavailable`, `internal`, `origin`, `other`."""
    rate_pauses: int
    """How often a client was not read for a while, because it sent faster than it may."""
    room_crashes: int
    sessions: int
    """Sessions of clients that are offline and may resume them."""
    history_bytes: int
    """Bytes that the histories of rooms take in memory."""
    uncommitted_messages: int
    """Messages that wait for the store, or are being committed."""
    compression: CompressionStatistics
    cluster: Mapping[str, int]
    """Sums over all nodes of a cluster, each at its last sign of life; empty without a broker. They are those of
    `NodeInfo.statistics`. A user, or a room, on two nodes counts twice."""

    @property
    def compression_ratio(self) -> float:
        return self.compression.ratio

    @property
    def mean_batch_size(self) -> float:
        """Messages in a write, on average."""
        return self.messages_sent / self.batches_sent if self.batches_sent else 0.0


@attrs.define(eq=False)
class Traffic:
    """What the outboxes of a switch count together.

    What is written is counted in the connection's `Account`, where the hot path finds it, and added up here when it is
    closed. What waits is counted here at once, for the byte budget of all outboxes, and so are drops.
    """

    messages_sent: int = 0
    batches_sent: int = 0
    bytes_sent: int = 0
    waiting: int = 0
    waiting_bytes: int = 0
    messages_received: int = 0
    bytes_received: int = 0
    outbox_waits: Histogram = attrs.field(factory=lambda: Histogram(WAIT_BOUNDS))
    outbox_batches: Histogram = attrs.field(factory=lambda: Histogram(BATCH_BOUNDS))
    crowded_at: float = attrs.field(default=inf, init=False)
    """Bytes that wait in all outboxes above which `on_crowded` is called."""
    on_crowded: Callable[[], None] = attrs.field(default=lambda: None, init=False)
    drops: Counter[Drop] = attrs.field(factory=Counter)
    _by_room: dict[str, tuple[str, Counter[Drop]]] = attrs.field(factory=dict)
    """The pattern of its policy, and its drops."""
    _by_policy: Counter[tuple[str, str]] = attrs.field(factory=Counter)

    def watch(self, crowded_at: float, on_crowded: Callable[[], None]) -> None:
        """Have this called again and again while more than so many bytes wait in all outboxes."""
        self.crowded_at, self.on_crowded = crowded_at, on_crowded

    def open_room(self, room: str, policy: str) -> None:
        """`policy` is the pattern of the room's policy."""
        self._by_room[room] = (policy, Counter())

    def forget_room(self, room: str) -> None:
        """The room is gone: only the totals keep its drops, so that names do not pile up."""
        policy, drops = self._by_room.pop(room)
        for cause, count in drops.items():
            self._by_policy[policy, cause.value] += count

    def drops_by_policy(self) -> dict[tuple[str, str], int]:
        """All drops, by the pattern of the room's policy, which is empty for those without a room, and cause."""
        found = self._by_policy.copy()
        for policy, drops in self._by_room.values():
            for drop, count in drops.items():
                found[policy, drop.value] += count
        told: Counter[str] = Counter()
        for (_policy, cause), count in found.items():
            told[cause] += count
        for drop, count in self.drops.items():
            if count > told[drop.value]:
                found["", drop.value] += count - told[drop.value]
        return dict(found)

    def dropped(self, room: str | None, cause: Drop, count: int = 1) -> None:
        self.drops[cause] += count
        if room is not None and (of_room := self._by_room.get(room)) is not None:
            of_room[1][cause] += count

    def drops_of(self, room: str) -> dict[str, int]:
        return {cause.value: count for cause, count in self._by_room[room][1].items()}
