"""Messages of rooms with history, on their way between nodes: delivered in the order of their offsets, and none is left out.

A message has its offset from the store. Its own node has it from there, the others have it from the broker. What the broker has
lost is read from the store: when a later message arrives, and when positions are compared, which is done for all rooms now and
then, and after each loss of the connection.
"""

import logging
from typing import Final

import trio

from .._util.wakeup import Wakeup
from ..durability.store_writer import StoreWriter
from ..errors import StoreError
from ..rooms.intake import Intake
from ..rooms.room import Room
from ..stores.port import Store
from ..wire.messages import Position, Recorded
from ..wire.prepared import Prepared
from .link import Link
from .messages import Committed, carry, room_topic, unpack

__all__ = ["CommittedMessages"]

_log = logging.getLogger(__name__)

REORDER_TIME: Final = 0.2
"""Seconds that a message which has an offset waits for one before it, which may be on its way, before the store is asked."""
POSITIONS_INTERVAL: Final = 10.0
"""Seconds between two comparisons of positions with the store; while there is no broker, this is how new messages are found."""
POSITIONS_INTERVAL_ALONE: Final = 1.0
SPACE_DELAY: Final = 0.02
"""Seconds after which a room that was full is asked for space again."""
REACH_TIMEOUT: Final = 5.0
"""Seconds that a client who comes from a node that was further waits for this one."""
RETRY_DELAY: Final = 1.0
"""Seconds after which the store is asked again that could not be read."""
PAGE: Final = 200


class CommittedMessages:
    """Those of this node, and of the others. `run` and `run_positions` are its tasks."""

    def __init__(self, link: Link, writer: StoreWriter, store: Store) -> None:
        self._link = link
        self._writer = writer
        self._store = store
        self._rooms: dict[str, Room] = {}  # by topic
        self._behind: dict[Intake, float] = {}  # rooms in which messages are missing, and when to read them
        self._found_behind = Wakeup()
        self._compare = trio.Event()
        link.on("room", Committed, self._on_committed)
        link.on_change(self._compare_soon, self._compare_soon)

    def opened(self, room: Room) -> None:
        if room.is_stored:
            self._rooms[room_topic(room.name)] = room

    def closed(self, room: Room) -> None:
        self._rooms.pop(room_topic(room.name), None)
        self._behind.pop(room, None)

    def attached(self, room: Room) -> None:
        """What is committed from now on is heard."""
        if room.history is not None:
            self._compare_soon()
        elif room.is_stored and room.membership.members:
            self.behind(room)

    def _compare_soon(self) -> None:
        self._compare.set()

    # --- messages

    def send(self, room: Intake, message: Prepared) -> None:
        """A message that was published on this node is committed: tell the other nodes."""
        epoch, offset = message.position
        assert epoch is not None
        assert offset is not None
        self._link.send(room_topic(room.name), Committed(epoch, offset, carry(message)), although_full=True)

    def _on_committed(self, node: str, topic: str, committed: Committed) -> None:
        room = self._rooms.get(topic)
        if room is None or node == self._link.node:
            return
        history = room.history
        if history is None:
            if room.membership.members:
                self.behind(room)
            return  # it is loaded from the store when somebody needs it, with this message
        if committed.epoch != history.epoch:
            if history.epoch:
                self._compare_soon()  # which is right, the store knows
                return
            room.begin_epoch(committed.epoch)
        message = unpack(committed.message, room.name)
        event = message.event
        if isinstance(event, Recorded):
            event.epoch, event.offset = committed.epoch, committed.offset
            message.idempotency_key = None  # the store knows it
            room.on_committed_elsewhere(message)

    def behind(self, room: Intake) -> None:
        """Messages of the room are missing here, or wait for space."""
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
                    if room_topic(room.name) in self._rooms:
                        self._behind[room] = trio.current_time() + RETRY_DELAY

    async def _catch_up(self, room: Intake) -> None:
        """Read one page of what is missing. A room of which more is missing has its next turn after the others."""
        history = room.history
        if history is None:
            if not room.closed:
                await self._writer.load_history(self._rooms[room_topic(room.name)])
            return
        room.resume()
        if room.waits_for_space or not room.is_behind:
            return  # `resume` has said so, if there is no space
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
            rooms = [room for room in self._rooms.values() if room.history is not None and room.membership.members]
            for start in range(0, len(rooms), PAGE):
                some = rooms[start : start + PAGE]
                try:
                    positions = await self._store.positions([room.name for room in some])
                except StoreError as error:
                    _log.debug("positions were not compared: %s", error)  # those who need the store watch its health
                    break
                for room, (epoch, last) in zip(some, positions, strict=True):
                    self._compare_room(room, epoch, last)

    async def reach(self, room: Room, position: Position) -> None:
        """Wait until this node has delivered what is up to a position, if the store has it; not for long. Raises StoreError."""
        with trio.move_on_after(REACH_TIMEOUT):
            ((epoch, last),) = await self._store.positions([room.name])
            self._compare_room(room, epoch, last)
            if epoch == position.epoch and last >= position.offset:
                while room.history is not None and room.history.last < position.offset:  # noqa: ASYNC110
                    await trio.sleep(SPACE_DELAY)  # waking somebody at each window would cost more: this is rare

    @staticmethod
    def _compare_room(room: Room, epoch: str, last: int) -> None:
        if room.closed or room.history is None or not epoch:
            return
        if epoch != room.history.epoch:
            room.begin_epoch(epoch)
        room.hear_of(last)
