"""The switch: what an application holds in its hand."""

import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from secrets import token_urlsafe
from typing import Any, Unpack

import trio
import trio_websocket

from ._util.supervision import supervise
from .admission import Entry, OnConnect, OnDisconnect, OtherRequest, TransportName
from .commands import Authenticator, Commands
from .config import Options
from .connections.connection import Handler
from .connections.heartbeats import Heartbeats
from .durability.idempotency import Retries
from .durability.inbox import Inbox
from .durability.recovery import HistoryPage, Recovery
from .durability.sessions import Sessions
from .errors import Cause, Refused
from .metrics import OutboxStatistics, RoomStatistics, SwitchStatistics
from .publishing import Delivery, Settled, check_name, event_of, log_loss, prepare
from .rooms.registry import Registry
from .rooms.subscription import Subscription
from .stores.memory import MemoryStore
from .stores.port import Store
from .transport.streams import ByteChannel, StreamChannel
from .wire.messages import COMMANDS, MAX_PAGE, DirectMessage, Event, GroupMessage, Position, Reconnect
from .wire.prepared import Receipt

__all__ = ["Delivery", "Switch", "open_switch"]

RECONNECT_WITHIN = 5.0
"""Seconds over which clients that are told of a drain come back, each after a time of its own: not all at once."""


@asynccontextmanager
async def open_switch(
    options: Options | None = None,
    *,
    on_connect: OnConnect | None = None,
    on_disconnect: OnDisconnect | None = None,
    authenticate: Authenticator | None = None,
    store: Store | None = None,
) -> AsyncIterator["Switch"]:
    """Run a switch: `async with open_switch() as switch`. Its rooms and sweepers live until the block is left.

    `store` keeps the messages of `stored` rooms and inboxes (`trioswitch.stores`); it stays open when the block is left.
    Without it inboxes are kept in memory, and a policy that promises `stored` raises ValueError.

    With `authenticate`, a client needs a token: in the `Authorization` header, in `?token=`, or in its first message.
    Connections are served in the nursery of whoever calls `serve`, `Switch.serve_stream` or `Switch.serve_request`: open
    that nursery inside the block, so that connections end before their rooms do.
    """
    options = options or Options()
    if options.needs_store and store is None:
        raise ValueError("a policy has history=stored: that needs a store")
    async with trio.open_nursery() as nursery:
        switch = Switch(options, nursery, store or MemoryStore(), on_connect, on_disconnect, authenticate)
        try:
            yield switch
        finally:
            switch._registry.abandon()
            nursery.cancel_scope.cancel()
    switch._inbox.abandon()
    switch._registry.close()


