"""The client protocol's messages: commands from a client, events to it.

Wire names are the `type` of each class; `docs/protocol.md` is the reference. Fields of a command that a client may leave
out have a default; fields of an event that are `UNSET` are left out of the bytes.
"""

from typing import Annotated, Any, ClassVar

import attrs
from msgspec import UNSET, Meta, UnsetType

__all__ = [
    "COMMANDS",
    "RESERVED",
    "Ack",
    "Authenticate",
    "ChatMessage",
    "Command",
    "Connected",
    "Custom",
    "DirectMessage",
    "Error",
    "Event",
    "Gap",
    "GroupMessage",
    "Heartbeat",
    "HeartbeatAck",
    "JoinRoom",
    "LeaveRoom",
    "Message",
    "Presence",
    "Reconnect",
    "SendChat",
    "SendDirect",
    "SendGroup",
    "SendMessage",
    "System",
]

Name = Annotated[str, Meta(min_length=1, max_length=255)]
"""A room, group or user: 1 to 255 characters, so that a name never outweighs what is sent under it."""
RequestId = str | int | None
Seconds = Annotated[float, Meta(ge=0)]
Priority = Annotated[int, Meta(ge=0, le=10)]

# --- commands: client to server


@attrs.frozen(kw_only=True)
class Command:
    """What a client asks for. With an `id` it gets exactly one `ack` or `error` that carries the same `id`."""

    TYPE: ClassVar[str] = ""
    id: RequestId = None


@attrs.frozen(kw_only=True)
class Authenticate(Command):
    TYPE: ClassVar[str] = "authenticate"
    token: str


@attrs.frozen(kw_only=True)
class JoinRoom(Command):
    TYPE: ClassVar[str] = "join_room"
    room: Name
    user_id: Name | None = None
    since: Any = None
    history: Any = None


@attrs.frozen(kw_only=True)
class LeaveRoom(Command):
    TYPE: ClassVar[str] = "leave_room"
    room: Name


@attrs.frozen(kw_only=True)
class SendChat(Command):
    TYPE: ClassVar[str] = "chat_message"
    room: Name
    content: str
    user_id: Name | None = None


@attrs.frozen(kw_only=True)
class SendMessage(Command):
    TYPE: ClassVar[str] = "message"
    room: Name
    data: Any
    priority: Priority = 0
    max_delay: Seconds | None = None
    expires: Seconds | None = None
    key: str | None = None
    exclude_self: bool = False


@attrs.frozen(kw_only=True)
class SendDirect(Command):
    """`to` is a user. Exactly one of `content` and `data` is expected; `content` is text, `data` anything."""

    TYPE: ClassVar[str] = "direct_message"
    to: Name
    content: str | UnsetType = UNSET
    data: Any = UNSET


@attrs.frozen(kw_only=True)
class SendGroup(Command):
    TYPE: ClassVar[str] = "group_message"
    group: Name
    content: str | UnsetType = UNSET
    data: Any = UNSET


@attrs.frozen(kw_only=True)
class Heartbeat(Command):
    TYPE: ClassVar[str] = "heartbeat"


@attrs.frozen(kw_only=True)
class Presence(Command):
    TYPE: ClassVar[str] = "presence"
    room: Name


@attrs.frozen(kw_only=True)
class Custom(Command):
    """A message whose `type` the protocol does not know: for a handler of the application, if there is one."""

    type: str
    fields: dict[str, Any]


COMMANDS: dict[str, type[Command]] = {
    command.TYPE: command
    for command in (
        Authenticate,
        JoinRoom,
        LeaveRoom,
        SendChat,
        SendMessage,
        SendDirect,
        SendGroup,
        Heartbeat,
        Presence,
    )
}
RESERVED = frozenset({"history", "resume", "inbox_ack"})
"""Types of the protocol that this version of the server answers with `error` `not_available`."""

# --- events: server to client
#
# They have no slots: msgspec writes the fields of a slotted class in alphabetical order, and these in the order below, so
# that `type` comes first, for whoever reads the wire.


class Event:
    """What a client is told."""

    type: str


class Published(Event):
    """An event that goes to rooms, groups, users or connections; it is stamped when it is handed out."""

    timestamp: str


def named(name: str) -> Any:
    """The `type` field of an event."""
    return attrs.field(default=name, init=False)


@attrs.define(kw_only=True, slots=False)
class Connected(Event):
    type: str = named("connected")
    connection_id: str
    user_id: str
    heartbeat: float
    """Seconds between the server's pings; a client that sends `heartbeat` as often, and is not answered, may reconnect."""
    max_message_bytes: int
    server: str
    timestamp: str


@attrs.define(kw_only=True, slots=False)
class ChatMessage(Published):
    type: str = named("chat_message")
    room: str
    user_id: str | None = None
    content: str
    timestamp: str = ""


@attrs.define(kw_only=True, slots=False)
class Message(Published):
    """`room` is left out when it was sent to connections rather than to a room; `user_id` when the server sent it."""

    type: str = named("message")
    room: str | UnsetType = UNSET
    user_id: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    data: Any
    timestamp: str = ""


@attrs.define(kw_only=True, slots=False)
class DirectMessage(Published):
    type: str = named("direct_message")
    to: str
    user_id: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    data: Any = UNSET
    timestamp: str = ""


@attrs.define(kw_only=True, slots=False)
class GroupMessage(Published):
    type: str = named("group_message")
    group: str
    user_id: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    data: Any = UNSET
    timestamp: str = ""


@attrs.define(kw_only=True, slots=False)
class System(Published):
    """`action` is `user_joined`, `user_left` (both with `user_id`) or `count`."""

    type: str = named("system")
    action: str
    room: str
    user_id: str | UnsetType = UNSET
    online_count: int
    timestamp: str = ""


@attrs.define(kw_only=True, slots=False)
class HeartbeatAck(Event):
    type: str = named("heartbeat_ack")
    timestamp: str


@attrs.define(kw_only=True, slots=False)
class Ack(Event):
    """The one positive answer to a command with an `id`; which fields are set depends on the command."""

    type: str = named("ack")
    id: str | int
    room: str | UnsetType = UNSET
    user_id: str | UnsetType = UNSET
    online_count: int | UnsetType = UNSET
    users: list[str] | UnsetType = UNSET
    count: int | UnsetType = UNSET
    delivered: int | UnsetType = UNSET
    queued: int | UnsetType = UNSET
    dropped: int | UnsetType = UNSET
    data: Any = UNSET


@attrs.define(kw_only=True, slots=False)
class Error(Event):
    type: str = named("error")
    id: str | int | UnsetType = UNSET
    code: str
    message: str
    room: str | UnsetType = UNSET


@attrs.define(kw_only=True, slots=False)
class Gap(Event):
    """This client did not get `dropped` messages: of `room`, or of those sent to it directly where there is no `room`."""

    type: str = named("gap")
    room: str | UnsetType = UNSET
    dropped: int


@attrs.define(kw_only=True, slots=False)
class Reconnect(Event):
    """The server is about to close; come back after `after` seconds."""

    type: str = named("reconnect")
    after: float
    reason: str
