"""Latencies in a few thousand numbers: counts in buckets that are at most 1.6 % wide, whatever the latency."""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Histogram"]

# The upper bits of a double are its exponent and the first bits of its mantissa: equal steps of its logarithm, nearly, and
# cheaper to get than that. Six bits of the mantissa make 64 buckets for each doubling.
_SHIFT: Final = 52 - 6
_FIRST: Final = int(np.float64(1.0).view(np.int64)) >> _SHIFT
_BUCKETS: Final = 64 * 64
_LIMITS: Final = ((np.arange(_BUCKETS + 1, dtype=np.int64) + _FIRST) << _SHIFT).view(np.float64)


class Histogram:
    """Counts durations of 1 ns and more."""

    def __init__(self) -> None:
        self._counts: NDArray[np.int64] = np.zeros(_BUCKETS, np.int64)
        self.total = 0
        """ns, all durations together."""
        self.slowest = 0
        """ns, exact."""

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    def add(self, durations: NDArray[np.int64]) -> None:
        """Count durations in ns; one-dimensional."""
        if not durations.size:
            return
        buckets = (np.maximum(durations, 1).astype(np.float64).view(np.int64) >> _SHIFT) - _FIRST
        self._counts += np.bincount(buckets, minlength=_BUCKETS)
        self.total += int(durations.sum())
        self.slowest = max(self.slowest, int(durations.max()))

    def merge(self, buckets: list[int], counts: list[int], total: int, slowest: int) -> None:
        """Add what another histogram's `sparse` gave."""
        self._counts[np.array(buckets, np.int64)] += np.array(counts, np.int64)
        self.total += total
        self.slowest = max(self.slowest, slowest)

    def sparse(self) -> tuple[list[int], list[int]]:
        """Which buckets have something in them, and how much."""
        buckets = np.flatnonzero(self._counts)
        return buckets.tolist(), self._counts[buckets].tolist()

    def percentile(self, percent: float) -> float:
        """ms that `percent` of the durations did not exceed, to 0.8 %; nan when there are none."""
        count = self.count
        if not count:
            return math.nan
        rank = max(1, math.ceil(count * percent / 100))
        bucket = int(np.searchsorted(np.cumsum(self._counts), rank))
        return min(float(_LIMITS[bucket] + _LIMITS[bucket + 1]) / 2, self.slowest) / 1e6

    @property
    def mean(self) -> float:
        """ms; nan when there are none."""
        return self.total / self.count / 1e6 if self.count else math.nan

    def bars(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Limits in ms (one more than bars) and counts, from the first bucket with something in it to the last."""
        filled = np.flatnonzero(self._counts)
        if not filled.size:
            return np.array([0.0]), np.array([], np.int64)
        first, last = int(filled[0]), int(filled[-1]) + 1
        return _LIMITS[first : last + 1] / 1e6, self._counts[first:last]
