"""A connection to Redis on Trio. Commands of all tasks go out together, and replies come back in their order.

hiredis, in C, parses the replies. Why no client library is used: decision 25.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

from .._util.receiving import Receiver
from .._util.remote import reason_of
from .._util.wakeup import Wakeup
from ..errors import TrioswitchError
from .url import RedisUrl, Topology

__all__ = ["Command", "RedisConnection", "RedisError", "RedisLost", "connect", "introduce"]

_log = logging.getLogger(__name__)

Command = Sequence[bytes | str | int | float]

CONNECT_TIMEOUT: Final = 5.0
"""Seconds that a connection may take, with TLS, the password and the checks."""
LEAST_VERSION: Final = (6, 0)
LEAST_CLUSTER: Final = (7, 0)
"""Sharded channels came with it."""
_CONFIRMATIONS: Final = {b"subscribe", b"unsubscribe", b"ssubscribe", b"sunsubscribe"}


class RedisError(TrioswitchError):
    """Redis has answered with an error."""


class RedisLost(TrioswitchError):
    """There is no connection, or it was lost; the text is a sentence."""


class _Reply:
    """Replies that a caller waits for."""

    __slots__ = ("count", "done", "replies")

    def __init__(self, count: int) -> None:
        self.count = count
        self.replies: list[Any] = []
        self.done = trio.Event()


class RedisConnection:
    """One connection. Made by `connect`; `run` is its task.

    Messages of channels that are subscribed to go to `on_message(channel, payload)`.
    """

    def __init__(self, stream: trio.abc.Stream, place: str, on_message: Callable[[bytes, bytes], None] | None) -> None:
        hiredis = _hiredis()
        self.place = place
        """For people: host and port."""
        self.run_id = ""
        """Of the server: another one after each start."""
        self._stream = stream
        self._pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command
        self._reader = hiredis.Reader(protocolError=RedisError, replyError=RedisError)
        self._on_message = on_message
        self._waiting: deque[_Reply] = deque()
        self._to_write: list[bytes] = []
        self._written = Wakeup()
        self._scope = trio.CancelScope()
        self._lost: str | None = None
        self._confirmed = 0  # subscriptions and their ends
        self._requested = 0
        self._confirmation = Wakeup()

    # --- the task

    async def run(self) -> str:
        """Send and receive until the connection is lost. Returns why."""
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._write)
                await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self._lose("the connection was closed")
            await trio.aclose_forcefully(self._stream)
        assert self._lost is not None
        return self._lost

    def drop(self, reason: str) -> None:
        """Give the connection up."""
        self._lose(reason)
        self._scope.cancel()

    def _lose(self, reason: str) -> None:
        if self._lost is None:
            self._lost = reason
        waiting, self._waiting = self._waiting, deque()
        for reply in waiting:
            reply.done.set()
        self._confirmation.notify()

    async def _write(self) -> None:
        try:
            while True:
                while not self._to_write:
                    await self._written.wait()
                data, self._to_write = b"".join(self._to_write), []
                await self._stream.send_all(data)
        except trio.BrokenResourceError:
            self.drop("the connection was lost")

    async def _read(self) -> None:
        reader, receiver = self._reader, Receiver(self._stream)
        try:
            while data := await receiver.receive():
                reader.feed(data)
                while (reply := reader.gets()) is not False:
                    self._take(reply)
        except trio.BrokenResourceError:
            self._lose("the connection was lost")
        except RedisError as error:  # it is not the protocol of Redis
            self._lose(f"what answers is no Redis: {error}")
        else:
            self._lose("Redis has closed the connection")

    def _take(self, reply: Any) -> None:
        if self._on_message is not None and type(reply) is list and reply:
            kind = reply[0]
            if kind in (b"message", b"smessage"):
                self._on_message(reply[1], reply[2])
                return
            if kind in _CONFIRMATIONS:
                self._confirmed += 1
                if self._confirmed > self._requested:
                    self.drop("the channels have moved to another server of the Redis Cluster")
                self._confirmation.notify()
                return
        if not self._waiting:
            return  # whoever waited was cancelled with its connection
        waiting = self._waiting[0]
        waiting.replies.append(reply)
        if len(waiting.replies) == waiting.count:
            self._waiting.popleft()
            waiting.done.set()

    @property
    def reason(self) -> str:
        """Why the connection was lost."""
        return self._lost or "the connection is there"

    # --- commands

    async def calls(self, commands: Sequence[Command]) -> list[Any]:
        """Execute commands, in order. Returns their replies, RedisError objects among them. Raises RedisLost.

        Safe to cancel: the commands may be executed or not.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._lost is not None:
            raise RedisLost(self._lost)
        if not commands:
            await trio.lowlevel.checkpoint()
            return []
        reply = _Reply(len(commands))
        self._waiting.append(reply)
        pack = self._pack
        self._to_write += [pack(tuple(command)) for command in commands]
        self._written.notify()
        await reply.done.wait()
        if len(reply.replies) < reply.count:
            raise RedisLost(self.reason)
        return reply.replies

    async def call(self, *command: bytes | str | int | float) -> Any:
        """Execute one command. Raises RedisError, RedisLost. Safe to cancel, as `calls`."""
        (reply,) = await self.calls([command])
        if isinstance(reply, RedisError):
            raise reply
        return reply

    async def authenticate(self, url: RedisUrl) -> None:
        """Give the password, if there is one. Raises RedisError, RedisLost."""
        if url.password is not None:
            try:
                await self.call("AUTH", *([] if url.user is None else [url.user]), url.password)
            except RedisError as error:
                raise RedisError(f"Redis at {self.place} refuses the password: {error}") from None

    async def subscribe(self, command: str, channels: Sequence[bytes]) -> None:
        """Execute SUBSCRIBE, SSUBSCRIBE or their opposites; returns when all channels are confirmed. Raises RedisLost."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._lost is None and channels:
            self._to_write.append(self._pack((command, *channels)))
            self._written.notify()
            self._requested += len(channels)
        target = self._requested
        while self._confirmed < target and self._lost is None:
            await self._confirmation.wait()
        if self._lost is not None:
            raise RedisLost(self._lost)
        await trio.lowlevel.checkpoint()


async def connect(
    url: RedisUrl, server: tuple[str, int], on_message: Callable[[bytes, bytes], None] | None = None
) -> RedisConnection:
    """Connect to a server, with TLS where it is wanted; nothing is checked yet (`introduce`). Raises RedisLost.

    Safe to cancel.
    """
    host, port = server
    place = f"{host}:{port}"
    try:
        stream: trio.abc.Stream = await trio.open_tcp_stream(host, port)
    except OSError as error:
        raise RedisLost(f"Redis at {place} cannot be reached: {reason_of(error)}") from None
    if url.tls is not None:
        tls = trio.SSLStream(stream, url.tls, server_hostname=host, https_compatible=True)
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError as error:
            await trio.aclose_forcefully(tls)
            raise RedisLost(f"Redis at {place} cannot be reached by TLS: {error.__cause__ or error}") from None
        except BaseException:
            await trio.aclose_forcefully(tls)
            raise
        stream = tls
    return RedisConnection(stream, place, on_message)


async def introduce(connection: RedisConnection, url: RedisUrl) -> None:
    """Give the password, choose the database, and check that the server can be used. Raises RedisError, RedisLost."""
    await connection.authenticate(url)
    place = connection.place
    try:
        if url.database:
            await connection.call("SELECT", url.database)
        info = _info(await connection.call("INFO"))
    except RedisError as error:
        wants_password = str(error).startswith("NOAUTH")
        reason = "it wants a password" if wants_password else str(error)
        raise RedisError(f"Redis at {place} cannot be used: {reason}") from None
    connection.run_id = info.get("run_id", "")
    version = info.get("redis_version", "0")
    least = LEAST_CLUSTER if url.topology is Topology.CLUSTER else LEAST_VERSION
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < least:
        raise RedisError(f"Redis at {place} is too old: {version}; it takes {least[0]}.{least[1]} or later")
    if info.get("role") != "master":
        raise RedisError(f"Redis at {place} is a read-only replica")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and info.get("maxmemory", "0") != "0":
        _log.warning("Redis at %s evicts keys when its memory is full (%s): histories will be lost", place, policy)


def _info(text: bytes) -> dict[str, str]:
    lines = text.decode(errors="replace").splitlines()
    return dict(line.partition(":")[::2] for line in lines if ":" in line)


def _hiredis() -> Any:
    try:
        import hiredis
    except ImportError:
        raise RedisLost("Redis needs a package that is missing: pip install 'trioswitch[redis]'") from None
    return hiredis
