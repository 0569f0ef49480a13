"""`open_client`: a client that stays connected, and its rooms."""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from math import inf
from random import Random
from typing import Any
from uuid import uuid4

import attrs
import trio

from .backoff import Backoff
from .connector import Connector, State
from .conversation import RETRIED, Conversation
from .errors import ClientClosed, ClientError, RequestFailed
from .inbox import Inbox
from .link import Address, OpenStream
from .messages import Gap, Message, Page, Position, Presence, Receipt
from .options import ClientOptions
from .reader import Reader
from .session import Membership, Session
from .track import Buffer, Item, Track

__all__ = ["Client", "ClientStatistics", "Room", "open_client"]

RETRY_FOR = 30.0
"""Seconds in which a publish that the server could not store is tried again, unless the caller says otherwise."""


@attrs.frozen(kw_only=True)
class ClientStatistics:
    connections: int
    """Since the client was opened, that of now included."""
    unanswered: int
    """Requests that wait for the server."""
    waiting: Mapping[str, int]
    """Items that wait for the readers, by room."""
    inbox: int
    """Items that wait for the reader of direct messages."""


@asynccontextmanager
async def open_client(
    url: str,
    token: str | None = None,
    user_id: str | None = None,
    *,
    options: ClientOptions | None = None,
    ssl_context: ssl.SSLContext | None = None,
    open_stream: OpenStream | None = None,
    random: Random | None = None,
) -> AsyncIterator["Client"]:
    """A client that is connected, and connects again whenever the connection is lost, until the block is left.

    `user_id` is who the client is, where the server asks for no `token`. `open_stream` opens the stream below the WebSocket
    (a Unix socket, a proxy, a test); it raises OSError where it cannot.

    Raises ValueError for a URL or a token that is none, CannotConnect where the first connection fails (but see
    `keep_trying`), and Rejected when the server does not want the client: that cancels the block. What the block raises comes
    out as it is. Leaving the block closes with 1000, within `close_timeout`.
    """
    if token is not None and not (token and token.isascii() and token.isprintable()):
        raise ValueError("a token has printable ASCII characters only, and at least one")
    address = Address.parse(url)
    options, random, scope = options or ClientOptions(), random or Random(), trio.CancelScope()
    session = Session(Inbox(Buffer(options.buffer_messages, options.buffer_bytes)), user_id)
    open_stream = open_stream or (lambda: address.open(ssl_context))
    connector = Connector(address, open_stream, token, options, random, session, rejected=scope.cancel)
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(connector.run)
                with scope:
                    yield Client(connector, session, options, random)
                if scope.cancelled_caught and session.ended is not None:
                    raise session.ended
            except BaseException as error:
                raised = error
                raise
            finally:
                await connector.leave()
    except BaseExceptionGroup:  # the nursery wraps even what comes alone
        if raised is None or isinstance(raised, trio.Cancelled):
            raise
    if raised is not None:
        raise raised


