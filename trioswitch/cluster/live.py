"""Messages of rooms that have no offset, on their way between nodes: one order for all, and losses are counted.

A message goes to the broker, and comes back from it to its own node as well: the order in which the broker delivers the messages
of the room's topic is the room's order. While there is no connection to the broker, a node delivers to its own members at once.
Each node numbers its messages of a room, so that the others notice when some are missing, and tell their members how many
(`gap`).
"""

from collections import deque
from functools import partial
from typing import Final

import attrs
import trio

from .._util.clock import timestamp
from .._util.expiry import DueQueue
from ..durability.idempotency import IdempotencyKeys
from ..errors import BrokerError
from ..metrics import Drop
from ..rooms.intake import Intake
from ..rooms.room import Room
from ..wire.messages import Gap
from ..wire.prepared import Prepared, Receipt
from .link import Link, OnSent
from .messages import Ask, Live, Streams, carry, room_topic, unpack
from .roster import Roster

__all__ = ["LiveMessages"]

TRANSIT_TIME: Final = 1.0
"""Seconds that a message is under way between nodes, at most, while the broker works."""
ECHO_TIME: Final = 2.0
"""Seconds in which a message that the broker has taken comes back, or is delivered without: this time, or up to twice as long."""
MAX_STREAMS: Final = 100_000
"""Streams at most, 0.3 KB each: clients that may publish to any room can invent names."""
STREAM_TIME: Final = 600.0
"""Seconds after its last message that the stream of a room is remembered in which this node has no members."""


@attrs.define(eq=False)
class _Stream:
    """This node's messages of one room that have no offset."""

    id: int
    began_at: float
    number: int = 0
    waiting: deque[tuple[int, Intake, Prepared]] = attrs.field(factory=deque)
    """Those that have not come back from the broker, by their numbers, in order."""
    overdue: int = 0
    """Those up to this number were here when `run` last looked."""


@attrs.define(eq=False)
class _Heard:
    """What was heard of another node's messages in a room: the stream and the number of the newest one."""

    stream: int
    number: int


@attrs.define(eq=False)
class _Place:
    """A room that is open on this node."""

    room: Room
    attached_at: float | None = None
    """Since when this node hears the others, with or without interruptions."""
    heard: dict[str, _Heard] = attrs.field(factory=dict)
    """By node."""
    untold: int = 0
    """Messages that are missing, and of which the members could not be told yet."""


