"""What tokens opened, and when it ends: connections, and memberships in single rooms."""

import heapq
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import trio

from .._util import clock
from .._util.wakeup import Wakeup

__all__ = ["Expiries"]

LONGEST_SLEEP: Final = 60.0
"""Seconds after which the time of day is looked at again: it may have been set."""
SLACK: Final = 1000
"""Entries that are over, and that are kept until they are due."""

K = TypeVar("K")


class Expiries(Generic[K]):
    """Calls a function with each key when its time of day has come. `run` is its task."""

    def __init__(self, on_expired: Callable[[K], None]) -> None:
        self._on_expired = on_expired
        self._due: dict[K, float] = {}
        self._queue: list[tuple[float, int, K]] = []  # a heap, with entries that have been replaced
        self._number = 0
        self._wakeup = Wakeup()

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: K, expires_at: float | None) -> None:
        """Seconds since 1970 for a key, in place of those that it had. None: it does not expire."""
        if expires_at is None:
            self._due.pop(key, None)
            return
        self._due[key] = expires_at
        self._number += 1
        if len(self._queue) > 2 * len(self._due) + SLACK:
            self._queue = [entry for entry in self._queue if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._queue)
        heapq.heappush(self._queue, (expires_at, self._number, key))
        self._wakeup.notify()

    async def run(self) -> None:
        """Never returns."""
        while True:
            now = clock.wall_time()
            while self._queue and self._queue[0][0] <= now:
                expires_at, _number, key = heapq.heappop(self._queue)
                if self._due.get(key) == expires_at:
                    del self._due[key]
                    self._on_expired(key)
            with trio.move_on_after(min(LONGEST_SLEEP, self._queue[0][0] - now) if self._queue else LONGEST_SLEEP):
                await self._wakeup.wait()
