"""The client's state that outlives a connection: its session, rooms, inbox and pending requests."""

from collections.abc import Mapping
from typing import Any

import attrs
import trio

from .errors import ClientError
from .inbox import Inbox
from .messages import Announcement
from .requests import Requests
from .room_sync import RoomSync

__all__ = ["Membership", "Session"]


@attrs.define(eq=False)
class Membership:
    """A room that the client has joined, or is joining."""

    name: str
    sync: RoomSync
    history: int
    """How many of the newest messages the first join asks for."""
    answered: trio.Event = attrs.field(factory=trio.Event)
    """Set when the first join was answered, or when it never will be (see `ended`)."""
    joined: bool = False
    online_count: int = 0
    ended: ClientError | None = None
    wake: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    """The room's readers park here."""

    def on_joined(self, ack: Mapping[str, Any]) -> None:
        """The server has answered a join, or resumed the room."""
        self.joined = True
        self.online_count = ack.get("online_count", self.online_count)
        self.sync.joined(ack)
        self.answered.set()
        self.wake.unpark_all()

    def on_announcement(self, announcement: Announcement) -> None:
        self.online_count = announcement.online_count
        self.sync.announcement(announcement)

    def end(self, error: ClientError) -> None:
        """The client is no longer in the room: its readers get the buffered items, and then `error`."""
        self.ended = self.ended or error
        self.answered.set()
        self.wake.unpark_all()


@attrs.define(eq=False)
class Session:
    inbox: Inbox
    requested_user: str | None
    """The user name that the application gave; a server without authentication accepts it."""
    id: str | None = None
    """The secret with which the session can be resumed; None if there is no session to resume."""
    user_id: str | None = None
    """The user name that the server uses."""
    rooms: dict[str, Membership] = attrs.field(factory=dict)
    requests: Requests = attrs.field(factory=Requests)
    direct_wake: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    """Readers of direct messages park here."""
    ended: ClientError | None = None

    def connection_lost(self) -> None:
        """Fetches of histories that were pending get no answer any more."""
        for membership in self.rooms.values():
            membership.sync.fetch_failed()

    def end(self, error: ClientError) -> None:
        """Fail everything that waits with `error`."""
        self.ended = error
        self.requests.end(error)
        self.direct_wake.unpark_all()
        for membership in self.rooms.values():
            membership.end(error)
