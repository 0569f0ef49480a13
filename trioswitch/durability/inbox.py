"""The inbox: direct messages are kept for their user until a client acknowledges them, at least once.

A direct message is kept when its user is offline. It is also kept while the user is online if one of the user's clients
acknowledges (from its first `inbox_ack` on): a message that was on its way to a connection that is lost, though the server has
not noticed it yet, is sent again. A client that never acknowledges gets a message as it comes, as in a room; only what was sent
while the client was away, or before it was clear that it does not acknowledge, is kept for it.

One task commits pending inbox messages in batches (`group_commit`), and delivers them in the order of their `seq`.
"""

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final, Protocol

import trio

from .._util import clock
from .._util.wakeup import Wakeup
from ..config import Options, Overflow
from ..connections.directory import ConnectionDirectory
from ..connections.driver import ConnectionDriver
from ..connections.outbox import OfferResult
from ..errors import InboxFull, StoreError, TrioswitchError
from ..stores.port import InboxLimits, InboxMessage, InboxResult, Refusal, Store, StoredInboxMessage
from ..wire.messages import DirectMessage
from ..wire.prepared import Outcome, Prepared, Receipt
from ..wire.records import decode_record, encode_record
from .group_commit import MAX_BATCH, GroupCommit
from .store_health import StoreHealth

__all__ = ["ACK_GRACE", "Inbox", "OtherNodes"]

_log = logging.getLogger(__name__)

PAGE: Final = 100
"""Inbox messages that are read at once for a user who comes online."""
PAGE_BYTES: Final = 256 * 1024
"""Bytes of them; a larger message is read alone."""
ACK_GRACE: Final = 5.0
"""Seconds after a client came online in which it may still begin to acknowledge, and nothing is lost."""
_FULL: Final = {
    Refusal.INBOX: "the inbox of {user!r} is full",
    Refusal.SENDER: "your pending direct messages take up your share of the space for them",
    Refusal.TOTAL: "the pending direct messages of all users take up all of their space",
}
READ_RETRY_DELAY: Final = 5.0
"""Seconds after which a store that could not be read is asked again."""


class _Progress:
    """How far a connection has come in its user's inbox: it has everything up to `sent`."""

    __slots__ = ("acknowledges", "catching_up", "grace_until", "more", "sent", "user")

    def __init__(self, user: str) -> None:
        self.user = user
        self.sent = 0
        self.acknowledges = False
        self.grace_until = trio.current_time() + ACK_GRACE
        self.catching_up = False
        self.more = False
        """Whether something was added to the inbox since the store was read last."""


class OtherNodes(Protocol):
    """The other nodes of a cluster."""

    def send(self, user: str, seq: int, message: Prepared) -> None:
        """Send a direct message to the user's connections there; `seq` is 0 if the inbox does not have it."""

    def delivered(self, user: str, seq: int) -> None:
        """All connections of the user here have everything up to this seq."""

    def changed(self, user: str) -> None:
        """`needs_keeping` may be another."""


