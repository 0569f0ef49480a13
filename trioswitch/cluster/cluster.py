"""The parts of a cluster, put together: what makes of a switch a node."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from ..brokers.port import Broker
from ..config import Options
from ..connections.directory import ConnectionDirectory
from ..connections.groups import Groups
from ..durability.idempotency import IdempotencyKeys
from ..durability.inbox import Inbox
from ..durability.sessions import Sessions
from ..durability.store_health import StoreHealth
from ..durability.store_writer import StoreWriter
from ..rooms.announcements import Announcements
from ..rooms.directory import RoomDirectory
from ..rooms.presence import Presence
from ..stores.port import Store
from ..wire.prepared import Prepared
from .committed import CommittedMessages
from .groups import ClusterGroups
from .link import Link
from .live import LiveMessages
from .presence import ClusterPresence
from .relay import ClusterRelay
from .roster import NodeInfo, Roster
from .sessions import ClusterSessions
from .surveys import Surveys
from .users import ClusterUsers

__all__ = ["Cluster"]

LEAVE_TIMEOUT: Final = 5.0
"""Seconds that a node which ends may take to save its sessions and to tell the others."""


class Cluster:
    """This node's part of the cluster. `tasks` are to be started, and supervised."""

    def __init__(
        self,
        broker: Broker,
        options: Options,
        store: Store,
        health: StoreHealth,
        connections: ConnectionDirectory,
        groups: Groups,
        rooms: RoomDirectory,
        writer: StoreWriter,
        inbox: Inbox,
        keys: IdempotencyKeys,
        statistics: Callable[[], dict[str, int]],
    ) -> None:
        node = secrets.token_urlsafe(6)
        self._connections = connections
        self.link = Link(broker, node)
        self.roster = Roster(self.link, options.node_name or node, options.node_timeout, statistics)
        self.presence = ClusterPresence(self.link, self.roster, rooms)
        self.live = LiveMessages(self.link, self.roster, keys)
        self.committed = CommittedMessages(self.link, writer, store)
        self.relay = ClusterRelay(self.link, self.presence, self.live, self.committed)
        self.users = ClusterUsers(self.link, self.roster, connections, inbox, store)
        self.sessions = ClusterSessions(self.link, self.roster, store, health, options.session_time)
        self.surveys = Surveys(self.link, self.roster)
        self.groups = ClusterGroups(self.link, store, health, groups)
        rooms.join_cluster(self.relay)
        inbox.join_cluster(self.users)
        connections.on_user(self._on_user)

    def tell(self, announcements: Announcements, presence: Presence) -> None:
        """Who tells the members of rooms of users elsewhere, and who tells of users here."""
        self.presence.announce_by(announcements)
        presence.on_change(self.presence.changed)

    def serve(self, sessions: Sessions, presence: Presence) -> None:
        """These are the sessions of this node."""
        self.sessions.serve(sessions)
        presence.on_connection(sessions.changed)

    def _on_user(self, user: str, online: bool) -> None:
        if online:
            self.users.online(user)
        else:
            self.users.offline(user)

    # --- `publishing.OtherNodes`

    @property
    def full(self) -> bool:
        return self.link.full

    async def wait_space(self) -> None:
        await self.link.wait_space()

    def publish(self, room: str, message: Prepared) -> None:
        self.live.publish_elsewhere(room, message)

    def send_to_users(self, users: list[str], message: Prepared) -> None:
        self.users.send_to_users(users, message)

    def broadcast(self, message: Prepared) -> None:
        self.users.broadcast(message)

    # --- the node

    @property
    def node(self) -> str:
        """The id of this node."""
        return self.link.node

    def nodes(self) -> list[NodeInfo]:
        """All nodes, this one first."""
        return self.roster.nodes()

    @property
    def tasks(self) -> list[Callable[[], Awaitable[None]]]:
        return [
            self.link.run_broker,
            self.link.run_sender,
            self.link.run_interest,
            self.roster.run,
            self.presence.run,
            self.presence.run_repeating,
            self.live.run,
            self.committed.run,
            self.committed.run_positions,
            self.users.run_state,
            self.users.run_repeating,
            self.users.run,
            self.users.run_sending,
            self.sessions.run,
            self.groups.run,
            self.surveys.run,
        ]

    async def leave(self) -> None:
        """Save the sessions, and tell the other nodes that this one ends, if that takes no long time. Safe to cancel."""
        with trio.move_on_after(LEAVE_TIMEOUT):
            await self.sessions.flush()
            await self.roster.leave()
