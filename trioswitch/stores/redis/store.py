"""The store on Redis: shared by nodes on several machines. Redis 6 or later.

Each write is a script, executed as one step. Commands of all tasks go out together. How durable what it has committed is, says
the configuration of Redis (`appendonly`, `appendfsync`, replicas): see docs/cluster.md.
"""

import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from ..._util.nurseries import open_nursery
from ...errors import StoreError
from ...redis.client import RedisClient
from ...redis.connection import CONNECT_TIMEOUT, Command, RedisConnection, RedisError, RedisLost
from ...redis.url import RedisUrl, Topology
from ..port import (
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
    SavedSession,
    Store,
    StoredInboxMessage,
)
from .scripts import SCRIPTS

__all__ = ["RedisStore", "open_redis_store"]

_log = logging.getLogger(__name__)

VERSION: Final = 1
"""Of the keys and what is in them."""
CALL_TIMEOUT: Final = 5.0
"""Seconds that Redis may take for a call."""
REPLICA_TIMEOUT: Final = 1.0
"""Seconds that replicas may take to have what was committed."""
SWEEP_STEP: Final = 200
"""Rooms, inboxes or messages after which a sweep lets other commands pass."""
GREATEST: Final = 2**53
"""The greatest offset and seq: scripts count in floating point. At a million messages a second, that is 285 years."""
_HASHES: Final = {
    name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in SCRIPTS.items()
}


@asynccontextmanager
async def open_redis_store(url: RedisUrl) -> "AsyncIterator[RedisStore]":
    """Connect, and stay connected until the block is left. Raises StoreError when Redis cannot be used at all."""
    store = RedisStore(url)
    async with open_nursery() as nursery:
        nursery.start_soon(store.run)
        try:
            await store.wait_connected()
            yield store
        finally:
            await store.aclose()
            nursery.cancel_scope.cancel()


