"""The hub: it owns the store of all processes, and delivers what one publishes to those that subscribe."""

import logging
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import msgspec
import trio

from .._util.shared_stream import StreamReceiver
from .._util.wakeup import Wakeup
from ..errors import StoreError
from ..stores.port import InboxLimits, InboxMessage, Store
from .protocol import DELIVERY, STORE_CALLS, Call, Frames, frame

__all__ = ["Hub"]

_log = logging.getLogger(__name__)

MAX_BACKLOG: Final = 64 * 1024 * 1024
"""Bytes that wait for one process. One that is slower is disconnected, and has to connect again."""
BACKLOG: Final = 128
_decode_call: Final = msgspec.msgpack.Decoder(Call).decode
_decode_published: Final = msgspec.msgpack.Decoder(list[tuple[str, bytes]]).decode
_decode_topics: Final = msgspec.msgpack.Decoder(list[str]).decode
_encode: Final = msgspec.msgpack.Encoder().encode


class Hub:
    """Serves processes at a Unix socket: `await nursery.start(hub.serve, path)`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._subscribers: dict[str, tuple[_Process, ...]] = {}  # of most topics, those of users, there is one
        self._processes: dict[_Process, None] = {}

    def __len__(self) -> int:
        """The number of processes that are connected."""
        return len(self._processes)

    async def serve(self, path: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Only processes of the same user can connect. Raises OSError when the path cannot be used."""
        listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with listener:
            await listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(BACKLOG)
            task_status.started()
            await trio.serve_listeners(self._serve_process, [trio.SocketListener(listener)])

    async def _serve_process(self, stream: trio.SocketStream) -> None:
        process = _Process(stream)
        self._processes[process] = None
        try:
            async with trio.open_nursery() as nursery:
                process.connection = nursery.cancel_scope
                nursery.start_soon(process.write)
                try:
                    await self._read(process, nursery)
                except trio.BrokenResourceError:
                    _log.debug("a process is gone")
                except ValueError as error:
                    _log.error("a process that sends garbage is disconnected: %s", error)
                nursery.cancel_scope.cancel()
        finally:
            del self._processes[process]
            self._unsubscribe(process, list(process.topics))
            await trio.aclose_forcefully(stream)

    async def _read(self, process: "_Process", nursery: trio.Nursery) -> None:
        frames, stream = Frames(), StreamReceiver(process.stream)
        while data := await stream.receive():
            published: dict[_Process, list[tuple[str, bytes]]] = {}
            for payload in frames.feed(data):
                call = _decode_call(payload)
                match call.method:
                    case "publish":
                        counts = self._publish(_decode_published(call.arguments), published)
                        process.send(frame([call.id, None, counts]))
                    case "subscribe":
                        self._subscribe(process, _decode_topics(call.arguments))
                        process.send(frame([call.id, None, None]))
                    case "unsubscribe":
                        self._unsubscribe(process, _decode_topics(call.arguments))
                        process.send(frame([call.id, None, None]))
                    case method if method not in STORE_CALLS:
                        raise ValueError(f"there is no call {method!r}")
                    case _:
                        nursery.start_soon(self._call_store, process, call)
            for receiver, payloads in published.items():
                receiver.send(frame([DELIVERY, None, payloads]))

    # --- broker

    def _publish(
        self, payloads: Sequence[tuple[str, bytes]], published: "dict[_Process, list[tuple[str, bytes]]]"
    ) -> list[int]:
        counts = []
        for sent in payloads:
            receivers = self._subscribers.get(sent[0], ())
            counts.append(len(receivers))
            for receiver in receivers:
                published.setdefault(receiver, []).append(sent)
        return counts

    def _subscribe(self, process: "_Process", topics: Sequence[str]) -> None:
        for topic in topics:
            subscribers = self._subscribers.get(topic, ())
            if process not in subscribers:
                process.topics.add(topic)
                self._subscribers[topic] = (*subscribers, process)

    def _unsubscribe(self, process: "_Process", topics: Sequence[str]) -> None:
        for topic in topics:
            process.topics.discard(topic)
            others = tuple(other for other in self._subscribers.pop(topic, ()) if other is not process)
            if others:
                self._subscribers[topic] = others

    # --- store

    async def _call_store(self, process: "_Process", call: Call) -> None:
        error, result = None, None
        try:
            arguments_type, _ = STORE_CALLS[call.method]
            arguments = msgspec.msgpack.decode(call.arguments, type=arguments_type)
            result = await _store_call(self._store, call.method)(*arguments)
        except StoreError as failure:
            error = str(failure)
        except trio.ClosedResourceError:
            error = "the store is closed"
        except Exception:  # the other processes are not to end with this call
            _log.exception("the call %s failed", call.method)
            error = "internal error"
        process.send(frame([call.id, error, result]))


def _store_call(store: Store, method: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    """The method of the store, with positional arguments in the order of `STORE_CALLS`."""

    async def append(appends: Any, total_bytes: int) -> Any:
        return await store.append(appends, total_bytes=total_bytes)

    async def read(room: str, after: int, limit: int, max_bytes: int, now: float) -> Any:
        return await store.read(room, after=after, limit=limit, max_bytes=max_bytes, now=now)

    async def read_newest(room: str, limit: int, max_bytes: int, now: float) -> Any:
        return await store.read_newest(room, limit=limit, max_bytes=max_bytes, now=now)

    async def add_to_inboxes(inbox_messages: Sequence[InboxMessage], limits: InboxLimits) -> Any:
        return await store.add_to_inboxes(inbox_messages, limits=limits)

    async def read_inbox(user: str, after: int, limit: int, max_bytes: int, now: float) -> Any:
        return await store.read_inbox(user, after=after, limit=limit, max_bytes=max_bytes, now=now)

    known: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
        "append": append,
        "read": read,
        "read_newest": read_newest,
        "positions": store.positions,
        "add_to_inboxes": add_to_inboxes,
        "read_inbox": read_inbox,
        "acknowledge": store.acknowledge,
        "save_sessions": store.save_sessions,
        "load_session": store.load_session,
        "take_session": store.take_session,
        "change_groups": store.change_groups,
        "read_groups": store.read_groups,
        "sweep": store.sweep,
    }
    return known[method]


class _Process:
    """A process that is connected."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.topics: set[str] = set()
        self.connection = trio.CancelScope()
        self._pending: list[bytes] = []
        self._size = 0
        self._to_write = Wakeup()

    def send(self, data: bytes) -> None:
        """Write bytes soon. A process that is too slow for them is disconnected."""
        self._pending.append(data)
        self._size += len(data)
        if self._size > MAX_BACKLOG and not self.connection.cancel_called:
            _log.warning("a process that does not read is disconnected")
            self.connection.cancel()
        self._to_write.notify()

    async def write(self) -> None:
        """The task that writes."""
        try:
            while True:
                while not self._pending:
                    await self._to_write.wait()
                data, self._pending, self._size = b"".join(self._pending), [], 0
                await self.stream.send_all(data)
        except trio.BrokenResourceError:
            _log.debug("a process is gone")
            self.connection.cancel()
