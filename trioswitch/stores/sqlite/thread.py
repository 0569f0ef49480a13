"""A thread with an SQLite connection of its own. It executes all pending requests in one transaction (group commit).

Requests that arrive during a commit go into the next transaction, so transactions grow with the load, and one switch between
threads wakes all tasks whose requests were committed.

A request that causes an error fails alone: the others are executed again, each in a transaction of its own. An error of the file,
such as a full disk, fails all requests of the transaction; the next transaction tries again.
"""

import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final, TypeVar

import attrs
import trio

from ...errors import StoreError

__all__ = ["SqliteThread", "SqliteThreadStatistics"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

CLOSE_TIME: Final = 10.0
"""Seconds that `aclose` waits for the thread; a disk that hangs must not keep the server from ending."""

_NOBODYS_FAULT: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
}
"""What would fail again whichever request came next."""


@attrs.frozen
class SqliteThreadStatistics:
    """What the thread has done since it was started."""

    waiting: int
    requests: int
    transactions: int
    """Transactions that were committed."""
    failed: int
    """Requests that got a StoreError."""


@attrs.define(eq=False)
class _Request:
    do: Callable[[Sequence[Any]], Sequence[Any]]
    items: Sequence[Any]
    results: list[Any] = attrs.field(factory=list)
    error: Exception | None = None
    done: trio.Event = attrs.field(factory=trio.Event)


class SqliteThread:
    """Made and used in a Trio thread. `explain` makes a sentence of what went wrong; `forget` is called after a rollback."""

    def __init__(
        self,
        connections: Sequence[sqlite3.Connection],
        *,
        name: str,
        begin: str,
        most: int,
        explain: Callable[[Exception], str],
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        """The first of the connections is the one that is worked with; at the end all are closed.

        At most `most` requests are done in one transaction, which starts with the statement `begin`.
        """
        self._connections = connections
        self.connection = connections[0]
        """The one that is worked with: the thread's, while it runs."""
        self._begin = begin
        self._most = most
        self._explain = explain
        self._forget = forget
        self._waiting: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()  # None: nothing comes any more
        self._closed = False
        self._ended = trio.Event()
        self._requests = self._transactions = self._failed = 0
        self._token = trio.lowlevel.current_trio_token()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    async def run(self, do: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]) -> list[R]:
        """Have `do(items)` called in the thread, within a transaction; committed on return.

        Returns one result for each item. Items of several requests with the same `do` are given to it together, in order.
        Raises StoreError, and trio.ClosedResourceError after `aclose`. Safe to cancel: returns at once, but it may be done.
        """
        if self._closed:
            raise trio.ClosedResourceError("the store was closed")
        await trio.lowlevel.checkpoint_if_cancelled()
        request = _Request(do, items)
        self._waiting.put(request)
        await request.done.wait()
        if request.error is not None:
            raise StoreError(self._explain(request.error)) from request.error
        return request.results

    def statistics(self) -> SqliteThreadStatistics:
        return SqliteThreadStatistics(self._waiting.qsize(), self._requests, self._transactions, self._failed)

    async def aclose(self) -> None:
        """Do what waits, close the connections and end the thread. Goes on when it is cancelled, for CLOSE_TIME at most."""
        if not self._closed:
            self._closed = True
            self._waiting.put(None)
        with trio.move_on_after(CLOSE_TIME, shield=True):
            await self._ended.wait()
            self.thread.join()  # it has nothing left to do
        if not self._ended.is_set():
            _log.warning("%s does not end: its file does not answer", self.thread.name)
        await trio.lowlevel.checkpoint_if_cancelled()

    # --- in the thread

    def _run(self) -> None:
        with suppress(trio.RunFinishedError):  # then nobody is left to wake
            while batch := self._take():
                self._do(batch)
                self._token.run_sync_soon(_wake, batch)
        for connection in self._connections:
            try:
                connection.close()
            except sqlite3.Error as error:
                _log.error("%s", self._explain(error))
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._ended.set)

    def _take(self) -> list[_Request]:
        """Wait for a request, and take all that are there. An empty list: it is over."""
        batch: list[_Request] = []
        request = self._waiting.get()
        while request is not None:
            batch.append(request)
            if len(batch) == self._most:
                return batch
            try:
                request = self._waiting.get_nowait()
            except queue.Empty:
                return batch
        if batch:
            self._waiting.put(None)
        return batch

    def _do(self, batch: Sequence[_Request]) -> None:
        self._requests += len(batch)
        try:
            self._transact(batch)
        except Exception as error:
            if len(batch) == 1 or getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOBODYS_FAULT:
                self._fail(batch, error)
                return
            for request in batch:
                try:
                    self._transact([request])
                except Exception as own:
                    self._fail([request], own)

    def _fail(self, batch: Sequence[_Request], error: Exception) -> None:
        self._failed += len(batch)
        for request in batch:
            request.error = error

    def _transact(self, batch: Sequence[_Request]) -> None:
        """Do requests in one transaction: all or none of them."""
        together: dict[Callable[[Sequence[Any]], Sequence[Any]], list[_Request]] = {}
        for request in batch:
            together.setdefault(request.do, []).append(request)
        connection = self.connection
        self._roll_back()  # where that failed the last time
        try:
            connection.execute(self._begin)
            done = [
                (requests, do([item for request in requests for item in request.items]))
                for do, requests in together.items()
            ]
            connection.execute("COMMIT")
        except BaseException:
            self._forget()
            with suppress(sqlite3.Error):
                self._roll_back()
            raise
        self._transactions += 1
        for requests, results in done:
            rest = iter(results)
            for request in requests:
                request.results = list(islice(rest, len(request.items)))

    def _roll_back(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")


def _wake(batch: Sequence[_Request]) -> None:
    for request in batch:
        request.done.set()
