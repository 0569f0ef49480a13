"""The store in memory: histories and inboxes that last as long as the process.

Bounded by the retention of the rooms, the limits of the inboxes, and a few hundred bytes for each inbox message, room and user.
"""

import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from math import inf
from operator import attrgetter
from typing import Final

import attrs
import trio

from .._util.shares import Shares
from .port import (
    KEY_TIME,
    POSITION_TIME,
    UNLIMITED,
    Append,
    Appended,
    GroupChange,
    HistoryRecords,
    InboxLimits,
    InboxMessage,
    InboxResult,
    Record,
    Refusal,
    Retention,
    SavedSession,
    Store,
    StoredInboxMessage,
    refusal,
    within,
)

__all__ = ["MemoryStore"]

SLACK: Final = 64
"""Records below the retention after which they are cut off: each cut moves the whole list."""
SWEEP_STEP: Final = 64
"""Rooms or inboxes after which a sweep lets other tasks run."""

_offset = attrgetter("offset")
_seq = attrgetter("seq")


@attrs.define(eq=False)
class _Room:
    retention: Retention
    senders: Shares[str]
    """Bytes of the messages of all rooms, by sender."""
    epoch: str = attrs.field(factory=lambda: secrets.token_urlsafe(6))
    first: int = 1
    """What is below it is gone, though some of it may still be in the list."""
    last: int = 0
    at: float = -inf
    """The greatest `at` of its messages."""
    records: list[Record] = attrs.field(factory=list)
    sender_of: dict[int, str] = attrs.field(factory=dict)
    """By offset; none for the server itself."""

    def append(self, append: Append) -> int:
        self.last += 1
        self.at = max(self.at, append.at)
        self.records.append(Record(self.last, append.payload, append.at, append.expires_at))
        self.senders.add(append.sender, len(append.payload))
        if append.sender:
            self.sender_of[self.last] = append.sender
        self.retention = append.retention
        self._rise(self.last - self.retention.size + 1)
        return self.last

    def page(self, records: Iterator[Record], limit: int, max_bytes: int) -> HistoryRecords:
        return HistoryRecords(self.epoch, self.first, self.last, within(islice(records, limit), max_bytes))

    def rising(self, after: int, now: float) -> Iterator[Record]:
        """The records above an offset that are kept."""
        start = bisect_right(self.records, max(after, self.first - 1), key=_offset)
        return self._alive(range(start, len(self.records)), now)

    def falling(self, now: float) -> Iterator[Record]:
        """The records that are kept, the newest first."""
        start = bisect_left(self.records, self.first, key=_offset)
        return self._alive(reversed(range(start, len(self.records))), now)

    def trim(self, now: float) -> None:
        """Let go of what has become too old."""
        oldest = self._oldest(now)
        if self.at < oldest:
            self._rise(self.last + 1)
            return
        first = self.first
        index = bisect_left(self.records, first, key=_offset)
        while index < len(self.records) and (record := self.records[index]).at < oldest:
            first = record.offset + 1
            index += 1
        self._rise(first)

    def sweep(self, now: float) -> None:
        self.trim(now)
        kept: list[Record] = []
        for one in self.records:
            if one.offset >= self.first and not _expired(one, now):
                kept.append(one)
            else:
                self._release(one)
        self.records = kept

    def forgettable(self, now: float) -> bool:
        return self.first > self.last and self.at < self._oldest(now) - POSITION_TIME

    def _oldest(self, now: float) -> float:
        return -inf if self.retention.age is None else now - self.retention.age

    def _alive(self, indices: Iterator[int] | range, now: float) -> Iterator[Record]:
        oldest = self._oldest(now)
        for index in indices:
            record = self.records[index]
            if record.at >= oldest and not _expired(record, now):
                yield record

    def _rise(self, first: int) -> None:
        """What is below `first` is gone."""
        self.first = max(self.first, first)
        if self.records and self.first - self.records[0].offset > SLACK:
            gone = bisect_left(self.records, self.first, key=_offset)
            for one in self.records[:gone]:
                self._release(one)
            del self.records[:gone]

    def _release(self, record: Record) -> None:
        self.senders.add(self.sender_of.pop(record.offset, ""), -len(record.payload))


