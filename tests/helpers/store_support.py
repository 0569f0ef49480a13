"""Short ways to ask a store for something."""

from trioswitch.stores.port import (
    Append,
    HistoryRecords,
    InboxLimits,
    InboxMessage,
    Retention,
    Store,
    StoredInboxMessage,
)

ENDLESS = Retention(1000, None)
PLENTY = 1 << 20


def message(
    payload: bytes | str = b"x",
    room: str = "room",
    *,
    at: float = 100.0,
    expires_at: float | None = None,
    key: str | None = None,
    retention: Retention = ENDLESS,
    sender: str = "",
) -> Append:
    data = payload.encode() if isinstance(payload, str) else payload
    return Append(room=room, payload=data, at=at, expires_at=expires_at, key=key, retention=retention, sender=sender)


def inbox_message(
    payload: bytes = b"x",
    user: str = "ann",
    *,
    at: float = 100.0,
    expires_at: float | None = None,
    key: str | None = None,
    sender: str = "",
) -> InboxMessage:
    return InboxMessage(user=user, payload=payload, at=at, expires_at=expires_at, key=key, sender=sender)


def upto(inbox_messages: int, *, size: int = 1 << 30, total: int = 1 << 40) -> InboxLimits:
    return InboxLimits(messages=inbox_messages, bytes=size, total_bytes=total)


async def fill(
    store: Store, count: int, room: str = "room", *, at: float = 100.0, retention: Retention = ENDLESS
) -> str:
    """Append messages `1`, `2` ... and return the epoch."""
    appended = await store.append([message(str(n + 1), room, at=at, retention=retention) for n in range(count)])
    return appended[0].epoch


async def read(
    store: Store, room: str = "room", *, after: int = 0, limit: int = 100, max_bytes: int = PLENTY, now: float = 100.0
) -> HistoryRecords:
    return await store.read(room, after=after, limit=limit, max_bytes=max_bytes, now=now)


async def newest(
    store: Store, room: str = "room", *, limit: int = 100, max_bytes: int = PLENTY, now: float = 100.0
) -> HistoryRecords:
    return await store.read_newest(room, limit=limit, max_bytes=max_bytes, now=now)


async def inbox_messages(
    store: Store, user: str = "ann", *, after: int = 0, limit: int = 100, max_bytes: int = PLENTY, now: float = 100.0
) -> list[StoredInboxMessage]:
    return await store.read_inbox(user, after=after, limit=limit, max_bytes=max_bytes, now=now)


def offsets(page: HistoryRecords) -> list[int]:
    return [record.offset for record in page.records]


def bounds(page: HistoryRecords) -> tuple[int, int]:
    return page.first, page.last
