"""The store writer: messages of stored rooms on their way into the store, their histories, and the sweep of old messages.

Messages of all rooms are committed in common batches (`group_commit`). A room gets its messages back in the order of their
offsets, and delivers them then.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Final

import trio

from .._util import clock
from .._util.wakeup import Wakeup
from ..config import Options
from ..errors import StorageFull, StoreError, TrioswitchError
from ..rooms.history import IN_MEMORY, History, HistoryBudget
from ..rooms.room import Room
from ..stores.port import Append, Appended, HistoryRecords, Record, Refusal, Store
from ..wire.messages import Recorded
from ..wire.prepared import Prepared
from ..wire.records import decode_record, encode_record
from .group_commit import GroupCommit
from .store_health import StoreHealth

__all__ = ["PAGE_BYTES", "StoreWriter"]

_log = logging.getLogger(__name__)

SWEEP_INTERVAL: Final = 60.0
"""Seconds between two sweeps, in which the store forgets what is too old."""
PAGE_BYTES: Final = 256 * 1024
"""Bytes of messages that are read from the store at once, or put into the answer to one `history`."""


class StoreWriter:
    """Writes the messages of stored rooms, and reads their histories."""

    def __init__(self, store: Store, health: StoreHealth, budget: HistoryBudget, options: Options) -> None:
        self._store = store
        self._health = health
        self._options = options
        self._budget = budget
        self._commits: GroupCommit[tuple[Room, Prepared], Append, Appended] = GroupCommit(
            health, encode=_to_append, write=self._append, succeeded=_on_committed, failed=_on_commit_failed
        )
        self._to_load: dict[Room, Wakeup] = {}  # rooms whose history is to be loaded, and who waits for it

    @property
    def uncommitted(self) -> int:
        """Messages that wait for the store, or are being committed."""
        return self._commits.uncommitted

    # --- in

    def submit(self, room: Room, message: Prepared) -> None:
        """Take a message for the store. The room bounds how many of its messages are here."""
        self._commits.add((room, message))

    async def load_history(self, room: Room) -> History:
        """The history of a room, loaded from the store if need be. Raises StoreError. Safe to cancel."""
        while room.history is None:
            loaded = self._to_load.get(room)
            if loaded is None:
                loaded = self._to_load[room] = Wakeup()
                self._commits.wake()
            with room.pinned():
                await loaded.wait()
            if room.history is None:
                raise StoreError(self._health.error or f"the history of {room.name!r} cannot be read")
        return room.history

    # --- the task

    async def _append(self, appends: Sequence[Append]) -> Sequence[Appended]:
        return await self._store.append(appends, total_bytes=self._options.total_stored_bytes)

    async def run(self) -> None:
        """The task that writes what is pending. Started again after a crash, it goes on with it."""
        while True:
            while self._commits.pending or self._to_load:
                batch = self._commits.next_batch()
                await self._load_histories(batch)
                await self._commits.commit_batch(
                    len(batch)
                )  # and not what has come since, for rooms that are not loaded
            await self._commits.wait()

    async def _load_histories(self, batch: Sequence[tuple[Room, Prepared]]) -> None:
        """Load histories before anything of their rooms is appended: they end before all that is committed later."""
        for room in dict.fromkeys([*self._to_load, *(room for room, _message in batch)]):
            try:
                if room.history is None and not room.closed:
                    with room.pinned():  # those who asked for it may be gone
                        await self._load(room)
            except StoreError as error:
                self._health.failed(error, "reading")
            finally:
                if (loaded := self._to_load.pop(room, None)) is not None:
                    loaded.notify()

    async def _load(self, room: Room) -> None:
        limit = min(room.policy.history_size, IN_MEMORY)
        records = await self._store.read_newest(
            room.name, limit=limit, max_bytes=self._options.room_bytes, now=clock.wall_time()
        )
        self._health.works("reading")
        history = History(room.policy, self._budget, records.epoch, records.last, is_stored=True)
        history.restore([(clock.to_trio(record.at), message) for record, message in _prepare(room.name, records)])
        room.attach_history(history)

    async def sweep(self) -> None:
        """The task that lets the store forget what is too old."""
        while True:
            await trio.sleep(SWEEP_INTERVAL)
            try:
                await self._store.sweep(clock.wall_time(), self._options.inbox_age)
            except StoreError as error:
                self._health.failed(error, "sweeping")
            else:
                self._health.works("sweeping")

    def abandon(self) -> None:
        """The switch ends, and its tasks have: publishers that wait for a receipt are told that there will be none."""
        self._commits.abandon()

    # --- out

    async def read(self, room_name: str, after: int, limit: int) -> tuple[HistoryRecords, list[Prepared]]:
        """A page of a stored room's history, oldest first. Raises StoreError. Safe to cancel."""
        try:
            records = await self._store.read(
                room_name, after=after, limit=limit, max_bytes=PAGE_BYTES, now=clock.wall_time()
            )
        except StoreError as error:
            self._health.failed(error, "reading")
            raise
        self._health.works("reading")
        return records, [message for _record, message in _prepare(room_name, records)]

    async def read_newest(self, room_name: str, limit: int) -> list[Prepared]:
        """The newest messages of a stored room, oldest first. Raises StoreError. Safe to cancel."""
        try:
            records = await self._store.read_newest(room_name, limit=limit, max_bytes=PAGE_BYTES, now=clock.wall_time())
        except StoreError as error:
            self._health.failed(error, "reading")
            raise
        self._health.works("reading")
        return [message for _record, message in _prepare(room_name, records)]


def _to_append(item: tuple[Room, Prepared]) -> Append:
    room, message = item
    event = message.event
    assert isinstance(event, Recorded)
    message.stamp(clock.timestamp())
    if room.history is None:
        raise StoreError(f"the history of {room.name!r} cannot be read")
    return Append(
        room=room.name,
        payload=encode_record(event),
        at=clock.wall_time(),
        expires_at=None if message.expires_at is None else clock.to_wall(message.expires_at),
        key=message.idempotency_key,
        retention=room.history.retention,
        sender=message.sender,
    )


def _on_committed(item: tuple[Room, Prepared], appended: Appended) -> None:
    room, message = item
    if appended.refusal is None:
        room.on_committed(message, appended)
    elif appended.refusal is Refusal.SENDER:
        room.on_commit_failed(message, StorageFull("your messages take up your share of the space in stored rooms"))
    else:
        room.on_commit_failed(message, StorageFull("the messages of stored rooms take up all of their space"))


def _on_commit_failed(item: tuple[Room, Prepared], error: TrioswitchError) -> None:
    room, message = item
    room.on_commit_failed(message, error)


def _prepare(room_name: str, records: HistoryRecords) -> Iterator[tuple[Record, Prepared]]:
    for record in records.records:
        try:
            event = decode_record(record.payload)
        except ValueError:  # the room is worth more than one message of it
            _log.exception("message %d of %r cannot be read and is left out", record.offset, room_name)
            continue
        assert isinstance(event, Recorded)
        event.epoch, event.offset = records.epoch, record.offset
        expires_at = None if record.expires_at is None else clock.to_trio(record.expires_at)
        yield record, Prepared(event, room=room_name, expires_at=expires_at, size=len(record.payload))
