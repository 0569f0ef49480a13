"""trioswitch: a real-time push server on Trio.

Rooms, groups and users over WebSocket, with bounded, batched outboxes. Run it with `python -m trioswitch serve`, or embed
it: `async with trioswitch.open_switch() as switch` (`docs/embedding.md`).
"""

from .auth.identity import Identity
from .config import Keep, Options, Overflow, RoomPolicy
from .connections.connection import Connection
from .connections.request import ConnectRequest
from .durability.recovery import HistoryPage
from .errors import Cause, Refused, ServeError, StoreError, TrioswitchError, UnencodableData, UnknownConnection
from .metrics import OutboxStatistics, RoomStatistics, SwitchStatistics
from .publishing import Delivery
from .rooms.subscription import Subscription
from .serve import Server, serve
from .stores.open import open_store
from .switch import Switch, open_switch
from .version import __version__
from .web import Page, Pages
from .wire import messages
from .wire.messages import Position
from .wire.prepared import Receipt
from .workers import MissingExtra, WorkerDied, Workers, WorkersStatistics, open_workers

__all__ = [
    "Cause",
    "ConnectRequest",
    "Connection",
    "Delivery",
    "HistoryPage",
    "Identity",
    "Keep",
    "MissingExtra",
    "Options",
    "OutboxStatistics",
    "Overflow",
    "Page",
    "Pages",
    "Position",
    "Receipt",
    "Refused",
    "RoomPolicy",
    "RoomStatistics",
    "ServeError",
    "Server",
    "StoreError",
    "Subscription",
    "Switch",
    "SwitchStatistics",
    "TrioswitchError",
    "UnencodableData",
    "UnknownConnection",
    "WorkerDied",
    "Workers",
    "WorkersStatistics",
    "__version__",
    "messages",
    "open_store",
    "open_switch",
    "open_workers",
    "serve",
]
