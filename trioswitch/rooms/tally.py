"""Counting the results of one window: how many members got each of its messages."""

from collections.abc import Sequence

from ..connections.outbox import OfferResult
from ..wire.prepared import Receipt

__all__ = ["Tally"]


class Tally:
    """Counts the results of one window: for all of its messages together where they are the same, else one by one."""

    __slots__ = ("_singly", "_size", "dropped", "queued", "written")

    def __init__(self, size: int) -> None:
        self._size = size
        self.written = self.queued = self.dropped = 0  # members for whom the whole window was
        self._singly: dict[tuple[int, OfferResult], int] = {}  # by index of the message

    def add(self, became: OfferResult, indexes: Sequence[int]) -> None:
        if len(indexes) == self._size:
            if became is OfferResult.WRITTEN:
                self.written += 1
            elif became is OfferResult.QUEUED:
                self.queued += 1
            else:
                self.dropped += 1
        else:
            for index in indexes:
                self._singly[index, became] = self._singly.get((index, became), 0) + 1

    def totals(self) -> tuple[int, int]:
        """Messages that were written and that were queued, times receivers."""
        written, queued = self.written * self._size, self.queued * self._size
        for (_index, became), count in self._singly.items():
            if became is OfferResult.WRITTEN:
                written += count
            elif became is OfferResult.QUEUED:
                queued += count
        return written, queued

    def receipt(self, index: int, epoch: str | None, offset: int | None) -> Receipt:
        """What became of one message, with its position."""
        one = self._singly
        if not one:
            return Receipt(self.written, self.queued, self.dropped, epoch=epoch, offset=offset)
        return Receipt(
            self.written + one.get((index, OfferResult.WRITTEN), 0),
            self.queued + one.get((index, OfferResult.QUEUED), 0),
            self.dropped + one.get((index, OfferResult.DROPPED), 0),
            epoch=epoch,
            offset=offset,
        )
