"""trioswitch: a real-time push server on Trio.

Rooms, groups and users over WebSocket, with bounded, batched outboxes. Run it with `python -m trioswitch serve`, or embed
it: `async with trioswitch.open_switch() as switch` (`docs/embedding.md`).

Public modules beside this one: `trioswitch.messages`, `trioswitch.client`, `trioswitch.stores`, `trioswitch.web`,
`trioswitch.testing`.
"""

from ._util import interrupts  # noqa: F401  # first, because the imports below take most of the start-up time

# isort: split
from . import messages
from .assembly import open_switch
from .auth.identity import Identity
from .auth.request import ConnectRequest
from .config import HistoryStorage, Options, Overflow, RoomPolicy
from .connections.connection import Connection
from .durability.recovery import HistoryPage
from .endpoints import WebSocket
from .errors import (
    BrokerError,
    CloseCause,
    DeliveryError,
    HistoryNotAvailable,
    InboxFull,
    Refused,
    RoomFull,
    ServeError,
    StorageFull,
    StoreError,
    TooManyRetries,
    TrioswitchError,
    UnencodableData,
    UnknownConnection,
    WebSocketClosed,
)
from .handlers import Handlers
from .hooks import JoinRequest, PublishRequest
from .metrics import OutboxStatistics, RoomStatistics, SwitchStatistics
from .rooms.subscription import Subscription
from .serve import Server, serve, serve_until_signal
from .stores import open_store
from .switch import Switch
from .version import __version__
from .web import Page, Pages
from .wire.messages import Position
from .wire.prepared import Receipt
from .workers import MissingExtra, WorkerDied, Workers, WorkersStatistics, open_workers

__all__ = [
    "BrokerError",
    "CloseCause",
    "ConnectRequest",
    "Connection",
    "DeliveryError",
    "Handlers",
    "HistoryNotAvailable",
    "HistoryPage",
    "HistoryStorage",
    "Identity",
    "InboxFull",
    "JoinRequest",
    "MissingExtra",
    "Options",
    "OutboxStatistics",
    "Overflow",
    "Page",
    "Pages",
    "Position",
    "PublishRequest",
    "Receipt",
    "Refused",
    "RoomFull",
    "RoomPolicy",
    "RoomStatistics",
    "ServeError",
    "Server",
    "StorageFull",
    "StoreError",
    "Subscription",
    "Switch",
    "SwitchStatistics",
    "TooManyRetries",
    "TrioswitchError",
    "UnencodableData",
    "UnknownConnection",
    "WebSocket",
    "WebSocketClosed",
    "WorkerDied",
    "Workers",
    "WorkersStatistics",
    "__version__",
    "messages",
    "open_store",
    "open_switch",
    "open_workers",
    "serve",
    "serve_until_signal",
]
