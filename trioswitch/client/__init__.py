"""The client for Trio programs: `async with open_client("ws://localhost:8765/ws") as client` (`docs/client.md`)."""

from ..wire.messages import Position
from ..wire.prepared import Receipt
from .client import Client, ClientStatistics, Room
from .errors import (
    CannotConnect,
    ClientClosed,
    ClientError,
    ConnectionLost,
    Rejected,
    RequestFailed,
    UntrustedCertificate,
)
from .messages import Announcement, Gap, HistoryPage, Message, Presence
from .opening import open_client
from .options import ClientOptions
from .reconnector import State

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
    "HistoryPage",
    "Message",
    "Position",
    "Presence",
    "Receipt",
    "Rejected",
    "RequestFailed",
    "Room",
    "State",
    "UntrustedCertificate",
    "open_client",
]
