"""The parts of a switch that its facade calls, and what they count together."""

from collections import Counter
from typing import Final

import attrs
import trio

from .administration import Administration
from .admission import Admission
from .cluster.cluster import Cluster
from .config import Options
from .connections.directory import ConnectionDirectory
from .connections.groups import Groups
from .durability.inbox import Inbox
from .durability.recovery import Recovery
from .durability.sessions import Sessions
from .durability.store_health import StoreHealth
from .durability.store_writer import StoreWriter
from .endpoints import Endpoints
from .handlers import Handlers
from .metrics import SwitchStatistics, Traffic
from .publishing import Publisher
from .rooms.directory import RoomDirectory
from .rooms.history import HistoryBudget
from .rooms.presence import Presence
from .services import ConnectionServices
from .transport.reactor import Reactor
from .wire.frames import Compressor

__all__ = ["Parts"]

COUNT_INTERVAL: Final = 10.0
"""Seconds between two looks at all connections, for what is told to the other nodes."""


@attrs.define(kw_only=True, eq=False)
class Parts:
    """The parts that the facade, `Switch`, calls."""

    options: Options
    traffic: Traffic
    compressor: Compressor
    connections: ConnectionDirectory
    groups: Groups
    rooms: RoomDirectory
    presence: Presence
    publisher: Publisher
    recovery: Recovery
    inbox: Inbox
    handlers: Handlers
    services: ConnectionServices
    administration: Administration
    endpoints: Endpoints
    admission: Admission
    store_health: StoreHealth
    _sessions: Sessions
    _budget: HistoryBudget
    _writer: StoreWriter
    _reactor: Reactor | None
    cluster: Cluster | None
    _count_again: float = attrs.field(default=0.0, init=False)
    _sent: dict[str, int] = attrs.field(factory=dict, init=False)

    def beat(self) -> dict[str, int]:
        """What a node tells the others of itself. What takes a look at all connections may be `COUNT_INTERVAL` old."""
        traffic, now = self.traffic, trio.current_time()
        if now >= self._count_again:
            self._count_again = now + COUNT_INTERVAL
            live = [connection.outbox.account for connection in self.connections.everyone()]
            self._sent = {
                "messages_sent": traffic.messages_sent + sum([account.messages_sent for account in live]),
                "bytes_sent": traffic.bytes_sent + sum([account.bytes_sent for account in live]),
            }
        return {
            "connections": len(self.connections),
            "users": len(self.connections.users),
            "rooms": len(self.rooms),
            **self._sent,
            "pending_messages": traffic.waiting,
            "pending_bytes": traffic.waiting_bytes,
            "drops": traffic.drops.total(),
        }

    def statistics(self) -> SwitchStatistics:
        traffic = self.traffic
        everybody = self.connections.everyone() + self.endpoints.connections.everyone()
        live = [connection.outbox.account for connection in everybody]
        sent = traffic.messages_sent + sum([account.messages_sent for account in live])
        return SwitchStatistics(
            active_connections=len(everybody),
            connections_opened=self.connections.opened + self.endpoints.connections.opened,
            rooms={room.name: len(room.membership.members) for room in self.rooms},
            users=len(self.connections.users),
            groups=len(self.groups),
            messages_queued=sent + traffic.waiting + traffic.drops.total(),
            messages_sent=sent,
            batches_sent=traffic.batches_sent + sum([account.batches_sent for account in live]),
            bytes_sent=traffic.bytes_sent + sum([account.bytes_sent for account in live]),
            pending_messages=traffic.waiting,
            pending_bytes=traffic.waiting_bytes,
            messages_received=traffic.messages_received,
            bytes_received=traffic.bytes_received,
            drops_by_policy=traffic.drops_by_policy(),
            outbox_waits=traffic.outbox_waits.distribution(),
            outbox_batches=traffic.outbox_batches.distribution(),
            drops={cause.value: count for cause, count in traffic.drops.items()},
            closes={
                cause.name.lower(): count
                for cause, count in (self.connections.closes + self.endpoints.connections.closes).items()
            },
            refused=self.admission.refusals.total(),
            refusals=dict(self.admission.refusals),
            rate_pauses=self.admission.limits.pauses,
            room_crashes=self.rooms.crashes,
            sessions=len(self._sessions),
            history_bytes=self._budget.used,
            uncommitted_messages=self._writer.uncommitted + self.inbox.uncommitted,
            compression=self.compressor.statistics(),
            cluster=self._cluster_statistics(),
        )

    def _cluster_statistics(self) -> dict[str, int]:
        sums: Counter[str] = Counter()
        for node in self.cluster.nodes() if self.cluster is not None else ():
            sums.update(node.statistics)
        return dict(sums)

    async def join_cluster(self) -> None:
        """Wait until the broker is connected, or it is clear that it is not. Safe to cancel."""
        if self.cluster is not None:
            await self.cluster.link.wait_first_attempt()

    async def leave_cluster(self) -> None:
        """The switch ends: the other nodes are told, even when it is cancelled."""
        if self.cluster is not None:
            with trio.CancelScope(shield=True):
                await self.cluster.leave()

    def abandon(self) -> None:
        """The switch ends: nothing is delivered any more. Its tasks still run."""
        self.connections.begin_drain()
        self.rooms.abandon()

    def close(self) -> None:
        """After `abandon`, when the tasks have ended: report the outcome of what was on its way to the store."""
        self.inbox.abandon()
        self._writer.abandon()
        if self._reactor is not None:
            self._reactor.close()
