"""The facade: the switch that an application holds."""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from secrets import token_urlsafe
from typing import Any

import trio
import trio_websocket

from ._util.checks import check_integer, check_iterable, check_seconds
from .administration import Administration
from .admission import HttpHandler, TransportName
from .cluster.roster import NodeInfo
from .config import Options
from .connections.connection import Connection
from .drain import drain, flush
from .durability.recovery import HistoryPage
from .handlers import Handlers
from .metrics import OutboxStatistics, RoomStatistics, SwitchStatistics
from .parts import Parts
from .publishing import OutcomeWaiter, check_name, event_of, log_loss, prepare
from .rooms.subscription import Subscription
from .transport.streams import ByteStream, TrioByteStream
from .wire.commands import MAX_PAGE
from .wire.messages import DirectMessage, Event, GroupMessage, Position
from .wire.prepared import Receipt

__all__ = ["Switch"]


class Switch:
    """Pushes messages to rooms, groups, users and single connections. Made by `open_switch`; belongs to its Trio thread.

    Methods that send take these arguments:

    - `data`: anything that JSON can carry, or an event of `trioswitch.messages`, which is sent as it is.
    - `priority`: 0 to 10. The highest goes first; above 5 a message goes at once, whatever the linger. In rooms with history
      the order of delivery is the order of offsets: there priority only ends a linger.
    - `max_delay`: seconds from now by which a linger ends for the message.
    - `expires`: seconds from now after which the message is not written any more.
    - `key`: what the message is the newest state of. Under the policy `conflate` it replaces a pending one of the same key.
    - `exclude`: connections that do not get it, by object or id.
    - `idempotency_key`: makes a retry harmless. The same key within 10 minutes gets the receipt of the first message.

    They raise UnencodableData for data that JSON cannot carry, ValueError and TypeError for other arguments that are not valid.
    Methods that take a connection take the object or its id, and raise UnknownConnection when it has ended.
    """

    def __init__(self, parts: Parts, nursery: trio.Nursery) -> None:
        self._parts = parts
        self._nursery = nursery

    @property
    def options(self) -> Options:
        return self._parts.options

    @property
    def administration(self) -> Administration:
        """What an operator asks of all nodes: who is where, and that users join, leave and go."""
        return self._parts.administration

    @property
    def handlers(self) -> Handlers:
        """The table of handlers, to which more can be added while the switch runs."""
        return self._parts.handlers

    def start_soon(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Start a task of the application that is cancelled when the switch's block is left.

        What it raises ends the block, as in any Trio nursery.
        """
        self._nursery.start_soon(function, *args)

    # --- messages out

    async def publish(
        self,
        room: str,
        data: Any,
        *,
        priority: int = 0,
        max_delay: float | None = None,
        expires: float | None = None,
        key: str | None = None,
        exclude: Iterable[Connection | str] = (),
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Publish to a room, and wait until the message was offered to all members. Waits while the room is full.

        When it is cancelled, the message may have been published or not. Raises StoreError when the room is `stored` and the
        message could not be stored, DeliveryError when too many retries with the same key wait already, and in a cluster
        BrokerError when the other nodes may not have it: no member of the room is here, and the broker does not answer.
        """
        event = event_of(data, room, key)
        message = prepare(
            event,
            room=room,
            priority=priority,
            max_delay=max_delay,
            expires=expires,
            key=key,
            exclude=exclude,
            idempotency_key=idempotency_key,
        )
        waiter = OutcomeWaiter(message)
        pending = self._parts.publisher.publish(room, message)
        if pending is not None:
            await pending
        return await waiter.wait()

    def publish_nowait(
        self,
        room: str,
        data: Any,
        *,
        priority: int = 0,
        max_delay: float | None = None,
        expires: float | None = None,
        key: str | None = None,
        exclude: Iterable[Connection | str] = (),
        idempotency_key: str | None = None,
    ) -> None:
        """As `publish`, without waiting and without a receipt. Raises trio.WouldBlock when the room is full.

        What a `stored` room could not store is logged.
        """
        event = event_of(data, room, key)
        message = prepare(
            event,
            room=room,
            priority=priority,
            max_delay=max_delay,
            expires=expires,
            key=key,
            exclude=exclude,
            idempotency_key=idempotency_key,
        )
        if self._parts.rooms.is_stored(room):
            message.on_outcome = log_loss
        self._parts.publisher.publish_nowait(room, message)

    async def send(
        self,
        connection: Connection | str,
        data: Any,
        *,
        priority: int = 0,
        max_delay: float | None = None,
        expires: float | None = None,
        key: str | None = None,
    ) -> Receipt:
        """Send to one connection, as `message`. Raises UnknownConnection."""
        return await self._parts.services.send(
            connection, data, priority=priority, max_delay=max_delay, expires=expires, key=key
        )

    async def send_to_user(
        self,
        user: str,
        data: Any,
        *,
        keep: bool = True,
        priority: int = 0,
        max_delay: float | None = None,
        expires: float | None = None,
        exclude: Iterable[Connection | str] = (),
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Send to every connection of a user, as `direct_message`. The inbox keeps it for a user who is offline.

        With `keep=False`, or for an event of another type, it is not kept: an empty receipt says then that the user is
        offline. Raises StoreError when it could not be stored, InboxFull when the inbox takes no more.
        """
        check_name("user", user)
        event = data if isinstance(data, Event) else DirectMessage(to=user, data=data)
        message = prepare(
            event,
            priority=priority,
            max_delay=max_delay,
            expires=expires,
            exclude=exclude,
            idempotency_key=idempotency_key,
        )
        waiter = OutcomeWaiter(message)
        keep = keep and isinstance(event, DirectMessage)
        pending = self._parts.publisher.send_to_user(user, message, keep=keep)
        if pending is not None:
            await pending
        return await waiter.wait()

    async def send_to_group(
        self,
        group: str,
        data: Any,
        *,
        priority: int = 0,
        max_delay: float | None = None,
        expires: float | None = None,
        exclude: Iterable[Connection | str] = (),
    ) -> Receipt:
        """Send to every connection of every user in a group, as `group_message`. Nothing is kept for users who are offline."""
        event = data if isinstance(data, Event) else GroupMessage(group=group, data=data)
        message = prepare(event, priority=priority, max_delay=max_delay, expires=expires, exclude=exclude)
        return await self._parts.publisher.send_to_users(self.group(group), message)

    async def broadcast(
        self,
        data: Any,
        *,
        connections: Iterable[Connection | str] | None = None,
        priority: int = 0,
        max_delay: float | None = None,
        expires: float | None = None,
        key: str | None = None,
        exclude: Iterable[Connection | str] = (),
    ) -> Receipt:
        """Send to all connections, as `message`, or to the given ones; those that have ended are left out."""
        if connections is not None:
            connections = tuple(connections) if not isinstance(connections, str) else connections
            check_iterable("connections", connections, "connections or their ids", Connection, str)
        event = event_of(data, None, key)
        message = prepare(event, priority=priority, max_delay=max_delay, expires=expires, key=key, exclude=exclude)
        if connections is None:
            return await self._parts.publisher.broadcast(message)
        return await self._parts.connections.send(self._parts.connections.find(connections), message)

    async def flush_all(self) -> None:
        """Write everything that is pending now, without lingering; returns when it is written or its connection has ended.

        Safe to cancel. A client that does not read delays it until its connection is closed: set a deadline.
        """
        await flush(self._parts)

    # --- rooms, groups, connections

    def join(self, connection: Connection | str, room: str) -> None:
        """Make a connection a member of a room, as if its client had asked for it."""
        self._parts.services.join(connection, room)

    def leave(self, connection: Connection | str, room: str) -> None:
        """End a membership, if there is one."""
        self._parts.services.leave(connection, room)

    def kick(self, connection: Connection | str, reason: str = "") -> None:
        """Close a connection with 4502, so that its client does not come back, after what is pending for it.

        In a cluster, it may be on another node: then its id is needed, and nobody says whether it was still there.
        `reason` is shown to the client, up to 123 bytes of UTF-8.
        """
        self._parts.services.kick(connection, reason)

    def add_to_group(self, group: str, user: str) -> None:
        """Groups hold users, online or not; only the application changes them."""
        check_name("group", group)
        check_name("user", user)
        self._parts.groups.add(group, user)

    def remove_from_group(self, group: str, user: str) -> None:
        """Does nothing when the user is not in the group."""
        check_name("group", group)
        check_name("user", user)
        self._parts.groups.remove(group, user)

    def group(self, group: str) -> frozenset[str]:
        """The users in a group; none for a group that nobody was added to."""
        check_name("group", group)
        return self._parts.groups.users(group)

    def connections(self, user: str | None = None) -> list[str]:
        """Ids of all connections, or of a user's."""
        known = self._parts.connections
        if user is not None:
            check_name("user", user)
        return list(known.ids) if user is None else [connection.id for connection in known.of_user(user)]

    def connection(self, id: str) -> Connection:
        """The connection with this id. Raises UnknownConnection."""
        return self._parts.connections.get(id).public

    def rooms(self) -> list[str]:
        """Names of the rooms that are open, sorted."""
        return sorted(room.name for room in self._parts.rooms)

    def users_in(self, room: str) -> list[str]:
        """The users in a room, each once, sorted; those who may come back within `leave_grace` included."""
        check_name("room", room)
        return sorted(self._parts.presence.users(room))

    async def history(self, room: str, *, since: Position | None = None, limit: int = 100) -> HistoryPage:
        """The newest messages of a room's history, or the oldest after a position, oldest first. Safe to cancel.

        `limit` is 1 to 1000 messages. Raises HistoryNotAvailable for a room without history, StoreError when the store
        cannot be read.
        """
        check_name("room", room)
        check_integer("limit", limit, 1, MAX_PAGE)
        if since is not None and not isinstance(since, Position):
            raise TypeError(f"since must be a Position, not {since!r}")
        page = self._parts.recovery.page_nowait(room, since, limit)
        return (page if page is not None else await self._parts.recovery.page(room, since, limit)).thawed()

    @asynccontextmanager
    async def subscribe(self, room: str) -> AsyncIterator[Subscription]:
        """Be a member of a room: `async with switch.subscribe("r") as events: async for event in events`.

        Other members are not told of it. The room's overflow policy holds; see `Subscription`. In a cluster, it raises StoreError
        when the history of the room cannot be read.
        """
        check_name("room", room)
        await self._parts.recovery.prepare(room)
        subscription = Subscription(f"subscription-{token_urlsafe(9)}", room, self._parts.traffic)
        self._parts.rooms.add_member(room, subscription)
        try:
            yield subscription
        finally:
            self._parts.rooms.remove_member(room, subscription)
            subscription.close()

    # --- connections in, and the end

    async def serve_stream(
        self, stream: trio.abc.Stream, *, remote: str | None = None, http_handler: HttpHandler | None = None
    ) -> None:
        """Serve whoever is at the other end of a Trio stream, from its HTTP request on, until it has gone.

        Closes the stream. Raises nothing but Cancelled.

        Args:
            stream: any Trio stream, a memory stream of `trio.testing` included.
            remote: where the client comes from, for logs and hooks; by default the name of the stream's class.
            http_handler: answers requests that are not a WebSocket upgrade; without it they get 426.
        """
        await self.serve_byte_stream(TrioByteStream(stream, remote), http_handler=http_handler)

    def serve_byte_stream(
        self,
        channel: ByteStream,
        *,
        http_handler: HttpHandler | None = None,
        transport: TransportName = "native",
        proxy_protocol: bool = False,
    ) -> Coroutine[Any, Any, None]:
        """As `serve_stream`, for a channel of bytes. `proxy_protocol` as in `serve`."""
        return self._parts.admission.serve_byte_stream(channel, http_handler, transport, proxy_protocol)

    async def serve_request(self, request: trio_websocket.WebSocketRequest) -> None:
        """Serve a client of a program that runs trio-websocket: call it in the handler. Returns when the client has gone."""
        await self._parts.admission.serve_request(request)

    async def drain(self, timeout: float = 10.0) -> bool:  # noqa: ASYNC109
        """Admit nobody, write what is pending, close every connection with 1001. Returns whether all had ended in time.

        What is still open after `timeout` seconds stays so: cancel the nursery in which it is served.
        """
        check_seconds("timeout", timeout)
        return await drain(self._parts, timeout)

    @property
    def store_error(self) -> str | None:
        """Why the store does not work, in a sentence; None while it does."""
        return self._parts.store_health.error

    @property
    def broker_error(self) -> str | None:
        """Why the broker does not work, in a sentence; None while it does, or without one."""
        return self._parts.cluster.link.error if self._parts.cluster is not None else None

    def nodes(self) -> list[NodeInfo]:
        """The nodes of the cluster, this one first; none without a broker."""
        return self._parts.cluster.nodes() if self._parts.cluster is not None else []

    @property
    def draining(self) -> bool:
        """Whether `drain` was called: nobody is admitted any more."""
        return self._parts.connections.draining

    # --- numbers

    def statistics(self) -> SwitchStatistics:
        """What the switch has done since it was opened, and what is pending now."""
        return self._parts.statistics()

    def room_statistics(self, room: str) -> RoomStatistics | None:
        """None for a room that is not open: it has no members, and nothing is kept of it."""
        check_name("room", room)
        known = self._parts.rooms.get(room)
        return known.statistics() if known is not None else None

    def outbox_statistics(self, connection: Connection | str) -> OutboxStatistics:
        return self._parts.connections.get(connection).outbox.statistics()
