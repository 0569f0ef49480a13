"""Shares of a common budget: who holds how much of it, and who holds the most."""

from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Shares"]

H = TypeVar("H", bound=Hashable)


class Shares(Generic[H]):
    """Amounts by holder. Every operation takes constant time.

    Where a budget is used up, `largest` says who has to give way, so that one who takes a lot harms nobody but itself. Holders
    are compared by the binary logarithm of what they hold: the one that is returned holds more than half of what any holds.
    """

    __slots__ = ("_held", "_levels", "total")

    def __init__(self) -> None:
        self.total = 0
        self._held: dict[H, int] = {}
        self._levels: dict[int, dict[H, None]] = {}  # holders by bit length of what they hold

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, holder: H) -> int:
        return self._held.get(holder, 0)

    def add(self, holder: H, amount: int) -> None:
        """Add an amount, or subtract a negative one. A holder that holds nothing is forgotten."""
        before = self._held.get(holder, 0)
        after = before + amount
        self.total += amount
        if after:
            self._held[holder] = after
        elif before:
            del self._held[holder]
        old, new = before.bit_length(), after.bit_length()
        if old == new:
            return
        if old:
            level = self._levels[old]
            del level[holder]
            if not level:
                del self._levels[old]
        if new:
            self._levels.setdefault(new, {})[holder] = None

    def largest(self) -> H:
        """A holder with more than half of what any holds: of several, the one for which that has been so for longest.

        Raises ValueError when nobody holds anything.
        """
        return next(iter(self._levels[max(self._levels)]))
