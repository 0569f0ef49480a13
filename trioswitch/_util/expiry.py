"""Queues of what is due at some time, for things that all wait equally long."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from math import inf
from typing import Generic, TypeVar

__all__ = ["DueQueue"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class DueQueue(Generic[K, V]):
    """Values by key, in order of the time at which they are due. Every operation takes constant time.

    Each value that is added is due no earlier than those that are there: as where all wait for equally long. Times are
    seconds on one monotonic clock, which the caller reads.
    """

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: K) -> bool:
        return key in self._items

    def add(self, key: K, value: V, due: float) -> None:
        """Add a value; the one that the key had, if any, is forgotten."""
        self._items.pop(key, None)
        self._items[key] = (due, value)

    def values(self) -> Iterator[V]:
        """All values, in the order in which they are due."""
        return (value for _due, value in self._items.values())

    def get(self, key: K) -> V | None:
        item = self._items.get(key)
        return None if item is None else item[1]

    def remove(self, key: K) -> V | None:
        """Returns the value that the key had."""
        item = self._items.pop(key, None)
        return None if item is None else item[1]

    def next_due(self) -> float:
        """When the first value is due; inf when there is none."""
        return next(iter(self._items.values()))[0] if self._items else inf

    def oldest(self) -> K | None:
        """The key of the value that is due first."""
        return next(iter(self._items), None)

    def pop_due(self, now: float) -> Iterator[tuple[K, V]]:
        """Remove and yield, one by one, the values that are due by now."""
        while self._items:
            key, (due, value) = next(iter(self._items.items()))
            if due > now:
                return
            del self._items[key]
            yield key, value
