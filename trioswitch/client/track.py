"""What one room owes its reader. No I/O, no clock: events of the server in, items for the reader and fetches out.

The rules of a room with history:

- `position` is the last offset that went into the buffer. Nothing at or below it goes in again (doubles), and nothing above
  it while something between the two may be missing.
- A room is *behind* when something above `position` has to be fetched: the server told a gap, or the buffer is full. Then
  messages that arrive are thrown away, and `history` is asked for what follows `position`, page by page, as the reader makes
  place. The last page brings the room up to date, unless a message that it does not have was thrown away in the meantime.
- Which epoch is the present one is said by the answers to a join and to `history` only: they come in order. A message of
  another epoch may be newer or older than this one: the room is behind, and the answer tells.
- A gap is always fetched from `position`, never from the gap's own beginning: messages below it may still be on their way,
  and nothing tells when the last of them has come.
- What cannot be fetched shows as a `Gap`, in its place.

So a slow reader costs a bounded buffer and no message, and never keeps the client from reading its socket. In a room without
history the oldest message gives way, and a `Gap` counts it.
"""

from collections import deque
from collections.abc import Callable
from operator import itemgetter
from typing import Final

import attrs

from .messages import Announcement, Fields, Gap, Message, Page, Position

__all__ = ["MAX_PAGE", "Buffer", "Fetch", "Item", "Track"]

Item = Message | Gap | Announcement
MAX_PAGE: Final = 1000
"""Messages that may be asked for at once (`docs/protocol.md`)."""


@attrs.frozen
class Fetch:
    """Ask for the history of the room."""

    since: Position
    limit: int


class Buffer:
    """Items that wait for a reader: full from `messages` items or `size` bytes on. Neighbouring gaps become one."""

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
        """How many more messages it is worth to fetch: none before half of it is empty."""
        worth = 2 * len(self._items) <= self._messages and 2 * self._bytes <= self._size
        return self._messages - len(self._items) if worth else 0

    def put(self, item: Item, size: int = 0) -> None:
        """Add at the end. Gaps go in even where it is full: there is never more than one in a row."""
        if isinstance(item, Gap) and self._items and isinstance(last := self._items[-1][0], Gap):
            self._items[-1] = (last + item, 0)
            return
        self._items.append((item, size))
        self._bytes += size

    def take(self) -> Item | None:
        """The oldest item, which is removed; None: there is none."""
        if not self._items:
            return None
        item, size = self._items.popleft()
        self._bytes -= size
        return item

    def change(self, change: Callable[[Item], Item | None]) -> None:
        """Put something else in the place of each item, or nothing."""
        changed = [(change(item), size) for item, size in self._items]
        self._items = deque((item, size) for item, size in changed if item is not None)
        self._bytes = sum(size for _, size in self._items)