class LiveMessages:
    """Those of this node, and of the others. `run` is its task."""

    def __init__(self, link: Link, roster: Roster, keys: IdempotencyKeys) -> None:
        self._link = link
        self._keys = keys
        self._places: dict[str, _Place] = {}  # by topic
        self._owing: dict[str, _Place] = {}  # rooms whose members could not be told of a gap yet, by name
        self._streams: DueQueue[str, _Stream] = DueQueue()  # by room
        self._stream_ids = 0
        self._waiting: dict[int, _Stream] = {}  # streams of which messages have not come back, by id
        link.on("room", Live, self._on_live)
        link.on("room", Streams, self._on_streams)
        link.on("room", Ask, self._on_ask)
        link.on_change(lambda: None, self._disconnected)
        roster.on_left(self._node_left)

    # --- rooms come and go

    def opened(self, room: Room) -> None:
        self._places[room_topic(room.name)] = _Place(room)

    def closed(self, room: Room) -> None:
        del self._places[room_topic(room.name)]
        self._owing.pop(room.name, None)

    def attached(self, room: Room) -> None:
        """What is published from now on is heard."""
        place = self._places[room_topic(room.name)]
        if place.attached_at is None:
            place.attached_at = trio.current_time()
        self._tell_stream(room.name)

    # --- out

    def submit(self, room: Intake, message: Prepared) -> None:
        topic, stream = room_topic(room.name), self._stream(room.name)
        message.stamp(timestamp())
        stream.number += 1
        if self._link.connected and self._link.attached(topic):
            stream.waiting.append((stream.number, room, message))
            self._waiting[stream.id] = stream
            self._send(topic, stream, message, partial(self._sent, stream, stream.number))
        else:
            self._send(topic, stream, message, None)
            room.on_relayed(message)

    def publish_elsewhere(self, name: str, message: Prepared) -> None:
        """Publish to a room of which this node has nothing. The outcome is a BrokerError if the broker may not have it."""
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
            if len(self._streams) >= MAX_STREAMS:
                self._forget_oldest()
            self._stream_ids += 1
            stream = _Stream(self._stream_ids, now)
        self._streams.add(room, stream, now + STREAM_TIME)
        return stream

    def _forget_oldest(self) -> None:
        """Forget the stream that is idle for longest. The others take what follows for a stream that begins."""
        oldest = self._streams.oldest()
        if oldest is not None:
            stream = self._streams.remove(oldest)
            if stream is not None:
                self._deliver_up_to(stream, stream.number)

    def _send(self, topic: str, stream: _Stream, message: Prepared, on_sent: OnSent | None) -> None:
        age = trio.current_time() - stream.began_at
        self._link.send(topic, Live(stream.id, stream.number, age, carry(message)), on_sent)

    def _sent(self, stream: _Stream, number: int, error: BrokerError | None, _receivers: int | None) -> None:
        if error is not None:
            self._deliver_up_to(stream, number)

    def _deliver_up_to(self, stream: _Stream, number: int) -> None:
        """Deliver our own messages up to this one: the others of them do not come back."""
        waiting = stream.waiting
        while waiting and waiting[0][0] <= number:
            _number, room, message = waiting.popleft()
            room.on_relayed(message)
        if not waiting:
            self._waiting.pop(stream.id, None)

    async def run(self) -> None:
        """The task that delivers messages of our own which do not come back, and tells gaps that found no space before."""
        while True:
            await trio.sleep(ECHO_TIME)
            for stream in list(self._waiting.values()):
                self._deliver_up_to(stream, stream.overdue)
                stream.overdue = stream.number
            for place in list(self._owing.values()):
                self._tell_missing(place)

    # --- in

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
        self._hear(place, node, live.stream, live.number - 1, live.age)
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
            self._hear(place, node, streams.stream, streams.number, streams.age)
            place.heard[node] = _Heard(streams.stream, streams.number)
            self._tell_missing(place)

    def _on_ask(self, node: str, topic: str, _ask: Ask) -> None:
        """A node begins to hear what is published to a room, or does so again: what we publish from now on must arrive there."""
        if node != self._link.node:
            self._tell_stream(topic.partition(":")[2])

    def _tell_stream(self, room: str) -> None:
        """Tell how much we have published to a room."""
        stream = self._streams.get(room)
        age = 0.0 if stream is None else trio.current_time() - stream.began_at
        streams = Streams(0, 0, age) if stream is None else Streams(stream.id, stream.number, age)
        self._link.send(room_topic(room), streams)

    @staticmethod
    def _hear(place: _Place, node: str, stream: int, number: int, age: float) -> None:
        """A node's messages up to this one must have arrived, unless they are older than our hearing them."""
        heard = place.heard.get(node)
        if heard is not None:
            place.untold += max(number - (heard.number if heard.stream == stream else 0), 0)
        elif place.attached_at is not None and trio.current_time() - age > place.attached_at + TRANSIT_TIME:
            place.untold += number

    def _tell_missing(self, place: _Place) -> None:
        if not place.untold:
            return
        room = place.room
        if not room.membership.members or room.tell_gap(Gap(room=room.name, dropped=place.untold)):
            place.untold = 0
            self._owing.pop(room.name, None)
        else:
            self._owing[room.name] = place

    def _node_left(self, node: str) -> None:
        for place in self._places.values():
            place.heard.pop(node, None)

    def _disconnected(self) -> None:
        for stream in self._streams.values():
            self._deliver_up_to(stream, stream.number)


def _report(message: Prepared, error: BrokerError | None, _receivers: int | None) -> None:
    message.report(Receipt() if error is None else error)
