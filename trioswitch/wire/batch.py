"""Which queued messages go into the next write.

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

from .prepared import URGENT, Prepared

__all__ = ["PROMOTE_AFTER", "BatchQueue", "Entry", "Taken"]

PROMOTE_AFTER = 8


@attrs.define(eq=False)
class Entry:
    """A message that waits: its bytes in this connection's format count against the bounds."""

    message: Prepared
    size: int
    queued_at: float
    conflate: bool = False
    """Whether it takes the place of a waiting message with the same room and key."""


@attrs.frozen
class Taken:
    """The next batch, and what was found expired on the way to it."""

    batch: list[Entry]
    expired: list[Entry]


class BatchQueue:
    """The messages that wait for one connection, in the order in which they will be written."""

    def __init__(self, max_messages: int, max_bytes: int, linger: float) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._linger = linger
        self._lanes: dict[int, deque[Entry]] = {}
        self._passed: dict[int, int] = {}  # how often in a row a lane was passed over
        self._keyed: dict[tuple[str | None, str | None], Entry] = {}  # what conflates, by room and key
        self.count = 0
        self.bytes = 0

    def add(self, entry: Entry) -> Entry | None:
        """Add a message. Returns the one that it replaces, where it conflates.

        It takes the other's place in the queue, so that a key which changes all the time is not pushed back for ever;
        with another priority it goes to the end of that one's lane.
        """
        replaced = None
        if entry.conflate:
            replaced = self._replace(entry)
            if replaced is not None and replaced.message.priority == entry.message.priority:
                return replaced
        lane = self._lanes.get(entry.message.priority)
        if lane is None:
            lane = self._lanes[entry.message.priority] = deque()
            self._lanes = dict(sorted(self._lanes.items(), reverse=True))
        lane.append(entry)
        self.count += 1
        self.bytes += entry.size
        return replaced

    def replaced_by(self, entry: Entry) -> Entry | None:
        """The waiting message that adding this one would replace."""
        return self._keyed.get((entry.message.room, entry.message.key)) if entry.conflate else None

    def _replace(self, entry: Entry) -> Entry | None:
        name = (entry.message.room, entry.message.key)
        old = self._keyed.get(name)
        if old is not None and old.message.priority == entry.message.priority:
            replaced = Entry(old.message, old.size, old.queued_at)
            self.bytes += entry.size - old.size
            old.message, old.size = entry.message, entry.size
            return replaced
        if old is not None:
            self._lanes[old.message.priority].remove(old)
            self._removed(old)
        self._keyed[name] = entry
        return old

    def evict(self, room: str | None, priority: int) -> Entry | None:
        """Remove the oldest message of this room in the lowest priority that has one, if it is no higher than `priority`."""
        for level in reversed(self._lanes):
            if level > priority:
                return None
            lane = self._lanes[level]
            for index, entry in enumerate(lane):
                if entry.message.room == room:
                    del lane[index]
                    self._removed(entry)
                    return entry
        return None

    def evict_all(self, room: str | None) -> list[Entry]:
        """Remove every message of this room."""
        gone: list[Entry] = []
        for priority, lane in self._lanes.items():
            gone += [entry for entry in lane if entry.message.room == room]
            self._lanes[priority] = deque(entry for entry in lane if entry.message.room != room)
        for entry in gone:
            self._removed(entry)
        return gone

    def clear(self) -> list[Entry]:
        """Remove everything."""
        gone = [entry for lane in self._lanes.values() for entry in lane]
        self._lanes.clear()
        self._passed.clear()
        self._keyed.clear()
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

    def _fill(self, lane: deque[Entry], now: float, taken: Taken, space: int, limit: int) -> int:
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

    def _removed(self, entry: Entry) -> None:
        self.count -= 1
        self.bytes -= entry.size
        if entry.conflate:
            name = (entry.message.room, entry.message.key)
            if self._keyed.get(name) is entry:
                del self._keyed[name]
