"""An async iterator over items that other tasks provide."""

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import trio

__all__ = ["Reader"]

T = TypeVar("T")


class Reader(AsyncIterator[T]):
    """Iterates over the items that `take` returns.

    When `take` returns None, the reader calls it again after each unpark of `wake`. An exception of `take` ends the iteration;
    StopAsyncIteration ends it normally. Cancelling is safe. Tasks that share a reader share its items.
    """

    def __init__(self, take: Callable[[], T | None], wake: trio.lowlevel.ParkingLot) -> None:
        self._take = take
        self._wake = wake

    async def __anext__(self) -> T:
        await trio.lowlevel.checkpoint()
        while (item := self._take()) is None:
            await self._wake.park()
        return item
