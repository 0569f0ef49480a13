"""The interface of a store, which keeps the messages of rooms with history and the inboxes of users who are offline.

    stores.memory    as long as the process lives
    stores.sqlite    one file; what was acknowledged survives a crash and a power cut
    stores.redis     on a Redis that several machines share
    stores.postgres  in a PostgreSQL database that several machines share

A store assigns offsets and seqs: 1, 2, 3 ... by room and by user. It reads no clock: `at`, `expires_at` and `now` are
wall-clock seconds (`time.time()`), given by the caller. What expires at 5.0 is gone at 5.0. Bytes are of payloads.
"""

import abc
import enum
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

import attrs

__all__ = [
    "KEY_TIME",
    "POSITION_TIME",
    "UNLIMITED",
    "Append",
    "Appended",
    "GroupChange",
    "HistoryRecords",
    "InboxLimits",
    "InboxMessage",
    "InboxResult",
    "Record",
    "Refusal",
    "Retention",
    "SavedSession",
    "Store",
    "StoredInboxMessage",
    "refusal",
    "within",
]

UNLIMITED: Final = 2**63 - 1
"""Bytes: as many as there is space for."""
KEY_TIME: Final = 600.0
"""Seconds after `at` that an idempotency key is remembered, at least; `sweep` forgets it some time later."""

POSITION_TIME: Final = 7 * 86400.0
"""Seconds that an empty room's epoch and newest offset, or an empty inbox, are remembered, at least, after the last message
of it got too old. An inbox that is made later begins above every seq of those that were forgotten: no user gets one twice."""


@attrs.frozen
class Retention:
    """What a room keeps: its newest `size` messages, but none that is older than `age` seconds (None: however old)."""

    size: int
    age: float | None


@attrs.define(kw_only=True)  # frozen, one takes twice as long to make
class Append:
    """A message for a room. `retention` is the room's from now on."""

    room: str
    payload: bytes
    at: float
    expires_at: float | None
    key: str | None
    """The idempotency key: a second append to the room with the same key keeps nothing, and gets the first one's offset."""
    retention: Retention
    sender: str = ""
    """Who the bytes are counted for; empty: the server itself."""


class Refusal(enum.Enum):
    """Why a message was not kept."""

    INBOX = "inbox"
    """The inbox has no space for it."""
    SENDER = "sender"
    """The sender has more messages here than is left for all others."""
    TOTAL = "total"
    """There is no space at all."""


@attrs.define
class Appended:
    """Where a message is."""

    epoch: str
    """A short string that is another one when the history of the room was lost."""
    offset: int
    """0: it was not kept, for the reason `refusal`."""
    duplicate: bool
    """Whether it was there already; it may have been trimmed since."""
    refusal: Refusal | None = None


@attrs.frozen
class Record:
    """A message that is kept in a room."""

    offset: int
    payload: bytes
    at: float
    expires_at: float | None


@attrs.frozen
class HistoryRecords:
    """Records of a room with rising offsets, and where the room stood when they were read.

    What lies between `first` and `last` and is not there has expired: it counts as kept, for nobody has missed it.
    """

    epoch: str
    first: int
    """The oldest offset within the retention, `last + 1` when there is none: what is below it is gone."""
    last: int
    """The newest offset that was ever assigned, 0 before the first."""
    records: list[Record]


@attrs.frozen(kw_only=True)
class InboxMessage:
    """A direct message for a user's inbox."""

    user: str
    payload: bytes
    at: float
    expires_at: float | None
    key: str | None
    """As in `Append`, by user."""
    sender: str = ""
    """As in `Append`."""


@attrs.frozen(kw_only=True)
class InboxLimits:
    """What inboxes take. An inbox message that does not fit is not kept."""

    messages: int
    """In one inbox; what has expired does not count."""
    bytes: int
    """In one inbox, likewise."""
    total_bytes: int
    """In all inboxes together (`refusal`); here what has expired counts until it is swept."""


@attrs.frozen
class InboxResult:
    """What became of an inbox message."""

    seq: int
    """Its number in the inbox; 0: it was not kept, for the reason `refusal`."""
    duplicate: bool
    refusal: Refusal | None = None


@attrs.frozen
class StoredInboxMessage:
    """An inbox message that waits in an inbox."""

    seq: int
    payload: bytes
    at: float
    expires_at: float | None


@attrs.frozen
class SavedSession:
    """A session of a client, for whatever node it comes back to. The store does not look into the payload."""

    id: str
    payload: bytes | None
    """None: the session has ended."""
    expires_at: float


@attrs.frozen
class GroupChange:
    """A user is added to a group, or removed from it."""

    group: str
    user: str
    added: bool


