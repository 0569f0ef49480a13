"""Sessions: a client that reconnects in time gets its user, its rooms and everything that was published meanwhile.

The states of a session:

    connected   its connection is open
    reserved    the client is offline for less than `leave_grace`: its places in rooms are reserved, nobody is told
    offline     its places are given up; it can be resumed until `session_time` is over
    ended       the client closed it, was closed with a permanent code, or did not reconnect in time
"""

from collections.abc import Awaitable, Callable
from secrets import token_urlsafe
from typing import Any, Final, Protocol

import attrs
import trio

from .._util.expiry import DueQueue
from .._util.shares import Shares
from .._util.wakeup import Wakeup
from ..auth.identity import Identity
from ..config import Options
from ..connections.directory import ConnectionDirectory
from ..connections.driver import ConnectionDriver
from ..errors import CloseCause, Refused, StoreError
from ..rooms.directory import RoomDirectory
from ..rooms.presence import Presence
from ..wire.messages import Position, Resumed
from .recovery import Joined, Recovery

__all__ = ["OtherNodes", "PortableSession", "Sessions"]

SESSION_OVERHEAD: Final = 1024
"""Bytes that a session without rooms takes (measured: 0.9 KB)."""
ROOM_OVERHEAD: Final = 512
"""Bytes that one of its rooms takes beside the name (measured: 0.4 KB)."""
TAKE_TIMEOUT: Final = 10.0
"""Seconds that it may take to get a session from another node."""
FIRST_PERMANENT_CODE: Final = 4500
"""Close codes from here on tell a client not to reconnect (`docs/protocol.md`)."""


@attrs.define(eq=False)
class Session:
    """What is kept of a client that is offline."""

    id: str
    user: str
    identity: Identity
    rooms: dict[str, Position | None]
    """Its rooms, and where those with history stood when it was lost."""
    reserved: set[str]
    """Those of them in which its place is reserved."""
    has_declared_name: bool
    """As of `ConnectionDriver`."""

    def weight(self) -> int:
        """Bytes that it takes, at most: a character of a name may take four."""
        names = (self.id, self.user, *self.rooms)
        return SESSION_OVERHEAD + sum(
            [ROOM_OVERHEAD + (len(name) if name.isascii() else 4 * len(name)) for name in names]
        )


@attrs.frozen
class PortableSession:
    """A session as it is handed over to another node. `identity` is the user of its identity, None for an anonymous client."""

    user: str
    identity: str | None
    has_declared_name: bool
    rooms: dict[str, Position | None]


class OtherNodes(Protocol):
    """The other nodes of a cluster."""

    def new_id(self) -> str:
        """An id for a session that begins here."""

    def changed(self, id: str) -> None:
        """A session has another user or other rooms, its client has come or gone, or it has ended."""

    async def take(self, id: str, user: str | None) -> PortableSession | None:
        """The session of this id, out of the hands of the node that has it. Raises StoreError. Not safe to cancel."""


