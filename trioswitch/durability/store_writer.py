"""The one way into the store: messages of all stored rooms on their way there, and what comes back.

One task takes everything that waits, whatever room it is for, and gives it to the store at once: while one batch is being
committed the next one gathers, so that a commit costs the more messages the less the more there are. Rooms get their messages
back in the order of their offsets.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Final

import trio

from .._util.clock import timestamp as now_text
from .._util.clock import wall_time
from ..config import Options
from ..errors import StoreError, UnencodableData
from ..rooms.history import IN_MEMORY, History, HistoryBudget
from ..rooms.room import Room
from ..stores.port import Append, Page, Record, Store
from ..wire.messages import Recorded
from ..wire.prepared import Prepared
from ..wire.records import dump, load
from .store_health import StoreHealth

__all__ = ["StoreWriter"]

_log = logging.getLogger(__name__)

BATCH: Final = 4096
"""Messages in one transaction at most."""
SWEEP_INTERVAL: Final = 60.0
"""Seconds between two times at which the store forgets what is too old."""
PAGE_BYTES: Final = 256 * 1024
"""Bytes of messages that are read from the store at once, or put into the answer to one `history`."""


class StoreWriter:
    """Writes the messages of stored rooms, and reads their histories."""

    def __init__(self, store: Store, health: StoreHealth, budget: HistoryBudget, options: Options) -> None:
        self._store = store
        self._health = health
        self._options = options
        self._budget = budget
        self._waiting: list[tuple[Room, Prepared]] = []
        self._in_flight: Sequence[tuple[Room, Prepared]] = ()
        self._work = trio.Event()
        self._loaded: dict[Room, trio.Event] = {}  # rooms that are to be loaded, with who waits for it

    @property
    def uncommitted(self) -> int:
        """Messages that wait for the store, or are being committed."""
        return len(self._waiting) + len(self._in_flight)

    # --- in

    def submit(self, room: Room, message: Prepared) -> None:
        """Take a message for the store. Rooms bound how many there are of theirs."""
        self._waiting.append((room, message))
        self._work.set()

    async def load(self, room: Room) -> History:
        """The history of a room, loaded from the store if need be. Raises StoreError. Safe to cancel."""
        while room.history is None:
            loaded = self._loaded.get(room)
            if loaded is None:
                loaded = self._loaded[room] = trio.Event()
                room.visitors += 1  # who asked may go; it is not to be closed while it is loaded all the same
                self._work.set()
            await loaded.wait()
            if room.history is None:
                raise StoreError(self._health.error or f"the history of {room.name!r} cannot be read")
        return room.history

    # --- the task

    async def run(self) -> None:
        """Write what waits, for ever."""
        while True:
            self._work = trio.Event()
            while self._waiting or self._loaded:  # something may have been left by a crash
                await self._load_rooms()
                await self._append()
            await self._work.wait()

    async def _load_rooms(self) -> None:
        """Load rooms before anything of theirs is appended: what is loaded is then what is before all that comes back."""
        for room in dict.fromkeys([*self._loaded, *(room for room, _message in self._waiting[:BATCH])]):
            try:
                if room.history is None:
                    await self._load_room(room)
            except StoreError as error:
                self._health.failed(error, "reading")
            finally:
                if (loaded := self._loaded.pop(room, None)) is not None:
                    room.visitors -= 1
                    loaded.set()

    async def _load_room(self, room: Room) -> None:
        limit = min(room.policy.history_size, IN_MEMORY)
        page = await self._store.read_newest(
            room.name, limit=limit, max_bytes=self._options.room_bytes, now=wall_time()
        )
        self._health.works("reading")
        history = History(room.policy, self._budget, page.epoch, page.last)
        wall, now = wall_time(), trio.current_time()
        history.restore([(now + record.at - wall, message) for record, message in _prepare(room.name, page)])
        room.history = history

    async def _append(self) -> None:
        batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
        wall, now, timestamp = wall_time(), trio.current_time(), now_text()
        appends: list[Append] = []
        good: list[tuple[Room, Prepared]] = []
        for room, message in batch:
            message.stamp(timestamp)
            try:
                appends.append(_append(room, message, wall, now))
            except (StoreError, UnencodableData) as error:
                room.not_stored(message, error)
            else:
                good.append((room, message))
        if not good:
            return
        self._in_flight = good
        try:
            appended = await self._store.append(appends)
        except StoreError as error:
            self._health.failed(error)
            self._give_back(error)
        except Exception:
            self._give_back(StoreError("the store failed"))
            raise
        else:
            self._health.works()
            self._in_flight = ()
            for (room, message), place in zip(good, appended, strict=True):
                room.stored(message, place)

    def _give_back(self, error: StoreError) -> None:
        flight, self._in_flight = self._in_flight, ()
        for room, message in flight:
            room.not_stored(message, error)

    async def sweep(self) -> None:
        """The task that lets the store forget what is too old."""
        while True:
            await trio.sleep(SWEEP_INTERVAL)
            try:
                await self._store.sweep(wall_time(), self._options.inbox_age)
            except StoreError as error:
                self._health.failed(error, "sweeping")
            else:
                self._health.works("sweeping")

    def abandon(self) -> None:
        """The switch ends, and its tasks have: whoever waits for a receipt hears that there will be none."""
        self._in_flight = [*self._in_flight, *self._waiting]
        self._waiting = []
        self._give_back(StoreError("the server ended before it was known to be committed"))

    # --- out

    async def read(self, room_name: str, after: int, limit: int) -> tuple[Page, list[Prepared]]:
        """A page of a stored room's history, oldest first. Raises StoreError. Safe to cancel."""
        try:
            page = await self._store.read(room_name, after=after, limit=limit, max_bytes=PAGE_BYTES, now=wall_time())
        except StoreError as error:
            self._health.failed(error, "reading")
            raise
        self._health.works("reading")
        return page, [message for _record, message in _prepare(room_name, page)]

    async def read_newest(self, room_name: str, limit: int) -> list[Prepared]:
        """The newest messages of a stored room, oldest first. Raises StoreError. Safe to cancel."""
        try:
            page = await self._store.read_newest(room_name, limit=limit, max_bytes=PAGE_BYTES, now=wall_time())
        except StoreError as error:
            self._health.failed(error, "reading")
            raise
        self._health.works("reading")
        return [message for _record, message in _prepare(room_name, page)]


def _append(room: Room, message: Prepared, wall: float, now: float) -> Append:
    event = message.event
    assert isinstance(event, Recorded)
    if room.history is None:
        raise StoreError(f"the history of {room.name!r} cannot be read")
    return Append(
        room=room.name,
        payload=dump(event),
        at=wall,
        expires_at=None if message.expires_at is None else wall + message.expires_at - now,
        key=message.idempotency_key,
        retention=room.history.retention,
    )


def _prepare(room_name: str, page: Page) -> Iterator[tuple[Record, Prepared]]:
    wall, now = wall_time(), trio.current_time()
    for record in page.records:
        try:
            event = load(record.payload)
        except ValueError:  # the room is worth more than one message of it
            _log.exception("message %d of %r cannot be read, and is passed over", record.offset, room_name)
            continue
        assert isinstance(event, Recorded)
        event.epoch, event.offset = page.epoch, record.offset
        expires_at = None if record.expires_at is None else now + record.expires_at - wall
        yield record, Prepared(event, room=room_name, expires_at=expires_at, size=len(record.payload))
