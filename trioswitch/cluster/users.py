"""Users across nodes: direct messages, messages to groups and broadcasts reach the connections of all nodes.

A node subscribes to the topic of each user that has a connection here. A client without a name is a user whose name is the id of
its connection, and that says which node it is on.

In a cluster, a direct message that may be kept always goes into the inbox first, as its sender does not know whether a client on
some other node acknowledges. Where none of the user's clients does, it is acknowledged for them when it was delivered.
"""

import logging
from typing import Final

import trio

from .._util.clock import timestamp
from .._util.expiry import DueQueue
from .._util.wakeup import Wakeup
from ..connections.directory import ConnectionDirectory
from ..connections.driver import ConnectionDriver
from ..durability.inbox import ACK_GRACE, Inbox
from ..errors import CloseCause, StoreError
from ..metrics import Drop
from ..stores.port import Store
from ..wire.prepared import Prepared
from .link import Link
from .messages import ALL, Broadcast, Direct, Kick, ToUsers, carry, node_topic, unpack, user_topic
from .roster import Roster
from .shared_state import SharedState

__all__ = ["ClusterUsers"]

_log = logging.getLogger(__name__)

MAX_SENDING: Final = 1000
"""Messages of other nodes to many connections that wait here. Receivers are told of those that are more."""

_HERE: Final = "here"
_PLAIN, _KEEPS = 1, 2
"""Whether a node needs what is in the user's inbox: a client there acknowledges, or may yet begin to."""


class ClusterUsers:
    """Implements `durability.inbox.OtherNodes`. `run_state` and `run` are its tasks."""

    def __init__(
        self, link: Link, roster: Roster, connections: ConnectionDirectory, inbox: Inbox, store: Store
    ) -> None:
        self._link = link
        self._roster = roster
        self._connections = connections
        self._inbox = inbox
        self._store = store
        self._state = SharedState(link, roster, "user", self._snapshot, self._attached, lambda *_: None)
        self._graces: DueQueue[str, None] = (
            DueQueue()
        )  # users of whom a client has come, until it is known what it does
        self._told: dict[str, int] = {}  # of each user what the other nodes know
        self._to_forget: dict[str, int] = {}  # seqs up to which inboxes can be forgotten
        self._wakeup = Wakeup()
        self._to_send, self._sending = trio.open_memory_channel[tuple[list[ConnectionDriver], Prepared]](MAX_SENDING)
        self.run_state = self._state.run
        self.run_repeating = self._state.run_repeating
        for kind in ("user", "node"):
            link.on(kind, Direct, self._on_direct)
        link.on("node", Kick, self._on_kick)
        link.on(ALL, ToUsers, self._on_to_users)
        link.on(ALL, Broadcast, self._on_broadcast)

    # --- users come and go

    def online(self, user: str) -> None:
        """A user has a connection here, and had none before."""
        if not self._is_unnamed(user):
            self._state.open(user_topic(user))

    def offline(self, user: str) -> None:
        """The last connection of a user here has ended, or is another's now."""
        if not self._is_unnamed(user):
            self._told.pop(user, None)
            self._state.close(user_topic(user))

    def changed(self, user: str) -> None:
        """Whether clients of a user acknowledge may be another matter now."""
        self._tell(user)
        self._graces.add(user, None, trio.current_time() + ACK_GRACE)
        self._wakeup.notify()

    def _tell(self, user: str) -> None:
        if self._is_unnamed(user) or not self._connections.of_user(user):
            return
        value = self._value(user)
        if self._told.get(user) != value:
            self._told[user] = value
            self._state.changed(user_topic(user), _HERE, value)

    def _is_unnamed(self, user: str) -> bool:
        return user.startswith(f"{self._link.node}.")

    def _value(self, user: str) -> int:
        return _KEEPS if self._inbox.needs_keeping(user) else _PLAIN

    def _snapshot(self, topic: str) -> dict[str, int]:
        return {_HERE: self._value(topic.partition(":")[2])}

    def _attached(self, topic: str) -> None:
        """What is sent from now on is heard: read what was sent before."""
        self._inbox.look_again(topic.partition(":")[2])

    # --- out

    def send(self, user: str, seq: int, message: Prepared) -> None:
        """Send a direct message to the connections of a user on other nodes."""
        if not seq:  # else it was stamped when it was committed
            message.stamp(timestamp())
        node, dot, _ = user.partition(".")
        if dot and node == self._link.node:
            return
        topic = node_topic(node) if dot and node in self._roster.others else user_topic(user)
        self._link.send(topic, Direct(user, seq, carry(message)))

    def send_to_users(self, users: list[str], message: Prepared) -> None:
        self._link.send(ALL, ToUsers(users, carry(message)))

    def kick(self, connection: str, reason: str) -> bool:
        """Close a connection on another node. Returns False when there is no such node."""
        node = connection.partition(".")[0]
        if node not in self._roster.others:
            return False
        self._link.send(node_topic(node), Kick(connection, reason))
        return True

    def broadcast(self, message: Prepared) -> None:
        self._link.send(ALL, Broadcast(carry(message)))

    # --- in

    def _on_direct(self, node: str, _topic: str, direct: Direct) -> None:
        if node != self._link.node:
            self._inbox.deliver_from_elsewhere(direct.user, direct.seq, unpack(direct.message))

    def _on_to_users(self, node: str, _topic: str, to_users: ToUsers) -> None:
        if node != self._link.node:
            self._send_here(self._connections.of_users(to_users.users), unpack(to_users.message))

    def _on_broadcast(self, node: str, _topic: str, broadcast: Broadcast) -> None:
        if node != self._link.node:
            self._send_here(list(self._connections), unpack(broadcast.message))

    def _send_here(self, receivers: list[ConnectionDriver], message: Prepared) -> None:
        try:
            self._to_send.send_nowait((receivers, message))
        except trio.WouldBlock:
            for receiver in receivers:
                receiver.outbox.report_loss(message, Drop.BEHIND)

    async def run_sending(self) -> None:
        """The task that sends to many connections: it lets others run in between."""
        async for receivers, message in self._sending:
            await self._connections.send(receivers, message)

    def _on_kick(self, _node: str, _topic: str, kick: Kick) -> None:
        for connection in self._connections.find([kick.connection]):
            connection.close(CloseCause.KICKED, kick.reason or None)

    # --- inboxes that nobody acknowledges

    def delivered(self, user: str, seq: int) -> None:
        """All connections of a user here have everything up to this seq: forget it, if nobody needs it any more."""
        topic = user_topic(user)
        others = self._state.others(topic).values()
        alone = self._is_unnamed(user) or (
            self._state.is_known(topic) and all(part.get(_HERE) == _PLAIN for part in others)
        )
        if alone and not self._inbox.needs_keeping(user):
            self._to_forget[user] = max(seq, self._to_forget.get(user, 0))
            self._wakeup.notify()

    async def run(self) -> None:
        """The task that forgets what was delivered, and notices that clients do not acknowledge."""
        while True:
            for user, _ in self._graces.pop_due(trio.current_time()):
                self._tell(user)
            to_forget, self._to_forget = self._to_forget, {}
            for user, seq in to_forget.items():
                try:
                    await self._store.acknowledge(user, seq)
                except StoreError as error:
                    _log.debug(
                        "delivered messages of %r stay in the inbox: %s", user, error
                    )  # they are delivered again
            with trio.move_on_at(self._graces.next_due()):
                if not self._to_forget:
                    await self._wakeup.wait()