class Sessions:
    """Which sessions are connected, and which can be resumed."""

    def __init__(
        self,
        connections: ConnectionDirectory,
        rooms: RoomDirectory,
        presence: Presence,
        recovery: Recovery,
        options: Options,
        is_allowed: Callable[[ConnectionDriver, str], Awaitable[bool]] | None = None,
        nodes: OtherNodes | None = None,
    ) -> None:
        """`is_allowed` says whether a client may join a room that it was in, beside its identity."""
        self._nodes = nodes
        self._is_allowed = is_allowed
        self._connections = connections
        self._rooms = rooms
        self._presence = presence
        self._recovery = recovery
        self._options = options
        self._here: dict[str, ConnectionDriver] = {}  # by id of the session
        self._ids: dict[str, str] = {}  # session of each connection; none for one whose session another took over
        self._resuming: dict[
            str, Session
        ] = {}  # what a connection does not have again yet of the session that it resumes
        self._offline: DueQueue[str, Session] = DueQueue()  # until each ends
        self._weights: Shares[str] = Shares()  # of these, in bytes
        self._reserved: DueQueue[str, Session] = DueQueue()  # until its places are given up
        self._wakeup = Wakeup()

    def __len__(self) -> int:
        """The number of sessions whose clients are offline."""
        return len(self._offline)

    def begin(self, connection: ConnectionDriver) -> str:
        """A connection opens: it gets a session of its own. Returns the session's id."""
        id = token_urlsafe(16) if self._nodes is None else self._nodes.new_id()
        self._assign(connection, id)
        return id

    def _assign(self, connection: ConnectionDriver, id: str) -> None:
        self._ids[connection.id] = id
        self._here[id] = connection
        self._changed(id)

    def _unassign(self, connection: ConnectionDriver) -> str | None:
        """Returns the id of the session that the connection had."""
        id = self._ids.pop(connection.id, None)
        if id is not None:
            del self._here[id]
            self._changed(id)
        return id

    # --- other nodes

    def changed(self, connection: ConnectionDriver) -> None:
        """A connection has another user, or other rooms."""
        id = self._ids.get(connection.id)
        if id is not None:
            self._changed(id)

    def _changed(self, id: str) -> None:
        if self._nodes is not None:
            self._nodes.changed(id)

    def portable(self, id: str) -> tuple[PortableSession, bool] | None:
        """A session, and whether its client is connected. None: there is none, or it has nothing that is worth keeping."""
        here = self._here.get(id)
        if here is None:
            offline = self._offline.get(id)
            return None if offline is None else (_portable(offline), False)
        unfinished = self._resuming.get(here.id)
        if here.identity is None or not (here.rooms or unfinished or here.user != here.id):
            return None
        rooms = {name: self._position(name) for name in here.rooms} | ({} if unfinished is None else unfinished.rooms)
        return PortableSession(here.user, here.identity.user, here.has_declared_name, rooms), True

    def give(self, id: str, user: str | None) -> PortableSession | None:
        """Hand a session over to another node, whose client has an identity of this user. None: it is not here, or not theirs.

        Its places are given up later, when it has had the time to take them there.
        """
        session = self._let_go(id, user)
        if session is None:
            return None
        if session.reserved:
            grace = min(self._options.leave_grace, self._options.session_time)
            self._reserved.add(f"{id} given", session, trio.current_time() + grace)
            self._wakeup.notify()
        return _portable(session)

    def _let_go(self, id: str, user: str | None) -> Session | None:
        here, offline = self._here.get(id), self._offline.get(id)
        if here is not None and here.identity is not None and here.identity.user == user:
            session = self._detach(here)
            here.close(CloseCause.TAKEN_OVER, flush=False)
            return session
        if offline is not None and offline.identity.user == user:
            self._remove_offline(id)
            return offline
        return None

    async def _take_elsewhere(self, connection: ConnectionDriver, id: str, nodes: OtherNodes) -> Session:
        """As `_take`, from another node. Raises Refused."""
        assert connection.identity is not None
        with trio.CancelScope(shield=True), trio.move_on_after(TAKE_TIMEOUT):
            try:
                found = await nodes.take(id, connection.identity.user)
            except StoreError as error:
                raise Refused(str(error), code="unavailable") from None
            if connection.cause is None and found is not None:
                if found.identity != connection.identity.user:
                    raise Refused("this session belongs to another user")
                return Session(id, found.user, connection.identity, dict(found.rooms), set(), found.has_declared_name)
        raise Refused("there is no session with this id, or it has ended", code="unknown_session")

    # --- connections end

    def end(self, connection: ConnectionDriver) -> None:
        """A connection has ended: its session is kept, or else its rooms are left."""
        if self._can_be_resumed(connection):
            self._keep(self._detach(connection))
        else:
            self._unassign(connection)
            session = self._resuming.pop(connection.id, None)
            if session is not None:
                self._vacate(session)
            self._presence.leave_all(connection)

    def _can_be_resumed(self, connection: ConnectionDriver) -> bool:
        cause = connection.cause
        if (
            cause is None
            or cause is CloseCause.CLIENT_LEFT
            or cause.code >= FIRST_PERMANENT_CODE
            or (self._connections.draining and self._nodes is None)
        ):
            return False
        something = connection.rooms or connection.id in self._resuming or connection.user != connection.id
        return bool(connection.id in self._ids and connection.identity and something and self._options.session_time)

    def _detach(self, connection: ConnectionDriver) -> Session:
        """Take its session from a connection: it is in no room any more, and its places are reserved."""
        assert connection.identity is not None
        id = self._unassign(connection)
        assert id is not None
        rooms = {name: self._position(name) for name in connection.rooms}
        reserved = set(self._presence.reserve(connection))
        session = Session(id, connection.user, connection.identity, rooms, reserved, connection.has_declared_name)
        unfinished = self._resuming.pop(connection.id, None)
        if unfinished is not None:  # it was lost before it had all of its rooms again
            session.rooms |= unfinished.rooms
            session.reserved |= unfinished.reserved
        return session

    def _position(self, name: str) -> Position | None:
        room = self._rooms.get(name)
        return room.history.position if room is not None and room.history is not None else None

    def _keep(self, session: Session) -> None:
        options, now = self._options, trio.current_time()
        self._offline.add(session.id, session, now + options.session_time)
        if session.reserved:
            self._reserved.add(session.id, session, now + min(options.leave_grace, options.session_time))
        self._weights.add(session.id, session.weight())
        self._changed(session.id)
        if len(self._offline) > options.max_sessions:
            oldest = self._offline.oldest()
            assert oldest is not None
            self._end(oldest)
        while self._weights.total > options.total_session_bytes:
            self._end(self._weights.largest())
        if not options.leave_grace:
            self._give_up_places(session.id)
        self._wakeup.notify()

    async def run(self) -> None:
        """The task that gives up places, and ends sessions, when their time is over."""
        while True:
            with trio.move_on_at(min(self._reserved.next_due(), self._offline.next_due())):
                await self._wakeup.wait()  # a client that goes offline now may be due before the others
            now = trio.current_time()
            for _id, session in self._reserved.pop_due(now):
                self._vacate(session)
            for id, _session in self._offline.pop_due(now):
                self._weights.add(id, -self._weights[id])
                self._give_up_places(id)
                self._changed(id)

    def _end(self, id: str) -> None:
        """End a session whose client is offline."""
        self._give_up_places(id)
        self._offline.remove(id)
        self._weights.add(id, -self._weights[id])
        self._changed(id)

    def _give_up_places(self, id: str) -> None:
        session = self._reserved.remove(id)
        if session is not None:
            self._vacate(session)

    def _vacate(self, session: Session) -> None:
        for name in session.reserved:
            self._presence.vacate(session.user, name)
        session.reserved.clear()

    # --- sessions are resumed

    async def resume(self, connection: ConnectionDriver, id: str, positions: dict[str, Position]) -> dict[str, Resumed]:
        """Give a connection the session of this id: its user, its rooms and what was missed. Returns what became of each.

        Raises Refused. When it is cancelled, the rooms that it does not have again stay in the session.
        """
        if self._nodes is None or id in self._here or id in self._offline:
            session = self._take(connection, id)
        else:
            session = await self._take_elsewhere(connection, id, self._nodes)
        session.rooms.update({name: position for name, position in positions.items() if name in session.rooms})
        self._unassign(connection)
        self._assign(connection, id)
        self._resuming[connection.id] = session
        self._presence.change_user(connection, session.user, declared=session.has_declared_name)
        rooms: dict[str, Resumed] = {}
        known = positions.keys() & session.rooms.keys()
        while session.rooms:
            name, since = next(iter(session.rooms.items()))
            if self._may_join(connection, name) and (
                self._is_allowed is None or await self._is_allowed(connection, name)
            ):
                joined = await self._join(connection, name, since, reserved=name in session.reserved)
                rooms[name] = _resumed(joined, known=name in known)
            elif name in session.reserved:
                self._presence.vacate(session.user, name)
            del session.rooms[name]
            session.reserved.discard(name)
        self._resuming.pop(connection.id, None)
        return rooms

    def _take(self, connection: ConnectionDriver, id: str) -> Session:
        """The session, out of the hands of whoever has it. Raises Refused."""
        here = self._here.get(id)
        if here is connection:
            raise Refused("this is the connection's own session", code="invalid")
        if here is not None and here.cause is not None and not self._can_be_resumed(here):
            here = None  # it has ended already, and its connection is about to
        offline = self._offline.get(id)
        identity = here.identity if here is not None else offline.identity if offline is not None else None
        if identity is None:
            raise Refused("there is no session with this id, or it has ended", code="unknown_session")
        if connection.identity is None or identity.user != connection.identity.user:
            raise Refused("this session belongs to another user")
        if here is not None:
            session = self._detach(here)
            here.close(CloseCause.TAKEN_OVER, flush=False)
            return session
        assert offline is not None
        self._remove_offline(id)
        return offline

    def _remove_offline(self, id: str) -> None:
        """It is no longer a session of a client that is offline; its places stay reserved."""
        self._offline.remove(id)
        self._weights.add(id, -self._weights[id])
        self._reserved.remove(id)
        self._changed(id)

    def _may_join(self, connection: ConnectionDriver, name: str) -> bool:
        assert connection.identity is not None
        full = len(connection.rooms) >= self._options.max_rooms and name not in connection.rooms
        return connection.identity.may_join(name) and not full

    async def _join(self, connection: ConnectionDriver, name: str, since: Position | None, *, reserved: bool) -> Joined:
        joined = self._recovery.join_nowait(connection, name, since, reserved=reserved)
        if joined is not None:
            return joined
        try:
            return await self._recovery.join(connection, name, since, reserved=reserved)
        except Refused:
            if connection.cause is not None:
                raise
            # Its history cannot be read now: what comes from here on can be had all the same.
            return Joined(self._presence.join(connection, name, reserved=reserved), None, False)


def _portable(session: Session) -> PortableSession:
    return PortableSession(session.user, session.identity.user, session.has_declared_name, dict(session.rooms))


def _resumed(joined: Joined, *, known: bool) -> Resumed:
    """Without a position of the client's own nobody knows what it had got of what was written to it."""
    place: dict[str, Any] = (
        {} if joined.position is None else {"epoch": joined.position.epoch, "offset": joined.position.offset}
    )
    return Resumed(recovered=known and bool(joined.recovered), online_count=len(joined.room.membership.users), **place)
