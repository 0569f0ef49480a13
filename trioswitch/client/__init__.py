"""The client for Trio programs: `async with open_client("ws://localhost:8765/ws") as client` (`docs/client.md`)."""

from .client import Client, ClientStatistics, Room, open_client
from .connector import State
from .errors import CannotConnect, ClientClosed, ClientError, ConnectionLost, Rejected, RequestFailed
from .messages import Announcement, Gap, Message, Page, Position, Presence, Receipt
from .options import ClientOptions

__all__ = [
    "Announcement",
    "CannotConnect",
    "Client",
    "ClientClosed",
    "ClientError",
    "ClientOptions",
    "ClientStatistics",
    "ConnectionLost",
    "Gap",
    "Message",
    "Page",
    "Position",
    "Presence",
    "Receipt",
    "Rejected",
    "RequestFailed",
    "Room",
    "State",
    "open_client",
]
