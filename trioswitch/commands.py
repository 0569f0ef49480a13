"""The commands of clients, carried out. Each gets at most one answer: an `ack` or `error` where it has an `id`."""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from itertools import islice
from typing import Any

import trio
from msgspec import UNSET

from ._util.clock import timestamp
from .auth.identity import Identity
from .connections.connection import Connection, Handler
from .durability.idempotency import Retries, owned_key
from .durability.inbox import Inbox
from .durability.recovery import Recovery
from .durability.sessions import Sessions
from .errors import Cause, Refused, StoreError
from .replies import Acknowledge, tell_history, tell_joined
from .rooms.registry import Registry
from .wire.messages import (
    Ack,
    Authenticate,
    ChatMessage,
    Command,
    Custom,
    DirectMessage,
    GroupMessage,
    Heartbeat,
    HeartbeatAck,
    History,
    InboxAck,
    JoinRoom,
    LeaveRoom,
    Message,
    Presence,
    Resume,
    SendChat,
    SendDirect,
    SendGroup,
    SendMessage,
)
from .wire.prepared import Prepared, Receipt

__all__ = ["Authenticator", "Commands"]

Wait = Coroutine[Any, Any, None]
"""What the connection's task has to await before it goes on."""
MAX_USERS = 1000
"""Users that an answer to `presence` names at most; its `count` has all of them."""
Authenticator = Callable[[str], Awaitable[Identity]]
"""From a token to an identity. Raises Refused."""


