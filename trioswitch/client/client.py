"""The client, and the rooms that it has joined."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from math import inf
from random import Random
from typing import Any
from uuid import uuid4

import attrs
import trio

from .._util.backoff import Backoff
from ..wire.messages import Position
from ..wire.prepared import Receipt
from .connection import RETRIED, ClientConnection
from .errors import ClientClosed, ClientError, RequestFailed
from .messages import Gap, HistoryPage, Message, Presence, receipt_of
from .options import ClientOptions
from .reader import Reader
from .reconnector import Reconnector, State
from .room_sync import Buffer, Item, RoomSync
from .session import Membership, Session

__all__ = ["Client", "ClientStatistics", "Room"]

RETRY_FOR = 30.0
"""Seconds for which a publish that the server could not store is retried, unless the caller says otherwise."""


@attrs.frozen(kw_only=True)
class ClientStatistics:
    connections: int
    """Connections since the client was opened, the current one included."""
    unanswered: int
    """Requests that wait for an answer."""
    buffered: Mapping[str, int]
    """Items in the buffer of each room."""
    direct_buffered: int
    """Items in the buffer of direct messages."""


class Client:
    """A client that stays connected. Made by `open_client`.

    All methods may be used by many tasks at once. Cancelling any of them is safe. After the block of `open_client` has been
    left, they raise ClientClosed; after the server has rejected the client, they raise Rejected.
    """

    def __init__(self, reconnector: Reconnector, session: Session, options: ClientOptions, random: Random) -> None:
        self._reconnector = reconnector
        self._session = session
        self._options = options
        self._random = random
        self._direct: Reader[Message | Gap] = Reader(self._take_direct, session.direct_wake)

    # --- rooms

    @asynccontextmanager
    async def room(self, name: str, *, history: int = 0, announcements: bool = False) -> AsyncIterator["Room"]:
        """Join a room, and stay in it until the block is left, across reconnects.

        Args:
            name: the room.
            history: how many of the newest messages to receive first.
            announcements: also receive an Announcement when users join and leave.

        Raises:
            RequestFailed: the server refuses the join.
            ClientError: this client is in the room already.
        """
        if self._session.ended is not None:
            await trio.lowlevel.checkpoint()
            raise self._session.ended
        if name in self._session.rooms:
            raise ClientError(f"this client is already in the room {name!r}")
        buffer = Buffer(self._options.buffer_messages, self._options.buffer_bytes)
        sync = RoomSync(name, buffer, replay=history, announcements=announcements)
        membership = Membership(name, sync, history)
        self._session.rooms[name] = membership
        try:
            if self._connection is not None:
                self._connection.join(membership)
            await membership.answered.wait()
            if membership.ended is not None:
                raise membership.ended
            yield Room(self, membership, Reader(lambda: self._take_item(membership), membership.wake))
        finally:
            if self._session.rooms.get(name) is membership:
                del self._session.rooms[name]
                if self._connection is not None:
                    self._connection.leave_room(name)
            membership.end(ClientClosed(f"the client has left the room {name!r}"))

    async def publish(
        self,
        room: str,
        data: Any,
        *,
        priority: int = 0,
        max_delay: float | None = None,
        expires: float | None = None,
        key: str | None = None,
        exclude_self: bool = False,
        idempotency_key: str | None = None,
        retry_for: float = RETRY_FOR,
    ) -> Receipt:
        """Publish data to a room, across reconnects, and return the server's receipt.

        Args:
            room: the room; this client must be in it.
            data: anything that JSON can carry.
            priority: 0 to 10. Higher priorities are delivered first; above 5 without linger.
            max_delay: seconds after which the server must not hold the message back for a batch.
            expires: seconds after which the server drops the message instead of delivering it.
            key: with the overflow policy `conflate`, a newer message with this key replaces one that is still queued.
            exclude_self: do not deliver the message to this client.
            idempotency_key: retries with the same key publish once; 1 to 64 characters. The default is a new UUID.
            retry_for: seconds for which the publish is retried when the server cannot store it for the moment.

        Raises:
            RequestFailed: the server refuses the publish, or could not store it for `retry_for` seconds.
            UnencodableData: JSON cannot carry the data.

        After a cancellation the message may have been published. Publish again with the same `idempotency_key` to be certain.
        """
        fields = {
            "room": room,
            "data": data,
            "priority": priority or None,
            "max_delay": max_delay,
            "expires": expires,
            "key": key,
            "exclude_self": exclude_self or None,
        }
        return await self._publish("message", fields, idempotency_key, retry_for)

    async def chat(
        self, room: str, text: str, *, idempotency_key: str | None = None, retry_for: float = RETRY_FOR
    ) -> Receipt:
        """Publish text to a room, as a `chat_message`. Arguments, exceptions and cancellation are as for `publish`."""
        return await self._publish("chat_message", {"room": room, "content": text}, idempotency_key, retry_for)

    async def send_to_user(
        self,
        user: str,
        data: Any = None,
        *,
        text: str | None = None,
        expires: float | None = None,
        idempotency_key: str | None = None,
        retry_for: float = RETRY_FOR,
    ) -> Receipt:
        """Send data, or `text`, to a user, as a `direct_message`. The inbox keeps it for a user who is offline.

        Args:
            user: the receiver.
            data: anything that JSON can carry.
            text: text instead of data.
            expires: seconds after which the server drops the message instead of delivering it.
            idempotency_key: as for `publish`.
            retry_for: as for `publish`.

        Returns the receipt: `kept` is 1 if the inbox keeps the message, `delivered` and `queued` count the user's connections.
        Raises RequestFailed, UnencodableData, and ValueError if both data and text are given. Cancellation is as for `publish`.
        """
        fields = {"to": user, "expires": expires, **_body(data, text)}
        return await self._publish("direct_message", fields, idempotency_key, retry_for)

    async def send_to_group(self, group: str, data: Any = None, *, text: str | None = None) -> Receipt:
        """Send data, or `text`, to the members of a group who are online, as a `group_message`.

        It has no idempotency key: if the connection is lost before the answer, the message may arrive twice.
        Raises RequestFailed, UnencodableData, and ValueError if both data and text are given.
        """
        return receipt_of(await self._session.requests.ask("group_message", {"group": group, **_body(data, text)}))

    async def presence(self, room: str) -> Presence:
        """Return the users in a room; this client need not be in it. Raises RequestFailed."""
        return Presence.from_ack(await self._session.requests.ask("presence", {"room": room}))

    async def history(self, room: str, *, since: Position | None = None, limit: int = 100) -> HistoryPage:
        """Return a page of a room's history; this client need not be in the room.

        Args:
            room: the room.
            since: return the oldest messages after this position; without it, the newest messages.
            limit: the number of messages, 1 to 1,000.

        Raises RequestFailed, with the code `not_available` if the room has no history.
        """
        fields: dict[str, Any] = {"room": room, "limit": limit}
        if since is not None:
            fields["since"] = since
        return HistoryPage.from_ack(await self._session.requests.ask("history", fields))

    async def request(self, type: str, **fields: Any) -> Mapping[str, Any]:
        """Send a command of the application's own type, and return the `ack`.

        It is never sent twice. Raises RequestFailed, and ConnectionLost if the answer was lost: then the server may have
        executed the command.
        """
        return await self._session.requests.ask(type, fields, repeatable=False)

    def direct(self) -> AsyncIterator[Message | Gap]:
        """Iterate over the messages to this user, to its groups, and to this connection. Only one task at a time may do so.

        The client acknowledges a direct message that the inbox keeps when the next one is asked for. Until then the server sends
        it again after a crash of the program. Before the first call, the client acknowledges nothing.
        """
        if not self._session.inbox.used:
            self._session.inbox.used = True
            if self._connection is not None:
                self._connection.read_inbox()
        return self._direct

    # --- state

    @property
    def connected(self) -> bool:
        """Whether requests are sent at once. Otherwise they wait for the next connection."""
        return self._reconnector.state.connected

    @property
    def user_id(self) -> str | None:
        """The user name that the server uses for this client."""
        return self._session.user_id

    def states(self) -> AsyncIterator[State]:
        """Iterate over the current state and each change of it. A slow reader gets the newest state only."""
        shown: State | None = None

        def take() -> State | None:
            nonlocal shown
            if self._reconnector.ended.is_set():
                raise StopAsyncIteration
            state = self._reconnector.state
            if state is shown:
                return None
            shown = state
            return state

        return Reader(take, self._reconnector.state_changed)

    def statistics(self) -> ClientStatistics:
        session = self._session
        return ClientStatistics(
            connections=self._reconnector.connections,
            unanswered=len(session.requests),
            buffered={name: membership.sync.buffered for name, membership in session.rooms.items()},
            direct_buffered=session.inbox.buffered,
        )

    # --- internal

    @property
    def _connection(self) -> ClientConnection | None:
        return self._reconnector.connection

    def _take_item(self, membership: Membership) -> Item | None:
        item = membership.sync.take()
        if item is not None:
            if self._connection is not None:
                self._connection.fetch(membership)  # the buffer has space now
        elif isinstance(membership.ended, ClientClosed):
            raise StopAsyncIteration
        elif membership.ended is not None:
            raise membership.ended
        return item

    def _take_direct(self) -> Message | Gap | None:
        inbox = self._session.inbox
        item = inbox.take()
        if self._connection is not None:
            self._connection.acknowledge(idle=item is None)
            if item is None and inbox.stuck:
                self._connection.renew()
        if item is None and self._session.ended is not None:
            raise self._session.ended
        return item

    async def _publish(
        self, type: str, fields: Mapping[str, Any], idempotency_key: str | None, retry_for: float
    ) -> Receipt:
        given = {name: value for name, value in fields.items() if value is not None or name == "data"}
        given["idempotency_key"] = idempotency_key or str(uuid4())
        backoff, deadline = Backoff(self._random), inf
        while True:
            try:
                return receipt_of(await self._session.requests.ask(type, given))
            except RequestFailed as error:
                if error.code not in RETRIED:
                    raise
                delay, now = backoff.next(), trio.current_time()
                deadline = min(deadline, now + retry_for)
                if now + delay > deadline:
                    raise
            await trio.sleep(delay)


class Room(AsyncIterator[Item]):
    """A room that the client has joined. Made by `Client.room`.

    Iterate over it to receive `Message`, `Gap`, and, if they were asked for, `Announcement`. Tasks that iterate over one room
    share its items. Iteration ends when the room is left. It raises RequestFailed if the server refuses the client after a
    reconnect. Cancelling is safe.
    """

    def __init__(self, client: Client, membership: Membership, reader: Reader[Item]) -> None:
        self._client = client
        self._membership = membership
        self._reader = reader

    @property
    def name(self) -> str:
        return self._membership.name

    @property
    def online_count(self) -> int:
        """The number of users in the room, as last announced."""
        return self._membership.online_count

    @property
    def position(self) -> Position | None:
        """The position of the newest message received, read or not; None if the room has no history."""
        return self._membership.sync.position

    async def publish(
        self,
        data: Any,
        *,
        priority: int = 0,
        max_delay: float | None = None,
        expires: float | None = None,
        key: str | None = None,
        exclude_self: bool = False,
        idempotency_key: str | None = None,
        retry_for: float = RETRY_FOR,
    ) -> Receipt:
        """Publish data to this room: see `Client.publish`."""
        return await self._client.publish(
            self.name,
            data,
            priority=priority,
            max_delay=max_delay,
            expires=expires,
            key=key,
            exclude_self=exclude_self,
            idempotency_key=idempotency_key,
            retry_for=retry_for,
        )

    async def chat(self, text: str, *, idempotency_key: str | None = None, retry_for: float = RETRY_FOR) -> Receipt:
        """Publish text to this room: see `Client.chat`."""
        return await self._client.chat(self.name, text, idempotency_key=idempotency_key, retry_for=retry_for)

    async def presence(self) -> Presence:
        """Return the users in this room: see `Client.presence`."""
        return await self._client.presence(self.name)

    async def history(self, *, since: Position | None = None, limit: int = 100) -> HistoryPage:
        """Return a page of this room's history: see `Client.history`."""
        return await self._client.history(self.name, since=since, limit=limit)

    async def __anext__(self) -> Item:
        return await anext(self._reader)


def _body(data: Any, text: str | None) -> dict[str, Any]:
    """Raises ValueError if both are given."""
    if text is None:
        return {"data": data}
    if data is not None:
        raise ValueError("give either data or text, not both")
    return {"content": text}
