"""Recovery of one room: events of the server go in, items for the reader and fetches come out. No I/O, no clock.

Rules for a room with history:

- `position` is the offset of the last message that entered the buffer. No message at or below it enters again (duplicates), and
  no message above it enters while a message between the two may be missing.
- A room is *behind* when messages above `position` must be fetched: the server reported a gap, or the buffer was full. Then
  arriving messages are discarded, and the client fetches the history after `position`, page by page, as the reader frees space.
  The room has caught up with the last page, unless a message that is not on it was discarded in the meantime.
- Only the answers to a join and to `history` change the epoch, because they arrive in order. A message of another epoch may be
  older or newer than the current epoch: the room is behind, and the answer to the fetch decides.
- A fetch always begins at `position`, never at the beginning of the gap: messages before the gap may still be in flight, and
  no event says when the last of them has arrived.
- Messages that cannot be fetched become a `Gap`, in their place.

So a slow reader costs a bounded buffer but no message, and never stops the client from reading its socket. In a room without
history the oldest buffered message is dropped, and a `Gap` counts it.
"""

from collections import deque
from collections.abc import Callable
from operator import itemgetter

import attrs

from ..wire.commands import MAX_PAGE
from ..wire.messages import Position
from .messages import Announcement, Event, Gap, HistoryPage, Message

__all__ = ["Buffer", "Fetch", "Item", "RoomSync"]

Item = Message | Gap | Announcement


@attrs.frozen
class Fetch:
    """A request for the part of the room's history after a position: at most `limit` messages."""

    since: Position
    limit: int


