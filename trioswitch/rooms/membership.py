"""Membership: the members of a room, to which it delivers, and its users, who are announced."""

from collections.abc import Sequence, Set
from typing import Protocol

import attrs

from ..config import Overflow
from ..connections.outbox import OfferResult
from ..metrics import Drop
from ..wire.prepared import Prepared
from ..wire.windows import Window

__all__ = ["Member", "Membership"]


class Member(Protocol):
    """What a room delivers to: a connection's outbox, or a subscription of the server's own code."""

    id: str

    def deliver(self, window: Window) -> OfferResult | None:
        """Write the whole window at once. Returns None where that is not possible: then it is to be enqueued."""

    def enqueue(self, window: Window, wanted: Sequence[int], overflow: Overflow) -> tuple[OfferResult, int]:
        """Enqueue messages of a window, by their indexes, or do what the overflow policy says. Never waits.

        Returns the result for the first messages, and how many these are. The others were dropped; only under
        `Overflow.BLOCK` can they be offered again.
        """

    async def put(self, message: Prepared) -> OfferResult:
        """Enqueue one message, and wait for space. Safe to cancel: then it was not enqueued."""

    def report_loss(self, message: Prepared, cause: Drop) -> None:
        """The message is lost to this member: count it, and tell the client."""


@attrs.define(eq=False)
class Membership:
    """Who is in a room. A user may be there with several connections."""

    members: dict[str, Member] = attrs.field(factory=dict, init=False)
    """By id; a connection's outbox has the connection's id."""
    users: dict[str, int] = attrs.field(factory=dict, init=False)
    """The number of connections of each user; places that are reserved for `leave_grace` included."""
    """Those of other nodes are counted, too."""
    connections: int = attrs.field(default=0, init=False)
    """The sum of these."""
    elsewhere: dict[str, dict[str, int]] = attrs.field(factory=dict, init=False)
    """The number of connections of each user on each other node."""
    _places: int = attrs.field(default=0, init=False)  # connections on this node
    _changed: set[str] | None = attrs.field(default=None, init=False)

    @property
    def empty(self) -> bool:
        """Whether there is neither a member nor a user with a reserved place, on this node."""
        return not (self.members or self._places)

    def add(self, member: Member) -> None:
        self.members[member.id] = member
        if self._changed is not None:
            self._changed.add(member.id)

    def remove(self, id: str) -> bool:
        """Returns whether it was a member. What is being delivered does not go to it any more."""
        if self._changed is not None:
            self._changed.add(id)
        return self.members.pop(id, None) is not None

    def arrive(self, user: str) -> bool:
        """Count a connection of a user on this node. Returns whether it is the user's first."""
        self._places += 1
        return self._count(user, 1)

    def depart(self, user: str) -> bool:
        """Returns whether it was the user's last connection."""
        self._places -= 1
        return self._count(user, -1)

    def count_elsewhere(self, node: str, user: str, connections: int) -> bool:
        """A user has so many connections on another node. Returns whether the user has come, or left, by that."""
        of_node = self.elsewhere.setdefault(node, {})
        before = of_node.pop(user, 0)
        if connections:
            of_node[user] = connections
        elif not of_node:
            del self.elsewhere[node]
        return self._count(user, connections - before)

    def _count(self, user: str, more: int) -> bool:
        """Returns whether the user has come, or left, by that."""
        before = self.users.get(user, 0)
        after = before + more
        self.connections += more
        if after:
            self.users[user] = after
        else:
            self.users.pop(user, None)
        return bool(before) != bool(after)

    def here(self, user: str) -> int:
        """The number of a user's connections on this node."""
        return self.users.get(user, 0) - sum([of_node.get(user, 0) for of_node in self.elsewhere.values()])

    def begin_fan_out(self) -> None:
        """From now on `changed` notes who is added and removed."""
        self._changed = set()

    def end_fan_out(self) -> None:
        self._changed = None

    @property
    def changed(self) -> Set[str]:
        """Ids of members that were added or removed since the fan-out began."""
        return self._changed if self._changed is not None else frozenset()
