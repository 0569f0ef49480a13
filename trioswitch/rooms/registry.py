"""The supervised registry: which connections, users, groups and rooms there are, and how a message finds its receivers."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import trio

from .._util.clock import timestamp
from .._util.supervision import supervise
from ..config import Keep, Options
from ..connections.connection import Connection
from ..connections.outbox import Offer
from ..durability.store_writer import Journal
from ..errors import Cause, StoreError, UnknownConnection
from ..metrics import SwitchStatistics, Traffic
from ..stores.port import Store
from ..transport.reactor import Reactor
from ..wire.formats import Format, Framing
from ..wire.frames import Compressor
from ..wire.messages import System
from ..wire.prepared import Outcome, Prepared, Receipt
from ..wire.protocols.port import ClientProtocol, Codec
from .dispatcher import Dispatcher
from .members import Member
from .room import YIELD_EVERY, Room

__all__ = ["Registry"]

_log = logging.getLogger(__name__)

COUNT_INTERVAL: Final = 1.0
"""Seconds between two announcements of a big room's member count (`docs/protocol.md`)."""
LINGER: Final = 10.0
"""Seconds between two looks at rooms with history in which nobody is any more: what is idle then is closed."""


class Registry:
    """State and the operations on it; the application's view of it is `Switch`. All of it belongs to one Trio thread."""

    def __init__(self, options: Options, nursery: trio.Nursery, store: Store) -> None:
        self.options = options
        self.journal = Journal(store, options)
        self.traffic = Traffic()
        self.connections: dict[str, Connection] = {}
        self.users: dict[str, dict[str, Connection]] = {}
        self.groups: dict[str, set[str]] = {}
        self.rooms: dict[str, Room] = {}
        self.compressor = Compressor(options.compression_min_bytes, options.compression_level)
        self.opened = 0
        self.refused = 0
        self.closes: Counter[Cause] = Counter()
        self.room_crashes = 0
        self._abandoned = False
        self.draining = False
        """Whether everybody is about to go: then nobody new is let in, and leaves are not announced."""
        self.dispatcher = Dispatcher(self._start_task, self._crashed)
        self.reactor = Reactor(self.dispatcher.hold, self.dispatcher.release) if Reactor.available() else None
        self._nursery = nursery
        self._framings: dict[tuple[Codec, bool, int], Framing] = {}
        self._formats: dict[tuple[ClientProtocol, Framing], Format] = {}
        self._recount: dict[str, float] = {}  # rooms whose count is to be announced, and when
        self._recount_wanted = trio.Event()
        self._left: set[str] = set()  # rooms with history that everybody has left, or never joined

    # --- formats

    def format(self, protocol: ClientProtocol, *, framed: bool, deflate_bits: int) -> Format:
        """The one Format object for these choices: connections that share it share encoded bytes."""
        framing = self._framings.get((protocol.codec, framed, deflate_bits))
        if framing is None:
            framing = Framing(protocol.codec, framed, deflate_bits, self.compressor)
            self._framings[protocol.codec, framed, deflate_bits] = framing
        known = self._formats.get((protocol, framing))
        if known is None:
            known = Format(protocol, framing, self.options.batch_messages, self.options.batch_bytes)
            self._formats[protocol, framing] = known
        return known

    # --- connections, users, groups

    def add(self, connection: Connection) -> None:
        self.opened += 1
        self.connections[connection.id] = connection
        self._add_user(connection)

    def remove(self, connection: Connection) -> None:
        """Forget a connection: what is published from now on does not go to it."""
        self.connections.pop(connection.id, None)
        self._remove_user(connection)
        if connection.cause is not None:
            self.closes[connection.cause] += 1

    def rename(self, connection: Connection, user: str) -> None:
        """The connection belongs to this user from now on; its rooms are told that one user left and another came."""
        before = connection.user
        if user == before:
            return
        self._remove_user(connection)
        connection.user = user
        self._add_user(connection)
        for name in connection.rooms:
            room = self.rooms[name]
            if room.depart(before):
                self._announce(room, "user_left", before)
            if room.arrive(user):
                self._announce(room, "user_joined", user)

    def _add_user(self, connection: Connection) -> None:
        self.users.setdefault(connection.user, {})[connection.id] = connection

    def _remove_user(self, connection: Connection) -> None:
        of_user = self.users.get(connection.user)
        if of_user is not None and of_user.pop(connection.id, None) is not None and not of_user:
            del self.users[connection.user]

    def connection(self, connection_id: str) -> Connection:
        """Raises UnknownConnection."""
        try:
            return self.connections[connection_id]
        except KeyError:
            raise UnknownConnection(connection_id) from None

    def of_users(self, users: Iterable[str]) -> list[Connection]:
        return [connection for user in users for connection in self.users.get(user, {}).values()]

    # --- rooms

    def join(self, connection: Connection, name: str, *, held: bool = False) -> Room:
        """Make the connection a member. The members, itself included, are told when its user was not there before.

        `held`: its user's place was held for it (`hold`), so that nobody is told.
        """
        room = self.room(name)
        if connection.id not in room.members:
            connection.rooms.add(name)
            room.add(connection.outbox)
            if not held and room.arrive(connection.user):
                self._announce(room, "user_joined", connection.user)
        elif held:
            room.depart(connection.user)
        return room

    def leave(self, connection: Connection, name: str) -> bool:
        """Returns whether it was a member."""
        room = self.rooms.get(name)
        if room is None or name not in connection.rooms:
            return False
        connection.rooms.discard(name)
        room.remove(connection.id)
        self._depart(room, connection.user)
        return True

    def hold(self, connection: Connection) -> None:
        """The connection is no member any more, but its user keeps its place in all its rooms, until `join` or `vacate`."""
        for name in connection.rooms:
            self.rooms[name].remove(connection.id)

    def vacate(self, user: str, name: str) -> None:
        """Give up a place that was held."""
        self._depart(self.rooms[name], user)

    def _depart(self, room: Room, user: str) -> None:
        if room.depart(user):
            self._announce(room, "user_left", user)
        self._close_if_empty(room)

    def add_member(self, name: str, member: Member) -> None:
        """Make something that is no connection a member; nobody is told."""
        self.room(name).add(member)

    def remove_member(self, name: str, member: Member) -> None:
        room = self.rooms.get(name)
        if room is not None and room.remove(member.id):
            self._close_if_empty(room)

    def stores(self, name: str) -> bool:
        """Whether a room's messages are stored."""
        room = self.rooms.get(name)
        return room.stores if room is not None else self.options.policy(name).history is Keep.STORED

    def connections_in(self, name: str) -> int:
        """Connections in the room; those of users who may come back within `leave_grace` included."""
        room = self.rooms.get(name)
        return room.connections if room is not None else 0

    def users_in(self, name: str) -> Mapping[str, int]:
        """The users in the room, in the order in which they came, with their connections."""
        room = self.rooms.get(name)
        return room.users if room is not None else {}

    def room(self, name: str) -> Room:
        """The room of this name; it is made if there is none."""
        room = self.rooms.get(name)
        if room is None:
            if self._abandoned:
                raise trio.ClosedResourceError("the switch's block was left")
            policy, journal = self.options.policy(name), self.journal
            history = journal.history(policy)
            room = Room(name, policy, self.options, self.traffic, self.dispatcher.wake, journal.submit, history)
            self.rooms[name] = room
            self.traffic.open_room(name)
            if policy.history is not Keep.NONE:
                self._left.add(name)
        return room

    def _close_if_empty(self, room: Room) -> None:
        if room.members or room.users:
            return
        if room.policy.history is Keep.NONE:
            self._close(room)
        else:
            self._left.add(room.name)

    def _close(self, room: Room) -> None:
        del self.rooms[room.name]
        self._recount.pop(room.name, None)
        self.traffic.forget_room(room.name)
        room.close()

    async def close_idle_rooms(self) -> None:
        """The task that closes rooms with history in which nobody is, when nothing waits in them and nothing is kept."""
        while True:
            await trio.sleep(LINGER)
            for count, name in enumerate(list(self._left)):
                if not count % YIELD_EVERY:
                    await trio.lowlevel.checkpoint()
                room = self.rooms.get(name)
                if room is None:
                    continue
                if room.idle:
                    self._close(room)
                if room.idle or room.members:
                    self._left.discard(name)

    # --- rooms' tasks

    def _start_task(self, room: Room) -> None:
        self._nursery.start_soon(supervise, room.run, partial(self._crashed, room))

    def _crashed(self, room: Room) -> None:
        """Called while the exception is handled."""
        _log.exception("room %r crashed and is started again with its %d members", room.name, len(room.members))
        self.room_crashes += 1
        room.crashed()

    # --- announcements

    def _announce(self, room: Room, action: str, user: str) -> None:
        policy = room.policy
        if not policy.announce or not room.members or self.draining:
            return
        if len(room.users) <= policy.announce_limit:
            event = System(action=action, room=room.name, online_count=len(room.users), user_id=user)
            try:
                room.publish_nowait(Prepared(event, room=room.name))
            except (
                trio.WouldBlock
            ):  # the room is saturated: the count, once it can be told, stands for what is left out
                pass
            else:
                return
        self._recount.setdefault(room.name, room.counted_at + COUNT_INTERVAL)
        self._recount_wanted.set()

    async def announce_counts(self) -> None:
        """The task that tells big rooms how many they are, each at most once in `COUNT_INTERVAL`."""
        while True:
            await self._recount_wanted.wait()
            await trio.sleep_until(min(self._recount.values(), default=0.0))
            now = trio.current_time()
            for name in [name for name, due in self._recount.items() if due <= now]:
                del self._recount[name]
                room = self.rooms[name]
                room.counted_at = now
                event = System(action="count", room=name, online_count=len(room.users))
                try:
                    room.publish_nowait(Prepared(event, room=name))
                except trio.WouldBlock:
                    self._recount[name] = now + COUNT_INTERVAL
            if not self._recount:
                self._recount_wanted = trio.Event()

    # --- messages to receivers

    async def publish(self, room_name: str, message: Prepared) -> None:
        """Queue a message in a room, and wait for space there. Its `settle` is called in any case."""
        try:
            room = self.room_for(room_name)
            if room is not None:
                await room.publish(message)
                return
            became: Outcome = Receipt()
        except trio.ClosedResourceError:
            _log.debug("room %r was closed while a publisher waited for it", room_name)
            became = StoreError("the server ends") if self.stores(room_name) else Receipt()
        except trio.Cancelled:
            if message.settle is not None:
                message.settle(StoreError("it was not published: its sender went while the room was full"))
            raise
        if message.settle is not None:
            message.settle(became)

    def publish_nowait(self, room_name: str, message: Prepared) -> bool:
        """Queue a message in a room. Returns whether there is one. Raises trio.WouldBlock when it is full."""
        room = self.room_for(room_name)
        if room is None:
            return False
        room.publish_nowait(message)
        return True

    def room_for(self, name: str) -> Room | None:
        """The room to which something is published: where it has a history, it is made if there is none."""
        room = self.rooms.get(name)
        if room is None and self.options.policy(name).history is not Keep.NONE:
            return self.room(name)
        return room

    async def send(self, receivers: Sequence[Connection], message: Prepared) -> Receipt:
        """Hand a message to connections. When it is cancelled, some of them may have it."""
        message.stamp(timestamp())
        counts: Counter[Offer] = Counter()
        for count, connection in enumerate(receivers):
            if count and not count % YIELD_EVERY:
                await trio.lowlevel.checkpoint()
            if connection.id not in message.exclude:
                counts[connection.outbox.offer(message, self.options.direct_overflow)] += 1
        return Receipt(counts[Offer.WRITTEN], counts[Offer.QUEUED], counts[Offer.DROPPED])

    def send_now(self, receivers: Sequence[Connection], message: Prepared) -> Receipt:
        """As `send`, for a few."""
        message.stamp(timestamp())
        overflow = self.options.direct_overflow
        counts = Counter(
            connection.outbox.offer(message, overflow)
            for connection in receivers
            if connection.id not in message.exclude
        )
        return Receipt(counts[Offer.WRITTEN], counts[Offer.QUEUED], counts[Offer.DROPPED])

    async def flush(self) -> None:
        """Write everything that waits now, whatever its linger, and wait until it is written or its connection gone."""
        for room in list(self.rooms.values()):
            await room.wait_handed_out()
        async with trio.open_nursery() as nursery:
            for connection in list(self.connections.values()):
                if connection.outbox.busy:
                    nursery.start_soon(connection.outbox.flush)

    def abandon(self) -> None:
        """The switch ends: whoever waits for a receipt gets one."""
        self._abandoned = self.draining = True
        for room in self.rooms.values():
            room.abandon()

    def close(self) -> None:
        """After `abandon`, when its tasks have ended."""
        self.journal.abandon()
        if self.reactor is not None:
            self.reactor.close()

    # --- statistics

    def statistics(self) -> SwitchStatistics:
        traffic = self.traffic
        live = [connection.outbox.account for connection in self.connections.values()]

        def total(finished: int, name: Callable[[Any], int]) -> int:
            return finished + sum(map(name, live))

        sent = total(traffic.messages_sent, lambda account: account.messages_sent)
        return SwitchStatistics(
            active_connections=len(self.connections),
            connections_opened=self.opened,
            rooms={room.name: len(room.members) for room in self.rooms.values()},
            users=len(self.users),
            groups=len(self.groups),
            messages_queued=sent + traffic.waiting + traffic.drops.total(),
            messages_sent=sent,
            batches_sent=total(traffic.batches_sent, lambda account: account.batches_sent),
            bytes_sent=total(traffic.bytes_sent, lambda account: account.bytes_sent),
            pending_messages=traffic.waiting,
            pending_bytes=traffic.waiting_bytes,
            drops={cause.value: count for cause, count in traffic.drops.items()},
            closes={cause.name.lower(): count for cause, count in self.closes.items()},
            refused=self.refused,
            room_crashes=self.room_crashes,
            compression=self.compressor.statistics(),
        )