class Inbox:
    """Sends to users, and keeps what they have not acknowledged. One for each switch."""

    def __init__(self, connections: ConnectionDirectory, store: Store, health: StoreHealth, options: Options) -> None:
        self._connections = connections
        self._options = options
        self._store = store
        self._health = health
        self._limits = InboxLimits(
            messages=options.inbox_messages, bytes=options.inbox_bytes, total_bytes=options.total_inbox_bytes
        )
        self._progress: dict[str, _Progress] = {}  # by id of the connection
        self._commits: GroupCommit[tuple[str, Prepared], InboxMessage, InboxResult] = GroupCommit(
            health, encode=_to_inbox_message, write=self._write, succeeded=self._on_committed, failed=self._on_failed
        )
        self._pending_bytes = 0  # of messages that wait for a batch
        self._undelivered: Counter[str] = Counter()  # messages that were sent and have not ended, by user
        self._space = Wakeup()
        self._nodes: OtherNodes | None = None

    def join_cluster(self, nodes: OtherNodes) -> None:
        """Send to users of other nodes, too."""
        self._nodes = nodes

    @property
    def uncommitted(self) -> int:
        """Messages that wait for the store, or are being committed."""
        return self._undelivered.total()

    # --- sending

    def send_nowait(self, user: str, message: Prepared, *, keep: bool = True) -> None:
        """Send to a user; with `keep`, put the message into the inbox where needed. Its outcome is reported in any case.

        Raises trio.WouldBlock, and takes nothing, when too much waits for the store.
        """
        connections = self._connections.of_user(user)
        keep = keep and self._options.inbox_messages > 0
        if keep and (self._nodes or not connections or self._undelivered[user] or self.needs_keeping(user)):
            if self._full:
                raise trio.WouldBlock
            self._undelivered[user] += 1
            self._pending_bytes += message.size
            self._commits.add((user, message))
        else:
            if self._nodes is not None:
                self._nodes.send(user, 0, message)
            message.report(self._connections.send_nowait(connections, message))

    async def send(self, user: str, message: Prepared, *, keep: bool = True) -> None:
        """As `send_nowait`, and wait for space. Safe to cancel: then it was not sent."""
        while self._full:
            await self._space.wait()
        self.send_nowait(user, message, keep=keep)

    @property
    def _full(self) -> bool:
        """Whether senders wait: as many messages or bytes are pending as fit into one batch, or into a room."""
        return self._commits.pending >= MAX_BATCH or self._pending_bytes >= self._options.room_bytes

    async def flush(self) -> None:
        """Wait until everything that was sent is committed and delivered, or refused. Safe to cancel."""
        while self._undelivered:
            await self._space.wait()

    async def run(self) -> None:
        """The task that commits inbox messages and delivers them. Started again after a crash, it goes on with the rest."""
        while True:
            while self._commits.pending:
                self._pending_bytes -= sum([message.size for _user, message in self._commits.next_batch()])
                self._space.notify()
                await self._commits.commit_batch()
            await self._commits.wait()

    async def _write(self, messages: Sequence[InboxMessage]) -> Sequence[InboxResult]:
        return await self._store.add_to_inboxes(messages, limits=self._limits)

    def _on_committed(self, item: tuple[str, Prepared], result: InboxResult) -> None:
        user, message = item
        self._end(user, message, self._deliver(user, message, result))

    def _on_failed(self, item: tuple[str, Prepared], error: TrioswitchError) -> None:
        user, message = item
        self._end(user, message, error)

    def _end(self, user: str, message: Prepared, outcome: Outcome) -> None:
        self._undelivered[user] -= 1
        if not self._undelivered[user]:
            del self._undelivered[user]
            if not self._undelivered:
                self._space.notify()
        message.report(outcome)

    def abandon(self) -> None:
        """The switch ends: senders that wait for a receipt are told that there will be none."""
        self._pending_bytes = 0
        self._commits.abandon()

    def _deliver(self, user: str, message: Prepared, result: InboxResult) -> Outcome:
        """Deliver a message that was committed to all connections of its user."""
        if result.duplicate:
            return Receipt(kept=1, seq=result.seq, duplicate=True)
        connections = self._connections.of_user(user)
        if result.refusal is not None:
            return self._refused(user, message, result.refusal, connections)
        event = message.event
        assert isinstance(event, DirectMessage)
        event.seq = result.seq
        if self._nodes is not None:
            self._nodes.send(user, result.seq, message)
        counts = self._deliver_to_all(user, result.seq, message)
        return Receipt(counts[OfferResult.WRITTEN], counts[OfferResult.QUEUED], kept=1, seq=result.seq)

    def _deliver_to_all(self, user: str, seq: int, message: Prepared) -> "Counter[OfferResult]":
        connections = list(self._connections.of_user(user))
        counts = Counter(self._deliver_to(connection, message) for connection in connections)
        if self._nodes is not None and connections:
            progress = [self._progress.get(connection.id) for connection in connections]
            if all(each is not None and not each.catching_up and each.sent >= seq for each in progress):
                self._nodes.delivered(user, seq)
        return counts

    def deliver_from_elsewhere(self, user: str, seq: int, message: Prepared) -> None:
        """Deliver a message that was sent on another node to the user's connections here. `seq` as of `OtherNodes.send`."""
        if not seq:
            self._connections.send_nowait(self._connections.of_user(user), message)
        elif isinstance(message.event, DirectMessage):
            message.event.seq = seq
            self._deliver_to_all(user, seq, message)

    def look_again(self, user: str) -> None:
        """Messages may have been put into the inbox of a user without being delivered here: read them."""
        if self._options.inbox_messages and self._store.may_have_inbox_messages(user):
            for connection in list(self._connections.of_user(user)):
                if connection.cause is None:
                    progress = self._progress.get(connection.id) or self._begin(connection)
                    self._start_catching_up(connection, progress)

    def _refused(
        self, user: str, message: Prepared, refusal: Refusal, connections: Collection[ConnectionDriver]
    ) -> Outcome:
        """The message was not kept. Clients that do not acknowledge get it; for others that is not at least once."""
        if connections and not any(map(self._acknowledges, connections)):
            return self._connections.send_nowait(connections, message)
        return InboxFull(_FULL[refusal].format(user=user))

    def _deliver_to(self, connection: ConnectionDriver, message: Prepared) -> OfferResult:
        if connection.cause is not None:
            return OfferResult.DROPPED  # it ends, and its nursery takes no task any more
        progress, event = self._progress.get(connection.id) or self._begin(connection), message.event
        assert isinstance(event, DirectMessage)
        assert isinstance(event.seq, int)
        if event.seq <= progress.sent:
            return OfferResult.QUEUED  # the client came online after the commit, and read the message from the store
        is_next = self._nodes is None or event.seq == progress.sent + 1  # else others are on their way from other nodes
        if is_next and not progress.catching_up:
            result = connection.outbox.offer(message, Overflow.BLOCK)
            if result is not OfferResult.FULL:
                progress.sent = event.seq
                return result
        self._start_catching_up(connection, progress)
        return OfferResult.QUEUED

    # --- receiving

    def arrived(self, connection: ConnectionDriver) -> None:
        """A connection has got its user: deliver what the inbox holds."""
        if self._options.inbox_messages:
            progress = self._begin(connection)
            if self._undelivered[connection.user] or self._store.may_have_inbox_messages(connection.user):
                self._start_catching_up(connection, progress)

    def _begin(self, connection: ConnectionDriver) -> _Progress:
        progress = _Progress(connection.user)
        progress.acknowledges = self._acknowledges(connection)
        self._progress[connection.id] = progress
        self._changed(connection.user)
        return progress

    def _changed(self, user: str) -> None:
        if self._nodes is not None:
            self._nodes.changed(user)

    def forget(self, connection: ConnectionDriver) -> None:
        """A connection has ended."""
        if self._progress.pop(connection.id, None) is not None:
            self._changed(connection.user)

    def _acknowledges(self, connection: ConnectionDriver) -> bool:
        progress = self._progress.get(connection.id)
        return progress is not None and progress.acknowledges

    def needs_keeping(self, user: str) -> bool:
        """Whether messages for an online user have to be kept: for one of the user's clients."""
        return any(map(self._needs_keeping, self._connections.of_user(user)))

    def _needs_keeping(self, connection: ConnectionDriver) -> bool:
        """Whether messages have to be kept: the client acknowledges, may yet begin to, or is catching up."""
        progress = self._progress.get(connection.id)
        if progress is None:
            return False
        return progress.acknowledges or progress.catching_up or trio.current_time() < progress.grace_until

    async def acknowledge(self, connection: ConnectionDriver, upto: int) -> None:
        """The connection's user has everything up to this seq. Raises StoreError. Safe to cancel: it may be done or not."""
        if self._options.inbox_messages:
            if connection.id not in self._progress:
                self.arrived(connection)
            if not self._progress[connection.id].acknowledges:
                self._progress[connection.id].acknowledges = True
                self._changed(connection.user)
        if upto:
            await self._store.acknowledge(connection.user, upto)

    def _start_catching_up(self, connection: ConnectionDriver, progress: _Progress) -> None:
        progress.more = True
        if not progress.catching_up:
            progress.catching_up = True
            connection.start_soon(self._catch_up, connection, progress)

    async def _catch_up(self, connection: ConnectionDriver, progress: _Progress) -> None:
        """Deliver what the inbox holds, as fast as the client reads, until nothing is left."""
        while progress.more and self._progress.get(connection.id) is progress:
            progress.more = False
            try:
                stored = await self._store.read_inbox(
                    progress.user, after=progress.sent, limit=PAGE, max_bytes=PAGE_BYTES, now=clock.wall_time()
                )
            except StoreError as error:
                self._health.failed(error, "reading")
                await trio.sleep(READ_RETRY_DELAY)
                progress.more = True
                continue
            self._health.works("reading")
            progress.more = progress.more or bool(stored)  # a page may end at its bytes
            oldest = clock.wall_time() - self._options.inbox_age
            for inbox_message in stored:
                if inbox_message.at >= oldest:  # else the next sweep forgets it
                    message = _prepare(progress.user, inbox_message)
                    if message is not None:
                        await connection.outbox.put(message)
                    if self._progress.get(connection.id) is not progress:
                        return
                progress.sent = inbox_message.seq
        progress.catching_up = False
        if self._nodes is not None and progress.sent:
            self._nodes.delivered(progress.user, progress.sent)


def _to_inbox_message(item: tuple[str, Prepared]) -> InboxMessage:
    """Raises UnencodableData."""
    user, message = item
    event = message.event
    message.stamp(clock.timestamp())
    assert isinstance(event, DirectMessage)
    expires_at = None if message.expires_at is None else clock.to_wall(message.expires_at)
    return InboxMessage(
        user=user,
        payload=encode_record(event),
        at=clock.wall_time(),
        expires_at=expires_at,
        key=message.idempotency_key,
        sender=message.sender,
    )


def _prepare(user: str, stored: StoredInboxMessage) -> Prepared | None:
    """None for a message that cannot be read: the inbox is worth more than one message of it."""
    try:
        event = decode_record(stored.payload)
        if not isinstance(event, DirectMessage):
            raise ValueError(f"not a direct message: {stored.payload[:80]!r}")
    except ValueError:
        _log.exception("message %d of the inbox of %r cannot be read and is left out", stored.seq, user)
        return None
    event.seq = stored.seq
    expires_at = None if stored.expires_at is None else clock.to_trio(stored.expires_at)
    return Prepared(event, expires_at=expires_at, size=len(stored.payload))
