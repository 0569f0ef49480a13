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
from ..connections.connection import Connection
from ..errors import Cause, Refused
from ..rooms.registry import Registry
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

    def __init__(self, registry: Registry, recovery: Recovery) -> None:
        self._registry = registry
        self._recovery = recovery
        self._here: dict[str, Connection] = {}
        # In order of time, as all are away, or held, for equally long.
        self._away: OrderedDict[str, tuple[float, Session]] = OrderedDict()
        self._held: OrderedDict[str, tuple[float, Session]] = OrderedDict()
        self._work = trio.Event()

    def begin(self, connection: Connection) -> None:
        connection.session = token_urlsafe(16)
        self._here[connection.session] = connection

    # --- going

    def end(self, connection: Connection) -> None:
        """The connection is over: its client leaves, or its session is kept. The registry forgets it."""
        registry = self._registry
        if self._here.get(connection.session) is connection:
            del self._here[connection.session]
        if self._may_come_back(connection):
            self._keep(self._detach(connection))
        else:
            if connection.resuming is not None:
                self._vacate(connection.resuming)
            for name in list(connection.rooms):
                registry.leave(connection, name)
        registry.remove(connection)

    def _may_come_back(self, connection: Connection) -> bool:
        cause = connection.cause
        if cause is None or cause is Cause.CLIENT_LEFT or cause.code >= LAST_INVITATION or self._registry.draining:
            return False
        something = connection.rooms or connection.resuming is not None or connection.user != connection.id
        return bool(connection.session and connection.identity and something and self._registry.options.session_time)

    def _detach(self, connection: Connection) -> Session:
        """Take its session from a connection: it is in no room any more, and its places are held."""
        registry = self._registry
        assert connection.identity is not None
        rooms: dict[str, Position | None] = {}
        for name in connection.rooms:
            history = registry.rooms[name].history
            rooms[name] = history.position if history is not None else None
        session = Session(
            connection.session, connection.user, connection.identity, rooms, set(connection.rooms), connection.named
        )
        registry.hold(connection)
        connection.rooms.clear()
        if connection.resuming is not None:  # it went before it had all of its rooms again
            session.rooms |= connection.resuming.rooms
            session.held |= connection.resuming.held
            connection.resuming = None
        return session

    def _keep(self, session: Session) -> None:
        options, now = self._registry.options, trio.current_time()
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
            self._registry.vacate(session.user, name)
        session.held.clear()

    # --- coming back

    async def resume(self, connection: Connection, id: str, positions: dict[str, Position]) -> dict[str, Resumed]:
        """Give a connection the session of this id: its user, its rooms and what was missed. Returns what became of each.

        Raises Refused. When it is cancelled, the rooms that it does not have again stay in the session.
        """
        session = self._take(connection, id)
        session.rooms.update({name: position for name, position in positions.items() if name in session.rooms})
        self._here.pop(connection.session, None)
        connection.session = id
        self._here[id] = connection
        connection.resuming = session
        self._registry.rename(connection, session.user)
        connection.named = session.named
        rooms: dict[str, Resumed] = {}
        known = positions.keys() & session.rooms.keys()
        while session.rooms:
            name, since = next(iter(session.rooms.items()))
            if self._may_join(connection, name):
                joined = await self._join(connection, name, since, held=name in session.held)
                rooms[name] = _resumed(joined, known=name in known)
            elif name in session.held:
                self._registry.vacate(session.user, name)
            del session.rooms[name]
            session.held.discard(name)
        connection.resuming = None
        return rooms

    def _take(self, connection: Connection, id: str) -> Session:
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
            here.session = ""
            here.close(Cause.TAKEN_OVER, flush=False)
            return session
        assert away is not None
        del self._away[id]
        self._held.pop(id, None)
        return away

    def _may_join(self, connection: Connection, name: str) -> bool:
        assert connection.identity is not None
        full = len(connection.rooms) >= self._registry.options.max_rooms and name not in connection.rooms
        return connection.identity.may_join(name) and not full

    async def _join(self, connection: Connection, name: str, since: Position | None, *, held: bool) -> Joined:
        joined = self._recovery.join_nowait(connection, name, since, held=held)
        if joined is not None:
            return joined
        try:
            return await self._recovery.join(connection, name, since, held=held)
        except Refused:
            if connection.cause is not None:
                raise
            # Its history cannot be read now: what comes from here on can be had all the same.
            return Joined(self._registry.join(connection, name, held=held), None, False)


def _resumed(joined: Joined, *, known: bool) -> Resumed:
    """Without a position of the client's own nobody knows what it had got of what was written to it."""
    place: dict[str, Any] = (
        {} if joined.position is None else {"epoch": joined.position.epoch, "offset": joined.position.offset}
    )
    return Resumed(recovered=known and bool(joined.recovered), online_count=len(joined.room.users), **place)
