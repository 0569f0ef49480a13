"""The one publishing path: everything that goes into a room, or to users, goes through `Publisher`.

Its contract: the outcome of a message is reported exactly once, to the callback `on_outcome` of the message. A message ends when
the room has delivered it, when nobody is there, when the store or the inbox refuses it, when the room is full and the publisher
does not wait, when the publisher is cancelled while it waits, when the room or the switch is closed, and when another message
with the same idempotency key was first.
"""

import copy
import logging
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable
from functools import partial
from typing import Any, Final, Protocol

import trio
from msgspec import UNSET

from ._util.checks import check_integer, check_iterable, check_seconds, check_text
from .connections.connection import Connection
from .connections.directory import ConnectionDirectory
from .durability.idempotency import IdempotencyKeys, scoped_key
from .durability.inbox import Inbox
from .errors import DeliveryError, RoomFull, StoreError
from .rooms.directory import RoomDirectory
from .wire.body import encoded
from .wire.commands import MAX_NAME
from .wire.messages import Event, Message, Published, Recorded, copied
from .wire.prepared import Announcement, Outcome, Prepared, Receipt
from .wire.protocols import JSON_CODEC
from .wire.records import is_recordable

__all__ = [
    "OtherNodes",
    "OutcomeWaiter",
    "PendingPublish",
    "Publisher",
    "check_name",
    "event_of",
    "log_loss",
    "prepare",
]

_log = logging.getLogger(__name__)
_NOBODY: Final[frozenset[str]] = frozenset()


class PendingPublish:
    """A message that waits for space. Await it or `close` it: either way its outcome is reported.

    Awaiting it returns when the message was enqueued, or has ended. Safe to cancel: then it was not published.
    """

    __slots__ = ("_enqueue", "_message")

    def __init__(self, message: Prepared, enqueue: Callable[[Prepared], Awaitable[None]]) -> None:
        self._message: Prepared | None = message
        self._enqueue = enqueue

    def __await__(self) -> Generator[Any, Any, None]:
        return self._wait().__await__()

    async def _wait(self) -> None:
        assert self._message is not None, "it is awaited once, and not after it was closed"
        try:
            await self._enqueue(self._message)
        except BaseException:  # such as trio.Cancelled
            self.close()
            raise
        self._message = None

    def close(self, reason: DeliveryError | None = None) -> None:
        """Give the message up, with the reason that is reported. Does nothing when it was enqueued, or has ended."""
        message, self._message = self._message, None
        if message is not None:
            message.report(reason or DeliveryError("not published: the publisher left while it waited for space"))


class OtherNodes(Protocol):
    """The other nodes of a cluster. The calls do not wait."""

    @property
    def full(self) -> bool:
        """Whether publishers should wait (`wait_space`)."""

    async def wait_space(self) -> None:
        """Wait until it is not full. Safe to cancel."""

    def publish(self, room: str, message: Prepared) -> None:
        """Publish to a room of which this node has nothing, and report the outcome; it may be a BrokerError."""

    def send_to_users(self, users: list[str], message: Prepared) -> None: ...

    def broadcast(self, message: Prepared) -> None: ...


class Publisher:
    """Publishes to rooms, and sends to users and their inboxes."""

    def __init__(
        self,
        rooms: RoomDirectory,
        inbox: Inbox,
        keys: IdempotencyKeys,
        connections: ConnectionDirectory,
        nodes: OtherNodes | None = None,
    ) -> None:
        self._connections = connections
        self._nodes = nodes
        self._rooms = rooms
        self._inbox = inbox
        self._keys = keys

    def publish(self, room: str, message: Prepared) -> PendingPublish | None:
        """Publish to a room. Returns None or, when the room is full, a PendingPublish for the caller to await.

        Raises TypeError, in a cluster, for an event that cannot be sent to other nodes.
        """
        self._check_event(message)
        if message.idempotency_key is not None and not self._keys.claim("room", room, message):
            return None
        try:
            target = self._rooms.for_publishing(room)
            if target is not None:
                target.publish_nowait(message)
            else:
                self._nobody_here(room, message)
        except trio.WouldBlock:
            return PendingPublish(message, partial(self._enqueue, room))
        except trio.ClosedResourceError:
            message.report(self._closed(room))
        return None

    def publish_nowait(self, room: str, message: Prepared) -> None:
        """As `publish`, without waiting. Raises trio.WouldBlock when the room is full; RoomFull is reported then."""
        pending = self.publish(room, message)
        if pending is not None:
            pending.close(RoomFull(f"the room {room!r} is full"))
            raise trio.WouldBlock

    async def _enqueue(self, room: str, message: Prepared) -> None:
        try:
            while (target := self._rooms.for_publishing(room)) is None and self._nodes is not None and self._nodes.full:
                await self._nodes.wait_space()
            if target is not None:
                await target.publish(message)
            else:
                self._nobody_here(room, message)
        except trio.ClosedResourceError:
            message.report(self._closed(room))

    def _check_event(self, message: Prepared) -> None:
        if self._nodes is not None and not isinstance(message, Announcement) and not is_recordable(message.event):
            raise TypeError(f"in a cluster, a {type(message.event).__name__} can be sent to single connections only")

    def _nobody_here(self, room: str, message: Prepared) -> None:
        if self._nodes is not None:
            if self._nodes.full:
                raise trio.WouldBlock
            self._nodes.publish(room, message)
        else:
            message.report(Receipt())

    def _closed(self, room: str) -> Outcome:
        """The outcome of a message for a room that was closed. Nobody is there; but a stored message was not stored."""
        return StoreError("the server is shutting down") if self._rooms.is_stored(room) else Receipt()

    def send_to_user(self, user: str, message: Prepared, *, keep: bool = True) -> PendingPublish | None:
        """Send a message to a user; `keep`: into the inbox, where that is needed (`durability.inbox`).

        Returns, and raises, as `publish`.
        """
        self._check_event(message)
        if message.idempotency_key is not None and not self._keys.claim("user", user, message):
            return None
        try:
            self._inbox.send_nowait(user, message, keep=keep)
        except trio.WouldBlock:
            return PendingPublish(message, partial(self._inbox.send, user, keep=keep))
        return None

    async def send_to_users(self, users: Collection[str], message: Prepared) -> Receipt:
        """Send to all connections of users; the receipt counts those on this node. When cancelled, some of them may have it.

        Raises TypeError as `publish`.
        """
        self._check_event(message)
        receipt = await self._connections.send(self._connections.of_users(users), message)
        if self._nodes is not None:
            self._nodes.send_to_users(list(users), message)
        return receipt

    async def broadcast(self, message: Prepared) -> Receipt:
        """As `send_to_users`, to all connections."""
        self._check_event(message)
        receipt = await self._connections.send(list(self._connections), message)
        if self._nodes is not None:
            self._nodes.broadcast(message)
        return receipt


