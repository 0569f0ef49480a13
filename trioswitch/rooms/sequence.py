"""The order of offsets: messages of a room with history come from several nodes, and are delivered in this order."""

from typing import Final

from ..wire.prepared import Prepared

__all__ = ["Sequence"]

MAX_AHEAD: Final = 1000
"""Messages that wait for an earlier one. Those furthest ahead are given up beyond that: they are read from the store later."""


class Sequence:
    """Puts messages into the order of their offsets, each once. `last` is the newest offset that is in order.

    A message whose place in the room's queue is reserved (`own`: it was published on this node) is never given up.
    """

    __slots__ = ("_ahead", "_foreign", "last", "newest")

    def __init__(self) -> None:
        self.last = 0
        self.newest = 0
        """The newest offset that was ever heard of."""
        self._ahead: dict[int, tuple[Prepared, bool]] = {}
        self._foreign = 0

    @property
    def behind(self) -> bool:
        """Whether messages are missing, or wait for space."""
        return self.newest > self.last

    def hear_of(self, offset: int) -> None:
        """There is a message at this offset, which may have to be read from the store."""
        self.newest = max(self.newest, offset)

    def add(self, offset: int, message: Prepared, *, own: bool) -> bool:
        """Take a message. Returns False, and does nothing, when it has been taken before, or is too far ahead."""
        self.hear_of(offset)
        if offset <= self.last:
            return False
        known = self._ahead.get(offset)
        if known is not None:
            if known[1] or not own:
                return False
            self._foreign -= 1
        if not own:
            if self._foreign >= MAX_AHEAD:
                return False
            self._foreign += 1
        self._ahead[offset] = (message, own)
        return True

    def next(self) -> tuple[Prepared, bool] | None:
        """The message that is next in order, and whether it is our own. It stays here until `advance`."""
        return self._ahead.get(self.last + 1)

    def advance(self) -> None:
        """The next message was taken over."""
        self.last += 1
        _message, own = self._ahead.pop(self.last)
        self._foreign -= not own

    def pass_over(self, offset: int) -> None:
        """What is missing up to this offset does not come. Messages that are here are still next in their turn."""
        self.hear_of(offset)
        while self.last < offset and self.last + 1 not in self._ahead:
            self.last += 1

    def first_ahead(self) -> int:
        """The smallest offset of a message that is here; `newest` + 1 if there is none."""
        return min(self._ahead, default=self.newest + 1)

    def clear(self, last: int = 0) -> list[Prepared]:
        """Begin anew after an offset. Returns our own messages that were here: their places are still reserved."""
        own = [message for message, is_own in self._ahead.values() if is_own]
        self.last = self.newest = last
        self._ahead, self._foreign = {}, 0
        return own