class Client:
    """Made by `open_client`. All methods may be used by many tasks at once; to cancel any of them is safe."""

    def __init__(self, connector: Connector, session: Session, options: ClientOptions, random: Random) -> None:
        self._connector = connector
        self._session = session
        self._options = options
        self._random = random
        self._direct: Reader[Message | Gap] = Reader(self._take_direct, session.direct)

    # --- rooms

    @asynccontextmanager
    async def room(self, name: str, *, history: int = 0, announcements: bool = False) -> AsyncIterator["Room"]:
        """Be in a room until the block is left.

        `history` asks for the newest messages from before, `announcements` for who comes and goes. Raises RequestFailed where
        the server refuses, and ClientError where this client is in the room already.
        """
        if self._session.ended is not None:
            await trio.lowlevel.checkpoint()
            raise self._session.ended
        if name in self._session.rooms:
            raise ClientError(f"this client is in {name!r} already")
        buffer = Buffer(self._options.buffer_messages, self._options.buffer_bytes)
        track = Track(name, buffer, replay=history, announcements=announcements)
        membership = Membership(name, track, history)
        self._session.rooms[name] = membership
        try:
            if self._conversation is not None:
                self._conversation.join(membership)
            await membership.settled.wait()
            if membership.ended is not None:
                raise membership.ended
            yield Room(self, membership, Reader(lambda: self._take_room(membership), membership.wake))
        finally:
            if self._session.rooms.get(name) is membership:
                del self._session.rooms[name]
                if self._conversation is not None:
                    self._conversation.part(name)
            membership.end(ClientClosed(f"the room {name!r} has been left"))

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
        """Publish data to a room, and wait for the receipt, over as many connections as it takes.

        What the server cannot store it is asked again for `retry_for` seconds. Raises RequestFailed, UnencodableData. When it
        is cancelled nobody knows whether it was published, unless it is published again with the same `idempotency_key`.
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
        """Publish a line of text to a room; otherwise as `publish`."""
        return await self._publish("chat_message", {"room": room, "content": text}, idempotency_key, retry_for)

    async def send(
        self,
        to: str,
        data: Any = None,
        *,
        text: str | None = None,
        expires: float | None = None,
        idempotency_key: str | None = None,
        retry_for: float = RETRY_FOR,
    ) -> Receipt:
        """Send data, or `text`, to a user; otherwise as `publish`."""
        fields = {"to": to, "expires": expires, **_body(data, text)}
        return await self._publish("direct_message", fields, idempotency_key, retry_for)

    async def send_group(self, group: str, data: Any = None, *, text: str | None = None) -> Receipt:
        """Send data, or `text`, to a group. After a reconnect in between, it may arrive twice: the server knows no keys here."""
        return Receipt.read(await self._session.requests.ask("group_message", {"group": group, **_body(data, text)}))

    async def presence(self, room: str) -> Presence:
        """Who is in a room. Raises RequestFailed."""
        return Presence.read(await self._session.requests.ask("presence", {"room": room}))

    async def history(self, room: str, *, since: Position | None = None, limit: int = 100) -> Page:
        """The oldest `limit` messages after `since`, or else the newest ones; 1,000 at most. Raises RequestFailed."""
        fields: dict[str, Any] = {"room": room, "limit": limit}
        if since is not None:
            fields["since"] = since.to_json()
        return Page.read(await self._session.requests.ask("history", fields))

    async def request(self, type: str, **fields: Any) -> Mapping[str, Any]:
        """Send any command, and return its `ack`: for the application's own types.

        Raises RequestFailed; and ConnectionLost when the answer was lost: it is not sent twice.
        """
        return await self._session.requests.ask(type, fields, repeatable=False)

    def direct(self) -> AsyncIterator[Message | Gap]:
        """Messages to this user, to its groups, and to this connection. One task at a time may iterate over them.

        A direct message that the server keeps is acknowledged when the next one is asked for: until then it comes again after
        a crash. Before the first call nothing is acknowledged.
        """
        if not self._session.inbox.used:
            self._session.inbox.used = True
            if self._conversation is not None:
                self._conversation.read_inbox()
        return self._direct

    # --- state

    @property
    def connected(self) -> bool:
        """Whether requests go out at once. Where not they wait."""
        return self._connector.state.connected

    @property
    def user_id(self) -> str | None:
        """What the server calls the user."""
        return self._session.user_id

    def states(self) -> AsyncIterator[State]:
        """The state, and then each change; a slow reader gets the newest one only. It ends with the client."""
        shown: State | None = None

        def take() -> State | None:
            nonlocal shown
            if self._connector.over.is_set():
                raise StopAsyncIteration
            state = self._connector.state
            if state is shown:
                return None
            shown = state
            return state

        return Reader(take, self._connector.state_changed)

    def statistics(self) -> ClientStatistics:
        session = self._session
        return ClientStatistics(
            connections=self._connector.connections,
            unanswered=len(session.requests),
            waiting={name: membership.track.waiting for name, membership in session.rooms.items()},
            inbox=session.inbox.waiting,
        )

    # --- within

    @property
    def _conversation(self) -> Conversation | None:
        return self._connector.conversation

    def _take_room(self, membership: Membership) -> Item | None:
        item = membership.track.take()
        if item is not None:
            if self._conversation is not None:
                self._conversation.fetch(membership)  # there is place now
        elif isinstance(membership.ended, ClientClosed):
            raise StopAsyncIteration
        elif membership.ended is not None:
            raise membership.ended
        return item

    def _take_direct(self) -> Message | Gap | None:
        inbox = self._session.inbox
        item = inbox.take()
        if self._conversation is not None:
            self._conversation.acknowledge(idle=item is None)
            if item is None and inbox.stuck:
                self._conversation.renew()
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
                return Receipt.read(await self._session.requests.ask(type, given))
            except RequestFailed as error:
                if error.code not in RETRIED:
                    raise
                delay, now = backoff.next(), trio.current_time()
                deadline = min(deadline, now + retry_for)
                if now + delay > deadline:
                    raise
            await trio.sleep(delay)


class Room(AsyncIterator[Item]):
    """Made by `Client.room`. Iterate over it for what comes: `Message`, `Gap`, and `Announcement` where they were asked for.

    Several tasks that iterate share what comes. Iteration ends when the room is left; it raises RequestFailed when the server
    does not let the client back in.
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
        """How many are in the room, as far as the server has told."""
        return self._membership.online_count

    @property
    def position(self) -> Position | None:
        """The place in the room's history up to which its messages were received; None: it has no history."""
        return self._membership.track.position

    async def publish(self, data: Any, **how: Any) -> Receipt:
        """As `Client.publish`."""
        return await self._client.publish(self.name, data, **how)

    async def chat(self, text: str, **how: Any) -> Receipt:
        """As `Client.chat`."""
        return await self._client.chat(self.name, text, **how)

    async def presence(self) -> Presence:
        """As `Client.presence`."""
        return await self._client.presence(self.name)

    async def history(self, *, since: Position | None = None, limit: int = 100) -> Page:
        """As `Client.history`."""
        return await self._client.history(self.name, since=since, limit=limit)

    async def __anext__(self) -> Item:
        return await anext(self._reader)


def _body(data: Any, text: str | None) -> dict[str, Any]:
    """Raises ValueError where both are given."""
    if text is None:
        return {"data": data}
    if data is not None:
        raise ValueError("give either data or text")
    return {"content": text}
