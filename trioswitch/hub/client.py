"""A process's connection to the hub: one `Store` and one `Broker` over it."""

import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import trio

from .._util.shared_stream import StreamReceiver
from .._util.wakeup import Wakeup
from ..brokers.port import Broker, Receiver, Sent
from ..errors import BrokerError, StoreError
from ..stores.port import (
    UNLIMITED,
    Append,
    Appended,
    GroupChange,
    HistoryRecords,
    InboxLimits,
    InboxMessage,
    InboxResult,
    SavedSession,
    Store,
    StoredInboxMessage,
)
from .protocol import DELIVERY, STORE_CALLS, Answer, Frames, frame

__all__ = ["HubBroker", "HubStore", "open_hub"]

_log = logging.getLogger(__name__)

FIRST_TIMEOUT: Final = 1.0
"""Seconds that `open_hub` waits for the first connection."""
RETRY_DELAY: Final = 0.2
"""Seconds between two attempts to connect."""
CALL_TIMEOUT: Final = 10.0
"""Seconds that the hub may take to answer a call."""
GREATEST: Final = 2**63 - 1
"""The greatest offset, and the greatest seq."""
_decode_answer: Final = msgspec.msgpack.Decoder(Answer).decode
_decode_delivery: Final = msgspec.msgpack.Decoder(list[tuple[str, bytes]]).decode
_decode_counts: Final = msgspec.msgpack.Decoder(list[int]).decode
_results: Final = {method: msgspec.msgpack.Decoder(result).decode for method, (_, result) in STORE_CALLS.items()}


@asynccontextmanager
async def open_hub(path: str) -> "AsyncIterator[tuple[HubStore, HubBroker]]":
    """Connect to the hub at a Unix socket, again and again until the block is left. Waits a moment for the first connection."""
    connection = _Connection(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        with trio.move_on_after(FIRST_TIMEOUT):
            await connection.wait_connected()
        yield HubStore(connection), HubBroker(connection)
        nursery.cancel_scope.cancel()


class _Lost(Exception):
    """There is no connection to the hub, it was lost during a call, or the call took too long."""


class _Pending:
    """A call that waits for its answer."""

    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: Answer | None = None


class _Connection:
    def __init__(self, path: str) -> None:
        self._path = path
        self._stream: trio.SocketStream | None = None
        self._scope = trio.CancelScope()
        self._calls: dict[int, _Pending] = {}
        self._last_id = DELIVERY
        self._to_write: list[bytes] = []
        self._written = Wakeup()
        self._changed = Wakeup()
        self.receiver: Receiver | None = None
        self.reason = "the hub has not been reached yet"

    # --- the task

    async def run(self) -> None:
        while True:
            try:
                stream = await trio.open_unix_socket(self._path)
            except OSError as error:
                self.reason = f"the hub cannot be reached: {error.strerror or error}"
            else:
                async with stream:
                    await self._serve(stream)
            await trio.sleep(RETRY_DELAY)

    async def _serve(self, stream: trio.SocketStream) -> None:
        self._stream, self.reason = stream, "the hub has closed the connection"
        self._changed.notify()
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._write, stream)
                try:
                    await self._read(stream)
                except (trio.BrokenResourceError, ValueError) as error:
                    _log.debug("the connection to the hub is lost: %s", error)
                nursery.cancel_scope.cancel()
        finally:
            self._stream = None
            self._to_write.clear()
            calls, self._calls = self._calls, {}
            for call in calls.values():
                call.done.set()
            self._changed.notify()

    async def _read(self, stream: trio.SocketStream) -> None:
        frames, receiver = Frames(), StreamReceiver(stream)
        while data := await receiver.receive():
            for payload in frames.feed(data):
                answer = _decode_answer(payload)
                if answer.id == DELIVERY:
                    if self.receiver is not None:
                        self.receiver.on_payloads(_decode_delivery(answer.result))
                    continue
                call = self._calls.pop(answer.id, None)
                if call is not None:
                    call.answer = answer
                    call.done.set()

    async def _write(self, stream: trio.SocketStream) -> None:
        try:
            while True:
                while not self._to_write:
                    await self._written.wait()
                data, self._to_write = b"".join(self._to_write), []
                await stream.send_all(data)
        except trio.BrokenResourceError:
            self._scope.cancel()

    # --- calls

    async def wait_connected(self) -> None:
        while self._stream is None:
            await self._changed.wait()

    async def wait_lost(self) -> None:
        while self._stream is not None:
            await self._changed.wait()

    def drop(self, reason: str) -> None:
        if self._stream is not None:
            self.reason = reason
            self._scope.cancel()

    async def call(self, method: str, arguments: Any) -> Answer:
        """Raises _Lost."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._stream is None:
            await trio.lowlevel.checkpoint()
            raise _Lost(self.reason)
        self._last_id += 1
        id, call = self._last_id, _Pending()
        self._calls[id] = call
        self._to_write.append(frame([id, method, arguments]))
        self._written.notify()
        try:
            with trio.move_on_after(CALL_TIMEOUT) as patience:
                await call.done.wait()
        finally:
            self._calls.pop(id, None)
        if patience.cancelled_caught:
            raise _Lost(f"the hub did not answer within {CALL_TIMEOUT:g} s")
        if call.answer is None:
            raise _Lost(self.reason)
        return call.answer


class HubBroker(Broker):
    """Made by `open_hub`."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def run(self, receiver: Receiver) -> None:
        connection = self._connection
        connection.receiver = receiver
        try:
            while True:
                await connection.wait_connected()
                topics = receiver.topics()
                try:
                    await self.subscribe(topics)
                except BrokerError as error:
                    connection.drop(str(error))
                    await connection.wait_lost()
                    receiver.on_disconnected(str(error))
                    continue
                receiver.on_connected(topics)
                await connection.wait_lost()
                receiver.on_disconnected(connection.reason)
        finally:
            connection.receiver = None

    def drop_connection(self, reason: str) -> None:
        self._connection.drop(reason)

    async def publish(self, payloads: Sequence[Sent]) -> Sequence[int | None]:
        return _decode_counts((await self._call("publish", payloads)).result)

    async def subscribe(self, topics: Collection[str]) -> None:
        await self._call("subscribe", list(topics))

    async def unsubscribe(self, topics: Collection[str]) -> None:
        await self._call("unsubscribe", list(topics))

    async def _call(self, method: str, arguments: Any) -> Answer:
        try:
            return await self._connection.call(method, arguments)
        except _Lost as lost:
            raise BrokerError(str(lost)) from None


