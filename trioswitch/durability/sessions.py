"""Sessions: who comes back within the time finds its user, its rooms and everything that was published meanwhile.

connected   the connection has the session's id, and everything else
held        the client is away for less than `leave_grace`: its places in rooms are held, nobody is told
away        its places are given up, and it is still known for `session_time`
over        it said goodbye, was told not to come back, or did not come in time
"""

from collections import OrderedDict
from math import inf
from secrets import token_urlsafe
from typing import Any, Final

import attrs
import trio

from ..auth.identity import Identity
from ..config import Options
from ..connections.directory import ConnectionDirectory
from ..connections.driver import ConnectionDriver
from ..errors import Cause, Refused
from ..rooms.directory import RoomDirectory
from ..rooms.presence import Presence
from ..wire.messages import Position, Resumed
from .recovery import Joined, Recovery

__all__ = ["Sessions"]

LAST_INVITATION: Final = 4500
"""Close codes from here on tell a client not to come back (`docs/protocol.md`)."""


@attrs.define(eq=False)
class Session:
    """What is kept of a client that is away."""

    id: str
    user: str
    identity: Identity
    rooms: dict[str, Position | None]
    """Its rooms, and where those with history stood when it was lost."""
    held: set[str]
    """Those of them in which its place is held."""
    named: bool
    """Whether its user is a name."""