class Commands:
    """Carries out commands on a registry. A method returns what has to be awaited, where the command has to wait."""

    def __init__(
        self,
        registry: Registry,
        recovery: Recovery,
        sessions: Sessions,
        inbox: Inbox,
        retries: Retries,
        handlers: Mapping[str, Handler],
        authenticate: Authenticator | None,
    ) -> None:
        self._registry = registry
        self._recovery = recovery
        self._sessions = sessions
        self._inbox = inbox
        self._retries = retries
        self._handlers = handlers
        self._authenticate = authenticate
        self._methods: dict[type[Command], Callable[[Connection, Any, int], Wait | None]] = {
            SendChat: self._chat,
            SendMessage: self._message,
            JoinRoom: self._join,
            LeaveRoom: self._leave,
            SendDirect: self._direct,
            SendGroup: self._group,
            Heartbeat: self._heartbeat,
            Presence: self._presence,
            History: self._history,
            Resume: self._resume,
            InboxAck: self._inbox_ack,
            Authenticate: self._authenticate_by_message,
            Custom: self._custom,
        }

    def dispatch(self, connection: Connection, command: Command, size: int) -> Wait | None:
        """Carry out one command, whose bytes were `size`. The caller awaits what this returns, if anything."""
        if connection.identity is None and type(command) is not Authenticate:
            connection.reply_error("unauthorised", "authenticate first", command.id)
            return None
        try:
            return self._methods[type(command)](connection, command, size)
        except Refused as refused:
            connection.reply_error(refused.code, refused.message, command.id)
            return None

    # --- rooms

    def _join(self, connection: Connection, command: JoinRoom, _size: int) -> Wait | None:
        identity = connection.identity
        assert identity is not None
        if not identity.may_join(command.room):
            raise Refused(f"you may not join {command.room!r}")
        if command.room not in connection.rooms and len(connection.rooms) >= self._registry.options.max_rooms:
            raise Refused(f"a connection may be in {self._registry.options.max_rooms} rooms", code="too_many_rooms")
        self._name(connection, command.user_id)
        joined = self._recovery.join_nowait(connection, command.room, command.since, command.history or 0)
        if joined is None:
            return self._answered(connection, command, self._join_later(connection, command))
        tell_joined(connection, command, joined)
        return None

    async def _join_later(self, connection: Connection, command: JoinRoom) -> None:
        joined = await self._recovery.join(connection, command.room, command.since, command.history or 0)
        tell_joined(connection, command, joined)

    @staticmethod
    async def _answered(connection: Connection, command: Command, work: Wait) -> None:
        """Await what a command waits for, and tell the client when it is refused."""
        try:
            await work
        except Refused as refused:
            connection.reply_error(refused.code, refused.message, command.id)

    def _leave(self, connection: Connection, command: LeaveRoom, _size: int) -> None:
        if not self._registry.leave(connection, command.room):
            raise Refused(f"you are not in {command.room!r}", code="not_joined")
        if command.id is not None:
            connection.reply(Ack(id=command.id, room=command.room))

    def _presence(self, connection: Connection, command: Presence, _size: int) -> None:
        identity = connection.identity
        assert identity is not None
        if not identity.may_join(command.room):
            raise Refused(f"you may not look into {command.room!r}")
        if command.id is None:
            raise Refused("`presence` needs an `id` to be answered under", code="invalid")
        online = self._registry.users_in(command.room)
        connection.reply(
            Ack(
                id=command.id,
                room=command.room,
                users=sorted(islice(online, MAX_USERS)),
                count=len(online),
                online_count=len(online),
                connections=self._registry.connections_in(command.room),
            )
        )

    def _history(self, connection: Connection, command: History, _size: int) -> Wait | None:
        identity = connection.identity
        assert identity is not None
        if not identity.may_join(command.room):
            raise Refused(f"you may not look into {command.room!r}")
        if command.id is None:
            raise Refused("`history` needs an `id` to be answered under", code="invalid")
        page = self._recovery.page_nowait(command.room, command.since, command.limit)
        if page is None:
            return self._answered(connection, command, self._history_later(connection, command))
        tell_history(connection, command, page)
        return None

    async def _history_later(self, connection: Connection, command: History) -> None:
        page = await self._recovery.page(command.room, command.since, command.limit)
        tell_history(connection, command, page)

    def _chat(self, connection: Connection, command: SendChat, size: int) -> Wait | None:
        self._check_publish(connection, command.room)
        user = self._name(connection, command.user_id)
        event = ChatMessage(room=command.room, content=command.content, user_id=user)
        message = Prepared(event, room=command.room, size=size, idempotency_key=_key(connection, command))
        return self._publish(connection, command.id, message)

    def _message(self, connection: Connection, command: SendMessage, size: int) -> Wait | None:
        self._check_publish(connection, command.room)
        event = Message(room=command.room, data=command.data, user_id=connection.user)
        if command.key is not None:
            event.key = command.key
        now = trio.current_time()
        message = Prepared(
            event,
            room=command.room,
            priority=command.priority,
            deliver_by=None if command.max_delay is None else now + command.max_delay,
            expires_at=None if command.expires is None else now + command.expires,
            key=command.key,
            idempotency_key=_key(connection, command),
            exclude=frozenset((connection.id,)) if command.exclude_self else frozenset(),
            size=size,
        )
        return self._publish(connection, command.id, message)

    @staticmethod
    def _check_publish(connection: Connection, room: str) -> None:
        if room not in connection.rooms:
            identity = connection.identity
            assert identity is not None
            if not identity.may_publish(room):
                raise Refused(f"join {room!r} before you publish to it", code="not_joined")

    def _publish(self, connection: Connection, request_id: str | int | None, message: Prepared) -> Wait | None:
        name = message.room
        assert name is not None
        try:
            room = self._registry.room_for(name)
            if request_id is not None or (room is not None and room.stores):
                message.settle = Acknowledge(connection, request_id)
            if message.idempotency_key is not None and not self._retries.is_first("room", name, message):
                return None
            if room is not None:
                room.publish_nowait(message)
            elif message.settle is not None:
                message.settle(Receipt())
        except (trio.WouldBlock, trio.ClosedResourceError):
            message.settle = message.settle or Acknowledge(connection, request_id)
            return self._registry.publish(name, message)
        return None

    # --- users and groups

    def _direct(self, connection: Connection, command: SendDirect, size: int) -> Wait | None:
        event = DirectMessage(to=command.to, user_id=connection.user, **_body(command))
        message = Prepared(
            event,
            expires_at=None if command.expires is None else trio.current_time() + command.expires,
            idempotency_key=_key(connection, command),
            settle=Acknowledge(connection, command.id),
            size=size,
        )
        if not (self._registry.options.inbox_messages or self._registry.users.get(command.to)):
            raise Refused(f"{command.to!r} is not here, and messages are not kept", code="not_available")
        if not self._retries.is_first("user", command.to, message):
            return None
        try:
            self._inbox.send_nowait(command.to, message)
        except trio.WouldBlock:
            return self._inbox.send(command.to, message)
        return None

    def _group(self, connection: Connection, command: SendGroup, _size: int) -> Wait:
        users = self._registry.groups.get(command.group, set())
        if connection.user not in users:
            raise Refused(f"you are not in the group {command.group!r}")
        event = GroupMessage(group=command.group, user_id=connection.user, **_body(command))
        return self._send(connection, command.id, self._registry.of_users(users), Prepared(event))

    async def _send(
        self, connection: Connection, request_id: str | int | None, receivers: list[Connection], message: Prepared
    ) -> None:
        Acknowledge(connection, request_id)(await self._registry.send(receivers, message))

    def _inbox_ack(self, connection: Connection, command: InboxAck, _size: int) -> Wait:
        return self._answered(connection, command, self._acknowledge(connection, command))

    async def _acknowledge(self, connection: Connection, command: InboxAck) -> None:
        try:
            await self._inbox.acknowledge(connection, command.upto)
        except StoreError as error:
            raise Refused(str(error), code="unavailable") from None
        if command.id is not None:
            connection.reply(Ack(id=command.id, upto=command.upto))

    # --- sessions

    def _resume(self, connection: Connection, command: Resume, _size: int) -> Wait:
        return self._answered(connection, command, self._resume_session(connection, command))

    async def _resume_session(self, connection: Connection, command: Resume) -> None:
        before = connection.user
        rooms = await self._sessions.resume(connection, command.session, command.rooms)
        if connection.user != before:
            self._inbox.arrived(connection)
        if command.id is not None:
            connection.reply(Ack(id=command.id, session=command.session, user_id=connection.user, rooms=rooms))

    # --- the rest

    def _heartbeat(self, connection: Connection, command: Heartbeat, _size: int) -> None:
        connection.reply(HeartbeatAck(timestamp=timestamp()))
        if command.id is not None:
            connection.reply(Ack(id=command.id))

    def _custom(self, connection: Connection, command: Custom, _size: int) -> Wait | None:
        handler = self._handlers.get(command.type)
        if handler is None:
            raise Refused(f"unknown type {command.type[:64]!r}", code="unknown_type")
        return connection.handle(handler, command)

    def _authenticate_by_message(self, connection: Connection, command: Authenticate, _size: int) -> Wait | None:
        if self._authenticate is None:
            raise Refused("this server does not use tokens", code="not_available")
        if connection.identity is not None:
            raise Refused("this connection is authenticated already", code="invalid")
        return self._check_token(self._authenticate, connection, command)

    async def _check_token(self, authenticate: Authenticator, connection: Connection, command: Authenticate) -> None:
        try:
            identity = await authenticate(command.token)
        except Refused as refused:
            connection.reply_error("unauthorised", refused.message, command.id)
            connection.close(Cause.UNAUTHORISED)
            return
        connection.identity = identity
        if identity.user is not None:
            self._registry.rename(connection, identity.user)
            connection.named = True
            self._inbox.arrived(connection)
        if command.id is not None:
            connection.reply(Ack(id=command.id, user_id=connection.user))

    def _name(self, connection: Connection, user: str | None) -> str:
        """The user that a command speaks for: believed where the connection is anonymous, and its user from then on.

        Raises Refused where the identity names another, and for a second name while it is in rooms.
        """
        identity = connection.identity
        assert identity is not None
        if user is None or user == connection.user:
            return connection.user
        if identity.user is not None:
            raise Refused(f"you are {identity.user!r}, not {user!r}")
        if connection.rooms and connection.named:  # each of its rooms would have to be told, each time
            raise Refused("leave your rooms before you change your name")
        self._registry.rename(connection, user)
        connection.named = True
        self._inbox.arrived(connection)
        return user


def _body(command: SendDirect | SendGroup) -> dict[str, Any]:
    """The `content` or the `data` of a command. Raises Refused unless there is exactly one of them."""
    body = {name: value for name in ("content", "data") if (value := getattr(command, name)) is not UNSET}
    if len(body) != 1:
        raise Refused("give either `content` or `data`", code="invalid")
    return body


def _key(connection: Connection, command: SendChat | SendMessage | SendDirect) -> str | None:
    """The key of a message. One without a name has another id on each connection: its keys are those of all like it."""
    if command.idempotency_key is None:
        return None
    try:
        return owned_key(connection.user if connection.named else None, command.idempotency_key)
    except ValueError as error:
        raise Refused(str(error), code="invalid") from None