class RedisStore(Store):
    """Made by `open_store`."""

    durable = True

    def __init__(self, url: RedisUrl) -> None:
        self._client = RedisClient(url)
        self._prefix = url.prefix
        self._replicas = url.replicas
        self._closed = False
        self._first = trio.Event()  # it was connected, or could not be
        self._connected = False

    # --- the connection

    async def run(self) -> None:
        await self._client.run(self._prepare, self._on_lost)

    async def wait_connected(self) -> None:
        """Wait for the first connection. Raises StoreError."""
        with trio.move_on_after(2 * CONNECT_TIMEOUT):
            await self._first.wait()
        if not self._connected:
            raise StoreError(self._client.reason)

    async def _prepare(self, connection: RedisConnection) -> None:
        for reply in await connection.calls([("SCRIPT", "LOAD", text) for text in SCRIPTS.values()]):
            if isinstance(reply, RedisError):
                raise reply
        await connection.call("SET", self._key("version"), VERSION, "NX")
        found = await connection.call("GET", self._key("version"))
        if found != b"%d" % VERSION:
            name, version = self._prefix.strip("{}"), found.decode(errors="replace")
            place = connection.place
            raise RedisError(f"what {name!r} keeps at {place} has version {version}: this server takes {VERSION}")
        alone = self._client.url.topology is Topology.SERVER  # else another server may have taken over, which had less
        safe = self._replicas > 0 or (alone and await _writes_through(connection))
        keys = [self._key("run"), self._key("generation")]
        if generation := await connection.call(*self._script("begin", keys, [connection.run_id, int(safe)])):
            _log.warning(
                "Redis at %s was restarted, and may have lost messages: epochs end (%d)", connection.place, generation
            )
        self._connected = True
        self._first.set()

    def _on_lost(self, _reason: str) -> None:
        self._first.set()

    async def _calls(self, commands: Sequence[Command]) -> list[Any]:
        """Raises StoreError, also for an error of any command."""
        if self._closed:
            raise trio.ClosedResourceError("the store was closed")
        try:
            with trio.fail_after(CALL_TIMEOUT):
                replies = await self._client.calls(commands)
                if any(isinstance(reply, RedisError) and str(reply).startswith("NOSCRIPT") for reply in replies):
                    await self._client.calls([("SCRIPT", "LOAD", text) for text in SCRIPTS.values()])
                    replies = await self._client.calls(commands)
        except RedisLost as lost:
            raise StoreError(str(lost)) from None
        except trio.TooSlowError:
            reason = f"Redis at {self._client.place} has not answered within {CALL_TIMEOUT:g} s"
            self._client.drop(reason)
            raise StoreError(reason) from None
        for reply in replies:
            if isinstance(reply, RedisError):
                raise StoreError(f"Redis at {self._client.place} has refused a command: {reply}")
        return replies

    async def _commit(self, commands: Sequence[Command]) -> list[Any]:
        """As `_calls`, and wait until the replicas have it, too. Raises StoreError when they do not, as far as one knows."""
        if not commands or not self._replicas:
            return await self._calls(commands)
        *replies, replicas = await self._calls([*commands, ("WAIT", self._replicas, int(1000 * REPLICA_TIMEOUT))])
        if replicas < self._replicas:
            raise StoreError(f"only {replicas} of {self._replicas} replicas of Redis at {self._client.place} have it")
        return replies

    async def _read_committed(self, commands: Sequence[Command]) -> list[Any]:
        """As `_calls`, of what the replicas have, too. Raises StoreError when they lack something.

        After a failover, what only the primary had is gone, and other messages get its offsets: nobody may have seen it. WAIT
        waits for what the same connection has written last, so something is written after the reads.
        """
        if not self._replicas:
            return await self._calls(commands)
        *replies, _written = await self._commit([*commands, ("SET", self._key("fence"), 1)])
        return replies

    # --- keys and scripts

    def _key(self, kind: str, name: str | None = None) -> str:
        return f"{self._prefix}:{kind}" if name is None else f"{self._prefix}:{kind}:{name.encode().hex()}"

    def _script(self, script: str, keys: Sequence[str], arguments: Sequence[bytes | str | int | float]) -> Command:
        return ("EVALSHA", _HASHES[script], len(keys), *keys, *arguments)

    # --- rooms

    async def append(self, appends: Sequence[Append], *, total_bytes: int = UNLIMITED) -> list[Appended]:
        replies = await self._commit([self._append(append, total_bytes) for append in appends])
        return [
            Appended(epoch.decode(), offset, bool(duplicate), _refusal(refused))
            for epoch, offset, duplicate, refused in replies
        ]

    def _append(self, append: Append, total_bytes: int) -> Command:
        name, retention = append.room, append.retention
        keys = [
            *(self._key("room", name), self._key("log", name), self._key("keys", name), self._key("room_bytes")),
            *(self._key("rooms"), self._key("expiring"), self._key("idempotency"), self._key("generation")),
        ]
        return self._script(
            "append",
            keys,
            [
                *(name.encode().hex(), append.payload, repr(append.at), _time(append.expires_at), append.sender),
                *(retention.size, _time(retention.age), total_bytes, secrets.token_urlsafe(6)),
                *(("1", append.key) if append.key is not None else ("0", "")),
            ],
        )

    async def read(self, room: str, *, after: int, limit: int, max_bytes: int, now: float) -> HistoryRecords:
        return await self._read(room, min(after, GREATEST), limit, max_bytes, now)

    async def read_newest(self, room: str, *, limit: int, max_bytes: int, now: float) -> HistoryRecords:
        found = await self._read(room, "", limit, max_bytes, now)
        found.records.reverse()
        return found

    async def _read(self, room: str, after: int | str, limit: int, max_bytes: int, now: float) -> HistoryRecords:
        keys = [self._key("room", room), self._key("log", room), self._key("generation")]
        ((epoch, first, last, entries),) = await self._read_committed(
            [self._script("read", keys, [after, limit, max_bytes, repr(now)])]
        )
        records = [Record(offset, payload, float(at), _expires(expires)) for offset, payload, at, expires in entries]
        return HistoryRecords(epoch.decode(), first, last, records)

    async def positions(self, rooms: Sequence[str]) -> list[tuple[str, int]]:
        commands = [("HMGET", self._key("room", room), "e", "last") for room in rooms]
        generation, *replies = await self._read_committed([("GET", self._key("generation")), *commands])
        ending = "" if generation is None else f".{generation.decode()}"
        return [("", 0) if epoch is None else (epoch.decode() + ending, int(last)) for epoch, last in replies]

    # --- inboxes

    async def add_to_inboxes(self, inbox_messages: Sequence[InboxMessage], *, limits: InboxLimits) -> list[InboxResult]:
        replies = await self._commit([self._post(each, limits) for each in inbox_messages])
        return [InboxResult(seq, bool(duplicate), _refusal(refused)) for seq, duplicate, refused in replies]

    def _post(self, each: InboxMessage, limits: InboxLimits) -> Command:
        user = each.user
        keys = [
            *(self._key("inbox", user), self._key("mail", user), self._key("mailkeys", user), self._key("inbox_bytes")),
            *(self._key("inboxes"), self._key("mail_expiring"), self._key("mail_age"), self._key("idempotency")),
            *(self._key("forgotten"), self._key("generation")),
        ]
        return self._script(
            "post",
            keys,
            [
                *(user.encode().hex(), each.payload, repr(each.at), _time(each.expires_at), each.sender),
                *(limits.messages, limits.bytes, limits.total_bytes),
                *(("1", each.key) if each.key is not None else ("0", "")),
            ],
        )

    async def read_inbox(
        self, user: str, *, after: int, limit: int, max_bytes: int, now: float
    ) -> list[StoredInboxMessage]:
        arguments: list[str | int] = [min(after, GREATEST), limit, max_bytes, repr(now)]
        (entries,) = await self._read_committed([self._script("read_inbox", [self._key("mail", user)], arguments)])
        return [StoredInboxMessage(seq, payload, float(at), _expires(expires)) for seq, payload, at, expires in entries]

    async def acknowledge(self, user: str, upto: int) -> None:
        await self._calls([self._remove_mail(user, 1, min(upto, GREATEST))])

    def _remove_mail(self, user: str, first: int, last: int) -> Command:
        keys = [
            *(self._key("inbox", user), self._key("mail", user), self._key("inbox_bytes")),
            *(self._key("mail_expiring"), self._key("mail_age")),
        ]
        return self._script("remove_mail", keys, [user.encode().hex(), first, last])

    # --- what nodes of a cluster share

    async def save_sessions(self, sessions: Sequence[SavedSession]) -> None:
        commands: list[Command] = []
        for session in sessions:
            key, index = self._key("session", session.id), self._key("sessions")
            if session.payload is None:
                commands += [("DEL", key), ("ZREM", index, session.id)]
            else:
                expires = repr(session.expires_at)
                commands += [("HSET", key, "p", session.payload, "x", expires), ("ZADD", index, expires, session.id)]
        await self._calls(commands)

    async def load_session(self, id: str, now: float) -> bytes | None:
        ((payload, expires),) = await self._calls([("HMGET", self._key("session", id), "p", "x")])
        return _session(payload, expires, now)

    async def take_session(self, id: str, now: float) -> bytes | None:
        keys = [self._key("session", id), self._key("sessions")]
        ((payload, expires),) = await self._calls([self._script("take_session", keys, [id])])
        return _session(payload, expires, now)

    async def change_groups(self, changes: Sequence[GroupChange]) -> None:
        await self._calls(
            [("SADD" if change.added else "SREM", self._key("groups"), _member(change)) for change in changes]
        )

    async def read_groups(self) -> list[tuple[str, str]]:
        (members,) = await self._calls([("SMEMBERS", self._key("groups"))])
        return [_group(member) for member in members]

    # --- sweeping, in steps

    async def sweep(self, now: float, inbox_age: float) -> None:
        async for member in self._due("expiring", now):
            name, _, offset = member.rpartition(":")
            keys = [f"{self._prefix}:log:{name}", self._key("room_bytes"), self._key("expiring")]
            await self._calls([self._script("remove_message", keys, [name, offset])])
        await self._sweep_rooms(now)
        for index, before in (("mail_expiring", now), ("mail_age", now - inbox_age)):
            async for member in self._due(index, before):
                name, _, seq = member.rpartition(":")
                user = bytes.fromhex(name).decode()
                await self._calls([self._remove_mail(user, int(seq), int(seq)), ("ZREM", self._key(index), member)])
        await self._sweep_inboxes(now - inbox_age - POSITION_TIME)
        async for member in self._due("idempotency", now - KEY_TIME):
            kind, name, key = member.split(":", 2)
            keys_of = f"{self._prefix}:{'keys' if kind == 'r' else 'mailkeys'}:{name}"
            await self._calls([("HDEL", keys_of, key), ("ZREM", self._key("idempotency"), member)])
        async for id in self._due("sessions", now):
            await self._calls([("DEL", self._key("session", id)), ("ZREM", self._key("sessions"), id)])

    async def _due(self, index: str, before: float) -> AsyncIterator[str]:
        """Members of a sorted set below a time. Whoever gets one removes it."""
        while True:
            command = ("ZRANGEBYSCORE", self._key(index), "-inf", f"({before!r}", "LIMIT", 0, SWEEP_STEP)
            (members,) = await self._calls([command])
            for member in members:
                yield member.decode()
            if len(members) < SWEEP_STEP:
                return

    async def _sweep_rooms(self, now: float) -> None:
        async for name in self._all("rooms"):
            keys = [
                *(f"{self._prefix}:room:{name}", f"{self._prefix}:log:{name}", self._key("room_bytes")),
                *(self._key("rooms"), f"{self._prefix}:keys:{name}"),
            ]
            await self._calls([self._script("sweep_room", keys, [name, repr(now), POSITION_TIME])])

    async def _sweep_inboxes(self, before: float) -> None:
        async for name in self._due_once("inboxes", before):
            keys = [
                f"{self._prefix}:inbox:{name}",
                f"{self._prefix}:mail:{name}",
                self._key("inboxes"),
                self._key("forgotten"),
            ]
            await self._calls([self._script("sweep_inbox", keys, [name, repr(before)])])

    async def _all(self, index: str) -> AsyncIterator[str]:
        """All members of a sorted set, as far as they stay there."""
        cursor = b"0"
        while True:
            ((cursor, members),) = await self._calls([("ZSCAN", self._key(index), cursor, "COUNT", SWEEP_STEP)])
            for member in members[::2]:
                yield member.decode()
            if cursor == b"0":
                return

    async def _due_once(self, index: str, before: float) -> AsyncIterator[str]:
        (members,) = await self._calls([("ZRANGEBYSCORE", self._key(index), "-inf", f"({before!r}")])
        for member in members:
            yield member.decode()

    async def aclose(self) -> None:
        self._closed = True
        await trio.lowlevel.checkpoint()


async def _writes_through(connection: RedisConnection) -> bool:
    """Whether each commit is on the disk: then a server that starts again has all that was acknowledged."""
    try:
        found = await connection.calls([("CONFIG", "GET", name) for name in ("appendonly", "appendfsync")])
        return [each[1] for each in found] == [b"yes", b"always"]
    except (TypeError, IndexError, KeyError):
        return False  # a provider does not allow the question


def _time(seconds: float | None) -> str:
    return "" if seconds is None else repr(seconds)


def _expires(text: bytes) -> float | None:
    return float(text) if text else None


def _refusal(text: bytes) -> Refusal | None:
    return Refusal(text.decode()) if text else None


def _session(payload: bytes | None, expires: bytes | None, now: float) -> bytes | None:
    return payload if payload is not None and expires is not None and float(expires) > now else None


def _member(change: GroupChange) -> bytes:
    group = change.group.encode()
    return b"%d:%b%b" % (len(group), group, change.user.encode())


def _group(member: bytes) -> tuple[str, str]:
    length, _, rest = member.partition(b":")
    return rest[: int(length)].decode(), rest[int(length) :].decode()
