"""Hooks: the application's callbacks for what clients do, and what these callbacks get."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio

from ._util.checks import check_async, check_integer, check_seconds
from ._util.nurseries import without_group
from .auth.authentication import Authenticator, OnConnect
from .auth.tokens import RoomToken
from .connections.connection import Connection
from .connections.driver import ConnectionDriver
from .errors import CloseCause, Refused
from .wire.body import decoded, encoded
from .wire.messages import ChatMessage, Published
from .wire.prepared import Prepared

__all__ = [
    "CheckRoomToken",
    "Hooks",
    "JoinRequest",
    "OnDisconnect",
    "OnExpire",
    "OnJoin",
    "OnPublish",
    "PublishRequest",
]

_log = logging.getLogger(__name__)


@attrs.define(eq=False)
class JoinRequest:
    """A client's request to join a room. Its identity allows it."""

    room: str = attrs.field(on_setattr=attrs.setters.frozen)
    history: int
    """The number of messages of the room's history that it asks for. The hook may change it."""


class PublishRequest:
    """A client's request to publish to a room. Its identity, or its membership, allows it."""

    __slots__ = ("_message",)

    def __init__(self, message: Prepared) -> None:
        self._message = message

    @property
    def room(self) -> str:
        assert self._message.room is not None
        return self._message.room

    @property
    def data(self) -> Any:
        """What is published: text for a `chat_message`, otherwise any data. The hook may set it. Each access decodes it anew.

        Setting it raises UnencodableData for what JSON cannot carry, and TypeError for a `chat_message` that would not be text.
        """
        event = self._message.event
        assert isinstance(event, Published)
        return decoded(event.body)

    @data.setter
    def data(self, data: Any) -> None:
        event = self._message.event
        assert isinstance(event, Published)
        if isinstance(event, ChatMessage) and not isinstance(data, str):
            raise TypeError(f"the data of a chat message must be a str, not {type(data).__name__}")
        body = encoded(data)
        event.replace_body(lambda _before: body)

    @property
    def priority(self) -> int:
        """0 to 10. The hook may set it."""
        return self._message.priority

    @priority.setter
    def priority(self, priority: int) -> None:
        check_integer("priority", priority, 0, 10)
        self._message.priority = priority

    @property
    def expires(self) -> float | None:
        """Seconds after which it is not delivered any more. The hook may set it."""
        expires_at = self._message.expires_at
        return None if expires_at is None else max(0.0, expires_at - trio.current_time())

    @expires.setter
    def expires(self, seconds: float | None) -> None:
        if seconds is not None:
            check_seconds("expires", seconds)
        self._message.expires_at = None if seconds is None else trio.current_time() + seconds


OnDisconnect = Callable[[Connection, CloseCause], Awaitable[None]]
"""Called when a client that was admitted has gone, always; it has `hook_timeout` seconds."""
CheckRoomToken = Callable[[str, str, str], Awaitable[RoomToken]]
"""From a token, a room and a user to what the token lets the user do there. Raises Refused."""
OnExpire = Callable[[Connection], Awaitable[float | None]]
"""Called when the identity of a connection has expired. Returns when it expires from now on, in seconds since 1970; None: never.
Raises Refused, after which the connection is closed."""
OnJoin = Callable[[Connection, JoinRequest], Awaitable[None]]
"""Called before a client joins a room, also when it resumes a session. Raises Refused to refuse it."""
OnPublish = Callable[[Connection, PublishRequest], Awaitable[None]]
"""Called before a client's message is published to a room. Raises Refused to refuse it."""


@attrs.frozen(kw_only=True)
class Hooks:
    """The hooks that a switch has."""

    authenticate: Authenticator | None = None
    on_connect: OnConnect | None = None
    on_disconnect: OnDisconnect | None = None
    on_expire: OnExpire | None = None
    on_join: OnJoin | None = None
    on_publish: OnPublish | None = None
    check_room_token: CheckRoomToken | None = None

    def __attrs_post_init__(self) -> None:
        """Raises TypeError for a hook that is not an async function."""
        for name, hook in attrs.asdict(self, recurse=False).items():
            if hook is not None:
                check_async(name, hook)

    @property
    def is_allowed(self) -> Callable[[ConnectionDriver, str], Awaitable[bool]] | None:
        """Whether a client may join a room that it was in before, as an async function. None: always."""
        on_join = self.on_join
        if on_join is None:
            return None

        async def is_allowed(connection: ConnectionDriver, room: str) -> bool:
            try:
                await without_group(on_join(connection.public, JoinRequest(room, 0)))
            except Refused:
                return False
            except Exception:
                _log.exception(
                    "connection %s: on_join failed for %r", connection.id, room, extra={"connection": connection.id}
                )
                return False
            return True

        return is_allowed
