"""What an application receives from a client: messages, gaps, announcements, and the answers to its questions.

These classes are views that suit a receiver: one `Message` for the four message types of the protocol, None where an event
has no value. `Position` and `Receipt` are the server's own classes.
"""

from collections.abc import Mapping
from typing import Any

import attrs

from ..wire.messages import Position
from ..wire.prepared import Receipt

__all__ = [
    "Announcement",
    "Event",
    "Gap",
    "HistoryPage",
    "Message",
    "Presence",
    "position_of",
    "receipt_of",
]

Event = Mapping[str, Any]
"""An event of the server, decoded from JSON."""


def position_of(event: Event) -> Position | None:
    """The position of an event or an ack; None if it has none."""
    epoch, offset = event.get("epoch"), event.get("offset")
    return None if epoch is None or offset is None else Position(epoch, offset)


def receipt_of(ack: Event) -> Receipt:
    """The receipt in the ack to a publish."""
    return Receipt(
        delivered=ack.get("delivered", 0),
        queued=ack.get("queued", 0),
        dropped=ack.get("dropped", 0),
        kept=ack.get("kept", 0),
        seq=ack.get("seq"),
        epoch=ack.get("epoch"),
        offset=ack.get("offset"),
        duplicate=ack.get("duplicate", False),
    )


@attrs.frozen(kw_only=True)
class Message:
    """A message to a `room`, to a user (`to`), to a `group`, or, if all three are None, to this connection only."""

    type: str
    """`chat_message`, `message`, `direct_message` or `group_message`."""
    room: str | None = None
    to: str | None = None
    group: str | None = None
    user_id: str | None = None
    """The sender; None if the server sent it."""
    content: str | None = None
    """The text of a message that was sent as text."""
    data: Any = None
    """The data of any other message."""
    key: str | None = None
    timestamp: str = ""
    """When the server dispatched it: RFC 3339, UTC."""
    position: Position | None = None
    """Its position in the room's history; None if the room has no history."""
    seq: int | None = None
    """Its number in the user's inbox, if the inbox keeps it; valid for the current session."""

    @property
    def body(self) -> Any:
        """The text if the message was sent as text, otherwise the data."""
        return self.data if self.content is None else self.content

    @classmethod
    def from_event(cls, event: Event) -> "Message":
        return cls(
            type=event["type"],
            room=event.get("room"),
            to=event.get("to"),
            group=event.get("group"),
            user_id=event.get("user_id"),
            content=event.get("content"),
            data=event.get("data"),
            key=event.get("key"),
            timestamp=event.get("timestamp", ""),
            position=position_of(event),
            seq=event.get("seq"),
        )


@attrs.frozen(kw_only=True)
class Gap:
    """Messages are missing here, and the client cannot recover them."""

    room: str | None
    """None: they were addressed to this user, its groups, or this connection."""
    dropped: int | None
    """How many messages are missing at most; None if that is unknown."""

    def __add__(self, other: "Gap") -> "Gap":
        """One gap in place of two adjacent ones."""
        known = self.dropped is not None and other.dropped is not None
        return Gap(room=self.room, dropped=(self.dropped or 0) + (other.dropped or 0) if known else None)


@attrs.frozen(kw_only=True)
class Announcement:
    """A user joined a room or left it, or the number of its users changed."""

    room: str
    action: str
    """`user_joined`, `user_left`, or `count`, which has no `user_id`."""
    user_id: str | None
    online_count: int
    timestamp: str

    @classmethod
    def from_event(cls, event: Event) -> "Announcement":
        return cls(
            room=event["room"],
            action=event["action"],
            user_id=event.get("user_id"),
            online_count=event["online_count"],
            timestamp=event.get("timestamp", ""),
        )


@attrs.frozen(kw_only=True)
class Presence:
    """The users in a room."""

    room: str
    users: tuple[str, ...]
    """Sorted; at most the first 1,000."""
    count: int
    """The number of all users."""
    connections: int
    """The number of their connections."""

    @classmethod
    def from_ack(cls, ack: Event) -> "Presence":
        return cls(
            room=ack["room"], users=tuple(ack["users"]), count=ack["count"], connections=ack.get("connections", 0)
        )


@attrs.frozen(kw_only=True)
class HistoryPage:
    """A part of a room's history, oldest message first."""

    messages: tuple[Message, ...]
    position: Position
    """The position of the room's newest message, whether it is on this page or not."""
    recovered: bool | None = None
    """Whether no message between the requested position and this page has expired; None if no position was given."""
    more: bool
    """Whether messages follow after the last one: ask again with its position."""
    unreadable: tuple[Position, ...] = ()
    """Positions of messages that are left out because JSON cannot carry them."""

    @classmethod
    def from_ack(cls, ack: Event) -> "HistoryPage":
        unreadable = (position_of(event) for event in ack["messages"] if event["type"] == "error")
        return cls(
            messages=tuple(Message.from_event(event) for event in ack["messages"] if event["type"] != "error"),
            position=Position(ack["epoch"], ack["offset"]),
            recovered=ack.get("recovered"),
            more=ack.get("more", False),
            unreadable=tuple(position for position in unreadable if position is not None),
        )
