"""What a client remembers from one connection to the next: its session, its rooms, its inbox, its open requests."""

from collections.abc import Mapping
from typing import Any

import attrs
import trio

from .errors import ClientError
from .inbox import Inbox
from .messages import Announcement
from .requests import Requests
from .track import Track

__all__ = ["Membership", "Session"]


@attrs.define(eq=False)
class Membership:
    """A room that the client is in, or wants to be in. Readers wait at `wake`."""

    name: str
    track: Track
    history: int
    """How many of the newest messages the first join asks for."""
    settled: trio.Event = attrs.field(factory=trio.Event)
    """The first join has been answered, or `ended` says why it never will be."""
    joined: bool = False
    online_count: int = 0
    ended: ClientError | None = None
    wake: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    def answered(self, ack: Mapping[str, Any]) -> None:
        """The room was joined, or resumed."""
        self.joined = True
        self.online_count = ack.get("online_count", self.online_count)
        self.track.joined(ack)
        self.settled.set()
        self.wake.unpark_all()

    def announced(self, announcement: Announcement) -> None:
        self.online_count = announcement.online_count
        self.track.announcement(announcement)

    def end(self, error: ClientError) -> None:
        """The client is in this room no more: readers get what waits, and then `error`."""
        self.ended = self.ended or error
        self.settled.set()
        self.wake.unpark_all()


@attrs.define(eq=False)
class Session:
    inbox: Inbox
    user: str | None
    """The name that the program gave; the server believes it where the client is anonymous."""
    id: str | None = None
    """The server's secret name for the session; None: there is none to resume."""
    user_id: str | None = None
    """What the server calls the user."""
    rooms: dict[str, Membership] = attrs.field(factory=dict)
    requests: Requests = attrs.field(factory=Requests)
    direct: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    """Readers of the inbox wait here."""
    ended: ClientError | None = None

    def lost(self) -> None:
        for membership in self.rooms.values():
            membership.track.refetch()

    def end(self, error: ClientError) -> None:
        """Everybody who waits gets `error`."""
        self.ended = error
        self.requests.end(error)
        self.direct.unpark_all()
        for membership in self.rooms.values():
            membership.end(error)
