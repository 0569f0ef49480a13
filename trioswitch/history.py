"""The newest messages of one room, in memory: what recovery answers from without waiting.

For a `memory` room this is all there is. For a `stored` one it is the end of what the store has, so that a client which comes
back after a moment, and thousands that come back together, do not ask the store. Messages here have their encoded bytes with
them: those who missed the same ones share every byte of the answer.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

import attrs
import trio
from msgspec import UNSET

from .config import RoomPolicy
from .wire.messages import Position, Recorded
from .wire.prepared import Prepared, Window

__all__ = ["History", "HistoryBudget"]

OVERHEAD: Final = 1024
"""Bytes that a message takes in memory beside its own: event, objects and encoded copies (measured: 0.9 to 1.4 KB)."""
IN_MEMORY: Final = 1000
"""Messages of a stored room that are kept in memory as well, at most."""
REPLAYS: Final = 16
"""Windows of what was missed that are kept until the next message: who comes back together, missed the same."""


@attrs.define(eq=False)
class HistoryBudget:
    """Bytes that all histories take together, and may take: beyond it the room that was quiet for longest gives way."""

    limit: int
    used: int = 0
    _by_use: "OrderedDict[History, None]" = attrs.field(factory=OrderedDict, init=False)

    def take(self, history: "History", size: int) -> None:
        self.used += size
        self._by_use[history] = None
        self._by_use.move_to_end(history)
        while self.used > self.limit and self._by_use:
            next(iter(self._by_use)).drop_first()

    def give_back(self, history: "History", size: int, *, last: bool) -> None:
        self.used -= size
        if last:
            self._by_use.pop(history, None)


class History:
    """Numbers a room's messages, and keeps the newest. `last` is the newest offset, 0 before the first message."""

    __slots__ = ("_age", "_budget", "_kept", "_replays", "_size", "epoch", "last")

    def __init__(self, policy: RoomPolicy, budget: HistoryBudget, epoch: str, last: int = 0) -> None:
        self.epoch = epoch
        self.last = last
        self._size = min(policy.history_size, IN_MEMORY) if policy.history.value == "stored" else policy.history_size
        self._age = policy.history_age
        self._budget = budget
        self._kept: deque[tuple[float, Prepared]] = deque()  # with the time on Trio's clock, oldest first
        self._replays: dict[int, Window] = {}  # what follows an offset, until there is more

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.last)

    @property
    def first(self) -> int:
        """The oldest offset that is kept here, `last + 1` when none is."""
        self._forget_old()
        return _offset(self._kept[0][1]) if self._kept else self.last + 1

    def add(self, message: Prepared, event: Recorded, now: float) -> None:
        """Take the newest message. One that no store has numbered gets its position here."""
        if event.offset is UNSET:
            self.last += 1
            event.epoch, event.offset = self.epoch, self.last
        else:
            assert isinstance(event.offset, int)
            assert isinstance(event.epoch, str)
            self.epoch, self.last = event.epoch, max(self.last, event.offset)
        if self._replays:
            self._replays.clear()
        self._kept.append((now, message))
        if len(self._kept) > self._size:
            self.drop_first()
        self._budget.take(self, message.size + OVERHEAD)

    def pass_over(self, messages: Sequence[Prepared]) -> None:
        """These were numbered by the store, and have expired before they were handed out."""
        for message in messages:
            _epoch, offset = message.position
            self.last = max(self.last, offset or 0)

    def restore(self, messages: Sequence[tuple[float, Prepared]]) -> None:
        """Take what a store had, oldest first, with its time on Trio's clock."""
        for at, message in messages[-self._size :]:
            self._kept.append((at, message))
            self._budget.take(self, message.size + OVERHEAD)

    def drop_first(self) -> None:
        """Forget the oldest message."""
        size = self._kept.popleft()[1].size + OVERHEAD
        self._replays.clear()
        self._budget.give_back(self, size, last=not self._kept)

    def _forget_old(self) -> None:
        if self._age is not None:
            horizon = trio.current_time() - self._age
            while self._kept and self._kept[0][0] < horizon:
                self.drop_first()

    def clear(self) -> None:
        """The room is closed: give its bytes back."""
        while self._kept:
            self.drop_first()

    @property
    def empty(self) -> bool:
        self._forget_old()
        return not self._kept

    # --- what there is

    def after(self, offset: int) -> list[Prepared]:
        """The messages after an offset, oldest first, without those that have expired."""
        self._forget_old()
        found: list[Prepared] = []
        for _at, message in reversed(self._kept):
            if _offset(message) <= offset:
                break
            found.append(message)
        found.reverse()
        return _unexpired(found)

    def newest(self, count: int) -> list[Prepared]:
        """The newest messages, oldest first, without those that have expired."""
        self._forget_old()
        good = _unexpired([message for _at, message in self._kept])
        return good[max(0, len(good) - count) :]

    def replay(self, offset: int, timestamp: Callable[[], str]) -> Window:
        """What follows an offset, as a window: clients that missed the same share it."""
        self._forget_old()
        window = self._replays.get(offset)
        if window is None:
            messages = self.after(offset)
            window = Window(messages, timestamp())
            if len(self._replays) < REPLAYS and all(message.expires_at is None for message in messages):
                self._replays[offset] = window
        return window

    def page(self, offset: int, limit: int, max_bytes: int) -> tuple[list[Prepared], bool]:
        """At most `limit` messages, of `max_bytes` together or one, after an offset; and whether there are more."""
        messages = self.after(offset)
        size = 0
        for count, message in enumerate(islice(messages, limit)):
            size += message.size
            if count and size > max_bytes:
                return messages[:count], True
        return messages[:limit], len(messages) > limit


def _offset(message: Prepared) -> int:
    event = message.event
    assert isinstance(event, Recorded)
    assert isinstance(event.offset, int)
    return event.offset


def _unexpired(messages: list[Prepared]) -> list[Prepared]:
    if all(message.expires_at is None for message in messages):
        return messages
    now = trio.current_time()
    return [message for message in messages if message.expires_at is None or message.expires_at > now]
