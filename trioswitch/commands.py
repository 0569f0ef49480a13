"""Executes the commands of clients. Each gets at most one answer: an `ack` or `error` where it has an `id`."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import Any, Final, cast

import trio
from msgspec import UNSET

from ._util.clock import timestamp
from ._util.nurseries import without_group
from .config import Options
from .connections.directory import ConnectionDirectory
from .connections.driver import ConnectionDriver, Pending
from .connections.groups import Groups
from .durability.idempotency import scoped_key
from .durability.inbox import Inbox
from .durability.recovery import Recovery
from .durability.sessions import Sessions
from .errors import CloseCause, HistoryNotAvailable, Refused, StoreError
from .handlers import Handlers
from .hooks import Hooks, JoinRequest, OnJoin, OnPublish, PublishRequest
from .permissions import check_join, check_name_size, check_publish, check_read
from .publishing import Publisher
from .replies import Acknowledge, tell_history, tell_joined
from .rooms.directory import RoomDirectory
from .rooms.presence import Presence
from .sign_in import SignIn
from .wire.commands import (
    Authenticate,
    Command,
    Custom,
    Heartbeat,
    History,
    InboxAck,
    JoinRoom,
    LeaveRoom,
    Resume,
    SendChat,
    SendDirect,
    SendGroup,
    SendMessage,
)
from .wire.commands import Presence as PresenceQuery
from .wire.messages import Ack, ChatMessage, DirectMessage, GroupMessage, HeartbeatAck, Message
from .wire.prepared import Prepared

__all__ = ["Commands"]

_log = logging.getLogger(__name__)

MAX_AUTHENTICATE_BYTES: Final = 16 * 1024
"""Bytes of an `authenticate` message: the only one that a client may send before it is authenticated."""
MAX_USERS: Final = 1000
"""Users that an answer to `presence` names at most; its `count` has all of them."""
MAX_USERS_SIZE: Final = 64 * 1024
"""Characters of their names."""


class Commands:
    """Executes the commands of clients. A method returns what has to be awaited, where the command has to wait."""

    def __init__(
        self,
        options: Options,
        connections: ConnectionDirectory,
        groups: Groups,
        rooms: RoomDirectory,
        presence: Presence,
        publisher: Publisher,
        recovery: Recovery,
        sessions: Sessions,
        inbox: Inbox,
        handlers: Handlers,
        hooks: Hooks,
        sign_in: SignIn,
    ) -> None:
        self._options = options
        self._connections = connections
        self._groups = groups
        self._rooms = rooms
        self._presence = presence
        self._publisher = publisher
        self._recovery = recovery
        self._sessions = sessions
        self._inbox = inbox
        self._handlers = handlers
        self._sign_in = sign_in
        self._on_join = hooks.on_join
        self._on_publish = hooks.on_publish
        self._members_publish = all(policy.members_publish for policy in options.policies)  # in every room
        self._methods: dict[type[Command], Callable[[ConnectionDriver, Any, int], Pending | None]] = {
            SendChat: self._chat,
            SendMessage: self._message,
            JoinRoom: self._join,
            LeaveRoom: self._leave,
            SendDirect: self._direct,
            SendGroup: self._group,
            Heartbeat: self._heartbeat,
            PresenceQuery: self._answer_presence,
            History: self._history,
            Resume: self._resume,
            InboxAck: self._inbox_ack,
            Authenticate: self._authenticate,
            Custom: self._custom,
        }

    def execute(self, connection: ConnectionDriver, command: Command, size: int) -> Pending | None:
        """Execute one command of `size` bytes. The caller awaits what this returns, if anything."""
        if connection.identity is None and (type(command) is not Authenticate or size > MAX_AUTHENTICATE_BYTES):
            connection.reply_error("unauthorised", "the first message must be `authenticate`, with a token", command.id)
            connection.close(CloseCause.UNAUTHORISED)
            return None
        try:
            return self._methods[type(command)](connection, command, size)
        except (Refused, HistoryNotAvailable) as refused:
            connection.reply_error(refused.code, str(refused), command.id)
            return None

    # --- rooms

    def _join(self, connection: ConnectionDriver, command: JoinRoom, _size: int) -> Pending | None:
        if command.token is not None:
            return self._answered(connection, command, self._join_by_token(connection, command, command.token))
        return self._join_allowed(connection, command)

    async def _join_by_token(self, connection: ConnectionDriver, command: JoinRoom, token: str) -> None:
        await self._sign_in.grant(connection, command.room, token)
        pending = self._join_allowed(connection, command)
        if pending is not None:
            await pending

    def _join_allowed(self, connection: ConnectionDriver, command: JoinRoom) -> Pending | None:
        check_join(connection, command, self._options.max_rooms)
        limit = self._options.max_open_rooms
        if limit is not None and len(self._rooms) >= limit and self._rooms.get(command.room) is None:
            raise Refused("too many rooms are open", code="too_many_rooms")
        self._name(connection, command.user_id)
        if self._on_join is not None:
            return self._answered(connection, command, self._join_if_allowed(self._on_join, connection, command))
        joined = self._recovery.join_nowait(connection, command.room, command.since, command.history or 0)
        if joined is None:
            return self._answered(connection, command, self._join_later(connection, command))
        tell_joined(connection, command, joined)
        return None

    async def _join_if_allowed(self, on_join: OnJoin, connection: ConnectionDriver, command: JoinRoom) -> None:
        request = JoinRequest(command.room, command.history or 0)
        await without_group(on_join(connection.public, request))
        command.history = request.history
        await self._join_later(connection, command)

    async def _join_later(self, connection: ConnectionDriver, command: JoinRoom) -> None:
        joined = await self._recovery.join(connection, command.room, command.since, command.history or 0)
        tell_joined(connection, command, joined)

    @staticmethod
    async def _answered(connection: ConnectionDriver, command: Command, work: Pending) -> None:
        """Await what a command waits for, and tell the client when it is refused, or a hook fails."""
        try:
            await work
        except (Refused, HistoryNotAvailable) as refused:
            connection.reply_error(refused.code, str(refused), command.id)
        except StoreError as error:
            connection.reply_error("unavailable", str(error), command.id)
        except Exception:
            _log.exception("connection %s: a hook failed", connection.id, extra={"connection": connection.id})
            connection.reply_error("internal", "internal error", command.id)

    def _leave(self, connection: ConnectionDriver, command: LeaveRoom, _size: int) -> None:
        if not self._presence.leave(connection, command.room):
            raise Refused(f"you are not in {command.room!r}", code="not_joined")
        if command.id is not None:
            connection.reply(Ack(id=command.id, room=command.room))

    def _answer_presence(self, connection: ConnectionDriver, command: PresenceQuery, _size: int) -> Pending | None:
        request_id = check_read(connection, command)
        if not self._recovery.knows_users(command.room):
            return self._answered(connection, command, self._answer_presence_later(connection, command, request_id))
        self._tell_presence(connection, command, request_id)
        return None

    async def _answer_presence_later(
        self, connection: ConnectionDriver, command: PresenceQuery, request_id: str | int
    ) -> None:
        async with self._recovery.learning_users(command.room):
            self._tell_presence(connection, command, request_id)

    def _tell_presence(self, connection: ConnectionDriver, command: PresenceQuery, request_id: str | int) -> None:
        online = self._presence.users(command.room)
        connection.reply_at_length(
            Ack(
                id=request_id,
                room=command.room,
                users=sorted(_first(online)),
                count=len(online),
                online_count=len(online),
                connections=self._presence.connections(command.room),
            )
        )

    def _history(self, connection: ConnectionDriver, command: History, _size: int) -> Pending | None:
        check_read(connection, command)
        page = self._recovery.page_nowait(command.room, command.since, command.limit)
        if page is None:
            return self._answered(connection, command, self._history_later(connection, command))
        tell_history(connection, command, page)
        return None

    async def _history_later(self, connection: ConnectionDriver, command: History) -> None:
        page = await self._recovery.page(command.room, command.since, command.limit)
        tell_history(connection, command, page)

    def _chat(self, connection: ConnectionDriver, command: SendChat, size: int) -> Pending | None:
        self._check_publish(connection, command.room)
        user = self._name(connection, command.user_id)
        event = ChatMessage(room=command.room, content=cast(str, command.content), user_id=user)
        message = Prepared(event, room=command.room, size=size, idempotency_key=_key(connection, command))
        return self._publish(connection, command, message)

    def _message(self, connection: ConnectionDriver, command: SendMessage, size: int) -> Pending | None:
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
        return self._publish(connection, command, message)

    def _check_publish(self, connection: ConnectionDriver, room: str) -> None:
        """Raises Refused unless the client may publish to the room."""
        if self._members_publish and room in connection.rooms and connection.publishes_as_member:
            return  # nearly always, and asked for each message
        check_publish(connection, room, members_publish=self._rooms.members_publish(room))

    def _publish(
        self, connection: ConnectionDriver, command: SendChat | SendMessage, message: Prepared
    ) -> Pending | None:
        if self._on_publish is not None:
            work = self._publish_if_allowed(self._on_publish, connection, command, message)
            return self._answered(connection, command, work)
        return self._publish_now(connection, command.id, message)

    async def _publish_if_allowed(
        self, on_publish: OnPublish, connection: ConnectionDriver, command: SendChat | SendMessage, message: Prepared
    ) -> None:
        await without_group(on_publish(connection.public, PublishRequest(message)))
        pending = self._publish_now(connection, command.id, message)
        if pending is not None:
            await pending

    def _publish_now(
        self, connection: ConnectionDriver, request_id: str | int | None, message: Prepared
    ) -> Pending | None:
        assert message.room is not None
        is_stored = self._rooms.is_stored(message.room)
        if is_stored:
            message.sender = connection.sender
        if request_id is not None or is_stored:
            message.on_outcome = Acknowledge(connection, request_id)
        return self._publisher.publish(message.room, message)

    # --- users and groups

    def _direct(self, connection: ConnectionDriver, command: SendDirect, size: int) -> Pending | None:
        check_name_size("user", command.to)
        event = DirectMessage(to=command.to, user_id=connection.user, **_body(command))
        message = Prepared(
            event,
            expires_at=None if command.expires is None else trio.current_time() + command.expires,
            idempotency_key=_key(connection, command),
            on_outcome=Acknowledge(connection, command.id),
            size=size,
        )
        message.sender = connection.sender
        if not (self._options.inbox_messages or self._connections.of_user(command.to)):
            raise Refused(f"{command.to!r} is not here, and messages are not kept", code="not_available")
        return self._publisher.send_to_user(command.to, message)

    def _group(self, connection: ConnectionDriver, command: SendGroup, _size: int) -> Pending:
        users = self._groups.users(command.group)
        if connection.user not in users:
            raise Refused(f"you are not in the group {command.group!r}")
        event = GroupMessage(group=command.group, user_id=connection.user, **_body(command))
        return self._send(connection, command.id, users, Prepared(event))

    async def _send(
        self, connection: ConnectionDriver, request_id: str | int | None, users: Collection[str], message: Prepared
    ) -> None:
        Acknowledge(connection, request_id)(await self._publisher.send_to_users(users, message))

    def _inbox_ack(self, connection: ConnectionDriver, command: InboxAck, _size: int) -> Pending:
        return self._answered(connection, command, self._acknowledge(connection, command))

    async def _acknowledge(self, connection: ConnectionDriver, command: InboxAck) -> None:
        await self._inbox.acknowledge(connection, command.upto)
        if command.id is not None:
            connection.reply(Ack(id=command.id, upto=command.upto))

    # --- sessions

    def _resume(self, connection: ConnectionDriver, command: Resume, _size: int) -> Pending:
        return self._answered(connection, command, self._resume_session(connection, command))

    async def _resume_session(self, connection: ConnectionDriver, command: Resume) -> None:
        before = connection.user
        rooms = await self._sessions.resume(connection, command.session, command.rooms)
        if connection.user != before:
            self._inbox.arrived(connection)
        if command.id is not None:
            connection.reply_at_length(
                Ack(id=command.id, session=command.session, user_id=connection.user, rooms=rooms)
            )

    # --- the rest

    def _heartbeat(self, connection: ConnectionDriver, command: Heartbeat, _size: int) -> None:
        connection.reply(HeartbeatAck(timestamp=timestamp()))
        if command.id is not None:
            connection.reply(Ack(id=command.id))

    def _authenticate(self, connection: ConnectionDriver, command: Authenticate, _size: int) -> Pending:
        return self._answered(connection, command, self._sign_in.execute(connection, command))

    def _custom(self, connection: ConnectionDriver, command: Custom, _size: int) -> Pending | None:
        return connection.handle(self._handlers.find(connection, command), command)

    def _name(self, connection: ConnectionDriver, user: str | None) -> str:
        """The user that a command speaks for: believed where the connection is anonymous, and its user from then on.

        Raises Refused where the identity names another, and for a second name while it is in rooms.
        """
        identity = connection.identity
        assert identity is not None
        if user is None or user == connection.user:
            return connection.user
        if identity.user is not None:
            raise Refused(f"you are {identity.user!r}, not {user!r}")
        if not identity.may_choose_name:
            raise Refused("this server does not let clients choose the names of their users")
        check_name_size("user", user)
        if connection.rooms and connection.has_declared_name:  # each of its rooms would have to be told, each time
            raise Refused("leave your rooms before you change your name")
        self._presence.change_user(connection, user, declared=True)
        self._inbox.arrived(connection)
        return user


def _first(users: Iterable[str]) -> Iterator[str]:
    """As many users as an answer names."""
    size = 0
    for user in islice(users, MAX_USERS):
        size += len(user)
        if size > MAX_USERS_SIZE:
            return
        yield user


def _body(command: SendDirect | SendGroup) -> dict[str, Any]:
    """The `content` or the `data` of a command. Raises Refused unless there is exactly one of them."""
    body = {name: value for name in ("content", "data") if (value := getattr(command, name)) is not UNSET}
    if len(body) != 1:
        raise Refused("give either `content` or `data`", code="invalid")
    return body


def _key(connection: ConnectionDriver, command: SendChat | SendMessage | SendDirect) -> str | None:
    """The key of a message. One without a name has another id on each connection: its keys are those of all like it."""
    if command.idempotency_key is None:
        return None
    try:
        return scoped_key(connection.user if connection.has_declared_name else None, command.idempotency_key)
    except ValueError as error:
        raise Refused(str(error), code="invalid") from None
