"""Chooses the queued messages for the next write.

The rules, for the messages of one connection:

- a batch holds at most `max_messages` and `max_bytes` (a single larger message goes alone);
- it is due when it is full, when a message of priority above 5 waits, when the linger since the oldest message was
  queued has run out, or when the time comes by which a message's `max_delay` wants it written, whichever is first;
- it takes the highest priority first, and first-in-first-out within a priority;
- a priority that was passed over by `PROMOTE_AFTER` full batches in a row gives the next one its oldest message first,
  and of several such priorities the one that was passed over most;
- a message whose `expires_at` has passed is not sent.

Times are seconds on one monotonic clock, which the caller reads.
"""

from collections import deque
from math import inf

import attrs

from .messages import Published
from .prepared import URGENT
from .windows import QueuedMessage, QueuedWindow

__all__ = ["PROMOTE_AFTER", "BatchQueue", "Taken"]

PROMOTE_AFTER = 8


@attrs.frozen
class Taken:
    """The next batch, and what was found expired on the way to it."""

    batch: list[QueuedMessage]
    expired: list[QueuedMessage]


class BatchQueue:
    """The messages that wait for one connection, in the order in which they will be written."""

    def __init__(self, max_messages: int, max_bytes: int, linger: float) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._linger = linger
        self._lanes: dict[int, deque[QueuedMessage]] = {}
        self._passed: dict[int, int] = {}  # how often in a row a lane was passed over
        self._keyed: dict[tuple[str | None, str | None], QueuedMessage] = {}  # what conflates, by room and key
        self._rooms: dict[str | None, int] = {}  # messages by room: where there is none, none is looked for
        self.count = 0
        self.bytes = 0

    def add(self, entry: QueuedMessage) -> QueuedMessage | None:
        """Add a message. Returns the one that it replaces, where it conflates.

        It takes the other's place in the queue, so that a key which changes all the time is not pushed back forever;
        with another priority, or in a room with history, where the order of offsets holds, it goes to the end of its lane.
        """
        message, replaced = entry.message, None
        if entry.conflate:
            # It is changed when it is replaced, and others may have it in their queues.
            entry = QueuedMessage(message, entry.size, entry.queued_at, conflate=True)
            replaced = self._replace(entry)
            if replaced is not None and replaced.message.priority == message.priority and not message.recorded:
                return replaced
        self._lane(message.priority).append(entry)
        self._added(message.room, 1, entry.size)
        return replaced

    def extend(self, queued: QueuedWindow) -> list[QueuedMessage]:
        """Add messages of one room. Returns those that they replace."""
        if queued.conflate:
            return [replaced for entry in queued.entries if (replaced := self.add(entry)) is not None]
        for priority, entries in queued.lanes.items():
            self._lane(priority).extend(entries)
        self._added(queued.room, len(queued.entries), queued.size)
        return []

    def _lane(self, priority: int) -> deque[QueuedMessage]:
        lane = self._lanes.get(priority)
        if lane is None:
            lane = self._lanes[priority] = deque()
            self._lanes = dict(sorted(self._lanes.items(), reverse=True))
        return lane

    def _added(self, room: str | None, count: int, size: int) -> None:
        self.count += count
        self.bytes += size
        self._rooms[room] = self._rooms.get(room, 0) + count

    def replaced_by(self, entry: QueuedMessage) -> QueuedMessage | None:
        """The waiting message that adding this one would replace."""
        return self._keyed.get((entry.message.room, entry.message.key)) if entry.conflate else None

    def _replace(self, entry: QueuedMessage) -> QueuedMessage | None:
        name = (entry.message.room, entry.message.key)
        old = self._keyed.get(name)
        if old is not None and old.message.priority == entry.message.priority and not entry.message.recorded:
            replaced = QueuedMessage(old.message, old.size, old.queued_at)
            self.bytes += entry.size - old.size
            old.message, old.size = entry.message, entry.size
            return replaced
        if old is not None:
            self._lanes[old.message.priority].remove(old)
            self._removed(old)
        self._keyed[name] = entry
        return old

    def evict(self, room: str | None, priority: int, count: int = 1, size: int = 0) -> list[QueuedMessage]:
        """Remove messages of this room until `count` and `size` bytes are gone, or there are no more of `priority` or below.

        The lowest priority goes first, and of that the oldest.
        """
        gone: list[QueuedMessage] = []
        for level in reversed(self._lanes):
            lane = self._lanes[level]
            while level <= priority and (count > 0 or size > 0) and (entry := self._pop_first(lane, room)) is not None:
                gone.append(entry)
                count -= 1
                size -= entry.size
        return gone

    def _pop_first(self, lane: deque[QueuedMessage], room: str | None) -> QueuedMessage | None:
        if lane and self._rooms.get(room):
            for index, entry in enumerate(lane):
                if entry.message.room == room:
                    del lane[index]
                    self._removed(entry)
                    return entry
        return None

    def evict_all(self, room: str | None) -> list[QueuedMessage]:
        """Remove every message of this room."""
        gone: list[QueuedMessage] = []
        if not self._rooms.get(room):
            return gone
        for priority, lane in self._lanes.items():
            gone += [entry for entry in lane if entry.message.room == room]
            self._lanes[priority] = deque(entry for entry in lane if entry.message.room != room)
        for entry in gone:
            self._removed(entry)
        return gone

    def shed(self, priority: int, size: int) -> list[QueuedMessage]:
        """Remove messages of a priority, the oldest first, until `size` bytes are gone. Answers to the client's commands stay."""
        lane = self._lanes.get(priority, ())
        gone: list[QueuedMessage] = []
        kept: deque[QueuedMessage] = deque()
        for entry in lane:
            if size > 0 and (entry.message.room is not None or isinstance(entry.message.event, Published)):
                gone.append(entry)
                size -= entry.size
            else:
                kept.append(entry)
        if gone:
            self._lanes[priority] = kept
            for entry in gone:
                self._removed(entry)
        return gone

    def clear(self) -> list[QueuedMessage]:
        """Remove everything."""
        gone = [entry for lane in self._lanes.values() for entry in lane]
        self._lanes.clear()
        self._passed.clear()
        self._keyed.clear()
        self._rooms.clear()
        self.count = self.bytes = 0
        return gone

    def oldest(self) -> float:
        """When the oldest waiting message was queued; inf when nothing waits."""
        return min((lane[0].queued_at for lane in self._lanes.values() if lane), default=inf)

    def due(self) -> float:
        """When the next batch is to be written; -inf: at once, inf: nothing waits."""
        if not self.count:
            return inf
        if self._linger <= 0 or self.count >= self._max_messages or self.bytes >= self._max_bytes:
            return -inf
        if any(lane and priority > URGENT for priority, lane in self._lanes.items()):
            return -inf
        wanted = min(
            (e.message.deliver_by for lane in self._lanes.values() for e in lane if e.message.deliver_by is not None),
            default=inf,
        )
        return min(self.oldest() + self._linger, wanted)

    def take(self, now: float) -> Taken:
        """Remove and return the next batch, and what has expired by `now`."""
        taken = Taken([], [])
        space = self._max_bytes
        # Who was passed over most comes first: otherwise the highest of the promoted could shut out the others in turn.
        promoted = [priority for priority, times in self._passed.items() if times >= PROMOTE_AFTER]
        for priority in sorted(promoted, key=self._passed.__getitem__, reverse=True):
            limit = min(len(taken.batch) + 1, self._max_messages)
            space = self._fill(self._lanes[priority], now, taken, space, limit)
        for lane in self._lanes.values():
            space = self._fill(lane, now, taken, space, self._max_messages)
        served = {entry.message.priority for entry in taken.batch}
        self._passed = {
            priority: self._passed.get(priority, 0) + 1
            for priority, lane in self._lanes.items()
            if lane and priority not in served
        }
        return taken

    def _fill(self, lane: deque[QueuedMessage], now: float, taken: Taken, space: int, limit: int) -> int:
        """Move what fits from one lane into the batch, up to `limit` messages in all; returns the space that is left."""
        while lane and len(taken.batch) < limit:
            entry = lane[0]
            expires_at = entry.message.expires_at
            if expires_at is not None and expires_at <= now:
                taken.expired.append(entry)
            elif taken.batch and entry.size > space:
                return 0  # full: nothing of a lower priority overtakes what did not fit
            else:
                taken.batch.append(entry)
                space -= entry.size
            lane.popleft()
            self._removed(entry)
        return space

    def _removed(self, entry: QueuedMessage) -> None:
        room = entry.message.room
        self.count -= 1
        self.bytes -= entry.size
        if self._rooms[room] > 1:
            self._rooms[room] -= 1
        else:
            del self._rooms[room]
        if entry.conflate:
            name = (room, entry.message.key)
            if self._keyed.get(name) is entry:
                del self._keyed[name]