def refusal(sender: str, of_sender: int, of_all: int, size: int, total_bytes: int) -> Refusal | None:
    """For engines: whether there is space for `size` bytes more; None: there is.

    A sender may have as many bytes here as are free for all others. So one sender can take half of the space, two a third each,
    and there is always some left for those who have little. The server itself may take all.
    """
    free = total_bytes - of_all
    if size > free:
        return Refusal.TOTAL
    return Refusal.SENDER if sender and of_sender + size > free else None


_Record = TypeVar("_Record", Record, StoredInboxMessage)


class Store(abc.ABC):
    """Keeps messages and inbox messages. Made by `open_store`.

    All calls may be made by many tasks at once and raise StoreError, after which the next call tries anew, or
    trio.ClosedResourceError after `aclose`. Safe to cancel, but a cancelled write may have been done. Nothing bounds
    the calls that wait: callers do. Names and keys are any Unicode text that UTF-8 can carry.
    """

    durable: bool
    """Whether what it has committed outlives the process."""

    @abc.abstractmethod
    async def append(self, appends: Sequence[Append], *, total_bytes: int = UNLIMITED) -> list[Appended]:
        """Keep messages, in order, each for which there is space (`refusal`): committed on return.

        `total_bytes` is what the messages of all rooms may take together. What has expired, or is beyond the retention, counts
        until it is deleted, which may be at the next sweep.
        """

    @abc.abstractmethod
    async def read(self, room: str, *, after: int, limit: int, max_bytes: int, now: float) -> HistoryRecords:
        """The oldest `limit` records with an offset above `after`, oldest first.

        Ends at `max_bytes` of payload, but not before the first record. A room that does not exist is not made:
        its page is `HistoryRecords("", 1, 0, [])`.
        """

    @abc.abstractmethod
    async def read_newest(self, room: str, *, limit: int, max_bytes: int, now: float) -> HistoryRecords:
        """As `read`, the newest `limit` records, oldest first; at `max_bytes` the older ones are left out."""

    @abc.abstractmethod
    async def positions(self, rooms: Sequence[str]) -> list[tuple[str, int]]:
        """The epoch and the newest offset of rooms, ("", 0) for one that does not exist."""

    @abc.abstractmethod
    async def add_to_inboxes(self, inbox_messages: Sequence[InboxMessage], *, limits: InboxLimits) -> list[InboxResult]:
        """Put inbox messages into inboxes, in order, each if it fits: committed on return."""

    @abc.abstractmethod
    async def read_inbox(
        self, user: str, *, after: int, limit: int, max_bytes: int, now: float
    ) -> list[StoredInboxMessage]:
        """The oldest `limit` inbox messages with a seq above `after`, oldest first. Ends at `max_bytes` as `read`."""

    def may_have_inbox_messages(self, user: str) -> bool:
        """Whether inbox messages may wait for a user: without asking anybody, and never wrongly False.

        It spares a look into the inbox at each arrival; an engine that cannot tell says True.
        """
        return True

    @abc.abstractmethod
    async def acknowledge(self, user: str, upto: int) -> None:
        """Forget a user's inbox messages up to this seq. Committed on return."""

    # --- what nodes of a cluster share

    @abc.abstractmethod
    async def save_sessions(self, sessions: Sequence[SavedSession]) -> None:
        """Keep sessions, each in the place of what was kept of it, or forget it. Committed on return."""

    @abc.abstractmethod
    async def load_session(self, id: str, now: float) -> bytes | None:
        """The payload of a session; None when there is none, or it has expired."""

    @abc.abstractmethod
    async def take_session(self, id: str, now: float) -> bytes | None:
        """As `load_session`, and forget it: of several callers, one gets it. Committed on return."""

    @abc.abstractmethod
    async def change_groups(self, changes: Sequence[GroupChange]) -> None:
        """Change groups, in order. Committed on return."""

    @abc.abstractmethod
    async def read_groups(self) -> list[tuple[str, str]]:
        """All groups: a group and a user of it, each."""

    # --- the rest

    @abc.abstractmethod
    async def sweep(self, now: float, inbox_age: float) -> None:
        """Forget what has expired or is too old, inbox messages after `inbox_age` seconds, old keys, inboxes long empty.

        To be called now and then, once a minute say; reads leave out what rooms should have forgotten without it.
        """

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Finish what waits, then close. Closes when it is cancelled, too."""


def within(records: Iterable[_Record], max_bytes: int) -> list[_Record]:
    """For engines: the first records, or inbox messages, as many as have `max_bytes` of payload together, at least one."""
    taken: list[_Record] = []
    for record in records:
        max_bytes -= len(record.payload)
        if max_bytes < 0 and taken:
            break
        taken.append(record)
    return taken
