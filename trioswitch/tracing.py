"""Why did it not arrive? What becomes of each message at each receiver, while somebody asks.

A *trace* follows the connections of a user, or the members of a room. Whoever wants to know polls it; a trace that nobody has
polled for 10 seconds ends. A connection that is followed has a tap in its outbox, and takes the way through its flusher, where
every message can be seen. Other connections are not touched.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import attrs
import trio
from msgspec import UNSET

from ._util.clock import timestamp
from ._util.wakeup import Wakeup
from .config import Options
from .connections.directory import ConnectionDirectory
from .connections.driver import ConnectionDriver
from .metrics import Drop
from .rooms.directory import RoomDirectory
from .rooms.presence import Presence
from .wire.messages import Gap
from .wire.prepared import Prepared
from .wire.windows import QueuedMessage

__all__ = ["Tracing"]

TRACE_TIME: Final = 10.0
"""Seconds after the last poll that a trace ends."""
MAX_TRACES: Final = 8
"""On each node."""
YIELD_EVERY: Final = 100
"""Connections after which other tasks run."""
MAX_EVENTS: Final = 2000
"""Events that a trace holds between two polls; what comes beyond is counted."""
_POLICY: Final = frozenset({Drop.OVERFLOW, Drop.RESYNC, Drop.CONFLATED, Drop.BLOCK_TIMEOUT})
"""Causes for which the room's overflow policy has decided."""


@attrs.define(eq=False)
class _Trace:
    user: str | None
    room: str | None
    ends_at: float
    events: deque[dict[str, Any]] = attrs.field(factory=deque)
    missed: int = 0

    def follows(self, connection: ConnectionDriver) -> bool:
        return connection.user == self.user if self.user is not None else self.room in connection.rooms

    def add(self, event: dict[str, Any]) -> None:
        if len(self.events) < MAX_EVENTS:
            self.events.append(event)
        else:
            self.missed += 1


class _Tap:
    """Implements `connections.account.Tap`."""

    def __init__(self, connection: ConnectionDriver, options: Options) -> None:
        self.traces: list[_Trace] = []
        self.rooms: set[str] = set()
        """As they were when it was last looked at."""
        self._connection = connection
        self._options = options

    def tell(self, what: str, room: str | None, **facts: Any) -> None:
        event = {
            "at": timestamp(),
            "connection": self._connection.id,
            "user": self._connection.user,
            "what": what,
            **({} if room is None else {"room": room}),
            **facts,
        }
        for trace in self.traces:
            if trace.room is None or trace.room == room:
                trace.add(event)

    def queued(self, entries: Sequence[QueuedMessage]) -> None:
        for entry in entries:
            self.tell("queued", entry.message.room, message=_describe(entry.message))

    def written(self, entries: Sequence[QueuedMessage]) -> None:
        now = trio.current_time()
        for entry in entries:
            waited = round(now - entry.queued_at, 6)
            self.tell("written", entry.message.room, message=_describe(entry.message), waited=waited)

    def dropped(self, messages: Sequence[Prepared], cause: Drop) -> None:
        for message in messages:
            facts: dict[str, Any] = {"message": _describe(message), "cause": cause.value}
            if cause in _POLICY:
                room = message.room
                overflow = self._options.direct_overflow if room is None else self._options.policy(room).overflow
                facts["policy"] = overflow.value
            self.tell("dropped", message.room, **facts)

    def told(self, gaps: Sequence[Gap]) -> None:
        for gap in gaps:
            facts = {"dropped": gap.dropped, "from": gap.start, "to": gap.to}
            known = {name: value for name, value in facts.items() if value is not UNSET}
            self.tell("gap", gap.room if isinstance(gap.room, str) else None, **known)


