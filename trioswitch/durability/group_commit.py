"""Group commit: items that wait for a store are written together, so that many share the cost of one commit.

While one batch is being committed the next one gathers: the more items come, the larger the batches are, and the less each
one costs.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from .._util.wakeup import Wakeup
from ..errors import StoreError, TrioswitchError, UnencodableData
from .store_health import StoreHealth

__all__ = ["MAX_BATCH", "GroupCommit"]

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Encoded = TypeVar("Encoded")
Result = TypeVar("Result")

MAX_BATCH: Final = 4096
"""Items in one batch at most."""


class GroupCommit(Generic[Item, Encoded, Result]):
    """A queue in front of a store, and its one writer.

    Each item that is added is given back exactly once: to `succeeded` with its result, in the order in which items were added,
    or to `failed` with an error. `encode` makes of an item what `write` takes; it raises StoreError or UnencodableData for an
    item that cannot be written, which then fails by itself. `write` returns a result for each. The queue has no bound: whoever
    adds items bounds them.
    """

    def __init__(
        self,
        health: StoreHealth,
        *,
        encode: Callable[[Item], Encoded],
        write: Callable[[Sequence[Encoded]], Awaitable[Sequence[Result]]],
        succeeded: Callable[[Item, Result], None],
        failed: Callable[[Item, TrioswitchError], None],
    ) -> None:
        self._health = health
        self._encode = encode
        self._write = write
        self._succeeded = succeeded
        self._failed = failed
        self._pending: list[Item] = []
        self._in_flight: Sequence[Item] = ()
        self._wakeup = Wakeup()

    @property
    def pending(self) -> int:
        """Items that wait for a batch."""
        return len(self._pending)

    @property
    def uncommitted(self) -> int:
        """Items that wait for a batch, or are being committed."""
        return len(self._pending) + len(self._in_flight)

    def add(self, item: Item) -> None:
        self._pending.append(item)
        self._wakeup.notify()

    def wake(self) -> None:
        """Let `wait` return, though nothing was added."""
        self._wakeup.notify()

    async def wait(self) -> None:
        """Wait until something is added, or `wake` is called. Safe to cancel."""
        await self._wakeup.wait()

    def next_batch(self) -> Sequence[Item]:
        """The items that `commit_batch` will take if it is called now."""
        return self._pending[:MAX_BATCH]

    async def commit_batch(self, most: int | None = None) -> None:
        """Commit the items that are pending, the first `most`, or MAX_BATCH. To be called by one task.

        When it is cancelled the items are in flight: `abandon` gives them back.
        """
        most = MAX_BATCH if most is None else most
        batch, self._pending = self._pending[:most], self._pending[most:]
        encoded: list[Encoded] = []
        in_flight: list[Item] = []
        for item in batch:
            try:
                encoded.append(self._encode(item))
            except (StoreError, UnencodableData) as error:
                self._failed(item, error)
            except Exception:  # a fault of ours: it must not take the other items with it
                _log.exception("an item could not be encoded for the store")
                self._failed(item, StoreError("the message could not be stored"))
            else:
                in_flight.append(item)
        if not in_flight:
            return
        self._in_flight = in_flight
        try:
            results = await self._write(encoded)
        except StoreError as error:
            self._health.failed(error)
            self._give_back(error)
        except Exception:
            self._give_back(StoreError("the store failed"))
            raise
        else:
            self._health.works()
            self._in_flight = ()
            for item, result in zip(in_flight, results, strict=True):
                try:
                    self._succeeded(item, result)
                except Exception:  # a fault of ours: the others have to be delivered all the same
                    _log.exception("a message that was committed could not be delivered")

    def _give_back(self, error: StoreError) -> None:
        in_flight, self._in_flight = self._in_flight, ()
        for item in in_flight:
            self._failed(item, error)

    def abandon(self) -> None:
        """The switch has ended, and with it the task that commits: all items fail."""
        self._in_flight, self._pending = [*self._in_flight, *self._pending], []
        self._give_back(StoreError("the server shut down before the commit was confirmed"))
