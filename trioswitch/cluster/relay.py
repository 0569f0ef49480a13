"""The relay: what is published to rooms is carried between nodes, in one order for all.

A message without an offset goes to the broker, and comes back from it to its own node as well: the order in which the broker
hands out what is published to the room's topic is the room's order. While there is no connection to the broker, a node delivers
to its own members at once. Each node numbers its messages of a room, so that the others notice when some are missing, and tell
their members how many (`gap`).

A message of a room with history has an offset from the store. Its own node has it from the store, the others from the broker;
each delivers in the order of offsets. What the broker has lost is read from the store: when a later message arrives, and when
positions are compared, which is done for all rooms now and then, and after each loss of the connection.
"""

import logging
from functools import partial
from typing import Final

import attrs
import trio

from .._util.clock import timestamp
from .._util.expiry import DueQueue
from .._util.wakeup import Wakeup
from ..durability.idempotency import IdempotencyKeys
from ..durability.store_writer import StoreWriter
from ..errors import BrokerError, StoreError, UnencodableData
from ..metrics import Drop
from ..rooms.intake import Intake
from ..rooms.room import Room
from ..stores.port import Store
from ..wire.messages import Gap, Recorded
from ..wire.prepared import Prepared, Receipt
from .link import Link, OnSent
from .messages import Committed, Live, Streams, carry, room_topic, unpack
from .presence import ClusterPresence
from .roster import Roster

__all__ = ["ClusterRelay"]

_log = logging.getLogger(__name__)

ATTACH_TIMEOUT: Final = 2.0
"""Seconds that a client who joins a room waits until this node hears what other nodes publish there. After that, it joins."""
REORDER_TIME: Final = 0.2
"""Seconds that a message which has an offset waits for one before it, which may be on its way, before the store is asked."""
POSITIONS_INTERVAL: Final = 10.0
"""Seconds between two comparisons of positions with the store; while there is no broker, this is how new messages are found."""
POSITIONS_INTERVAL_ALONE: Final = 1.0
SPACE_DELAY: Final = 0.02
"""Seconds after which a room that was full is asked for space again."""
RETRY_DELAY: Final = 1.0
"""Seconds after which the store is asked again that could not be read."""
PAGE: Final = 200
STREAM_TIME: Final = 600.0
"""Seconds after its last message that the stream of a room is remembered in which this node has no members."""


@attrs.define(eq=False)
class _Stream:
    """This node's messages of one room that have no offset."""

    id: int
    number: int = 0
    waiting: dict[int, tuple[Intake, Prepared]] = attrs.field(factory=dict)
    """Those that have not come back from the broker."""


@attrs.define(eq=False)
class _Heard:
    """What was heard of another node's messages in a room: the stream and the number of the newest one."""

    stream: int
    number: int


@attrs.define(eq=False)
class _Place:
    """A room that is open on this node."""

    room: Room
    heard: dict[str, _Heard] = attrs.field(factory=dict)
    """By node."""
    untold: int = 0
    """Messages that are missing, and of which the members could not be told yet."""