class Buffer:
    """Items for a reader. It is full from `messages` items or `size` bytes on. Adjacent gaps are merged."""

    def __init__(self, messages: int, size: int) -> None:
        self._messages, self._size = messages, size
        self._items: deque[tuple[Item, int]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        return len(self._items) >= self._messages or self._bytes >= self._size

    @property
    def free(self) -> int:
        """How many messages to fetch: 0 until half of the buffer is empty, so that fetches stay few."""
        worthwhile = 2 * len(self._items) <= self._messages and 2 * self._bytes <= self._size
        return self._messages - len(self._items) if worthwhile else 0

    def put(self, item: Item, size: int = 0) -> None:
        """Append an item of `size` bytes. A gap is accepted even if the buffer is full: gaps are merged, so they stay few."""
        if isinstance(item, Gap) and self._items and isinstance(last := self._items[-1][0], Gap):
            self._items[-1] = (last + item, 0)
            return
        self._items.append((item, size))
        self._bytes += size

    def take(self) -> Item | None:
        """Remove the oldest item and return it; None if the buffer is empty."""
        if not self._items:
            return None
        item, size = self._items.popleft()
        self._bytes -= size
        return item

    def change(self, change: Callable[[Item], Item | None]) -> None:
        """Replace each item by what `change` returns for it; remove it if that is None."""
        changed = [(change(item), size) for item, size in self._items]
        self._items = deque((item, size) for item, size in changed if item is not None)
        self._bytes = sum(size for _, size in self._items)


class RoomSync:
    """The state of one room.

    `replay` is how many of the newest messages the first join asks for; the server sends them like new messages.
    """

    def __init__(self, room: str, buffer: Buffer, *, replay: int = 0, announcements: bool = False) -> None:
        self._room = room
        self._buffer = buffer
        self._replay = replay
        self._announcements = announcements
        self._joined = False
        self._epoch: str | None = None  # None: no history, or not known yet; "": the history is empty
        self._position = 0
        self._base = 0  # replaces `_position` until the first message of the replay has arrived
        self._asked = 0  # the offset in the last join
        self._behind = False
        self._discarded: dict[str, int] = {}  # epoch -> the newest offset discarded since the last fetch
        self._fetching = False
        self._front: Gap | None = None  # counts messages that were dropped from the front of the buffer

    @property
    def position(self) -> Position | None:
        """The position of the last message that entered the buffer; None if the room has no history."""
        return None if self._epoch is None else Position(self._epoch, self._position or self._base)

    @property
    def buffered(self) -> int:
        """Items in the buffer."""
        return len(self._buffer)

    # --- calls of the reader

    def take(self) -> Item | None:
        """The next item, or None."""
        if self._front is not None:
            gap, self._front = self._front, None
            return gap
        return self._buffer.take()

    def fetch(self) -> Fetch | None:
        """The fetch to make now, or None. Until its answer is given to `page`, `fetch_failed` or `abandon`, this is None."""
        if not self._behind or self._fetching or not (free := self._buffer.free) or (since := self.position) is None:
            return None
        self._fetching = True
        self._discarded.clear()  # the answer includes them
        return Fetch(since, min(free, MAX_PAGE))

    def fetch_failed(self) -> None:
        """The fetch gets no answer, because the connection was lost or the server could not read: it can be repeated."""
        self._fetching = False

    def abandon(self) -> None:
        """The server refuses the fetch: the missing messages are lost."""
        self._fetching = self._behind = False
        self._add_gap(None)

    # --- events of the server

    def since(self) -> Position | None:
        """The position for a repeated join; None if there is none, or if the room is behind and fetches anyway."""
        since = None if self._behind else self.position
        self._asked = 0 if since is None else since.offset
        return since

    def joined(self, ack: Event) -> None:
        """The answer to a join, or this room's part of the answer to `resume`."""
        again, self._joined = self._joined, True
        epoch, end = ack.get("epoch"), ack.get("offset", 0)
        if epoch is None:
            if self._epoch is not None:
                # The server could not read the history. If it has none any more, the fetch will be refused.
                self._behind = True
            elif again and not ack.get("recovered"):
                self._add_gap(None)
            return
        if self._epoch is None:
            self._epoch = epoch
            if again:
                self._add_gap(None)  # there was no history while the client was disconnected
            if self._replay and not again:
                self._base = max(0, end - self._replay)
            else:
                self._position = max(self._position, end)
        elif not self._change_epoch(epoch) and ack.get("recovered") is False and end < self._asked:
            self._add_gap(None)  # the history has become shorter than the part already read
            self._position = end

    def message(self, message: Message, size: int) -> None:
        """A message of `size` bytes was received."""
        if message.position is None:
            self._transient(message, size)
        else:
            self._recorded(message, message.position, size)

    def _recorded(self, item: Message | Gap, position: Position, size: int) -> None:
        epoch, offset = position.epoch, position.offset
        if not self._epoch:
            self._epoch = epoch
        if epoch == self._epoch and offset <= self._position:
            return
        if self._behind or self._buffer.full or epoch != self._epoch:
            self._behind = True
            self._discarded[epoch] = max(offset, self._discarded.get(epoch, 0))
        else:
            self._put(item, offset, size)

    def announcement(self, announcement: Announcement) -> None:
        """Announcements that do not fit are dropped: the next one has the newest count."""
        if self._announcements and not self._behind and not self._buffer.full:
            self._buffer.put(announcement)

    def gap(self, event: Event) -> None:
        """The server reported that messages are missing."""
        epoch, first, last = event.get("epoch"), event.get("from"), event.get("to")
        if epoch is None:
            self._add_gap(event.get("dropped"))
            return
        if first is None or last is None:  # it belongs to the answer to a join, and is as reliable
            self._change_epoch(epoch)
            return
        if epoch == self._epoch:
            position = self._position or self._base
            if last <= position:
                return
            if event.get("lost") and first <= position + 1:
                self._add_gap(last - position)
                self._position = last
                return
        self._behind = True
        self._discarded[epoch] = max(last, self._discarded.get(epoch, 0))

    def unreadable(self, position: Position | None) -> None:
        """JSON cannot carry the message at this position (None in a room without history)."""
        if position is None:
            self._add_gap(1)
        else:
            self._recorded(Gap(room=self._room, dropped=1), position, 0)

    def page(self, page: HistoryPage, size: int) -> None:
        """The answer to a fetch, of `size` bytes."""
        self._fetching = False
        before = self._position or self._base
        items: list[tuple[int, Message | Gap]] = [
            *((message.position.offset, message) for message in page.messages if message.position is not None),
            *((position.offset, Gap(room=self._room, dropped=1)) for position in page.unreadable),
        ]
        items.sort(key=itemgetter(0))
        if self._change_epoch(page.position.epoch):
            before = 0
        elif page.recovered is False:
            missing = (items[0][0] - 1 if items else page.position.offset) - before
            self._add_gap(missing if missing > 0 else None)
            self._position = min(before, page.position.offset)
        each = size // max(1, len(page.messages))
        for offset, item in items:
            if offset > self._position:
                if self._buffer.full:
                    return
                self._put(item, offset, each if isinstance(item, Message) else 0)
        if not page.more:
            self._position = max(self._position, page.position.offset)
            self._behind = any(epoch != self._epoch or at > self._position for epoch, at in self._discarded.items())
        elif self._position <= before:
            self.abandon()  # a page without progress would be fetched again and again

    # --- internal

    def _put(self, item: Message | Gap, offset: int, size: int) -> None:
        self._buffer.put(item, size)
        self._position = offset

    def _transient(self, message: Message, size: int) -> None:
        """A message of a room without history."""
        while self._buffer.full:
            oldest = self._buffer.take()
            if isinstance(oldest, Message):
                oldest = Gap(room=self._room, dropped=1)
            if isinstance(oldest, Gap):
                self._front = oldest if self._front is None else self._front + oldest
        self._buffer.put(message, size)

    def _change_epoch(self, epoch: str) -> bool:
        """Change to this epoch. Returns whether another epoch has ended; its unread messages are lost."""
        ended, self._epoch = self._epoch, epoch
        if not ended or ended == epoch:
            return False
        self._position = self._base = self._asked = 0
        self._add_gap(None)
        return True

    def _add_gap(self, dropped: int | None) -> None:
        self._buffer.put(Gap(room=self._room, dropped=dropped))