class OutcomeWaiter:
    """Waits for the outcome of a message: its receipt, or the reason why it was not published."""

    def __init__(self, message: Prepared) -> None:
        self._reported = trio.Event()
        self._outcome: Outcome | None = None
        message.on_outcome = self._report

    def _report(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._reported.set()

    async def wait(self) -> Receipt:
        """The receipt. Raises the reason, such as StoreError, if there is none. Safe to cancel."""
        await self._reported.wait()
        assert self._outcome is not None
        if isinstance(self._outcome, Receipt):
            return self._outcome
        raise self._outcome


def log_loss(outcome: Outcome) -> None:
    """The `on_outcome` of a message whose publisher does not wait for a receipt, and must not lose it in silence."""
    if not isinstance(outcome, Receipt):
        _log.error("a message was not published: %s", outcome)


# --- messages of the server's own code


def check_name(what: str, name: object) -> None:
    """Raises TypeError or ValueError for what is not a valid name of a room, user or group: clients could not say it either."""
    check_text(f"the name of a {what}", name, MAX_NAME)


def event_of(data: Any, room: str | None, key: str | None) -> Event:
    """An event as it is; other data as a `message`."""
    if isinstance(data, Event):
        return data
    return Message(data=data, room=UNSET if room is None else room, key=UNSET if key is None else key)


def frozen(event: Event) -> Event:
    """A copy that shows what the event is now, whatever the application does with it, and with its data, afterwards.

    Raises UnencodableData.
    """
    if not isinstance(event, Published):
        return copy.deepcopy(event)
    for field in ("room", "to", "group", "user_id", "key", "action"):
        value = getattr(event, field, None)
        if not (value is None or value is UNSET or isinstance(value, str)):
            raise TypeError(f"{field} of a {type(event).__name__} must be a str, not {value!r}")
    event = copied(event)
    event.replace_body(encoded)
    return event


def prepare(
    event: Event,
    *,
    room: str | None = None,
    priority: int = 0,
    max_delay: float | None = None,
    expires: float | None = None,
    key: str | None = None,
    exclude: Iterable[Connection | str] = (),
    idempotency_key: str | None = None,
) -> Prepared:
    """A message of the server's own code. Raises UnencodableData, TypeError and ValueError for what cannot be sent."""
    if room is not None:
        check_name("room", room)
    now = trio.current_time()
    check_integer("priority", priority, 0, 10)
    for name, seconds in (("max_delay", max_delay), ("expires", expires)):
        if seconds is not None:
            check_seconds(name, seconds)
    if key is not None and not isinstance(key, str):
        raise TypeError(f"key must be a str, not {key!r}")
    excluded: frozenset[str] = _NOBODY
    if exclude != ():
        exclude = tuple(exclude) if not isinstance(exclude, str) and isinstance(exclude, Iterable) else exclude
        check_iterable("exclude", exclude, "connections or their ids", Connection, str)
        excluded = frozenset([each.id if isinstance(each, Connection) else each for each in exclude])
    if idempotency_key is not None:
        idempotency_key = scoped_key("", idempotency_key)  # no user has an empty name
    event = frozen(event)
    if isinstance(event, Recorded):
        event.epoch = event.offset = UNSET  # of the room that it comes from, if it does
    size = len(JSON_CODEC.encode(event))  # raises here, in the caller, rather than in the room
    return Prepared(
        event,
        room=room,
        priority=priority,
        deliver_by=None if max_delay is None else now + max_delay,
        expires_at=None if expires is None else now + expires,
        key=key,
        idempotency_key=idempotency_key,
        exclude=excluded,
        size=size,
    )
