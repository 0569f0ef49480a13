"""What an operator, or a backend, asks of all nodes: who is where, and that users join, leave and go."""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

import attrs
import trio

from ._util.checks import check_text
from .auth.revocations import Revocations
from .connections.directory import ConnectionDirectory
from .connections.driver import ConnectionDriver
from .errors import CloseCause, UnencodableData
from .rooms.directory import RoomDirectory
from .rooms.presence import Presence
from .sign_in import SignIn
from .tracing import Tracing
from .wire.body import encoded

__all__ = ["Administration", "ConnectionInfo"]

_log = logging.getLogger(__name__)

MAX_ANSWER: Final = 10_000
"""Rooms, or connections, that a node names in one answer at most."""

YIELD_EVERY: Final = 500
"""Rooms, or connections, after which other tasks run."""

AskOthers = Callable[[str, Mapping[str, Any]], Awaitable[list[Any]]]


@attrs.frozen
class ConnectionInfo:
    """A connection on any node."""

    id: str
    user: str
    rooms: tuple[str, ...]
    remote: str
    seconds: float
    """How long it has been open."""
    pending_messages: int
    pending_bytes: int
    info: Any = None
    """What the application, or the token, says of the user; None where other nodes cannot be told."""


class Administration:
    """Works on all nodes of a cluster; nodes that do not answer within 2 seconds are left out. All methods are safe to cancel.

    Methods that take `user` and `connection` (an id) mean all connections of the user, or that one, or that one if it is this
    user's. They return how many connections there were.
    """

    def __init__(
        self,
        connections: ConnectionDirectory,
        rooms: RoomDirectory,
        presence: Presence,
        sign_in: SignIn,
        revocations: Revocations,
        tracing: Tracing,
        ask_others: AskOthers | None,
    ) -> None:
        self._connections = connections
        self._rooms = rooms
        self._presence = presence
        self._sign_in = sign_in
        self._revocations = revocations
        self._ask_others = ask_others
        self._questions: dict[str, Callable[..., Awaitable[Any]]] = {
            "rooms": self._rooms_here,
            "connections": self._connections_here,
            "members": self._members_here,
            "join": self._join_here,
            "leave": self._leave_here,
            "close": self._close_here,
            "refresh": self._refresh_here,
            "revoke": self._revoke_here,
            "trace": tracing.poll,
        }

    def add_question(self, question: str, answer: Callable[..., Awaitable[Any]]) -> None:
        """Answer one more question, which `ask` asks of all nodes. What it returns must be what MessagePack can carry."""
        self._questions[question] = answer

    async def ask(self, question: str) -> list[Any]:
        """The answers of all nodes that answer, this one's first."""
        return await self._everywhere(question)

    async def answer(self, question: str, arguments: Mapping[str, Any]) -> Any:
        """What this node tells another one. None for a question of another version."""
        method = self._questions.get(question)
        try:
            return None if method is None else await method(**arguments)
        except ValueError as error:  # the node that asks has said what is wrong, if it is the same here
            _log.warning("the question %r of another node is not answered: %s", question, error)
            return None
        except TypeError as error:  # it has other arguments there
            _log.warning("the question %r of a node of another version is not answered: %s", question, error)
            return None

    async def _everywhere(self, question: str, **arguments: Any) -> list[Any]:
        here = await self._questions[question](**arguments)
        others = [] if self._ask_others is None else await self._ask_others(question, arguments)
        return [answer for answer in [here, *others] if answer is not None]

    # --- who is where

    async def rooms(self, pattern: str = "*") -> dict[str, int]:
        """The rooms that are open, by name, with the number of connections in each. At most 10,000 of each node."""
        check_text("the pattern", pattern, 255)
        total: dict[str, int] = {}
        for rooms in await self._everywhere("rooms", pattern=pattern):
            for room, count in rooms.items():
                total[room] = total.get(room, 0) + count
        return total

    async def connections(
        self, *, user: str | None = None, room: str | None = None, connection: str | None = None
    ) -> list[ConnectionInfo]:
        """Connections: of a user, in a room, with an id, or all. At most 10,000 of each node."""
        found = await self._everywhere("connections", user=user, room=room, connection=connection)
        return [ConnectionInfo(**{**values, "rooms": tuple(values["rooms"])}) for infos in found for values in infos]

    async def members(self, room: str) -> dict[str, int]:
        """The users that have connections in a room, with the number of these."""
        check_text("the room", room, 255)
        total: dict[str, int] = {}
        for users in await self._everywhere("members", room=room):
            for user, count in users.items():
                total[user] = total.get(user, 0) + count
        return total

    async def _members_here(self, room: str) -> dict[str, int]:
        known = self._rooms.get(room)
        found: dict[str, int] = {}
        members = [] if known is None else self._connections.find(known.membership.members)
        for number, connection in enumerate(members, 1):
            found[connection.user] = found.get(connection.user, 0) + 1
            if not number % YIELD_EVERY:
                await trio.lowlevel.checkpoint()
        return found

    async def _rooms_here(self, pattern: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for number, room in enumerate(list(self._rooms), 1):
            if fnmatchcase(room.name, pattern):
                found[room.name] = len(room.membership.members)
            if len(found) >= MAX_ANSWER:
                break
            if not number % YIELD_EVERY:
                await trio.lowlevel.checkpoint()
        return found

    async def _connections_here(self, user: str | None, room: str | None, connection: str | None) -> list[Any]:
        if user or connection:
            found = self._find(user, connection)
        elif room is not None:
            known = self._rooms.get(room)
            found = [] if known is None else self._connections.find(known.membership.members)
        else:
            found = list(self._connections)
        infos: list[Any] = []
        for number, each in enumerate(found, 1):
            if room is None or room in each.rooms:
                infos.append(self._info(each))
            if len(infos) >= MAX_ANSWER:
                break
            if not number % YIELD_EVERY:
                await trio.lowlevel.checkpoint()
        return infos

    @staticmethod
    def _info(connection: ConnectionDriver) -> dict[str, Any]:
        outbox = connection.outbox.statistics()
        seconds = round(trio.current_time() - connection.opened_at, 3)
        info = connection.identity.info if connection.identity is not None else None
        try:
            encoded(info)
        except UnencodableData:  # an object of the application's own
            info = None
        return {
            "id": connection.id,
            "user": connection.user,
            "rooms": sorted(connection.rooms),
            "remote": connection.request.remote,
            "seconds": seconds,
            "pending_messages": outbox.depth,
            "pending_bytes": outbox.bytes,
            "info": info,
        }

    def _find(self, user: str | None, connection: str | None) -> list[ConnectionDriver]:
        found = self._connections.find([connection]) if connection else list(self._connections.of_user(user or ""))
        return [each for each in found if not user or each.user == user]

    # --- what becomes of messages

    async def trace(self, trace: str, *, user: str | None = None, room: str | None = None) -> dict[str, Any]:
        """What has become of messages to a user's connections, or to the members of a room, since the last call.

        The first call begins a trace, which ends when it is not called for 10 seconds; `trace` is a name of yours for it. The
        answer has `events`, in the order of time; `missed`, how many there were beyond the 2,000 that a node holds between two
        calls; and `connections`, how many are followed now. Raises ValueError when this node has 8 traces already.
        """
        check_text("the name of a trace", trace, 255)
        if (user is None) == (room is None):
            raise ValueError("say what to follow: a user or a room")
        check_text("what to follow", room if user is None else user, 255)
        found = await self._everywhere("trace", trace=trace, user=user, room=room)
        return {
            "events": sorted([event for each in found for event in each["events"]], key=lambda event: event["at"]),
            "missed": sum([each["missed"] for each in found]),
            "connections": sum([each["connections"] for each in found]),
        }

    # --- what they do

    async def join(self, room: str, *, user: str | None = None, connection: str | None = None) -> int:
        """Make connections members of a room."""
        check_text("the room", room, 255)
        return sum(await self._everywhere("join", room=room, user=user, connection=connection))

    async def leave(self, room: str, *, user: str | None = None, connection: str | None = None) -> int:
        """End memberships in a room."""
        check_text("the room", room, 255)
        return sum(await self._everywhere("leave", room=room, user=user, connection=connection))

    async def disconnect(
        self,
        *,
        user: str | None = None,
        connection: str | None = None,
        reason: str = "",
        keep: Collection[str] = (),
    ) -> int:
        """Close connections with 4502, so that their clients do not come back; but not those in `keep`."""
        return sum(await self._everywhere("close", user=user, connection=connection, reason=reason, keep=list(keep)))

    async def refresh(
        self, *, user: str | None = None, connection: str | None = None, expires_at: float | None = None
    ) -> int:
        """Let the tokens of connections run out at another time, in seconds since 1970; None: never."""
        return sum(await self._everywhere("refresh", user=user, connection=connection, expires_at=expires_at))

    async def revoke(
        self, *, user: str | None = None, token_id: str | None = None, issued_before: float | None = None
    ) -> int:
        """Close the connections of tokens, with 4500, and let nobody in with them: by user, or by id (`jti`), or both.

        Those of a user, or of all, are those issued before a time (seconds since 1970), by default now. A node that is started
        later does not know of it.
        """
        if user is None and token_id is None and issued_before is None:
            raise ValueError("say which tokens: by user, token_id or issued_before")
        return sum(await self._everywhere("revoke", user=user, token_id=token_id, issued_before=issued_before))

    async def _join_here(self, room: str, user: str | None, connection: str | None) -> int:
        found = self._find(user, connection)
        for each in found:
            self._presence.join(each, room)
        return len(found)

    async def _leave_here(self, room: str, user: str | None, connection: str | None) -> int:
        return sum([self._presence.leave(each, room) for each in self._find(user, connection)])

    async def _close_here(self, user: str | None, connection: str | None, reason: str, keep: list[str]) -> int:
        found = [each for each in self._find(user, connection) if each.id not in keep]
        for each in found:
            each.close(CloseCause.KICKED, reason or None)
        return len(found)

    async def _refresh_here(self, user: str | None, connection: str | None, expires_at: float | None) -> int:
        found = self._find(user, connection)
        for each in found:
            self._sign_in.expire(each, expires_at)
        return len(found)

    async def _revoke_here(self, user: str | None, token_id: str | None, issued_before: float | None) -> int:
        self._revocations.add(user, token_id, issued_before)
        found = [
            each for each in self._connections if each.identity is not None and self._revocations.has(each.identity)
        ]
        for each in found:
            each.close(CloseCause.UNAUTHORISED, "the token was revoked")
        return len(found)
