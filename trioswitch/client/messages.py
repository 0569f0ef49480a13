"""What a program gets from a client: messages, gaps, announcements, and the answers to what it asked."""

from collections.abc import Mapping
from typing import Any

import attrs

__all__ = ["Announcement", "Gap", "Message", "Page", "Position", "Presence", "Receipt"]

Fields = Mapping[str, Any]
"""An event of the server, as it was on the wire."""


@attrs.frozen
class Position:
    """A place in a room's history. Offsets rise within an epoch; a new epoch means that the history was lost."""

    epoch: str
    offset: int

    def to_json(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "offset": self.offset}

    @classmethod
    def read(cls, event: Fields) -> "Position | None":
        """That of an event, if it has one."""
        epoch, offset = event.get("epoch"), event.get("offset")
        return None if epoch is None or offset is None else cls(epoch, offset)


@attrs.frozen(kw_only=True)
class Message:
    """A message to a room, to a user (`to`), to a `group`, or, with none of the three, to this connection.

    It has either `content`, which is text, or `data`.
    """

    type: str
    """`chat_message`, `message`, `direct_message` or `group_message`."""
    room: str | None = None
    to: str | None = None
    group: str | None = None
    user_id: str | None = None
    """Who sent it; None: the server."""
    content: str | None = None
    data: Any = None
    key: str | None = None
    timestamp: str = ""
    position: Position | None = None
    """Its place in the room's history, if the room has one."""
    seq: int | None = None
    """Its number in the user's inbox, if it is kept there, as long as the session lasts."""

    @classmethod
    def read(cls, event: Fields) -> "Message":
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
            position=Position.read(event),
            seq=event.get("seq"),
        )


@attrs.frozen(kw_only=True)
class Gap:
    """Here messages are missing that cannot be had any more."""

    room: str | None
    """None: they were sent to this user, or to this connection."""
    dropped: int | None
    """How many at most; None: nobody knows."""

    def __add__(self, other: "Gap") -> "Gap":
        known = self.dropped is not None and other.dropped is not None
        return Gap(room=self.room, dropped=(self.dropped or 0) + (other.dropped or 0) if known else None)


@attrs.frozen(kw_only=True)
class Announcement:
    """Who comes to a room and who goes: `user_joined`, `user_left`, or only the `count`, which has no `user_id`."""

    room: str
    action: str
    user_id: str | None
    online_count: int
    timestamp: str

    @classmethod
    def read(cls, event: Fields) -> "Announcement":
        return cls(
            room=event["room"],
            action=event["action"],
            user_id=event.get("user_id"),
            online_count=event["online_count"],
            timestamp=event.get("timestamp", ""),
        )


@attrs.frozen(kw_only=True)
class Receipt:
    """What became of a publish, in receivers; and where it is kept."""

    delivered: int = 0
    """Receivers to whose socket it was handed."""
    queued: int = 0
    """Receivers for whom it waits."""
    dropped: int = 0
    """Receivers that will not get it."""
    position: Position | None = None
    """Its place in the room's history, if the room has one."""
    kept: int = 0
    """1 where a direct message is kept in the receiver's inbox."""
    seq: int | None = None
    """Its number there."""
    duplicate: bool = False
    """Whether it had been published before, under the same idempotency key: then this is the receipt of the first time."""

    @classmethod
    def read(cls, ack: Fields) -> "Receipt":
        return cls(
            delivered=ack.get("delivered", 0),
            queued=ack.get("queued", 0),
            dropped=ack.get("dropped", 0),
            position=Position.read(ack),
            kept=ack.get("kept", 0),
            seq=ack.get("seq"),
            duplicate=ack.get("duplicate", False),
        )


@attrs.frozen(kw_only=True)
class Presence:
    """Who is in a room."""

    room: str
    users: tuple[str, ...]
    """Sorted; the first 1,000 of them."""
    count: int
    """All users."""
    connections: int

    @classmethod
    def read(cls, ack: Fields) -> "Presence":
        return cls(
            room=ack["room"], users=tuple(ack["users"]), count=ack["count"], connections=ack.get("connections", 0)
        )


@attrs.frozen(kw_only=True)
class Page:
    """A part of a room's history, oldest first."""

    room: str
    messages: tuple[Message, ...]
    end: Position
    """The position of the room's newest message, whether it is on this page or not."""
    more: bool
    """Whether there is more after the last message: ask again, since its position."""
    recovered: bool
    """False: what follows `since` is not all there any more."""
    unreadable: tuple[Position, ...] = ()
    """Where messages are left out that cannot be written in this client's encoding."""

    @classmethod
    def read(cls, ack: Fields) -> "Page":
        return cls(
            room=ack["room"],
            messages=tuple(Message.read(event) for event in ack["messages"] if event["type"] != "error"),
            end=Position(ack["epoch"], ack["offset"]),
            more=ack.get("more", False),
            recovered=ack.get("recovered", True),
            unreadable=tuple(
                position
                for event in ack["messages"]
                if event["type"] == "error" and (position := Position.read(event)) is not None
            ),
        )