class ClusterRelay:
    """Implements `RoomRelay`. `run` and `run_positions` are its tasks."""

    def __init__(
        self,
        link: Link,
        roster: Roster,
        presence: ClusterPresence,
        writer: StoreWriter,
        store: Store,
        keys: IdempotencyKeys,
    ) -> None:
        self._link = link
        self._presence = presence
        self._writer = writer
        self._store = store
        self._keys = keys
        self._places: dict[str, _Place] = {}  # by topic
        self._streams: DueQueue[str, _Stream] = DueQueue()  # by room
        self._stream_ids = 0
        self._behind: dict[Intake, float] = {}  # rooms in which messages are missing, and when to read them
        self._found_behind = Wakeup()
        self._compare = trio.Event()
        link.on("room", Live, self._on_live)
        link.on("room", Streams, self._on_streams)
        link.on("room", Committed, self._on_committed)
        link.on_change(self._connected, self._disconnected)
        roster.on_left(self._node_left)

    # --- rooms come and go

    def opened(self, room: Room) -> None:
        topic = room_topic(room.name)
        self._places[topic] = _Place(room)
        self._presence.opened(room, topic, on_attached=partial(self._attached, room))

    def closed(self, room: Room) -> None:
        topic = room_topic(room.name)
        del self._places[topic]
        self._behind.pop(room, None)
        self._presence.closed(room, topic)

    def is_ready(self, room: Room) -> bool:
        """Whether this node hears everything that is published to a room, and knows who is there."""
        topic = room_topic(room.name)
        return not self._link.connected or (self._link.attached(topic) and self._presence.is_known(topic))

    async def wait_ready(self, room: Room) -> None:
        """Wait until `is_ready`, or for so long that a client should not wait any longer. Safe to cancel."""
        topic = room_topic(room.name)
        if self._link.connected and await self._link.wait_attached(topic, ATTACH_TIMEOUT):
            await self._presence.wait_known(topic)

    def _attached(self, room: Room) -> None:
        """What is published from now on is heard."""
        stream = self._streams.get(room.name)
        if stream is not None:
            self._link.send(room_topic(room.name), Streams(stream.id, stream.number))
        if room.history is not None:
            self._compare.set()

    # --- messages that have no offset

    def submit(self, room: Intake, message: Prepared) -> None:
        topic, stream = room_topic(room.name), self._stream(room.name)
        message.stamp(timestamp())
        stream.number += 1
        if self._link.connected and self._link.attached(topic):
            stream.waiting[stream.number] = (room, message)
            self._send(topic, stream, message, partial(self._sent, stream, stream.number))
        else:
            self._send(topic, stream, message, None)
            room.on_relayed(message)

    def publish_elsewhere(self, name: str, message: Prepared) -> None:
        """Publish to a room of which this node has nothing."""
        message.stamp(timestamp())
        stream = self._stream(name)
        stream.number += 1
        self._send(room_topic(name), stream, message, partial(_report, message))

    def _stream(self, room: str) -> _Stream:
        now = trio.current_time()
        stream = self._streams.get(room)
        if stream is None:
            for name, old in list(self._streams.pop_due(now)):
                if old.waiting or room_topic(name) in self._places:
                    self._streams.add(name, old, now + STREAM_TIME)
            self._stream_ids += 1
            stream = _Stream(self._stream_ids)
        self._streams.add(room, stream, now + STREAM_TIME)
        return stream

    def _send(self, topic: str, stream: _Stream, message: Prepared, on_sent: OnSent | None) -> None:
        try:
            carried = carry(message)
        except UnencodableData as error:
            _log.warning("a message cannot be carried to other nodes: %s", error)
            if on_sent is not None:
                on_sent(BrokerError(str(error)), None)
            return
        self._link.send(topic, Live(stream.id, stream.number, carried), on_sent)

    def _sent(self, stream: _Stream, number: int, error: BrokerError | None, _receivers: int | None) -> None:
        if error is not None:
            self._deliver_up_to(stream, number)

    def _deliver_up_to(self, stream: _Stream, number: int) -> None:
        """Deliver our own messages up to this one: the others of them do not come back."""
        for waiting in [waiting for waiting in stream.waiting if waiting <= number]:
            room, message = stream.waiting.pop(waiting)
            room.on_relayed(message)

    def _on_live(self, node: str, topic: str, live: Live) -> None:
        place = self._places.get(topic)
        if node == self._link.node:
            name = topic.partition(":")[2]
            stream = self._streams.get(name)
            if stream is not None and stream.id == live.stream:
                self._deliver_up_to(stream, live.number)
            return
        if place is None:
            return
        self._hear(place, node, live.stream, live.number - 1)
        place.heard[node] = _Heard(live.stream, live.number)
        self._tell_missing(place)
        room = place.room
        if not room.membership.members:
            return
        message = unpack(live.message, room.name)
        if message.idempotency_key is not None and not self._keys.claim("room", room.name, message):
            return
        try:
            room.accept_nowait(message)
        except trio.WouldBlock:
            message.report(Receipt(dropped=len(room.membership.members)))
            for member in list(room.membership.members.values()):
                member.report_loss(message, Drop.BEHIND)

    def _on_streams(self, node: str, topic: str, streams: Streams) -> None:
        place = self._places.get(topic)
        if place is not None and node != self._link.node:
            self._hear(place, node, streams.stream, streams.number)
            place.heard[node] = _Heard(streams.stream, streams.number)
            self._tell_missing(place)

    def _hear(self, place: _Place, node: str, stream: int, number: int) -> None:
        """A node's messages up to this one must have arrived."""
        heard = place.heard.get(node)
        if heard is not None:
            place.untold += max(number - (heard.number if heard.stream == stream else 0), 0)

    def _tell_missing(self, place: _Place) -> None:
        if place.untold:
            members = len(place.room.membership.members)
            if not members or place.room.tell_gap(Gap(room=place.room.name, dropped=place.untold)):
                place.untold = 0

    def _node_left(self, node: str) -> None:
        for place in self._places.values():
            place.heard.pop(node, None)

    # --- the connection to the broker

    def _connected(self) -> None:
        self._compare.set()

    def _disconnected(self) -> None:
        for stream in self._streams.values():
            self._deliver_up_to(stream, stream.number)
        self._compare.set()

    # --- messages that have an offset

    def committed(self, room: Intake, message: Prepared) -> None:
        epoch, offset = message.position
        assert epoch is not None
        assert offset is not None
        self._link.send(room_topic(room.name), Committed(epoch, offset, carry(message)))

    def _on_committed(self, node: str, topic: str, committed: Committed) -> None:
        place = self._places.get(topic)
        if place is None or node == self._link.node:
            return
        room, history = place.room, place.room.history
        if history is None:
            return  # it is loaded from the store when somebody needs it, with this message
        if committed.epoch != history.epoch:
            if history.epoch:
                self._compare.set()  # which is right, the store knows
                return
            room.begin_epoch(committed.epoch)
        message = unpack(committed.message, room.name)
        event = message.event
        if isinstance(event, Recorded):
            event.epoch, event.offset = committed.epoch, committed.offset
            message.idempotency_key = None  # the store knows it
            room.on_committed_elsewhere(message)

    def behind(self, room: Intake) -> None:
        if room not in self._behind:
            self._behind[room] = trio.current_time() + (SPACE_DELAY if room.waits_for_space else REORDER_TIME)
            self._found_behind.notify()

    async def run(self) -> None:
        """The task that reads what is missing from the store."""
        while True:
            while not self._behind:
                await self._found_behind.wait()
            with trio.move_on_at(min(self._behind.values())):
                await self._found_behind.wait()
            now = trio.current_time()
            for room in [room for room, due in self._behind.items() if due <= now]:
                self._behind.pop(room, None)
                try:
                    await self._catch_up(room)
                except StoreError:
                    if room_topic(room.name) in self._places:
                        self._behind[room] = trio.current_time() + RETRY_DELAY

    async def _catch_up(self, room: Intake) -> None:
        """Read one page of what is missing. A room of which more is missing has its next turn after the others."""
        history = room.history
        if history is None or room.closed:
            return
        room.resume()
        if room.waits_for_space or not room.is_behind:
            return
        after = room.in_order
        records, messages = await self._writer.read(room.name, after, PAGE)
        if room.in_order != after or room.history is not history:
            pass  # it has gone on meanwhile
        elif records.epoch != history.epoch:
            if records.epoch:
                room.begin_epoch(records.epoch)
                room.hear_of(records.last)
        else:
            room.pass_over(records.first - 1, lost=True)
            for message in messages:
                _epoch, offset = message.position
                assert offset is not None
                room.pass_over(offset - 1, lost=False)  # it has expired
                room.on_committed_elsewhere(message)
            if not messages:
                room.pass_over(records.last, lost=False)
        if room.is_behind:
            self.behind(room)

    async def run_positions(self) -> None:
        """The task that compares positions with the store."""
        while True:
            with trio.move_on_after(POSITIONS_INTERVAL if self._link.connected else POSITIONS_INTERVAL_ALONE):
                await self._compare.wait()
            self._compare = trio.Event()
            rooms = [
                place.room
                for place in self._places.values()
                if place.room.history is not None and place.room.membership.members
            ]
            for start in range(0, len(rooms), PAGE):
                some = rooms[start : start + PAGE]
                try:
                    positions = await self._store.positions([room.name for room in some])
                except StoreError as error:
                    _log.debug(
                        "positions were not compared: %s", error
                    )  # the store's health is watched by those who need it
                    break
                for room, (epoch, last) in zip(some, positions, strict=True):
                    self._compare_room(room, epoch, last)

    @staticmethod
    def _compare_room(room: Room, epoch: str, last: int) -> None:
        if room.closed or room.history is None or not epoch:
            return
        if epoch != room.history.epoch:
            room.begin_epoch(epoch)
        room.hear_of(last)


def _report(message: Prepared, _error: BrokerError | None, _receivers: int | None) -> None:
    message.report(Receipt())
