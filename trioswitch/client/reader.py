"""An async iterator over what somebody else puts in."""

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import trio

__all__ = ["Reader"]

T = TypeVar("T")


class Reader(AsyncIterator[T]):
    """Iterates over what `take` gives; where it gives None, it is asked again at each `wake`.

    What `take` raises ends the iteration, StopAsyncIteration in silence. Cancelling is safe. Tasks that share a reader share
    the items.
    """

    def __init__(self, take: Callable[[], T | None], wake: trio.lowlevel.ParkingLot) -> None:
        self._take = take
        self._wake = wake

    async def __anext__(self) -> T:
        await trio.lowlevel.checkpoint()
        while (item := self._take()) is None:
            await self._wake.park()
        return item
