"""A connection to Redis on Trio. Commands of all tasks go out together, and replies come back in their order.

hiredis, in C, parses the replies. Why no client library is used: decision 25.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

from .._util.remote import reason_of
from .._util.shared_stream import SharedStream
from .._util.wakeup import Wakeup
from ..errors import TrioswitchError
from .url import RedisUrl, Topology

__all__ = ["Command", "RedisConnection", "RedisError", "RedisLost", "connect"]

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


class RedisConnection(SharedStream):
    """One connection. Made by `connect`; `run` is its task.

    Messages of channels that are subscribed to go to `on_message(channel, payload)`.
    """

    def __init__(self, stream: trio.abc.Stream, place: str, on_message: Callable[[bytes, bytes], None] | None) -> None:
        super().__init__(stream, "Redis", place)
        hiredis = _hiredis()
        self.run_id = ""
        """Of the server: another one after each start."""
        self._pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command
        self._reader = hiredis.Reader(protocolError=RedisError, replyError=RedisError)
        self._on_message = on_message
        self._waiting: deque[_Reply] = deque()
        self._confirmed = 0  # subscriptions and their ends
        self._requested = 0
        self._confirmation = Wakeup()

    # --- in

    def _feed(self, data: memoryview) -> None:
        reader = self._reader
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                self._take(reply)
        except RedisError as error:
            raise ValueError(str(error)) from None

    def _on_lost(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for reply in waiting:
            reply.done.set()
        self._confirmation.notify()

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

    # --- commands

    async def calls(self, commands: Sequence[Command]) -> list[Any]:
        """Execute commands, in order. Returns their replies, RedisError objects among them. Raises RedisLost.

        Safe to cancel: the commands may be executed or not.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.lost is not None:
            raise RedisLost(self.lost)
        if not commands:
            await trio.lowlevel.checkpoint()
            return []
        reply = _Reply(len(commands))
        self._waiting.append(reply)
        pack = self._pack
        self.write(*[pack(tuple(command)) for command in commands])
        await reply.done.wait()
        if len(reply.replies) < reply.count:
            raise RedisLost(str(self.lost))
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

    async def introduce(self, url: RedisUrl) -> None:
        """Give the password, choose the database, and check that the server can be used. Raises RedisError, RedisLost."""
        await self.authenticate(url)
        place = self.place
        try:
            if url.database:
                await self.call("SELECT", url.database)
            info = _info(await self.call("INFO"))
        except RedisError as error:
            wants_password = str(error).startswith("NOAUTH")
            reason = "it wants a password" if wants_password else str(error)
            raise RedisError(f"Redis at {place} cannot be used: {reason}") from None
        self.run_id = info.get("run_id", "")
        version = info.get("redis_version", "0")
        least = LEAST_CLUSTER if url.topology is Topology.CLUSTER else LEAST_VERSION
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < least:
            raise RedisError(f"Redis at {place} is too old: {version}; it takes {least[0]}.{least[1]} or later")
        if info.get("role") != "master":
            raise RedisError(f"Redis at {place} is a read-only replica")
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and info.get("maxmemory", "0") != "0":
            _log.warning("Redis at %s evicts keys when its memory is full (%s): histories will be lost", place, policy)

    async def subscribe(self, command: str, channels: Sequence[bytes]) -> None:
        """Execute SUBSCRIBE, SSUBSCRIBE or their opposites; returns when all channels are confirmed. Raises RedisLost."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.lost is None and channels:
            self.write(self._pack((command, *channels)))
            self._requested += len(channels)
        target = self._requested
        while self._confirmed < target and self.lost is None:
            await self._confirmation.wait()
        if self.lost is not None:
            raise RedisLost(self.lost)
        await trio.lowlevel.checkpoint()


async def connect(
    url: RedisUrl, server: tuple[str, int], on_message: Callable[[bytes, bytes], None] | None = None
) -> RedisConnection:
    """Connect to a server, with TLS where it is wanted; nothing is checked yet (`RedisConnection.introduce`). Raises RedisLost.

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


def _info(text: bytes) -> dict[str, str]:
    lines = text.decode(errors="replace").splitlines()
    return dict(line.partition(":")[::2] for line in lines if ":" in line)


def _hiredis() -> Any:
    try:
        import hiredis
    except ImportError:
        raise RedisLost("Redis needs a package that is missing: pip install 'trioswitch[redis]'") from None
    return hiredis
