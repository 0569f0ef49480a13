"""The newest messages of one room, in memory: what recovery answers from without waiting.

For a `memory` room this is all there is. For a `stored` one it is the end of what the store has, so that a client which comes
back after a moment, and thousands that come back together, do not ask the store. Messages here have their encoded bytes with
them: those who missed the same ones share every byte of the answer.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import inf
from typing import Final

import attrs
import trio
from msgspec import UNSET

from .._util.shares import Shares
from ..config import RoomPolicy
from ..stores.port import Retention
from ..wire.messages import Event, Position, Recorded
from ..wire.prepared import Prepared
from ..wire.windows import Window

__all__ = ["History", "HistoryBudget"]

OVERHEAD: Final = 1024
"""Bytes that a message takes in memory beside its own: event, objects, encoded copies (measured, in one format: 1.0 KB)."""
ROOM_OVERHEAD: Final = 4096
"""Bytes that a room takes which is kept for its history alone (measured: 4.5 KB)."""
IN_MEMORY: Final = 1000
"""Messages of a stored room that are kept in memory as well, at most."""
REPLAYS: Final = 2
"""Windows of what was missed that are kept until the next message: who comes back together, missed the same."""
REPLAY_BYTES: Final = 1024 * 1024
"""Bytes in one of them at most; and messages: more are delivered page by page."""
REPLAY_MESSAGES: Final = 1000
COMPACT: Final = 256
"""Places of messages that are gone after which the list is made shorter."""

HistoryEntry = tuple[int, float, Prepared]
_GONE: Final = (0, 0.0, Prepared(Event()))


@attrs.define(eq=False)
class HistoryBudget:
    """Bytes that all histories take together, and may take. Beyond it the room that takes most keeps fewer messages."""

    limit: int
    _shares: "Shares[History]" = attrs.field(factory=Shares, init=False)

    @property
    def used(self) -> int:
        return self._shares.total

    def charge(self, history: "History", size: int) -> None:
        """Count bytes of a history more, or fewer."""
        shares = self._shares
        shares.add(history, size)
        while shares.total > self.limit:
            shares.largest().drop_first()


class History:
    """Numbers a room's messages, and keeps the newest. `last` is the newest offset, 0 before the first message."""

    __slots__ = ("_age", "_budget", "_gone", "_kept", "_replays", "_size", "epoch", "last", "retention")

    def __init__(
        self, policy: RoomPolicy, budget: HistoryBudget, epoch: str, last: int = 0, *, is_stored: bool = False
    ) -> None:
        """`is_stored`: this is but the end of what a store has."""
        self.epoch = epoch
        self.last = last
        self.retention = Retention(policy.history_size, policy.history_age)
        """What the room keeps, in memory or in the store."""
        self._size = min(policy.history_size, IN_MEMORY) if is_stored else policy.history_size
        self._age = policy.history_age
        self._budget = budget
        # Offset, time on Trio's clock, message; oldest first. The first `_gone` of them are.
        self._kept: list[HistoryEntry] = []
        self._gone = 0
        self._replays: dict[int, Window] = {}  # what follows an offset, until there is more

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.last)

    @property
    def first(self) -> int:
        """The oldest offset that is kept here, `last + 1` when none is."""
        self._forget_old()
        return self._kept[self._gone][0] if len(self._kept) > self._gone else self.last + 1

    def add(self, message: Prepared, event: Recorded, now: float) -> None:
        """Take the newest message. One that no store has numbered gets its position here."""
        if event.offset is UNSET:
            self.last += 1
            event.epoch, event.offset = self.epoch, self.last
            offset = self.last
        else:
            assert isinstance(event.offset, int)
            assert isinstance(event.epoch, str)
            offset = event.offset
            self.epoch, self.last = event.epoch, max(self.last, offset)
        self._keep(offset, now, message)

    def _keep(self, offset: int, at: float, message: Prepared) -> None:
        if self._replays:
            self._replays.clear()
        kept, size = self._kept, message.size + OVERHEAD
        if not kept:
            size += ROOM_OVERHEAD
        kept.append((offset, at, message))
        if len(kept) - self._gone > self._size:
            size -= self._remove_first()
        if size:  # often one message takes the place of another of the same size
            self._budget.charge(self, size)

    def pass_over(self, messages: Sequence[Prepared]) -> None:
        """These were numbered by the store, and have expired before they were delivered."""
        for message in messages:
            _epoch, offset = message.position
            self.last = max(self.last, offset or 0)

    def restore(self, messages: Sequence[tuple[float, Prepared]]) -> None:
        """Take what a store had, oldest first, with its time on Trio's clock."""
        for at, message in messages[-self._size :]:
            _epoch, offset = message.position
            assert offset is not None
            self._keep(offset, at, message)

    def drop_first(self) -> None:
        """Forget the oldest message."""
        size = self._remove_first()
        if self._replays:
            self._replays.clear()
        if not self._kept:
            size += ROOM_OVERHEAD
        self._budget.charge(self, -size)

    def _remove_first(self) -> int:
        """Returns the bytes that its message took."""
        kept, gone = self._kept, self._gone
        size = kept[gone][2].size + OVERHEAD
        kept[gone] = _GONE
        self._gone = gone = gone + 1
        if gone == len(kept) or gone > COMPACT:
            del kept[:gone]
            self._gone = 0
        return size

    def _forget_old(self) -> None:
        if self._age is not None:
            horizon = trio.current_time() - self._age
            while len(self._kept) > self._gone and self._kept[self._gone][1] < horizon:
                self.drop_first()

    def begin(self, epoch: str) -> None:
        """The store has begun the history, or has lost it and begun a new one."""
        self.clear()
        self.epoch, self.last = epoch, 0

    def clear(self) -> None:
        """The room is closed: give its bytes back."""
        while self._kept:
            self.drop_first()

    @property
    def empty(self) -> bool:
        self._forget_old()
        return not self._kept

    # --- what there is

    def newest(self, count: int) -> list[Prepared]:
        """The newest messages, oldest first, without those that have expired."""
        self._forget_old()
        now = trio.current_time()
        found: list[Prepared] = []
        for at in range(len(self._kept) - 1, self._gone - 1, -1):
            if len(found) == count:
                break
            message = self._kept[at][2]
            if message.expires_at is None or message.expires_at > now:
                found.append(message)
        found.reverse()
        return found

    def page(self, offset: int, limit: int, max_bytes: int) -> tuple[list[Prepared], bool]:
        """At most `limit` messages, of `max_bytes` together or one, after an offset; and whether there are more.

        Those that have expired are left out.
        """
        self._forget_old()
        now, size = trio.current_time(), 0
        found: list[Prepared] = []
        for at in range(bisect_right(self._kept, (offset, inf), lo=self._gone), len(self._kept)):
            message = self._kept[at][2]
            if message.expires_at is not None and message.expires_at <= now:
                continue
            size += message.size
            if len(found) == limit or (found and size > max_bytes):
                return found, True
            found.append(message)
        return found, False

    def replay(self, offset: int, timestamp: Callable[[], str]) -> Window | None:
        """What follows an offset, as a window: clients that missed the same share it. None: it is too much for one."""
        self._forget_old()
        window = self._replays.get(offset)
        if window is None:
            messages, more = self.page(offset, REPLAY_MESSAGES, REPLAY_BYTES)
            if more:
                return None
            window = Window(messages, timestamp())
            if len(self._replays) < REPLAYS and all(message.expires_at is None for message in messages):
                self._replays[offset] = window
        return window
