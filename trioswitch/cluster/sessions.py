"""Sessions across nodes: a client may come back to any node, also when its own is dead.

Each node saves its sessions in the store, a moment after they have changed. When a client resumes a session that another node
has, this node asks that one for it; if that node is dead, or does not answer, what was saved is taken. A client whose node was
killed may thus find that a room is missing which it had joined in the last moment: the answer to `resume` names its rooms.
"""

from secrets import token_urlsafe
from typing import Final

import attrs
import msgspec
import trio

from .._util import clock
from .._util.expiry import DueQueue
from .._util.wakeup import Wakeup
from ..durability.sessions import PortableSession, Sessions
from ..durability.store_health import StoreHealth
from ..errors import BrokerError, StoreError
from ..stores.port import SavedSession, Store
from .link import Link
from .messages import Take, Taken, node_topic
from .roster import Roster

__all__ = ["ClusterSessions"]

SAVE_INTERVAL: Final = 0.25
"""Seconds in which changes gather that are saved together."""
SAVE_BATCH: Final = 1000
CONNECTED_TIME: Final = 1800.0
"""Seconds that the session of a connected client is kept in the store, unless it is saved again: half of it later, it is."""
TAKE_TIMEOUT: Final = 2.0
"""Seconds in which the node that has a session must hand it over."""


class _Record(msgspec.Struct, array_like=True):
    node: str
    session: PortableSession


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Record).decode
_decode_session: Final = msgspec.msgpack.Decoder(PortableSession | None).decode


@attrs.define(eq=False)
class _Question:
    answered: trio.Event = attrs.field(factory=trio.Event)
    session: PortableSession | None = None

    def sent(self, _error: BrokerError | None, receivers: int | None) -> None:
        """The node that was asked does not listen: it is dead, though it was not silent for long enough yet."""
        if receivers == 0:
            self.answered.set()


class ClusterSessions:
    """Implements `durability.sessions.OtherNodes`. `run` is its task."""

    def __init__(self, link: Link, roster: Roster, store: Store, health: StoreHealth, session_time: float) -> None:
        self._link = link
        self._roster = roster
        self._store = store
        self._health = health
        self._session_time = session_time
        self._sessions: Sessions | None = None
        self._changed: dict[str, None] = {}
        self._saved: DueQueue[str, None] = DueQueue()  # connected sessions, until they are to be saved again
        self._to_save = Wakeup()
        self._questions: dict[int, _Question] = {}
        self._last_question = 0
        link.on("node", Take, self._on_take)
        link.on("node", Taken, self._on_taken)

    def new_id(self) -> str:
        """An id for a session that begins here: it says where."""
        return f"{self._link.node}.{token_urlsafe(16)}"

    def serve(self, sessions: Sessions) -> None:
        """These are the sessions of this node."""
        self._sessions = sessions

    # --- saving

    def changed(self, id: str) -> None:
        """A session has another user or other rooms, its client has come or gone, or it has ended."""
        self._changed[id] = None
        self._to_save.notify()

    async def run(self) -> None:
        """The task that saves what has changed."""
        while True:
            with trio.move_on_at(self._saved.next_due()):
                while not self._changed:
                    await self._to_save.wait()
            for id, _ in self._saved.pop_due(trio.current_time()):
                self._changed[id] = None
            await trio.sleep(SAVE_INTERVAL)
            await self.flush()

    async def flush(self) -> None:
        """Save everything, if the store works. Safe to cancel."""
        while self._changed and await self._save():
            pass

    async def _save(self) -> bool:
        changed = list(self._changed)[:SAVE_BATCH]
        sessions = [self._saved_session(id) for id in changed]
        for id in changed:
            del self._changed[id]
        try:
            await self._store.save_sessions(sessions)
        except StoreError as error:
            self._changed = dict.fromkeys(changed) | self._changed
            self._health.failed(error, "saving sessions")
            return False
        except trio.Cancelled:
            self._changed = dict.fromkeys(changed) | self._changed
            raise
        self._health.works("saving sessions")
        return True

    def _saved_session(self, id: str) -> SavedSession:
        assert self._sessions is not None
        now = trio.current_time()
        found = self._sessions.portable(id)
        self._saved.remove(id)
        if found is None:
            return SavedSession(id, None, 0.0)
        session, connected = found
        if connected:
            self._saved.add(id, None, now + CONNECTED_TIME / 2)
        expires_at = clock.to_wall(now + (CONNECTED_TIME if connected else self._session_time))
        return SavedSession(id, _encode(_Record(self._link.node, session)), expires_at)

    # --- taking over

    async def take(self, id: str, user: str | None) -> PortableSession | None:
        """The session, out of the hands of the node that has it, if it belongs to the same user of an identity, or to none.

        Raises StoreError. Not safe to cancel: the session may be lost then.
        """
        saved = await self._store.load_session(id, clock.wall_time())
        record = None if saved is None else _decode(saved)
        if record is not None and record.session.identity != user:
            return record.session  # the caller refuses it
        session = None
        for node in dict.fromkeys([*([] if record is None else [record.node]), id.partition(".")[0]]):
            if session is None and node in self._roster.others:
                session = await self._ask(node, id, user)
        if session is None:
            taken = await self._store.take_session(id, clock.wall_time())
            session = None if taken is None else _decode(taken).session
        if session is not None:  # at once, so that whoever is next asks this node
            expires_at = clock.wall_time() + CONNECTED_TIME
            await self._store.save_sessions([SavedSession(id, _encode(_Record(self._link.node, session)), expires_at)])
        return session

    async def _ask(self, node: str, id: str, user: str | None) -> PortableSession | None:
        self._last_question += 1
        number, question = self._last_question, _Question()
        self._questions[number] = question
        self._link.send(node_topic(node), Take(number, id, user), question.sent)
        try:
            with trio.move_on_after(TAKE_TIMEOUT):
                await question.answered.wait()
        finally:
            del self._questions[number]
        return question.session

    def _on_take(self, node: str, _topic: str, take: Take) -> None:
        assert self._sessions is not None
        session = self._sessions.give(take.session, take.user)
        self._link.send(node_topic(node), Taken(take.question, _encode(session)))

    def _on_taken(self, _node: str, _topic: str, taken: Taken) -> None:
        question = self._questions.get(taken.question)
        if question is not None:
            question.session = _decode_session(taken.payload)
            question.answered.set()
