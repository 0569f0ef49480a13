"""Who is in a room, what messages are handed to there, and how it is counted what becomes of them."""

from collections.abc import Sequence
from typing import Protocol

import attrs

from ..config import Overflow
from ..connections.outbox import Offer
from ..metrics import Drop
from ..wire.prepared import Prepared, Receipt
from ..wire.windows import Window

__all__ = ["Audience", "Member", "Tally"]


class Member(Protocol):
    """What a room hands messages to: a connection's outbox, or a subscription of the server's own code."""

    id: str

    def deliver(self, window: Window) -> Offer | None:
        """Write the whole window at once. Returns None where it cannot: then it is to `take` it."""

    def take(self, window: Window, wanted: Sequence[int], overflow: Overflow) -> tuple[Offer, int]:
        """Take messages by their indexes, or do what the policy says. Never waits.

        Returns what became of how many, the first ones. The others were dropped, or under `block` are yet to be taken.
        """

    async def put(self, message: Prepared) -> Offer:
        """Take one message, and wait for the space. Safe to cancel: then it was not taken."""

    def give_up(self, message: Prepared, cause: Drop) -> None:
        """The message is lost to this member: count it, and tell the client."""


@attrs.define(eq=False)
class Audience:
    """Who is in a room: members, to whom messages are handed, and users, who are told of."""

    members: dict[str, Member] = attrs.field(factory=dict, init=False)
    users: dict[str, int] = attrs.field(factory=dict, init=False)
    """Who is here, with how many connections; those that may come back within `leave_grace` included."""
    connections: int = attrs.field(default=0, init=False)
    """The sum of these."""
    moved: set[str] | None = attrs.field(default=None, init=False)
    """Who came or went while a window was handed out; None while none is."""

    def add(self, member: Member) -> None:
        self.members[member.id] = member
        if self.moved is not None:
            self.moved.add(member.id)

    def remove(self, id: str) -> bool:
        """Returns whether it was a member. What is being handed out does not go to it any more."""
        if self.moved is not None:
            self.moved.add(id)
        return self.members.pop(id, None) is not None

    def arrive(self, user: str) -> bool:
        """Count a user's connection. Returns whether it is the user's first."""
        count = self.users[user] = self.users.get(user, 0) + 1
        self.connections += 1
        return count == 1

    def depart(self, user: str) -> bool:
        """Returns whether it was the user's last connection."""
        count = self.users[user] = self.users[user] - 1
        self.connections -= 1
        if not count:
            del self.users[user]
        return not count


class Tally:
    """Counts what becomes of a window's messages: together for members where it is the same for all, else one by one."""

    __slots__ = ("_singly", "_size", "dropped", "queued", "written")

    def __init__(self, size: int) -> None:
        self._size = size
        self.written = self.queued = self.dropped = 0  # members for whom the whole window was
        self._singly: dict[tuple[int, Offer], int] = {}  # by index of the message

    def add(self, became: Offer, indexes: Sequence[int]) -> None:
        if len(indexes) == self._size:
            if became is Offer.WRITTEN:
                self.written += 1
            elif became is Offer.QUEUED:
                self.queued += 1
            else:
                self.dropped += 1
        else:
            for index in indexes:
                self._singly[index, became] = self._singly.get((index, became), 0) + 1

    def totals(self) -> tuple[int, int]:
        """Messages that were written and that were queued, times receivers."""
        written, queued = self.written * self._size, self.queued * self._size
        for (_index, became), count in self._singly.items():
            if became is Offer.WRITTEN:
                written += count
            elif became is Offer.QUEUED:
                queued += count
        return written, queued

    def receipt(self, index: int, epoch: str | None, offset: int | None) -> Receipt:
        """What became of one message, with its position."""
        one = self._singly
        if not one:
            return Receipt(self.written, self.queued, self.dropped, epoch=epoch, offset=offset)
        return Receipt(
            self.written + one.get((index, Offer.WRITTEN), 0),
            self.queued + one.get((index, Offer.QUEUED), 0),
            self.dropped + one.get((index, Offer.DROPPED), 0),
            epoch=epoch,
            offset=offset,
        )