class HubStore(Store):
    """Made by `open_hub`. What it has committed is as durable as the hub's store is."""

    durable = True

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._closed = False

    async def append(self, appends: Sequence[Append], *, total_bytes: int = UNLIMITED) -> list[Appended]:
        found: list[Appended] = await self._call("append", appends, total_bytes)
        return found

    async def read(self, room: str, *, after: int, limit: int, max_bytes: int, now: float) -> HistoryRecords:
        found: HistoryRecords = await self._call("read", room, min(after, GREATEST), limit, max_bytes, now)
        return found

    async def read_newest(self, room: str, *, limit: int, max_bytes: int, now: float) -> HistoryRecords:
        found: HistoryRecords = await self._call("read_newest", room, limit, max_bytes, now)
        return found

    async def positions(self, rooms: Sequence[str]) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = await self._call("positions", rooms)
        return found

    async def add_to_inboxes(self, inbox_messages: Sequence[InboxMessage], *, limits: InboxLimits) -> list[InboxResult]:
        found: list[InboxResult] = await self._call("add_to_inboxes", inbox_messages, limits)
        return found

    async def read_inbox(
        self, user: str, *, after: int, limit: int, max_bytes: int, now: float
    ) -> list[StoredInboxMessage]:
        found: list[StoredInboxMessage] = await self._call(
            "read_inbox", user, min(after, GREATEST), limit, max_bytes, now
        )
        return found

    async def acknowledge(self, user: str, upto: int) -> None:
        await self._call("acknowledge", user, min(upto, GREATEST))

    async def save_sessions(self, sessions: Sequence[SavedSession]) -> None:
        await self._call("save_sessions", sessions)

    async def load_session(self, id: str, now: float) -> bytes | None:
        payload: bytes | None = await self._call("load_session", id, now)
        return payload

    async def take_session(self, id: str, now: float) -> bytes | None:
        payload: bytes | None = await self._call("take_session", id, now)
        return payload

    async def change_groups(self, changes: Sequence[GroupChange]) -> None:
        await self._call("change_groups", changes)

    async def read_groups(self) -> list[tuple[str, str]]:
        groups: list[tuple[str, str]] = await self._call("read_groups")
        return groups

    async def sweep(self, now: float, inbox_age: float) -> None:
        await self._call("sweep", now, inbox_age)

    async def aclose(self) -> None:
        self._closed = True
        await trio.lowlevel.checkpoint()  # the connection is closed by `open_hub`

    async def _call(self, method: str, *arguments: Any) -> Any:
        if self._closed:
            raise trio.ClosedResourceError("the store was closed")
        try:
            answer = await self._connection.call(method, arguments)
        except _Lost as lost:
            raise StoreError(str(lost)) from None
        if answer.error is not None:
            raise StoreError(answer.error)
        return _results[method](answer.result)