@attrs.define(eq=False)
class _Inbox:
    senders: Shares[str]
    """Bytes of the inbox messages of all users, by sender."""
    last: int = 0
    at: float = -inf
    """The greatest `at` of its inbox messages."""
    inbox_messages: list[StoredInboxMessage] = attrs.field(factory=list)
    sender_of: dict[int, str] = attrs.field(factory=dict)
    """By seq; none for the server itself."""

    def post(self, inbox_message: InboxMessage, limits: InboxLimits) -> int:
        sizes = [len(one.payload) for one in self.inbox_messages if not _expired(one, inbox_message.at)]
        if len(sizes) >= limits.messages or sum(sizes) + len(inbox_message.payload) > limits.bytes:
            return 0
        self.last += 1
        self.at = max(self.at, inbox_message.at)
        payload, sender = inbox_message.payload, inbox_message.sender
        self.inbox_messages.append(StoredInboxMessage(self.last, payload, inbox_message.at, inbox_message.expires_at))
        self.senders.add(sender, len(payload))
        if sender:
            self.sender_of[self.last] = sender
        return self.last

    def acknowledge(self, upto: int) -> None:
        index = bisect_right(self.inbox_messages, upto, key=_seq)
        self._release(self.inbox_messages[:index])
        del self.inbox_messages[:index]

    def sweep(self, now: float, age: float) -> None:
        old = [one for one in self.inbox_messages if one.at < now - age or _expired(one, now)]
        if old:
            self._release(old)
            gone = {one.seq for one in old}
            self.inbox_messages = [one for one in self.inbox_messages if one.seq not in gone]

    def _release(self, gone: Sequence[StoredInboxMessage]) -> None:
        for one in gone:
            self.senders.add(self.sender_of.pop(one.seq, ""), -len(one.payload))


class _Keys:
    """What idempotency keys stand for, in two generations: forgetting the older one is one assignment."""

    def __init__(self) -> None:
        self._young: dict[tuple[str, str], int] = {}
        self._old: dict[tuple[str, str], int] = {}
        self._turned_at = -inf

    def get(self, owner: str, key: str | None) -> int | None:
        return None if key is None else self._young.get((owner, key)) or self._old.get((owner, key))

    def put(self, owner: str, key: str | None, number: int) -> None:
        if key is not None:
            self._young[owner, key] = number

    def sweep(self, now: float) -> None:
        if now - self._turned_at > KEY_TIME:
            self._young, self._old, self._turned_at = {}, self._young, now


