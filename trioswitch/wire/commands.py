"""The client protocol's commands: what clients ask for. The answers are events (`wire.messages`).

Wire names are the tags of the classes; `docs/protocol.md` is the reference. Fields that a client may leave out have a default.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from .body import Body
from .messages import Position

__all__ = [
    "COMMANDS",
    "MAX_KEY",
    "MAX_NAME",
    "MAX_PAGE",
    "Authenticate",
    "Command",
    "Custom",
    "Heartbeat",
    "History",
    "InboxAck",
    "JoinRoom",
    "LeaveRoom",
    "Name",
    "Presence",
    "ProtocolCommand",
    "Resume",
    "SendChat",
    "SendDirect",
    "SendGroup",
    "SendMessage",
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
if TYPE_CHECKING:
    Sent = Body
else:
    Sent = Raw  # msgspec leaves its bytes as they are; the client protocol checks them, and makes it a Body


class Command(Struct, kw_only=True, gc=False):
    """What a client asks for. With an `id` it gets exactly one `ack` or `error` that carries the same `id`."""

    id: RequestId = None


class ProtocolCommand(Command, tag_field="type", kw_only=True, gc=False):
    """A command of the client protocol. Its `type` on the wire is the tag of its class."""

    @property
    def type(self) -> str:
        return str(self.__struct_config__.tag)


class Authenticate(ProtocolCommand, tag="authenticate", kw_only=True, gc=False):
    token: str


class JoinRoom(ProtocolCommand, tag="join_room", kw_only=True, gc=False):
    room: Name
    user_id: Name | None = None
    since: Position | None = None
    history: Annotated[int, Meta(ge=0)] | None = None
    token: str | None = None


class LeaveRoom(ProtocolCommand, tag="leave_room", kw_only=True, gc=False):
    room: Name


class SendChat(ProtocolCommand, tag="chat_message", kw_only=True, gc=False):
    room: Name
    content: Sent
    """Text."""
    user_id: Name | None = None
    idempotency_key: Key | None = None


class SendMessage(ProtocolCommand, tag="message", kw_only=True, gc=False):
    room: Name
    data: Sent
    priority: Priority = 0
    max_delay: Seconds | None = None
    expires: Seconds | None = None
    key: str | None = None
    exclude_self: bool = False
    idempotency_key: Key | None = None


class SendDirect(ProtocolCommand, tag="direct_message", kw_only=True, gc=False):
    """`to` is a user. Exactly one of `content` and `data` is expected; `content` is text, `data` anything."""

    to: Name
    content: Sent | UnsetType = UNSET
    data: Sent | UnsetType = UNSET
    expires: Seconds | None = None
    idempotency_key: Key | None = None


class SendGroup(ProtocolCommand, tag="group_message", kw_only=True, gc=False):
    """`content` and `data` as in `SendDirect`."""

    group: Name
    content: Sent | UnsetType = UNSET
    data: Sent | UnsetType = UNSET


class Heartbeat(ProtocolCommand, tag="heartbeat", kw_only=True, gc=False):
    pass


class Presence(ProtocolCommand, tag="presence", kw_only=True, gc=False):
    room: Name


class History(ProtocolCommand, tag="history", kw_only=True, gc=False):
    room: Name
    since: Position | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 100


class Resume(ProtocolCommand, tag="resume", kw_only=True, gc=False):
    session: str
    rooms: dict[Name, Position] = {}


class InboxAck(ProtocolCommand, tag="inbox_ack", kw_only=True, gc=False):
    upto: Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Custom(Command, kw_only=True):
    """A message whose `type` the protocol does not know: for a handler of the application, if there is one."""

    type: str
    room: str | None
    """Its field `room`, if that is text."""
    fields: Callable[[], dict[str, Any]]
    """Decodes all of its fields. Raises BadInput where the application could not use them."""


COMMANDS: dict[str, type[ProtocolCommand]] = {
    str(command.__struct_config__.tag): command
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