class Switch:
    """Pushes messages to rooms, groups, users and single connections. Made by `open_switch`; belongs to its Trio thread.

    `data` of a message is anything that JSON can carry, or an event of `trioswitch.messages`, which is sent as it is.
    Whatever sends raises UnencodableData for other data, and ValueError for a priority that is none.
    """

    def __init__(
        self,
        options: Options,
        nursery: trio.Nursery,
        store: Store,
        on_connect: OnConnect | None,
        on_disconnect: OnDisconnect | None,
        authenticate: Authenticator | None,
    ) -> None:
        self.options = options
        self._handlers: dict[str, Handler] = {}
        self._registry = registry = Registry(options, nursery, store)
        self._recovery = Recovery(registry)
        self._inbox = Inbox(registry)
        self._retries = Retries()
        sessions = Sessions(registry, self._recovery)
        heartbeats = Heartbeats(options.ping_interval, options.ping_timeout)
        commands = Commands(
            registry, self._recovery, sessions, self._inbox, self._retries, self._handlers, authenticate
        )
        self._entry = Entry(
            registry, sessions, self._inbox, commands, heartbeats, on_connect, on_disconnect, authenticate
        )
        for task in (
            registry.dispatcher.run,
            registry.announce_counts,
            registry.close_idle_rooms,
            registry.journal.run,
            registry.journal.sweep,
            self._inbox.run,
            sessions.run,
            heartbeats.run,
        ):
            nursery.start_soon(supervise, task)
        if self._registry.reactor is not None:
            nursery.start_soon(supervise, self._registry.reactor.run)

    # --- messages out

    async def publish(self, room: str, data: Any, **delivery: Unpack[Delivery]) -> Receipt:
        """Publish to a room, and wait until the message has been handed to its members.

        Waits while the room is full. When it is cancelled, the message may be out or not. Raises StoreError when the room
        is `stored`, and the message could not be.
        """
        message = prepare(event_of(data, room, delivery), room, delivery)
        settled = Settled(message)
        if self._retries.is_first("room", room, message):
            await self._registry.publish(room, message)
        return await settled.wait()

    def publish_nowait(self, room: str, data: Any, **delivery: Unpack[Delivery]) -> None:
        """As `publish`, without waiting and without a receipt. Raises trio.WouldBlock when the room is full."""
        message = prepare(event_of(data, room, delivery), room, delivery)
        if self._registry.stores(room):
            message.settle = log_loss
        if self._retries.is_first("room", room, message):
            try:
                self._registry.publish_nowait(room, message)
            except trio.WouldBlock:
                if message.settle is not None:
                    message.settle(Refused("the room is full"))  # its key is free again
                raise

    async def send(self, connection_id: str, data: Any, **delivery: Unpack[Delivery]) -> Receipt:
        """Send to one connection, as `message`. Raises UnknownConnection."""
        message = prepare(event_of(data, None, delivery), None, delivery)
        return await self._registry.send([self._registry.connection(connection_id)], message)

    async def send_to_user(self, user: str, data: Any, *, keep: bool = True, **delivery: Unpack[Delivery]) -> Receipt:
        """Send to every connection of a user, as `direct_message`. It waits in the inbox of a user who is away.

        Without `keep`, or for an event of another type, it does not: then an empty receipt says that the user is not here.
        Raises StoreError when it could not be stored, Refused (`inbox_full`) when too many wait already.
        """
        check_name("user", user)
        event = data if isinstance(data, Event) else DirectMessage(to=user, data=data)
        message = prepare(event, None, delivery)
        settled = Settled(message)
        if self._retries.is_first("user", user, message):
            await self._inbox.send(user, message, keep=keep and isinstance(event, DirectMessage))
        return await settled.wait()

    async def send_to_group(self, group: str, data: Any, **delivery: Unpack[Delivery]) -> Receipt:
        """Send to every connection of every user in a group, as `group_message`."""
        event = data if isinstance(data, Event) else GroupMessage(group=group, data=data)
        receivers = self._registry.of_users(self.group(group))
        return await self._registry.send(receivers, prepare(event, None, delivery))

    async def broadcast(
        self, data: Any, *, connections: Iterable[str] | None = None, **delivery: Unpack[Delivery]
    ) -> Receipt:
        """Send to all connections, as `message`, or to those with the given ids (unknown ones are passed over)."""
        known = self._registry.connections
        receivers = list(known.values()) if connections is None else [known[id] for id in connections if id in known]
        return await self._registry.send(receivers, prepare(event_of(data, None, delivery), None, delivery))

    async def flush_all(self) -> None:
        """Write everything that waits now, without lingering; returns when it is written or its connection gone.

        Safe to cancel. A client that does not read holds it up until its connection is closed: set a deadline.
        """
        await self._registry.flush()

    # --- rooms, groups, connections

    def join(self, connection_id: str, room: str) -> None:
        """Make a connection a member of a room, as if it had asked for it. Raises UnknownConnection."""
        self._registry.join(self._registry.connection(connection_id), room)

    def leave(self, connection_id: str, room: str) -> None:
        """End a membership, if there is one. Raises UnknownConnection."""
        self._registry.leave(self._registry.connection(connection_id), room)

    def kick(self, connection_id: str, reason: str = "") -> None:
        """Close a connection with 4502, after what waits for it. Raises UnknownConnection."""
        self._registry.connection(connection_id).close(Cause.KICKED, reason or None)

    def add_to_group(self, group: str, user: str) -> None:
        """Groups hold users, here or not; only the server changes them."""
        self._registry.groups.setdefault(group, set()).add(user)

    def remove_from_group(self, group: str, user: str) -> None:
        users = self._registry.groups.get(group, set())
        users.discard(user)
        if not users:
            self._registry.groups.pop(group, None)

    def group(self, group: str) -> frozenset[str]:
        """The users in a group."""
        return frozenset(self._registry.groups.get(group, ()))

    def connections(self, user: str | None = None) -> list[str]:
        """Ids of all connections, or of a user's."""
        return list(self._registry.connections if user is None else self._registry.users.get(user, {}))

    def users_in(self, room: str) -> list[str]:
        """The users in the room, each once, sorted; those who may come back within `leave_grace` included."""
        return sorted(self._registry.users_in(room))

    async def history(self, room: str, *, since: Position | None = None, limit: int = 100) -> HistoryPage:
        """The newest messages of a room's history, or the oldest after a position, oldest first. Safe to cancel.

        Raises Refused for a room without history (`not_available`), or when the store cannot be read (`unavailable`).
        """
        check_name("room", room)
        if not 1 <= limit <= MAX_PAGE:
            raise ValueError(f"limit must be 1 to {MAX_PAGE}, not {limit!r}")
        page = self._recovery.page_nowait(room, since, limit)
        return page if page is not None else await self._recovery.page(room, since, limit)

    @asynccontextmanager
    async def subscribe(self, room: str) -> AsyncIterator[Subscription]:
        """Be a member of a room: `async with switch.subscribe("r") as events: async for event in events`.

        Members are not told of it. The room's overflow policy holds; see `Subscription`.
        """
        subscription = Subscription(f"subscription-{token_urlsafe(9)}", room, self._registry.traffic)
        self._registry.add_member(room, subscription)
        try:
            yield subscription
        finally:
            self._registry.remove_member(room, subscription)
            subscription.close()

    # --- hooks

    def handler(self, type: str) -> Callable[[Handler], Handler]:
        """Decorator: `async def handle(connection, message)` for client messages of a type of your own.

        It runs in the connection's nursery, one message after the other, and is cancelled when the connection goes. What
        it returns is the `data` of the `ack` to a message with an `id`; it may raise Refused. Raises ValueError for a type
        of the client protocol.
        """

        if type in COMMANDS:
            raise ValueError(f"{type!r} is a type of the client protocol")

        def register(handler: Handler) -> Handler:
            self._handlers[type] = handler
            return handler

        return register

    # --- connections in, and the end

    async def serve_stream(
        self, stream: trio.abc.Stream, *, remote: str | None = None, other: OtherRequest | None = None
    ) -> None:
        """Serve whoever is at the other end of a Trio stream, from its HTTP request on, until it is gone.

        Closes the stream. Raises nothing but Cancelled.
        """
        await self.serve_channel(StreamChannel(stream, remote), other=other)

    def serve_channel(
        self, channel: ByteChannel, *, other: OtherRequest | None = None, transport: TransportName = "native"
    ) -> Coroutine[Any, Any, None]:
        """As `serve_stream`, for a channel of bytes. Requests that are no WebSocket upgrade go to `other`."""
        return self._entry.serve_channel(channel, other, transport)

    async def serve_request(self, request: trio_websocket.WebSocketRequest) -> None:
        """Serve a client of a program that runs trio-websocket: call it in the handler, it returns when the client is gone."""
        await self._entry.serve_request(request)

    async def drain(self, timeout: float = 10.0) -> bool:  # noqa: ASYNC109
        """Let nobody in, write what waits, close every connection with 1001. Returns whether all were gone in time.

        What is still open after `timeout` seconds stays so: cancel the nursery in which it is served.
        """
        self._registry.draining = True
        with trio.move_on_after(timeout):
            with trio.move_on_after(timeout / 2):
                await self._registry.flush()
                await self._inbox.flush()
            for connection in list(self._registry.connections.values()):
                after = round(random.uniform(0.5, RECONNECT_WITHIN), 3)
                connection.reply(Reconnect(after=after, reason=Cause.DRAIN.reason))
                connection.close(Cause.DRAIN)
            await self._entry.wait_empty()
        return not self._registry.connections

    @property
    def problem(self) -> str | None:
        """Why the store does not work, in a sentence; None while it does."""
        return self._registry.journal.problem

    @property
    def draining(self) -> bool:
        """Whether `drain` was called: nobody is let in any more."""
        return self._registry.draining

    # --- numbers

    def statistics(self) -> SwitchStatistics:
        return self._registry.statistics()

    def room_statistics(self, room: str) -> RoomStatistics | None:
        """None: the room has no members, and so does not exist."""
        known = self._registry.rooms.get(room)
        return known.statistics() if known is not None else None

    def outbox_statistics(self, connection_id: str) -> OutboxStatistics:
        """Raises UnknownConnection."""
        return self._registry.connection(connection_id).outbox.statistics()
