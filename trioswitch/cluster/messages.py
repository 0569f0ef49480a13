"""Messages between nodes, and the bytes in which they travel: a *parcel* is what one node sends to one topic at a time.

A parcel is an array in MessagePack: the version of the format, the id of the node, and the messages, each an array that begins
with its kind. What a newer version adds is skipped by an older one: fields at the end of a message, and kinds that are not known.
A change that older nodes could not skip raises VERSION; a node takes what has its own version or the one before.
"""

import logging
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw

from .._util import clock
from ..wire.messages import Published, copied
from ..wire.prepared import Arrived, Prepared
from ..wire.records import encode_record, read_record

__all__ = [
    "ALL",
    "Ask",
    "Beat",
    "Broadcast",
    "Carried",
    "Changes",
    "Committed",
    "Direct",
    "GroupChanged",
    "Kick",
    "Leaving",
    "Live",
    "NodeMessage",
    "Parcel",
    "Streams",
    "Take",
    "Taken",
    "ToUsers",
    "carry",
    "decode_parcel",
    "encode_parcel",
    "node_topic",
    "room_topic",
    "size_of",
    "unpack",
    "user_topic",
]

_log = logging.getLogger(__name__)

VERSION: Final = 1
OVERHEAD: Final = 100
"""Bytes that a message takes beside its payload, about."""
OLDEST: Final = 1
"""The oldest version that is understood."""


# --- topics

ALL: Final = "all"
"""The topic of all nodes."""


def room_topic(room: str) -> str:
    return f"room:{room}"


def user_topic(user: str) -> str:
    return f"user:{user}"


def node_topic(node: str) -> str:
    return f"node:{node}"


# --- messages


class NodeMessage(msgspec.Struct, array_like=True):
    """What one node tells others. Subclasses have a tag: the kind."""


class Carried(msgspec.Struct, array_like=True):
    """A published message, and how it is to be delivered. Times are seconds of wall time."""

    payload: bytes
    """As a store keeps it (`wire.records`)."""
    priority: int = 0
    deliver_by: float | None = None
    expires_at: float | None = None
    key: str | None = None
    idempotency_key: str | None = None
    exclude: list[str] = []


class Live(NodeMessage, tag="live"):
    """A message of a room that has no offset. The sender counts its messages of a room in `stream`: 1, 2, 3 ...

    `age` is the number of seconds since the stream began.
    """

    stream: int
    number: int
    age: float
    message: Carried


class Streams(NodeMessage, tag="streams"):
    """The stream of a room, and how many messages the sender has sent in it: what comes next is `number` + 1.

    A sender that has sent nothing has stream 0: whatever stream comes next begins with 1.
    """

    stream: int
    number: int
    age: float


class Committed(NodeMessage, tag="committed"):
    """A message of a room with history, which the store has committed at this position."""

    epoch: str
    offset: int
    message: Carried


class Changes(NodeMessage, tag="changes"):
    """Which values the sender's part of a topic's shared state has now (`presence`): 0 removes a key.

    `version` counts the sender's changes in this topic. Without values it only says which one is the newest. `full`: all keys
    that are not here are removed, too. `known`: it has been so, and nothing has happened now.
    """

    version: int
    values: dict[str, int]
    full: bool = False
    known: bool = False


class Ask(NodeMessage, tag="ask"):
    """Please tell this topic the whole of your part of its state. `by` only; every node if that is empty."""

    of: str = ""


class Direct(NodeMessage, tag="direct"):
    """A direct message to a user, with its `seq` if the inbox has it, else 0."""

    user: str
    seq: int
    message: Carried


class ToUsers(NodeMessage, tag="to_users"):
    """A message to users, wherever they are."""

    users: list[str]
    message: Carried


class Broadcast(NodeMessage, tag="broadcast"):
    """A message to all connections."""

    message: Carried


class Take(NodeMessage, tag="take"):
    """Hand over a session, if it belongs to this user of an identity. The answer is `Taken`, with the same number."""

    question: int
    session: str
    user: str | None


class Taken(NodeMessage, tag="taken"):
    """The session (`durability.sessions.PortableSession`, in MessagePack), or nil: the sender does not have it."""

    question: int
    payload: bytes


class GroupChanged(NodeMessage, tag="group_changed"):
    """A user was added to a group, or removed from it."""

    group: str
    user: str
    added: bool


class Kick(NodeMessage, tag="kick"):
    """Close a connection of yours with 4502."""

    connection: str
    reason: str


class Survey(NodeMessage, tag="survey"):
    """What do you know, or do? The answer is `Found`, with the same number."""

    question: int
    name: str
    arguments: dict[str, Any]