class Track:
    """The state of one room. `replay` is how many of the newest messages its first join asks for; they come as a stream."""

    def __init__(self, room: str, buffer: Buffer, *, replay: int = 0, announcements: bool = False) -> None:
        self._room = room
        self._buffer = buffer
        self._replay = replay
        self._announcements = announcements
        self._joined = False
        self._epoch: str | None = (
            None  # None: the room has no history, or nothing is known yet; empty: nothing is in it yet
        )
        self._position = 0
        self._base = 0  # stands for `_position` as long as nothing has come of the replay
        self._asked = 0  # the offset that the last join named
        self._behind = False
        self._thrown: dict[str, int] = {}  # the newest offset that was thrown away since the last fetch, by epoch
        self._fetching = False
        self._front: Gap | None = None  # what gave way at the beginning of the buffer

    @property
    def position(self) -> Position | None:
        """After the last message that the buffer got; None: the room has no history."""
        return None if self._epoch is None else Position(self._epoch, self._position or self._base)

    @property
    def waiting(self) -> int:
        """Items in the buffer."""
        return len(self._buffer)

    # --- the reader

    def take(self) -> Item | None:
        """The next item; None: there is none yet."""
        if self._front is not None:
            gap, self._front = self._front, None
            return gap
        return self._buffer.take()

    def fetch(self) -> Fetch | None:
        """What to ask for now, if anything. The answer goes to `page`; until then, or until `refetch`, this is None."""
        if not self._behind or self._fetching or not (free := self._buffer.free) or (since := self.position) is None:
            return None
        self._fetching = True
        self._thrown.clear()  # the answer has all of it
        return Fetch(since, min(free, MAX_PAGE))

    def refetch(self) -> None:
        """No answer will come to what `fetch` gave: the connection was lost, or the server was not able to read."""
        self._fetching = False

    def abandon(self) -> None:
        """The server refuses to give its history: what was to be fetched is lost."""
        self._fetching = self._behind = False
        self._lose(None)

    # --- the server

    def since(self) -> Position | None:
        """The position to name when joining again; None: there is none, or what is missing gets fetched anyhow."""
        since = None if self._behind else self.position
        self._asked = 0 if since is None else since.offset
        return since

    def joined(self, ack: Fields) -> None:
        """The answer to a join; or what the answer to `resume` says of this room."""
        again, self._joined = self._joined, True
        epoch, end = ack.get("epoch"), ack.get("offset", 0)
        if epoch is None:
            if self._epoch is not None:
                self._behind = (
                    True  # the server could not read its history; if it has none any more, `abandon` is the answer
                )
            elif again and not ack.get("recovered"):
                self._lose(None)
            return
        if self._epoch is None:
            self._epoch = epoch
            if again:
                self._lose(None)  # it had no history while the client was away
            if self._replay and not again:
                self._base = max(0, end - self._replay)
            else:
                self._position = max(self._position, end)
        elif not self._enter(epoch) and ack.get("recovered") is False and end < self._asked:
            self._lose(None)  # the history is shorter now than what was read of it
            self._position = end

    def message(self, message: Message, size: int) -> None:
        """A message that came, and its bytes."""
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
            self._thrown[epoch] = max(offset, self._thrown.get(epoch, 0))
        else:
            self._put(item, offset, size)

    def announcement(self, announcement: Announcement) -> None:
        """One that finds no place is left out: the next one has the newest count."""
        if self._announcements and not self._behind and not self._buffer.full:
            self._buffer.put(announcement)

    def gap(self, event: Fields) -> None:
        """The server told that messages are missing."""
        epoch, first, last = event.get("epoch"), event.get("from"), event.get("to")
        if epoch is None:
            self._lose(event.get("dropped"))
            return
        if first is None or last is None:  # it belongs to the answer to a join, so it is as good
            self._enter(epoch)
            return
        if epoch == self._epoch:
            place = self._position or self._base
            if last <= place:
                return
            if event.get("lost") and first <= place + 1:
                self._lose(last - place)
                self._position = last
                return
        self._behind = True
        self._thrown[epoch] = max(last, self._thrown.get(epoch, 0))

    def unreadable(self, position: Position | None) -> None:
        """The message at this position, if it has one, could not be written in this connection's encoding."""
        if position is None:
            self._lose(1)
        else:
            self._recorded(Gap(room=self._room, dropped=1), position, 0)

    def page(self, page: Page, size: int) -> None:
        """The answer to what `fetch` asked for, and its bytes."""
        self._fetching = False
        before = self._position or self._base
        items: list[tuple[int, Message | Gap]] = [
            *((message.position.offset, message) for message in page.messages if message.position is not None),
            *((position.offset, Gap(room=self._room, dropped=1)) for position in page.unreadable),
        ]
        items.sort(key=itemgetter(0))
        if self._enter(page.end.epoch):
            before = 0
        elif not page.recovered:
            missing = (items[0][0] - 1 if items else page.end.offset) - before
            self._lose(missing if missing > 0 else None)
            self._position = min(before, page.end.offset)
        each = size // max(1, len(page.messages))
        for offset, item in items:
            if offset > self._position:
                if self._buffer.full:
                    return
                self._put(item, offset, each if isinstance(item, Message) else 0)
        if not page.more:
            self._position = max(self._position, page.end.offset)
            self._behind = any(epoch != self._epoch or at > self._position for epoch, at in self._thrown.items())
        elif self._position <= before:
            self.abandon()  # a page that leads nowhere would be asked for again and again

    # --- within

    def _put(self, item: Message | Gap, offset: int, size: int) -> None:
        self._buffer.put(item, size)
        self._position = offset

    def _transient(self, message: Message, size: int) -> None:
        """A message that no history keeps."""
        while self._buffer.full:
            oldest = self._buffer.take()
            if isinstance(oldest, Message):
                oldest = Gap(room=self._room, dropped=1)
            if isinstance(oldest, Gap):
                self._front = oldest if self._front is None else self._front + oldest
        self._buffer.put(message, size)

    def _enter(self, epoch: str) -> bool:
        """Be in this epoch. Returns whether another one is over; then what was not read of that is lost."""
        over, self._epoch = self._epoch, epoch
        if not over or over == epoch:
            return False
        self._position = self._base = self._asked = 0
        self._lose(None)
        return True

    def _lose(self, dropped: int | None) -> None:
        self._buffer.put(Gap(room=self._room, dropped=dropped))