class Sessions:
    """Who is here, and who may come back."""

    def __init__(
        self,
        connections: ConnectionDirectory,
        rooms: RoomDirectory,
        presence: Presence,
        recovery: Recovery,
        options: Options,
    ) -> None:
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
        # In order of time, as all are away, or held, for equally long.
        self._away: OrderedDict[str, tuple[float, Session]] = OrderedDict()
        self._held: OrderedDict[str, tuple[float, Session]] = OrderedDict()
        self._work = trio.Event()

    def __len__(self) -> int:
        """The number of sessions whose clients are offline."""
        return len(self._away)

    def begin(self, connection: ConnectionDriver) -> str:
        """A connection opens: it gets a session of its own. Returns the session's id."""
        id = token_urlsafe(16)
        self._assign(connection, id)
        return id

    def _assign(self, connection: ConnectionDriver, id: str) -> None:
        self._ids[connection.id] = id
        self._here[id] = connection

    def _unassign(self, connection: ConnectionDriver) -> str | None:
        """Returns the id of the session that the connection had."""
        id = self._ids.pop(connection.id, None)
        if id is not None:
            del self._here[id]
        return id

    # --- going

    def end(self, connection: ConnectionDriver) -> None:
        """A connection has ended: its session is kept, or else its rooms are left."""
        if self._may_come_back(connection):
            self._keep(self._detach(connection))
        else:
            self._unassign(connection)
            session = self._resuming.pop(connection.id, None)
            if session is not None:
                self._vacate(session)
            self._presence.leave_all(connection)

    def _may_come_back(self, connection: ConnectionDriver) -> bool:
        cause = connection.cause
        if cause is None or cause is Cause.CLIENT_LEFT or cause.code >= LAST_INVITATION or self._connections.draining:
            return False
        something = connection.rooms or connection.id in self._resuming or connection.user != connection.id
        return bool(connection.id in self._ids and connection.identity and something and self._options.session_time)

    def _detach(self, connection: ConnectionDriver) -> Session:
        """Take its session from a connection: it is in no room any more, and its places are held."""
        assert connection.identity is not None
        id = self._unassign(connection)
        assert id is not None
        rooms = {name: self._position(name) for name in connection.rooms}
        held = set(self._presence.reserve(connection))
        session = Session(id, connection.user, connection.identity, rooms, held, connection.has_declared_name)
        unfinished = self._resuming.pop(connection.id, None)
        if unfinished is not None:  # it went before it had all of its rooms again
            session.rooms |= unfinished.rooms
            session.held |= unfinished.held
        return session

    def _position(self, name: str) -> Position | None:
        room = self._rooms.get(name)
        return room.history.position if room is not None and room.history is not None else None

    def _keep(self, session: Session) -> None:
        options, now = self._options, trio.current_time()
        self._away[session.id] = (now + options.session_time, session)
        if session.held:
            self._held[session.id] = (now + min(options.leave_grace, options.session_time), session)
        if len(self._away) > options.max_sessions:
            self._forget(next(iter(self._away)))
        if not options.leave_grace:
            self._give_up_places(session.id)
        self._work.set()

    async def run(self) -> None:
        """The task that gives up places, and forgets sessions, when their time has come."""
        while True:
            heads = [next(iter(queue.values()))[0] for queue in (self._held, self._away) if queue]
            self._work = trio.Event()
            with trio.move_on_at(min(heads, default=inf)):
                await self._work.wait()  # whoever goes now may be due before those that are away already
            now = trio.current_time()
            while self._held and next(iter(self._held.values()))[0] <= now:
                self._give_up_places(next(iter(self._held)))
            while self._away and next(iter(self._away.values()))[0] <= now:
                self._forget(next(iter(self._away)))

    def _give_up_places(self, id: str) -> None:
        _until, session = self._held.pop(id, (0.0, None))
        if session is not None:
            self._vacate(session)

    def _forget(self, id: str) -> None:
        self._give_up_places(id)
        self._away.pop(id, None)

    def _vacate(self, session: Session) -> None:
        for name in session.held:
            self._presence.vacate(session.user, name)
        session.held.clear()

    # --- coming back

    async def resume(self, connection: ConnectionDriver, id: str, positions: dict[str, Position]) -> dict[str, Resumed]:
        """Give a connection the session of this id: its user, its rooms and what was missed. Returns what became of each.

        Raises Refused. When it is cancelled, the rooms that it does not have again stay in the session.
        """
        session = self._take(connection, id)
        session.rooms.update({name: position for name, position in positions.items() if name in session.rooms})
        self._unassign(connection)
        self._assign(connection, id)
        self._resuming[connection.id] = session
        self._presence.change_user(connection, session.user, declared=session.named)
        rooms: dict[str, Resumed] = {}
        known = positions.keys() & session.rooms.keys()
        while session.rooms:
            name, since = next(iter(session.rooms.items()))
            if self._may_join(connection, name):
                joined = await self._join(connection, name, since, held=name in session.held)
                rooms[name] = _resumed(joined, known=name in known)
            elif name in session.held:
                self._presence.vacate(session.user, name)
            del session.rooms[name]
            session.held.discard(name)
        self._resuming.pop(connection.id, None)
        return rooms

    def _take(self, connection: ConnectionDriver, id: str) -> Session:
        """The session, out of the hands of whoever has it. Raises Refused."""
        here = self._here.get(id)
        if here is connection:
            raise Refused("this session is the connection's own", code="invalid")
        if here is not None and here.cause is not None and not self._may_come_back(here):
            here = None  # it has ended already, and its connection is about to
        _until, away = self._away.get(id, (0.0, None))
        identity = here.identity if here is not None else away.identity if away is not None else None
        if identity is None:
            raise Refused("there is no such session, or not any more", code="unknown_session")
        if connection.identity is None or identity.user != connection.identity.user:
            raise Refused("this session is another user's")
        if here is not None:
            session = self._detach(here)
            here.close(Cause.TAKEN_OVER, flush=False)
            return session
        assert away is not None
        del self._away[id]
        self._held.pop(id, None)
        return away

    def _may_join(self, connection: ConnectionDriver, name: str) -> bool:
        assert connection.identity is not None
        full = len(connection.rooms) >= self._options.max_rooms and name not in connection.rooms
        return connection.identity.may_join(name) and not full

    async def _join(self, connection: ConnectionDriver, name: str, since: Position | None, *, held: bool) -> Joined:
        joined = self._recovery.join_nowait(connection, name, since, held=held)
        if joined is not None:
            return joined
        try:
            return await self._recovery.join(connection, name, since, held=held)
        except Refused:
            if connection.cause is not None:
                raise
            # Its history cannot be read now: what comes from here on can be had all the same.
            return Joined(self._presence.join(connection, name, reserved=held), None, False)


def _resumed(joined: Joined, *, known: bool) -> Resumed:
    """Without a position of the client's own nobody knows what it had got of what was written to it."""
    place: dict[str, Any] = (
        {} if joined.position is None else {"epoch": joined.position.epoch, "offset": joined.position.offset}
    )
    return Resumed(recovered=known and bool(joined.recovered), online_count=len(joined.room.users), **place)