class Found(NodeMessage, tag="found"):
    """An answer to `Survey`; None: the sender does not know the question."""

    question: int
    answer: Any


class Beat(NodeMessage, tag="beat"):
    """The sender lives. `statistics` are numbers that are added up over all nodes."""

    name: str
    version: str
    started: float
    statistics: dict[str, int]
    now: float = 0.0
    """Its wall clock; 0: it does not tell."""


class Leaving(NodeMessage, tag="leaving"):
    """The sender ends."""


class Parcel(msgspec.Struct, array_like=True):
    """Of any version."""

    version: int
    node: str
    messages: list[Raw]


class _KnownParcel(msgspec.Struct, array_like=True):
    """Of this version, with nothing in it that is not known: decoded in one step."""

    version: int
    node: str
    messages: list[
        Live
        | Streams
        | Committed
        | Changes
        | Ask
        | Direct
        | ToUsers
        | Broadcast
        | Take
        | Taken
        | GroupChanged
        | Kick
        | Survey
        | Found
        | Beat
        | Leaving
    ]


_KINDS: Final = (
    Live,
    Streams,
    Committed,
    Changes,
    Ask,
    Direct,
    ToUsers,
    Broadcast,
    Take,
    Taken,
    GroupChanged,
    Kick,
    Survey,
    Found,
    Beat,
    Leaving,
)
_NOBODY: Final[frozenset[str]] = frozenset()
_encode: Final = msgspec.msgpack.Encoder().encode
_decode_parcel: Final = msgspec.msgpack.Decoder(Parcel).decode
_decode_known: Final = msgspec.msgpack.Decoder(_KnownParcel).decode
_decode_kind: Final = msgspec.msgpack.Decoder(list[Raw]).decode
_decode_tag: Final = msgspec.msgpack.Decoder(str).decode
_decoders: Final = {kind.__struct_config__.tag: msgspec.msgpack.Decoder(kind).decode for kind in _KINDS}


def size_of(message: NodeMessage) -> int:
    """About how many bytes it takes, for bounds."""
    if isinstance(message, Live | Committed | Direct | ToUsers | Broadcast):
        return (
            OVERHEAD + len(message.message.payload) + (16 * len(message.users) if isinstance(message, ToUsers) else 0)
        )
    return OVERHEAD + (32 * len(message.values) if isinstance(message, Changes) else 0)


def encode_parcel(node: str, messages: Sequence[NodeMessage]) -> bytes:
    return _encode([VERSION, node, messages])


def decode_parcel(payload: bytes) -> tuple[str, Sequence[NodeMessage]]:
    """The node that sent it, and its messages; those of unknown kinds are left out. Raises ValueError."""
    try:
        known = _decode_known(payload)
        if known.version == VERSION:
            return known.node, known.messages
    except msgspec.ValidationError:
        _log.debug("a parcel of another version")  # or garbage: then what follows says so
    parcel = _decode_parcel(payload)
    if not OLDEST <= parcel.version <= VERSION:
        raise ValueError(f"format {parcel.version} of node {parcel.node!r} is not understood (this is {VERSION})")
    messages = []
    for raw in parcel.messages:
        decode = _decoders.get(_decode_tag(_decode_kind(raw)[0]))
        if decode is not None:
            messages.append(decode(raw))
    return parcel.node, messages


# --- what is carried


def carry(message: Prepared) -> Carried:
    """What other nodes need of a message, whose event `is_recordable`."""
    event = message.event
    assert isinstance(event, Published), "the publisher has looked at it"
    if message.recorded or getattr(event, "seq", UNSET) is not UNSET:  # the place is told apart from the message
        event = copied(event)
        for name in ("epoch", "offset", "seq"):
            if hasattr(event, name):
                setattr(event, name, UNSET)
    return Carried(
        encode_record(event),
        message.priority,
        None if message.deliver_by is None else clock.to_wall(message.deliver_by),
        None if message.expires_at is None else clock.to_wall(message.expires_at),
        message.key,
        message.idempotency_key,
        list(message.exclude),
    )


def unpack(carried: Carried, room: str | None = None) -> Prepared:
    """The message on another node. Raises ValueError for a payload that cannot be read."""
    return Arrived(
        read_record(carried.payload),
        room=room,
        priority=carried.priority,
        deliver_by=None if carried.deliver_by is None else clock.to_trio(carried.deliver_by),
        expires_at=None if carried.expires_at is None else clock.to_trio(carried.expires_at),
        key=carried.key,
        idempotency_key=carried.idempotency_key,
        exclude=frozenset(carried.exclude) if carried.exclude else _NOBODY,
    )
