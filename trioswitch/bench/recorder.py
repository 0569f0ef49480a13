"""The counters of one client process: messages, their latency, and the part of the latency that the client process caused."""

import time
from pathlib import Path

import numpy as np

from .histogram import Histogram
from .orders import SLOT, Tick

__all__ = ["Recorder", "processor_time"]

_SCHEDULER = Path("/proc/self/schedstat")
ENOUGH = 50_000
"""Latencies after which they are put into the histogram: numpy wants many at once, memory few."""


def processor_time() -> int:
    """ns that this process has run, or waited for a processor (on Linux; elsewhere it counts only running)."""
    try:
        ran, waited, _ = _SCHEDULER.read_bytes().split()
    except (OSError, ValueError):
        return time.process_time_ns()
    return int(ran) + int(waited)


class Recorder:
    """Counts. `add` is called for each chunk that arrives and does next to nothing; numpy does the rest, many at a time."""

    def __init__(self) -> None:
        self.complaint = ""
        """What the first `error` message of the server said."""
        self.sent = 0
        """Messages sent since the last tick."""
        self._since = 0
        self._sums = Histogram()
        self._forget()
        self._at = time.monotonic_ns()
        self._ran = processor_time()

    def _forget(self) -> None:
        self._pending: dict[int, tuple[list[int], list[int]]] = {}  # by id of the stamps: many chunks share one list
        self._count = 0
        self._received = self._lateness = self.sent = 0

    def listen(self, since: int) -> None:
        """Forget everything; count what was sent at `since` (ns) or later."""
        self._since = since
        self._sums = Histogram()
        self._forget()

    def add(self, stamps: list[int], now: int, told: int) -> None:
        """Messages with these stamps were read at `now`; the process was told of them at `told` (all ns).

        The list must not change afterwards; the same one may come again.
        """
        if stamps[0] < self._since:  # stamps of one chunk ascend, or nearly so: what is left over is not counted
            stamps = [stamp for stamp in stamps if stamp >= self._since]
        count = len(stamps)
        self._received += count
        self._lateness += (now - told) * count
        known = self._pending.get(id(stamps))
        if known is None:
            self._pending[id(stamps)] = (stamps, [now])
        else:
            known[1].append(now)
        self._count += count
        if self._count > ENOUGH:
            self._sum_up()

    def _sum_up(self) -> None:
        singles, durations = list[int](), []
        for stamps, arrivals in self._pending.values():
            if len(stamps) * len(arrivals) > 8:
                durations.append(np.subtract.outer(np.array(arrivals), np.array(stamps)).ravel())
            else:
                singles += [arrival - stamp for arrival in arrivals for stamp in stamps]
        self._pending.clear()
        self._count = 0
        self._sums.add(np.concatenate([*durations, np.array(singles, np.int64)]))

    def tick(self, now: int, open: int, lost: dict[str, int], number: int = 0) -> Tick:
        """What was counted since the last one."""
        self._sum_up()
        ran, sums = processor_time(), self._sums
        buckets, counts = sums.sparse()
        tick = Tick(
            since=self._since,
            slot=self._at // SLOT,
            sent=self.sent,
            received=self._received,
            buckets=buckets,
            counts=counts,
            total=sums.total,
            slowest=sums.slowest,
            lateness=self._lateness,
            busy=(ran - self._ran) / max(1, now - self._at),
            open=open,
            lost=dict(lost),
            complaint=self.complaint,
            number=number,
        )
        self._at, self._ran, self._sums = now, ran, Histogram()
        self._received = self._lateness = self.sent = 0
        return tick
