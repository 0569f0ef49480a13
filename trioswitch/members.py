"""What a room hands messages to, and how it counts what becomes of them."""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from .config import Overflow
from .metrics import Drop
from .outbox import Offer
from .wire.prepared import Prepared, Receipt, Window

__all__ = ["Member", "Tally"]


class Member(Protocol):
    """What a room hands messages to: a connection's outbox, or a subscription of the server's own code."""

    id: str

    def deliver(self, window: Window) -> Offer | None:
        """Write the whole window at once. Returns None where it cannot: then it is to `take` it."""

    def take(self, window: Window, wanted: Sequence[int], overflow: Overflow) -> tuple[Offer, int]:
        """Take messages by their indexes, or do what the policy says. Never waits.

        Returns what became of how many, the first ones. The others were dropped, or under `block` are yet to be taken.
        """

    async def put(self, message: Prepared) -> Offer:
        """Take one message, and wait for the space. Safe to cancel: then it was not taken."""

    def give_up(self, message: Prepared, cause: Drop) -> None:
        """The message is lost to this member: count it, and tell the client."""


class Tally:
    """Counts what becomes of a window's messages: together for members where it is the same for all, else one by one."""

    __slots__ = ("_singly", "_size", "whole")

    def __init__(self, size: int) -> None:
        self._size = size
        self.whole: Counter[Offer] = Counter()
        self._singly: Counter[tuple[int, Offer]] = Counter()  # by index of the message

    def add(self, became: Offer, indexes: Sequence[int]) -> None:
        if len(indexes) == self._size:
            self.whole[became] += 1
        else:
            for index in indexes:
                self._singly[index, became] += 1

    def total(self, offer: Offer) -> int:
        singly = sum(count for (_index, became), count in self._singly.items() if became is offer)
        return self.whole[offer] * self._size + singly

    def receipt(self, index: int) -> Receipt:
        def count(became: Offer) -> int:
            return self.whole[became] + self._singly[index, became]

        return Receipt(count(Offer.WRITTEN), count(Offer.QUEUED), count(Offer.DROPPED))
