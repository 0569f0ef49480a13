"""The client protocol's messages: commands from a client, events to it.

Wire names are the `type` of each class; `docs/protocol.md` is the reference. Fields of a command that a client may leave
out have a default; fields of an event that are `UNSET` are left out of the bytes.
"""

from typing import Annotated, Any, ClassVar

import attrs
import msgspec
from msgspec import UNSET, Meta, UnsetType

__all__ = [
    "COMMANDS",
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
    "History",
    "InboxAck",
    "JoinRoom",
    "LeaveRoom",
    "Message",
    "Position",
    "Presence",
    "Reconnect",
    "Resume",
    "Resumed",
    "SendChat",
    "SendDirect",
    "SendGroup",
    "SendMessage",
    "System",
]

MAX_NAME = 255
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
"""A room, group or user: 1 to 255 characters, so that a name never outweighs what is sent under it."""
RequestId = str | int | None
Seconds = Annotated[float, Meta(ge=0)]
Priority = Annotated[int, Meta(ge=0, le=10)]
MAX_KEY = 64
Key = Annotated[str, Meta(min_length=1, max_length=MAX_KEY)]
"""What makes a retry harmless: chosen by the client for one message, a UUID say."""
MAX_PAGE = 1000
"""Messages in the answer to one `history`, at most."""


@attrs.frozen
class Position:
    """A place in a room's history: everything up to `offset` within `epoch`."""

    epoch: str
    offset: Annotated[int, Meta(ge=0)]


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
    since: Position | None = None
    history: Annotated[int, Meta(ge=0)] | None = None


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
    idempotency_key: Key | None = None


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
    idempotency_key: Key | None = None


@attrs.frozen(kw_only=True)
class SendDirect(Command):
    """`to` is a user. Exactly one of `content` and `data` is expected; `content` is text, `data` anything."""

    TYPE: ClassVar[str] = "direct_message"
    to: Name
    content: str | UnsetType = UNSET
    data: Any = UNSET
    expires: Seconds | None = None
    idempotency_key: Key | None = None


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
class History(Command):
    TYPE: ClassVar[str] = "history"
    room: Name
    since: Position | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 100


@attrs.frozen(kw_only=True)
class Resume(Command):
    TYPE: ClassVar[str] = "resume"
    session: str
    rooms: dict[Name, Position] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class InboxAck(Command):
    TYPE: ClassVar[str] = "inbox_ack"
    upto: Annotated[int, Meta(ge=0, le=2**63 - 1)]


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
        History,
        Resume,
        InboxAck,
    )
}

# --- events: server to client
#
# They have no slots: msgspec writes the fields of a slotted class in alphabetical order, and these in the order below, so
# that `type` comes first, for whoever reads the wire.


class Event:
    """What a client is told."""

    type: str


class Published(Event):
    """An event that goes to rooms, groups, users or connections; it is stamped when it is delivered."""

    timestamp: str

    @property
    def body(self) -> Any:
        """What was sent: the text of a message that was sent as text, otherwise its data. None for announcements."""
        content = getattr(self, "content", UNSET)
        return getattr(self, "data", None) if content is UNSET else content


class Recorded(Published):
    """An event that the history of a room keeps; in rooms with history it has a position."""

    epoch: str | UnsetType
    offset: int | UnsetType


def named(name: str) -> Any:
    """The `type` field of an event."""
    return attrs.field(default=name, init=False)


@attrs.define(kw_only=True, slots=False)
class Connected(Event):
    type: str = named("connected")
    connection_id: str
    session: str
    """What `resume` takes: as secret as a token."""
    user_id: str
    heartbeat: float
    """Seconds between the server's pings; a client that sends `heartbeat` as often, and is not answered, may reconnect."""
    max_message_bytes: int
    server: str
    timestamp: str


@attrs.define(kw_only=True, slots=False)
class ChatMessage(Recorded):
    type: str = named("chat_message")
    room: str
    epoch: str | UnsetType = UNSET
    offset: int | UnsetType = UNSET
    user_id: str | None = None
    content: str
    timestamp: str = ""


@attrs.define(kw_only=True, slots=False)
class Message(Recorded):
    """`room` is left out when it was sent to connections rather than to a room; `user_id` when the server sent it."""

    type: str = named("message")
    room: str | UnsetType = UNSET
    epoch: str | UnsetType = UNSET
    offset: int | UnsetType = UNSET
    user_id: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    data: Any
    timestamp: str = ""


@attrs.define(kw_only=True, slots=False)
class DirectMessage(Published):
    type: str = named("direct_message")
    to: str
    seq: int | UnsetType = UNSET
    """Its number in the user's inbox, where it is kept there until a client acknowledges it."""
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


@attrs.frozen(kw_only=True)
class Resumed:
    """What became of one room of a session that was resumed. `recovered`: nothing is missing in it."""

    recovered: bool
    online_count: int
    epoch: str | UnsetType = UNSET
    offset: int | UnsetType = UNSET


@attrs.define(kw_only=True, slots=False)
class Ack(Event):
    """The one positive answer to a command with an `id`; which fields are set depends on the command."""

    type: str = named("ack")
    id: str | int
    room: str | UnsetType = UNSET
    rooms: dict[str, Resumed] | UnsetType = UNSET
    session: str | UnsetType = UNSET
    user_id: str | UnsetType = UNSET
    online_count: int | UnsetType = UNSET
    users: list[str] | UnsetType = UNSET
    count: int | UnsetType = UNSET
    connections: int | UnsetType = UNSET
    delivered: int | UnsetType = UNSET
    queued: int | UnsetType = UNSET
    dropped: int | UnsetType = UNSET
    kept: int | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    epoch: str | UnsetType = UNSET
    offset: int | UnsetType = UNSET
    recovered: bool | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET
    messages: list[msgspec.Raw] | UnsetType = UNSET
    """Encoded one by one: what the client's codec cannot carry is replaced, and spoils no other."""
    more: bool | UnsetType = UNSET
    upto: int | UnsetType = UNSET
    data: Any = UNSET


@attrs.define(kw_only=True, slots=False)
class Error(Event):
    type: str = named("error")
    id: str | int | UnsetType = UNSET
    code: str
    message: str
    room: str | UnsetType = UNSET
    epoch: str | UnsetType = UNSET
    offset: int | UnsetType = UNSET


class Gap(Event, msgspec.Struct, kw_only=True, tag_field="type", tag="gap", rename={"start": "from"}):
    """This client did not get messages: of `room`, or of those sent to it directly where there is no `room`.

    In a room with history, `start` (on the wire: `from`) and `to` say where they are; with `lost` they are not there any
    more, and without `to` the client's position was of another epoch. A Struct, for a name that Python keeps to itself.
    """

    type: ClassVar[str] = "gap"  # type: ignore[misc]
    room: str | UnsetType = UNSET
    dropped: int | UnsetType = UNSET
    epoch: str | UnsetType = UNSET
    start: int | UnsetType = UNSET
    to: int | UnsetType = UNSET
    lost: bool | UnsetType = UNSET


@attrs.define(kw_only=True, slots=False)
class Reconnect(Event):
    """The server is about to close; come back after `after` seconds."""

    type: str = named("reconnect")
    after: float
    reason: str