class MemoryStore(Store):
    """Keeps everything in this process. Belongs to its Trio thread; never raises StoreError."""

    durable = False

    def __init__(self) -> None:
        self._rooms: dict[str, _Room] = {}
        self._inboxes: dict[str, _Inbox] = {}
        self._room_senders: Shares[str] = Shares()
        self._inbox_senders: Shares[str] = Shares()
        self._forgotten_seq = 0  # the greatest of the inboxes that were forgotten
        self._room_keys = _Keys()
        self._inbox_keys = _Keys()
        self._sessions: dict[str, SavedSession] = {}
        self._groups: dict[tuple[str, str], None] = {}
        self._closed = False

    async def append(self, appends: Sequence[Append], *, total_bytes: int = UNLIMITED) -> list[Appended]:
        await self._checkpoint()
        return [self._append(append, total_bytes) for append in appends]

    async def read(self, room: str, *, after: int, limit: int, max_bytes: int, now: float) -> HistoryRecords:
        await self._checkpoint()
        if (found := self._rooms.get(room)) is None:
            return HistoryRecords("", 1, 0, [])
        found.trim(now)
        return found.page(found.rising(after, now), limit, max_bytes)

    async def read_newest(self, room: str, *, limit: int, max_bytes: int, now: float) -> HistoryRecords:
        await self._checkpoint()
        if (found := self._rooms.get(room)) is None:
            return HistoryRecords("", 1, 0, [])
        found.trim(now)
        page = found.page(found.falling(now), limit, max_bytes)
        page.records.reverse()
        return page

    async def positions(self, rooms: Sequence[str]) -> list[tuple[str, int]]:
        await self._checkpoint()
        found = [self._rooms.get(room) for room in rooms]
        return [("", 0) if room is None else (room.epoch, room.last) for room in found]

    async def add_to_inboxes(self, inbox_messages: Sequence[InboxMessage], *, limits: InboxLimits) -> list[InboxResult]:
        await self._checkpoint()
        return [self._post(inbox_message, limits) for inbox_message in inbox_messages]

    def may_have_inbox_messages(self, user: str) -> bool:
        inbox = self._inboxes.get(user)
        return inbox is not None and bool(inbox.inbox_messages)

    async def read_inbox(
        self, user: str, *, after: int, limit: int, max_bytes: int, now: float
    ) -> list[StoredInboxMessage]:
        await self._checkpoint()
        inbox = self._inboxes.get(user)
        waiting = (
            one
            for one in (inbox.inbox_messages if inbox is not None else ())
            if one.seq > after and not _expired(one, now)
        )
        return within(islice(waiting, limit), max_bytes)

    async def acknowledge(self, user: str, upto: int) -> None:
        await self._checkpoint()
        if (inbox := self._inboxes.get(user)) is not None:
            inbox.acknowledge(upto)

    async def save_sessions(self, sessions: Sequence[SavedSession]) -> None:
        await self._checkpoint()
        for session in sessions:
            if session.payload is None:
                self._sessions.pop(session.id, None)
            else:
                self._sessions[session.id] = session

    async def load_session(self, id: str, now: float) -> bytes | None:
        await self._checkpoint()
        session = self._sessions.get(id)
        return None if session is None or session.expires_at <= now else session.payload

    async def take_session(self, id: str, now: float) -> bytes | None:
        await self._checkpoint()
        session = self._sessions.pop(id, None)
        return None if session is None or session.expires_at <= now else session.payload

    async def change_groups(self, changes: Sequence[GroupChange]) -> None:
        await self._checkpoint()
        for change in changes:
            if change.added:
                self._groups[change.group, change.user] = None
            else:
                self._groups.pop((change.group, change.user), None)

    async def read_groups(self) -> list[tuple[str, str]]:
        await self._checkpoint()
        return sorted(self._groups)

    async def sweep(self, now: float, inbox_age: float) -> None:
        await self._checkpoint()
        self._sessions = {id: session for id, session in self._sessions.items() if session.expires_at > now}
        self._room_keys.sweep(now)
        self._inbox_keys.sweep(now)
        for number, (name, room) in enumerate(list(self._rooms.items()), 1):
            room.sweep(now)
            if room.forgettable(now):
                del self._rooms[name]
            if number % SWEEP_STEP == 0:
                await trio.lowlevel.checkpoint()
        for number, user in enumerate(list(self._inboxes), 1):
            self._sweep_inbox(user, now, inbox_age)
            if number % SWEEP_STEP == 0:
                await trio.lowlevel.checkpoint()

    def _sweep_inbox(self, user: str, now: float, age: float) -> None:
        if (inbox := self._inboxes.get(user)) is None:
            return  # another sweep has forgotten it
        inbox.sweep(now, age)
        if not inbox.inbox_messages and inbox.at < now - age - POSITION_TIME:
            self._forgotten_seq = max(self._forgotten_seq, inbox.last)
            del self._inboxes[user]

    async def aclose(self) -> None:
        self._closed = True
        await trio.lowlevel.checkpoint()

    async def _checkpoint(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the store was closed")
        await trio.lowlevel.checkpoint()

    def _append(self, append: Append, total_bytes: int) -> Appended:
        senders = self._room_senders
        room = self._rooms.get(append.room) or _Room(append.retention, senders)
        if (known := self._room_keys.get(append.room, append.key)) is not None:
            return Appended(room.epoch, known, duplicate=True)
        sender, size = append.sender, len(append.payload)
        if (refused := refusal(sender, senders[sender], senders.total, size, total_bytes)) is not None:
            return Appended(room.epoch, 0, duplicate=False, refusal=refused)
        self._rooms[append.room] = room
        offset = room.append(append)
        self._room_keys.put(append.room, append.key, offset)
        return Appended(room.epoch, offset, duplicate=False)

    def _post(self, inbox_message: InboxMessage, limits: InboxLimits) -> InboxResult:
        if (known := self._inbox_keys.get(inbox_message.user, inbox_message.key)) is not None:
            return InboxResult(known, duplicate=True)
        inbox = self._inboxes.get(inbox_message.user) or _Inbox(self._inbox_senders, self._forgotten_seq)
        senders, sender, size = self._inbox_senders, inbox_message.sender, len(inbox_message.payload)
        if (refused := refusal(sender, senders[sender], senders.total, size, limits.total_bytes)) is not None:
            return InboxResult(0, duplicate=False, refusal=refused)
        seq = inbox.post(inbox_message, limits)
        if not seq:
            return InboxResult(0, duplicate=False, refusal=Refusal.INBOX)
        self._inboxes[inbox_message.user] = inbox
        self._inbox_keys.put(inbox_message.user, inbox_message.key, seq)
        return InboxResult(seq, duplicate=False)


def _expired(one: Record | StoredInboxMessage, now: float) -> bool:
    return one.expires_at is not None and one.expires_at <= now