class Tracing:
    """The traces of one node. `run` is its task."""

    def __init__(
        self, connections: ConnectionDirectory, rooms: RoomDirectory, presence: Presence, options: Options
    ) -> None:
        self._connections = connections
        self._rooms = rooms
        self._options = options
        self._traces: dict[str, _Trace] = {}
        self._taps: dict[str, _Tap] = {}  # by connection
        self._begun = Wakeup()
        connections.on_added(self._added)
        presence.on_connection(self._look)

    async def poll(self, trace: str, user: str | None, room: str | None) -> dict[str, Any]:
        """Begin a trace, or go on with it: what has happened since the last poll, and how many connections it follows.

        `missed` is how many events it could not hold. Raises ValueError when there are too many traces. Safe to cancel.
        """
        await trio.lowlevel.checkpoint()
        found = self._traces.get(trace)
        if found is None or (found.user, found.room) != (user, room):
            if found is None and len(self._traces) >= MAX_TRACES:
                raise ValueError(f"there are {MAX_TRACES} traces already")
            found = self._traces[trace] = _Trace(user, room, trio.current_time() + TRACE_TIME)
            self._begun.notify()
            await self._look_at(self._tapped())  # some may be followed no more
            await self._look_at(self._followed_by(found), begins=True)
        for gone in set(self._taps).difference(self._connections.ids):
            del self._taps[gone]
        found.ends_at = trio.current_time() + TRACE_TIME
        events, missed = list(found.events), found.missed
        found.events.clear()
        found.missed = 0
        return {
            "events": events,
            "missed": missed,
            "connections": sum([found in tap.traces for tap in self._taps.values()]),
        }

    def _tapped(self) -> list[ConnectionDriver]:
        return self._connections.find(list(self._taps))

    def _followed_by(self, trace: _Trace) -> list[ConnectionDriver]:
        if trace.user is not None:
            return list(self._connections.of_user(trace.user))
        room = self._rooms.get(trace.room or "")
        return [] if room is None else self._connections.find(room.membership.members)

    async def _look_at(self, connections: list[ConnectionDriver], *, begins: bool = False) -> None:
        for number, connection in enumerate(connections, 1):
            if connection.cause is None:  # else it was closed meanwhile
                self._look(connection, begins=begins)
            if not number % YIELD_EVERY:
                await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        """The task that ends traces."""
        while True:
            while not self._traces:
                await self._begun.wait()
            await trio.sleep_until(min([trace.ends_at for trace in self._traces.values()]))
            now = trio.current_time()
            ended = [name for name, trace in self._traces.items() if trace.ends_at <= now]
            for name in ended:
                del self._traces[name]
            if ended:
                await self._look_at(self._tapped())
            if not self._traces:
                self._taps.clear()  # of connections that have ended

    def _added(self, connection: ConnectionDriver) -> None:
        if self._traces:
            self._look(connection)
            if tap := self._taps.get(connection.id):
                tap.tell("connected", None)

    def _look(self, connection: ConnectionDriver, *, begins: bool = False) -> None:
        """See which traces follow a connection, and what has changed for those that do or did.

        With `begins`, its rooms are nothing new.
        """
        if not self._traces and not self._taps:
            return
        traces = [trace for trace in self._traces.values() if trace.follows(connection)]
        tap = self._taps.get(connection.id)
        if tap is None:
            if not traces:
                return
            tap = self._taps[connection.id] = _Tap(connection, self._options)
            tap.rooms = set(connection.rooms) if begins else set()
        rooms, before = set(connection.rooms), tap.rooms
        tap.traces, tap.rooms = [*tap.traces, *[trace for trace in traces if trace not in tap.traces]], rooms
        for room in sorted(rooms - before):
            tap.tell("joined", room)
        for room in sorted(before - rooms):
            tap.tell("left", room)
        tap.traces = traces
        connection.outbox.follow(tap if traces else None)
        if not traces:
            del self._taps[connection.id]


def _describe(message: Prepared) -> dict[str, Any]:
    """What tells a message from others, and nothing of what it says."""
    event: Any = message.event
    found = {"type": event.type}
    if message.size:  # an answer has none
        found["bytes"] = message.size
    for name, attribute in (
        ("from", "user_id"),
        ("offset", "offset"),
        ("seq", "seq"),
        ("key", "key"),
        ("published", "timestamp"),
    ):
        value = getattr(event, attribute, UNSET)
        if value is not UNSET and value not in (None, ""):
            found[name] = value
    return found
