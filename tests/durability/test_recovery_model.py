"""History, recovery, sessions, the inbox and presence against a model that is simple enough to be believed.

Hypothesis makes a setting and a program: clients come, go, read or not, publish, ask; time passes, the server is started
again on the same store. The clients follow the protocol page: they drop doubles by offset and fetch gaps from the history.
`World` carries a program out and knows what has to come of it.

What is checked, as it happens and when everybody has caught up:

- a position always has the same message, and a message one position, however often its publisher tries again;
- a client that joined once on a connection gets rising offsets, each once;
- a client has everything since it first joined, or was told exactly what is lost; `recovered` is true when, and only when,
  nothing was;
- what was acknowledged for a stored room is in its history, before and after a restart, in the bounds of size, age and expiry;
- an inbox message comes in order of `seq` on every new connection until it is acknowledged, and not after;
- who is in a room, and for how long after the connection was lost; each join and leave of a user is announced once;
- nothing is left of anybody when all have gone.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any, Final
from unittest.mock import patch

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from links import Link
from support import settled
from trio.testing import MockClock

import trioswitch
from trioswitch import ConnectRequest, Identity, InboxFull, Options, Overflow, Position, RoomPolicy, StoreError, Switch
from trioswitch.stores.memory import MemoryStore
from trioswitch.stores.port import (
    UNLIMITED,
    Append,
    Appended,
    HistoryRecords,
    InboxLimits,
    InboxMessage,
    InboxResult,
    StoredInboxMessage,
)
from trioswitch.wire.messages import DirectMessage, Message, thawed
from trioswitch.wire.records import decode_record

pytestmark = pytest.mark.slow

WALL: Final = 1_700_000_000.0
GRACE, SESSION = 10.0, 120.0
USERS: Final = ("ann", "ann", "bob")
"""Who the clients are: two of them are one user's."""
ROOMS: Final = ("none", "memory", "stored")
INBOX: Final = 6

Fields = dict[str, Any]

# --- programs


@attrs.frozen
class Setting:
    overflow: Overflow
    size: int
    age: float | None
    announce: bool
    outbox: int
    store_time: float
    """Seconds that the store takes: what is in flight then is what makes it hard."""
    direct: bool


@attrs.frozen
class Come:
    """Come (back): resume, or join the rooms again. The position given is the right one, except in `odd`."""

    who: int
    how: str
    odd: str | None
    what: str


@attrs.frozen
class Go:
    who: int
    how: str


@attrs.frozen
class Join:
    who: int
    room: str
    since: str


@attrs.frozen
class Leave:
    who: int
    room: str


@attrs.frozen
class Pause:
    who: int
    capacity: int


@attrs.frozen
class Read:
    who: int


@attrs.frozen
class Publish:
    who: int | None
    room: str
    count: int
    expires: float | None
    priority: int
    key: str | None
    exclude_self: bool
    idempotency: str | None


@attrs.frozen
class Look:
    who: int
    room: str
    since: str
    limit: int


@attrs.frozen
class Send:
    who: int | None
    to: str
    count: int
    expires: float | None
    idempotency: str | None


@attrs.frozen
class Acknowledge:
    who: int
    everything: bool


@attrs.frozen
class Pass:
    seconds: float


@attrs.frozen
class Restart:
    pass


Step = Come | Go | Join | Leave | Pause | Read | Publish | Look | Send | Acknowledge | Pass | Restart

WHO = st.integers(0, len(USERS) - 1)
ROOM = st.sampled_from(("memory", "stored", "memory", "stored", "none"))
KEPT = st.sampled_from(("memory", "stored"))
SINCE = st.sampled_from(("right", "none", "old", "future", "foreign", "history 2", "history 50"))
EXPIRES = st.sampled_from((None, None, None, 0.0, 3.0, 60.0))
RETRIES = st.sampled_from((None, None, "a", "b"))

SETTINGS = st.builds(
    Setting,
    overflow=st.sampled_from(Overflow),
    size=st.sampled_from((3, 5, 100)),
    age=st.sampled_from((None, None, 30.0)),
    announce=st.booleans(),
    outbox=st.sampled_from((2, 5, 12, 1000)),
    store_time=st.sampled_from((0.0, 0.2)),
    direct=st.booleans(),
)
PUBLISH = st.builds(
    Publish,
    who=st.none() | WHO,
    room=ROOM,
    count=st.integers(1, 9),
    expires=EXPIRES,
    priority=st.sampled_from((0, 0, 3, 7)),
    key=st.sampled_from((None, None, "k")),
    exclude_self=st.booleans(),
    idempotency=RETRIES,
)
COME = st.builds(
    Come, who=WHO, how=st.sampled_from(("resume", "resume", "unnamed", "join")), odd=st.none() | KEPT, what=SINCE
)
GO = st.builds(Go, who=WHO, how=st.sampled_from(("goodbye", "away", "vanish", "vanish")))
JOIN = st.builds(Join, who=WHO, room=ROOM, since=SINCE)
LEAVE = st.builds(Leave, who=WHO, room=ROOM)
PAUSE = st.builds(Pause, who=WHO, capacity=st.sampled_from((0, 10, 400)))
READ = st.builds(Read, who=WHO)
LOOK = st.builds(Look, who=WHO, room=KEPT, since=SINCE, limit=st.sampled_from((1, 3, 100)))
PASS = st.builds(Pass, seconds=st.sampled_from((0.1, 0.1, 0.1, 1.1, 4.0, 9.0, 11.0)))
PASS_LONG = st.builds(Pass, seconds=st.sampled_from((35.0, 125.0, 700.0)))
SEND = st.builds(
    Send,
    who=st.none() | WHO,
    to=st.sampled_from(("ann", "bob")),
    count=st.integers(1, 4),
    expires=EXPIRES,
    idempotency=RETRIES,
)
ACKNOWLEDGE = st.builds(Acknowledge, who=WHO, everything=st.booleans())
NOTHING = st.just(Pass(0.0))
"""What steps shrink to."""
RESTART = st.builds(Restart)


def programs(*weighted: tuple[int, st.SearchStrategy[Step]]) -> st.SearchStrategy[list[Step]]:
    steps = [NOTHING, *(step for weight, step in weighted for _ in range(weight))]
    return st.lists(st.sampled_from(steps).flatmap(lambda step: step), min_size=20, max_size=30)


COMMON: tuple[tuple[int, st.SearchStrategy[Step]], ...] = (
    (5, COME), (4, GO), (7, PAUSE), (3, READ), (5, PASS), (2, PASS_LONG), (1, RESTART)
)  # fmt: skip
RECOVERY = programs((14, PUBLISH), (3, JOIN), (2, LEAVE), (3, LOOK), *COMMON)
LETTERS = programs((12, SEND), (4, ACKNOWLEDGE), *COMMON)
ARRIVE: Final[list[Step]] = [Come(who, "join", None, "right") for who in range(len(USERS))]

# --- what is true


@attrs.define(eq=False)
class Published:
    """A message, identified by its data. Of a retry, too: it is the same one."""

    number: int
    room: str
    at: float
    key: str | None
    expires: float | None
    first_expiry: float = inf
    last_expiry: float = -inf
    excluded: set[str] = attrs.field(factory=set)
    epochs: set[str] = attrs.field(factory=set)
    """In which somebody was told that it was published now."""

    @property
    def is_new(self) -> bool:
        """Whether its key is remembered for certain. A client that does not read may have its retries read later."""
        return trio.current_time() - self.at < 590

    def tried(self, now: float) -> None:
        expiry = inf if self.expires is None else now + self.expires
        self.first_expiry, self.last_expiry = min(self.first_expiry, expiry), max(self.last_expiry, expiry)

    def tried_by(self, wire: "Wire", now: float, *, excluded: bool) -> None:
        """By a client: it is not known when the server reads it."""
        self.tried(now)
        self.last_expiry = inf
        if excluded:
            self.excluded.add(wire.id)


@attrs.define(eq=False)
class Log:
    """What a room had, by epoch and offset."""

    published: dict[int, Published]
    numbers: dict[tuple[str, int], int] = attrs.field(factory=dict)
    offsets: dict[tuple[str, int], int] = attrs.field(factory=dict)

    def learn(self, epoch: str, offset: int, number: int) -> None:
        assert self.numbers.setdefault((epoch, offset), number) == number, "a position has two messages"
        known = self.offsets.setdefault((epoch, number), offset)
        assert known == offset or not self.published[number].is_new, "a message has two positions"

    def last(self, epoch: str) -> int:
        return max((offset for of, offset in self.numbers if of == epoch), default=0)


class Ledger(MemoryStore):
    """A store that takes its time, and tells the model what it has committed. It survives restarts."""

    durable = True

    def __init__(self, log: Log, seconds: float) -> None:
        super().__init__()
        self.log = log
        self.seconds = seconds
        self.inbox_of: dict[str, dict[int, int]] = defaultdict(dict)

    async def append(self, appends: Sequence[Append], *, total_bytes: int = UNLIMITED) -> list[Appended]:
        await trio.sleep(self.seconds)
        appended = await super().append(appends)
        for append, place in zip(appends, appended, strict=True):
            event = thawed(decode_record(append.payload))
            assert isinstance(event, Message)
            if append.room == "stored":
                self.log.learn(place.epoch, place.offset, event.data)
        await trio.sleep(self.seconds)
        return appended

    async def add_to_inboxes(self, inbox_messages: Sequence[InboxMessage], *, limits: InboxLimits) -> list[InboxResult]:
        await trio.sleep(self.seconds)
        posted = await super().add_to_inboxes(inbox_messages, limits=limits)
        for inbox_message, place in zip(inbox_messages, posted, strict=True):
            event = thawed(decode_record(inbox_message.payload))
            assert isinstance(event, DirectMessage)
            kept = self.inbox_of[inbox_message.user]
            if place.seq and not place.duplicate:
                twice = event.data in kept.values()
                assert not (twice and self.log.published[event.data].is_new), "a letter was kept twice"
                kept[place.seq] = event.data
            elif place.duplicate:
                assert kept[place.seq] == event.data
        await trio.sleep(self.seconds)
        return posted

    async def read(self, room: str, *, after: int, limit: int, max_bytes: int, now: float) -> HistoryRecords:
        await trio.sleep(self.seconds / 2)
        return await super().read(room, after=after, limit=limit, max_bytes=max_bytes, now=now)

    async def inbox_messages(
        self, user: str, *, after: int, limit: int, max_bytes: int, now: float
    ) -> list[StoredInboxMessage]:
        inbox_messages = await super().read_inbox(user, after=after, limit=limit, max_bytes=max_bytes, now=now)
        await trio.sleep(self.seconds / 2)
        return inbox_messages


# --- what a client knows


@attrs.define(eq=False)
class View:
    """A client's view of a room: it is owed everything above `base`."""

    epoch: str
    base: int
    member: bool = True


@attrs.define(eq=False)
class Wire:
    """One connection of a client."""

    link: Link
    user: str
    opened_after: int
    """Inbox messages up to here had been acknowledged when it was opened."""
    id: str = ""
    session: str = ""
    goodbye: bool = False
    replays: Counter[str] = attrs.field(factory=Counter)
    newest: dict[str, int] = attrs.field(factory=dict)
    times: Counter[tuple[str, str, int]] = attrs.field(factory=Counter)
    seq: int = 0
    surely: set[str] = attrs.field(factory=set)
    """Rooms that it is in."""
    maybe: set[str] = attrs.field(factory=set)
    """Rooms that it may be in, or not: the answer has not come."""
    announced: dict[tuple[str, str], str] = attrs.field(factory=dict)
    """What was said last of a user in a room."""
    deaf: set[str] = attrs.field(factory=set)
    """Rooms of which it has missed announcements."""
    was_paused: bool = False
    gone: bool = False


@attrs.define(eq=False)
class Actor:
    """A client that follows the protocol page."""

    number: int
    user: str
    wire: Wire | None = None
    sessions_id: str = ""
    paused: bool = False
    views: dict[str, View] = attrs.field(factory=dict)
    have: dict[tuple[str, str], set[int]] = attrs.field(factory=lambda: defaultdict(set))
    lost: dict[tuple[str, str], list[tuple[int, int]]] = attrs.field(factory=lambda: defaultdict(list))
    gaps: dict[tuple[str, str], list[tuple[int, int]]] = attrs.field(factory=lambda: defaultdict(list))
    unfetched: dict[tuple[str, str], list[tuple[int, int]]] = attrs.field(factory=lambda: defaultdict(list))
    """Gaps that a connection has told which is over."""
    notices: Counter[str] = attrs.field(factory=Counter)
    """How often a room's position was said to be gone altogether."""
    transient: dict[str, list[int]] = attrs.field(factory=lambda: defaultdict(list))
    ids: set[str] = attrs.field(factory=set)
    asked: dict[int, Callable[[Fields], None]] = attrs.field(factory=dict)
    seqs: set[int] = attrs.field(factory=set)

    def position(self, room: str) -> Position | None:
        """Up to where it has everything, or knows that it is lost."""
        view = self.views.get(room)
        if view is None or room == "none":
            return None
        place = (room, view.epoch)
        offset = max(self.have[place] | {view.base})
        for first, last in sorted(self.lost[place]):
            if first <= offset + 1:
                offset = max(offset, last)
        gaps = self.gaps[place] + self.unfetched[place]
        return Position(view.epoch, min([offset, *(first - 1 for first, _last in gaps)]))

    def begin_again(self, room: str, offset: int) -> None:
        """On a new connection everything above an offset is to come again, in order."""
        if (view := self.views.get(room)) is not None:
            place = (room, view.epoch)
            self.have[place] = {one for one in self.have[place] if one <= offset}
            self.unfetched.pop(place, None)


@attrs.frozen
class Held:
    """Places that are held, until some time between `sure` and `possible`."""

    session: str
    user: str
    surely: frozenset[str]
    maybe: frozenset[str]
    sure: float
    possible: float
    comes_back: float
    """Before this time the session can be resumed for certain."""
    over: float
    """From this time on it cannot."""


class World:
    """The server, its clients, and what is true."""

    def __init__(self, setting: Setting, nursery: trio.Nursery) -> None:
        self.setting = setting
        self.nursery = nursery
        self.published: dict[int, Published] = {}
        self.logs = {room: Log(self.published) for room in ROOMS}
        self.store = Ledger(self.logs["stored"], setting.store_time)
        self.options = Options(
            policies=tuple(
                RoomPolicy(
                    pattern=room,
                    history=room,
                    history_size=setting.size,
                    history_age=setting.age,
                    overflow=setting.overflow,
                    announce=setting.announce,
                )
                for room in ROOMS
            ),
            outbox_messages=setting.outbox,
            leave_grace=GRACE,
            session_time=SESSION,
            ping_interval=1e6,
            inbox_messages=INBOX,
        )
        self.actors = [Actor(number, user) for number, user in enumerate(USERS)]
        self.wires: list[Wire] = []
        self.held: list[Held] = []
        self.retries: dict[tuple[str, str, str, str], Published] = {}
        self.acknowledged = dict.fromkeys(USERS, 0)
        self.perhaps_acknowledged = dict.fromkeys(USERS, 0)
        self.numbers = iter(range(1, 1_000_000))
        self.questions = iter(range(1, 1_000_000))
        self.checked_at = trio.current_time()
        self.restarting = False
        self.busy = False

    # --- the server

    async def start(self) -> None:
        self.switch: Switch = await self.nursery.start(self._serve)

    async def _serve(self, task_status: trio.TaskStatus[Switch]) -> None:
        async def identify(request: ConnectRequest) -> Identity:
            return Identity(user=request.token)

        self.stop = trio.Event()
        self._stopped = trio.Event()
        async with trioswitch.open_switch(self.options, store=self.store, on_connect=identify) as switch:
            async with trio.open_nursery() as self._connections:
                task_status.started(switch)
                await self.stop.wait()
                self._connections.cancel_scope.cancel()
        self._stopped.set()

    async def restart(self) -> None:
        self.stop.set()
        await self._stopped.wait()
        for actor in self.actors:
            self.look(actor)
            self.lose(actor)
        self.wires.clear()
        self.held.clear()
        self.retries = {place: message for place, message in self.retries.items() if place[1] == "stored"}
        await self.start()

    # --- steps

    async def carry_out(self, step: Step) -> None:
        actor = self.actors[step.who] if not isinstance(step, Pass | Restart) and step.who is not None else None
        match step, actor:
            case Pass(seconds=seconds), _:
                await trio.sleep(seconds)
            case Restart(), _:
                await self.restart()
            case Come(), Actor():
                await self.come(actor, step)
            case Publish(), None:
                for _ in range(step.count):
                    self.nursery.start_soon(self.publish, self.new(step), step)
            case Send(), None:
                for _ in range(step.count):
                    self.nursery.start_soon(self.send, self.new(step), step)
            case _, Actor(wire=Wire()):
                self.command(actor, step)
        await self.observe()

    def command(self, actor: Actor, step: Step) -> None:
        wire = actor.wire
        assert wire is not None
        match step:
            case Go(how=how):
                wire.goodbye = how == "goodbye"
                if how == "vanish":
                    wire.link.vanish()
                else:
                    wire.link.close(1000 if how == "goodbye" else 1001)
                self.lose(actor)
            case Join(room=room, since=since):
                self.join(actor, room, since)
            case Leave(room=room):
                self.leave(actor, room)
            case Pause(capacity=capacity):
                actor.paused = wire.was_paused = True
                wire.link.pause(capacity)
            case Read():
                actor.paused = False
                wire.link.go_on()
            case Look(room=room, since=since, limit=limit):
                self.look_back(actor, room, self.since(actor, room, since), limit)
            case Acknowledge(everything=everything):
                self.acknowledge(actor, max(actor.seqs, default=0) if everything else 0)
            case Publish(room=room):
                for _ in range(step.count):
                    message = self.new(step)
                    message.tried_by(wire, trio.current_time(), excluded=step.exclude_self)
                    fields = {"expires": message.expires, "key": message.key, "priority": step.priority}
                    self.ask(
                        actor,
                        partial(self.receipt, message, trio.current_time()),
                        "message",
                        room=room,
                        data=message.number,
                        exclude_self=step.exclude_self,
                        idempotency_key=self.key(step),
                        **fields,
                    )
            case Send(to=to):
                for _ in range(step.count):
                    message = self.new(step)
                    message.tried_by(wire, trio.current_time(), excluded=False)
                    fields = {"expires": message.expires, "idempotency_key": self.key(step)}
                    self.ask(
                        actor, partial(self.sent, message, to), "direct_message", to=to, data=message.number, **fields
                    )

    # --- publishing

    def new(self, step: Publish | Send) -> Published:
        """The message of a step; of a retry, the first one."""
        place = self.retry_place(step)
        message = None if place is None else self.retries.get(place)
        if message is None or not message.is_new:
            number = next(self.numbers)
            room = step.room if isinstance(step, Publish) else f"to {step.to}"
            key = step.key if isinstance(step, Publish) else None
            message = self.published[number] = Published(number, room, trio.current_time(), key, step.expires)
            if place is not None:
                self.retries[place] = message
        return message

    @staticmethod
    def retry_place(step: Publish | Send) -> tuple[str, str, str, str] | None:
        """What a key belongs to: where it goes, and whose it is."""
        if step.idempotency is None:
            return None
        owner = "" if step.who is None else USERS[step.who]
        place = ("room", step.room) if isinstance(step, Publish) else ("user", step.to)
        return (*place, owner, step.idempotency)

    def key(self, step: Publish | Send) -> str | None:
        """The key on the wire names the message: after 10 minutes the short one stands for another message."""
        place = self.retry_place(step)
        return None if place is None else f"{step.idempotency}-{self.retries[place].number}"

    async def publish(self, message: Published, step: Publish) -> None:
        sent = trio.current_time()
        message.tried(sent)
        try:
            receipt = await self.switch.publish(
                step.room,
                message.number,
                priority=step.priority,
                expires=message.expires,
                key=message.key,
                idempotency_key=self.key(step),
            )
        except StoreError:
            assert self._stopped.is_set() or self.stop.is_set()
        else:
            if receipt.offset is not None:
                fields = {"offset": receipt.offset, "epoch": receipt.epoch, "duplicate": receipt.duplicate}
                self.receipt(message, sent, {"type": "ack", **fields})

    def receipt(self, message: Published, asked: float, answer: Fields) -> None:
        if answer["type"] == "error":
            assert answer["code"] == "not_joined", answer
            return
        if "offset" not in answer:
            assert message.room == "none" or message.first_expiry <= trio.current_time(), answer
            return
        assert message.room != "none"
        if message.room == "stored":
            assert self.logs["stored"].numbers[answer["epoch"], answer["offset"]] == message.number
        self.logs[message.room].learn(answer["epoch"], answer["offset"], message.number)
        if not answer.get("duplicate"):
            assert answer["epoch"] not in message.epochs or not message.is_new, "it was published twice"
            message.epochs.add(answer["epoch"])

    async def send(self, message: Published, step: Send) -> None:
        message.tried(trio.current_time())
        try:
            receipt = await self.switch.send_to_user(
                step.to, message.number, expires=message.expires, idempotency_key=self.key(step)
            )
        except InboxFull:
            return  # nothing was kept
        except StoreError:
            assert self.stop.is_set()
        else:
            if receipt.kept:
                self.sent(message, step.to, {"type": "ack", "kept": receipt.kept, "seq": receipt.seq})

    def sent(self, message: Published, to: str, answer: Fields) -> None:
        if answer["type"] == "error":
            assert answer["code"] == "inbox_full"
        elif answer.get("kept"):
            assert self.store.inbox_of[to][answer["seq"]] == message.number

    # --- coming and going

    def ask(self, actor: Actor, then: Callable[[Fields], None], type: str, **fields: Any) -> None:
        assert actor.wire is not None
        question = next(self.questions)
        actor.asked[question] = then
        actor.wire.link.send(type, id=question, **{name: value for name, value in fields.items() if value is not None})

    async def come(self, actor: Actor, step: Come) -> None:
        """Open a connection; the one before is left as it is."""
        session = actor.wire.session if actor.wire is not None else actor.sessions_id
        takes_over = actor.wire
        if takes_over is not None:
            if step.how == "join":
                return
            self.lose(actor)
        link = Link.open(self.switch, self._connections, f"/ws?token={actor.user}", direct=self.setting.direct)
        wire = actor.wire = Wire(link, actor.user, self.acknowledged[actor.user])
        actor.paused = False
        self.wires.append(wire)
        await settled()
        self.look(actor)
        assert wire.id
        actor.sessions_id = wire.session
        if step.how == "join" or not session:
            self.join_again(actor, step)
        else:
            self.resume(actor, step, session)

    def join_again(self, actor: Actor, step: Come) -> None:
        for room in ROOMS:
            if room not in actor.views or actor.views[room].member:
                self.join(actor, room, step.what if room == step.odd else "right")

    def resume(self, actor: Actor, step: Come, session: str) -> None:
        wire = actor.wire
        assert wire is not None
        sinces = {room: self.since(actor, room, step.what if room == step.odd else "right") for room in ROOMS}
        positions = {room: attrs.asdict(since) for room, since in sinces.items() if since is not None}
        if step.how == "unnamed":
            positions, sinces = {}, {}
            actor.views.clear()  # where it was is for the server to know
        for room, since in sinces.items():
            if since is not None:
                actor.begin_again(room, since.offset if self.is_known(actor, room, since) else 0)
        marks = {room: self.mark(actor, room) for room in ROOMS}
        wire.replays.update(ROOMS)
        wire.maybe |= set(ROOMS)
        now = trio.current_time()
        owner = next((other for other in self.wires if other.session == session), None)
        kept = [held for held in self.held if held.session == session]
        there = (
            owner is not None
            and owner.id in self.switch.connections()
            and not owner.goodbye
            and owner.link.closed is None
        )
        # Until it is answered, nobody knows whose the places are. If it never is, the client tries again.
        if owner is not None:
            owner.surely, owner.maybe, owner.session = set(), owner.surely | owner.maybe, ""
        self.held = [
            attrs.evolve(held, surely=frozenset(), maybe=held.surely | held.maybe) if held in kept else held
            for held in self.held
        ]
        own, wire.session = wire.session, session

        def answered(answer: Fields) -> None:
            if answer["type"] == "error":
                assert answer["code"] == "unknown_session", answer
                assert not there or owner is None or owner.was_paused, "its connection was there"
                assert trio.current_time() >= min((held.comes_back for held in kept), default=-inf), "it was kept"
                wire.session = own
                wire.replays.subtract(ROOMS)
                wire.maybe.clear()
                self.join_again(actor, step)
                return
            # Perhaps the server has not read its goodbye yet, or has not done with closing it.
            closing = owner is not None and (owner.goodbye or owner.link.closed is not None)
            assert there or closing or now < max((held.over for held in kept), default=-inf), "this session was over"
            assert (answer["session"], answer["user_id"]) == (session, actor.user)
            self.held = [held for held in self.held if held.session != session]
            if owner is not None:
                owner.surely, owner.maybe, owner.gone = set(), set(), True
            wire.maybe.clear()
            for room, place in answer["rooms"].items():
                wire.surely.add(room)
                if (since := sinces.get(room)) is not None:
                    self.joined(actor, room, since, marks[room], step.what if room == step.odd else "right", place)
                elif room == "none":
                    actor.views[room] = View("", 0)
                else:
                    actor.views[room] = View(place["epoch"], place["offset"])
            for room, view in actor.views.items():
                if view.member and room not in answer["rooms"]:
                    self.join(actor, room, "right")

        self.ask(actor, answered, "resume", session=session, rooms=positions)

    def lose(self, actor: Actor) -> None:
        """The connection is over, for the client; it asks again for what was not answered or fetched."""
        if actor.wire is not None:
            actor.sessions_id = actor.wire.session
        actor.wire = None
        actor.asked.clear()
        for place, gaps in actor.gaps.items():
            actor.unfetched[place] += gaps
        actor.gaps.clear()

    # --- rooms

    def since(self, actor: Actor, room: str, what: str) -> Position | None:
        place = actor.position(room)
        if place is None or what == "none" or what.startswith("history"):
            return None
        if what == "old":
            return Position(place.epoch, max(0, place.offset - 4))
        if what == "future":
            return Position(place.epoch, place.offset + 50)
        return Position("foreign", place.offset) if what == "foreign" else place

    @staticmethod
    def is_known(actor: Actor, room: str, since: Position) -> bool:
        """Whether it names a position that the client has been at."""
        place = actor.position(room)
        return place is not None and place.epoch == since.epoch and place.offset >= since.offset

    def mark(self, actor: Actor, room: str) -> tuple[int, Fields]:
        told = {epoch: len(ranges) for (of, epoch), ranges in actor.lost.items() if of == room}
        return actor.notices[room], told

    def join(self, actor: Actor, room: str, what: str) -> None:
        wire = actor.wire
        assert wire is not None
        since = self.since(actor, room, what)
        newest = int(what.split()[1]) if what.startswith("history") else None
        mark = self.mark(actor, room)
        if not wire.replays[room]:
            actor.begin_again(room, since.offset if since is not None and self.is_known(actor, room, since) else 0)
        wire.replays[room] += 1
        wire.maybe.add(room)

        def answered(answer: Fields) -> None:
            assert answer["type"] == "ack", answer
            wire.maybe.discard(room)
            wire.surely.add(room)
            if since is not None:
                self.joined(actor, room, since, mark, what, answer)
            elif room == "none":
                actor.views[room] = View("", 0)
            else:
                assert "recovered" not in answer
                self.joined_anew(actor, room, newest, answer)

        place = None if since is None else attrs.asdict(since)
        self.ask(actor, answered, "join_room", room=room, since=place, history=newest)

    def joined_anew(self, actor: Actor, room: str, newest: int | None, answer: Fields) -> None:
        """Joined without a position: it is owed what comes from now on, and the newest messages that it asked for."""
        epoch, last = answer["epoch"], answer["offset"]
        base = last if newest is None else max(last - newest, self.kept_from(room, epoch, last))
        view = actor.views.get(room)
        if self.was_here(actor, room):
            base = last
        if not (view is not None and view.member and view.epoch == epoch and self.was_here(actor, room)):
            actor.views[room] = View(epoch, base)

    @staticmethod
    def was_here(actor: Actor, room: str) -> bool:
        """Whether it was in the room on this connection before: what came then mixes with what comes again."""
        return actor.wire is not None and actor.wire.replays[room] > 1

    def joined(
        self, actor: Actor, room: str, since: Position, mark: tuple[int, Fields], what: str, answer: Fields
    ) -> None:
        recovered, last = answer["recovered"], answer.get("offset", 0)
        if room == "none":
            assert not recovered
            actor.views[room] = View("", 0)
            return
        epoch = answer["epoch"]
        view = actor.views[room]
        told = actor.lost[room, epoch][mark[1].get(epoch, 0) :]
        noticed = actor.notices[room] > mark[0]
        if since.epoch == epoch or since == Position("", 0):
            assert what == "future" or since.offset <= last, "the client's position is beyond the end"
        if (since.epoch == epoch or since == Position("", 0)) and since.offset <= last:
            if since.offset >= self.kept_from(room, epoch, last):
                assert recovered, "it is all there"
            assert recovered == (not told), "what is lost is told, and only that"
            if view.epoch == epoch or view.epoch == "":
                view.epoch, view.base, view.member = epoch, min(view.base, since.offset), True
            else:
                actor.views[room] = View(epoch, since.offset)
            return
        assert not recovered
        assert noticed, "nobody has told it that its position is gone"
        if not self.was_here(actor, room):
            actor.views[room] = View(epoch, last if since.epoch == epoch else self.kept_from(room, epoch, last))
        elif not (view.member and view.epoch == epoch):
            actor.views[room] = View(epoch, last)

    def kept_from(self, room: str, epoch: str, last: int) -> int:
        """Everything above this offset was in the history for certain, when `last` was its newest; or has expired."""
        age, log = self.setting.age, self.logs[room]
        base = max(
            0, max(last, log.last(epoch)) - self.setting.size
        )  # more may have been published, or committed, since
        if age is not None:
            for offset in range(base + 1, last + 1):
                number = log.numbers.get((epoch, offset))
                if number is None or trio.current_time() - self.published[number].at >= age:
                    base = offset
        return base

    def leave(self, actor: Actor, room: str) -> None:
        wire = actor.wire
        assert wire is not None
        if room in wire.surely:
            wire.maybe.add(room)
            wire.surely.discard(room)

        def answered(answer: Fields) -> None:
            wire.maybe.discard(room)
            wire.surely.discard(room)
            wire.deaf.add(room)
            if answer["type"] == "ack":
                wire.replays[room] += 1  # what waits for it may still come, between what comes when it joins again
                if room in actor.views:
                    actor.views[room].member = False
            else:
                assert answer["code"] == "not_joined"

        self.ask(actor, answered, "leave_room", room=room)

    def look_back(self, actor: Actor, room: str, since: Position | None, limit: int) -> None:
        """A page of the history, as anybody may ask for."""
        asked = trio.current_time()

        def answered(answer: Fields) -> None:
            assert answer["type"] == "ack", answer
            self.check_page(room, since, limit, asked, answer)

        place = None if since is None else attrs.asdict(since)
        self.ask(actor, answered, "history", room=room, since=place, limit=limit)

    def check_page(self, room: str, since: Position | None, limit: int, asked: float, answer: Fields) -> list[int]:
        """Returns the offsets in it."""
        epoch, last, log = answer["epoch"], answer["offset"], self.logs[room]
        offsets = [message["offset"] for message in answer["messages"]]
        for message in answer["messages"]:
            assert message["epoch"] == epoch
            log.learn(epoch, message["offset"], message["data"])
            assert self.published[message["data"]].last_expiry > asked, "it had expired"
        assert offsets == sorted(set(offsets))
        assert len(offsets) <= limit
        assert not offsets or offsets[-1] <= last
        if since is not None and since.epoch == epoch and since.offset > last:
            assert (offsets, answer["more"], answer["recovered"]) == ([], False, False)
            return offsets
        known = since is not None and (since.epoch == epoch or since == Position("", 0)) and since.offset <= last
        start = since.offset if since is not None and known else 0
        assert all(offset > start for offset in offsets)
        kept = max(start, self.kept_from(room, epoch, last))
        there = {
            offset
            for offset in range(kept + 1, last + 1)
            if (number := log.numbers.get((epoch, offset))) is not None
            and self.published[number].first_expiry > trio.current_time()
        }
        if since is None:
            assert not answer["more"]
            assert there <= set(offsets) or (len(offsets) == limit and max(there - set(offsets)) < offsets[0])
            assert "recovered" not in answer
            return offsets
        end = (offsets[-1] if offsets else start) if answer["more"] else last
        assert {offset for offset in there if offset <= end} <= set(offsets), "a message is not in its page"
        if not known:
            assert not answer["recovered"]
        elif start >= kept:
            assert answer["recovered"]
        return offsets

    def fetch(self, actor: Actor, room: str, epoch: str, first: int, last: int) -> None:
        """What a gap told: ask for it, as the protocol page says."""
        since, asked = Position(epoch, first - 1), trio.current_time()

        def answered(answer: Fields) -> None:
            assert answer["type"] == "ack", answer
            offsets = self.check_page(room, since, 3, asked, answer)
            assert answer["epoch"] == epoch
            actor.have[room, epoch].update(offsets)
            if not answer["recovered"]:
                actor.lost[room, epoch].append((first, offsets[0] - 1 if offsets else answer["offset"]))
            if answer["more"] and offsets and offsets[-1] < last:
                self.fetch(actor, room, epoch, offsets[-1] + 1, last)
            actor.gaps[room, epoch].remove((first, last))

        actor.gaps[room, epoch].append((first, last))
        self.ask(actor, answered, "history", room=room, since=attrs.asdict(since), limit=3)

    # --- inbox messages

    def acknowledge(self, actor: Actor, upto: int) -> None:
        self.perhaps_acknowledged[actor.user] = max(self.perhaps_acknowledged[actor.user], upto)

        def answered(answer: Fields) -> None:
            assert (answer["type"], answer["upto"]) == ("ack", upto)
            self.acknowledged[actor.user] = max(self.acknowledged[actor.user], upto)

        self.ask(actor, answered, "inbox_ack", upto=upto)

    def inbox_message(self, actor: Actor, wire: Wire, message: Fields) -> None:
        if (seq := message.get("seq")) is None:
            return
        assert self.store.inbox_of[actor.user][seq] == message["data"]
        assert seq > wire.opened_after, "it was acknowledged before"
        assert seq > wire.seq, "letters are out of order, or doubled"
        wire.seq = seq
        actor.seqs.add(seq)

    # --- what comes

    def look(self, actor: Actor) -> None:
        """Read what has come for a client, and answer."""
        while (wire := actor.wire) is not None and not actor.paused:
            messages = wire.link.take()
            for message in messages:
                self.receive(actor, wire, message)
            if wire.link.closed is not None:
                self.lose(actor)
            if not messages:
                return
            self.busy = True

    def receive(self, actor: Actor, wire: Wire, message: Fields) -> None:
        match message["type"]:
            case "connected":
                wire.id, wire.session = message["connection_id"], message["session"]
                actor.ids.add(wire.id)
            case "ack" | "error":
                actor.asked.pop(message["id"])(message)
            case "direct_message":
                self.inbox_message(actor, wire, message)
            case "gap":
                wire.deaf.add(message.get("room", ""))
                self.gap(actor, message)
            case "message":
                self.message(actor, wire, message)
            case "system":
                self.announcement(wire, message["room"], message["user_id"], message["action"])
            case other:
                raise AssertionError(other)

    def announcement(self, wire: Wire, room: str, user: str, action: str) -> None:
        assert self.setting.announce
        if room not in wire.deaf:
            assert wire.announced.get((room, user)) != action, "it was said before"
            wire.announced[room, user] = action

    def gap(self, actor: Actor, gap: Fields) -> None:
        room, epoch = gap.get("room"), gap.get("epoch")
        if room is None or room == "none":
            assert epoch is None
        elif epoch is None:
            assert self.setting.announce, "only what has no position may be lost without one"
        elif "from" not in gap:
            assert gap["lost"]
            actor.notices[room] += 1
        elif gap.get("lost"):
            actor.lost[room, epoch].append((gap["from"], gap["to"]))
        else:
            assert gap["dropped"] <= gap["to"] - gap["from"] + 1 or self.setting.announce
            self.fetch(actor, room, epoch, gap["from"], gap["to"])

    def message(self, actor: Actor, wire: Wire, message: Fields) -> None:
        room, number = message["room"], message["data"]
        if room == "none":
            assert "offset" not in message
            assert number not in actor.transient[room], "it came twice"
            actor.transient[room].append(number)
            return
        epoch, offset = message["epoch"], message["offset"]
        self.logs[room].learn(epoch, offset, number)
        wire.times[room, epoch, offset] += 1
        if wire.replays[room] <= 1:
            assert offset > wire.newest.get(room, 0), "offsets of a room rise"
        assert wire.times[room, epoch, offset] <= max(1, wire.replays[room])
        wire.newest[room] = offset
        actor.have[room, epoch].add(offset)
        view = actor.views.get(room)
        if view is not None and view.epoch == "":
            view.epoch = epoch

    # --- checks

    async def observe(self) -> None:
        """Let the server work and the clients read, until nothing happens; then look whether all is right."""
        self.busy = True
        while self.busy:
            self.busy = False
            await settled()
            for actor in self.actors:
                self.look(actor)
        self.check_presence()

    def check_presence(self) -> None:
        now, here = trio.current_time(), set(self.switch.connections())
        for wire in self.wires:
            if wire.id in here or wire.gone:
                continue
            wire.gone = True
            # A goodbye is one only where the server had not closed before it could read it.
            kept = not wire.goodbye
            if kept or wire.was_paused:
                sure = kept and (wire.link.closed is None or wire.link.closed < 4500)
                self.held.append(
                    Held(
                        wire.session,
                        wire.user,
                        frozenset(wire.surely if sure else ()),
                        frozenset(wire.surely | wire.maybe),
                        self.checked_at + GRACE,
                        now + GRACE,
                        self.checked_at + SESSION if sure else -inf,
                        now + SESSION,
                    )
                )
        self.wires = [wire for wire in self.wires if not wire.gone]
        self.checked_at = now
        for room in ROOMS:
            surely = {wire.user for wire in self.wires if room in wire.surely}
            surely |= {held.user for held in self.held if room in held.surely and now < held.sure}
            maybe = surely | {wire.user for wire in self.wires if room in wire.maybe}
            maybe |= {held.user for held in self.held if room in held.maybe | held.surely and now <= held.possible}
            users = set(self.switch.users_in(room))
            assert surely <= users <= maybe, (room, surely, users, maybe)

    async def catch_up(self) -> None:
        """Everybody comes back and reads, until nothing is left to come."""
        for actor in self.actors:
            if actor.wire is not None and actor.paused:
                actor.paused = False
                actor.wire.link.go_on()
        await self.observe()
        for _ in range(40):
            for actor in self.actors:
                if actor.wire is None:
                    await self.come(actor, Come(actor.number, "resume", None, "right"))
            await self.observe()
            await trio.sleep(0.5)
            self.busy = False
            for actor in self.actors:
                self.look(actor)
            if not self.busy and not any(actor.asked or actor.wire is None for actor in self.actors):
                break
        await trio.sleep(2)
        await self.observe()
        for actor in self.actors:
            assert actor.wire is not None
            assert not actor.asked
            for (room, user), action in actor.wire.announced.items():
                if room not in actor.wire.deaf:
                    assert (user in self.switch.users_in(room)) == (action == "user_joined"), "nobody has told it"
            for room, view in actor.views.items():
                if room != "none" and view.member:
                    self.check_complete(actor, room, view)

    def check_complete(self, actor: Actor, room: str, view: View) -> None:
        log, place = self.logs[room], (room, view.epoch)
        assert not actor.gaps[place]
        lost = {offset for first, last in actor.lost[place] for offset in range(first, last + 1)}
        for offset in range(view.base + 1, log.last(view.epoch) + 1):
            number = log.numbers.get((view.epoch, offset))
            if offset in actor.have[place] or offset in lost or number is None:
                continue
            message = self.published[number]
            assert (
                message.first_expiry <= trio.current_time()
                or message.excluded & actor.ids
                or (self.setting.overflow is Overflow.CONFLATE and message.key is not None)
            ), f"client {actor.number} has no message {offset} in {room!r}, and was not told"

    async def check_histories(self) -> None:
        for room in ("memory", "stored"):
            page = await self.switch.history(room, since=Position("", 0), limit=1000)
            answer = {
                "epoch": page.position.epoch,
                "offset": page.position.offset,
                "messages": [
                    {"epoch": event.epoch, "offset": event.offset, "data": event.data}
                    for event in page.messages
                    if isinstance(event, Message)
                ],
                "more": page.more,
                "recovered": page.recovered,
            }
            self.check_page(room, Position("", 0), 1000, trio.current_time(), answer)

    async def check_inboxes(self) -> None:
        """Whoever comes now gets what was not acknowledged, in order."""
        for user in set(USERS):
            kept = self.store.inbox_of[user]
            link = Link.open(self.switch, self._connections, f"/ws?token={user}")
            await trio.sleep(1)
            got = [message["seq"] for message in link.take() if message["type"] == "direct_message"]
            now = trio.current_time()
            wanted = {
                seq
                for seq, number in kept.items()
                if seq > self.perhaps_acknowledged[user] and self.published[number].first_expiry > now
            }
            assert got == sorted(set(got))
            assert wanted <= set(got), f"letters of {user!r} are lost"
            assert all(seq > self.acknowledged[user] for seq in got)
            link.close(1000)
            await settled()

    async def check_nothing_is_left(self) -> None:
        for actor in self.actors:
            if actor.wire is not None:
                actor.wire.goodbye = True
                actor.wire.link.close(1000)
                self.lose(actor)
        await settled()
        for wire in self.wires:
            wire.link.vanish()  # of those that were left as they were, some do not read
        await trio.sleep(SESSION + GRACE + 60)
        await settled()
        self.check_presence()
        switch = self.switch
        statistics = switch.statistics()
        assert (statistics.active_connections, statistics.users, statistics.sessions) == (0, 0, 0)
        assert (statistics.pending_messages, statistics.pending_bytes, statistics.uncommitted_messages) == (0, 0, 0)
        assert set(statistics.rooms) <= {"memory"}
        for name, members in statistics.rooms.items():
            assert members == 0
            assert not switch.users_in(name)
            room = switch.room_statistics(name)
            assert room is not None
            assert room.waiting == 0
        assert (statistics.history_bytes > 0) == bool(statistics.rooms)


async def run(setting: Setting, program: Sequence[Step]) -> None:
    started = trio.current_time()

    def wall_time() -> float:
        return WALL + trio.current_time() - started

    with patch("trioswitch._util.clock.wall_time", wall_time):
        async with trio.open_nursery() as nursery:
            world = World(setting, nursery)
            await world.start()
            for step in [*ARRIVE, *program]:
                await world.carry_out(step)
            await world.catch_up()
            await world.check_histories()
            await world.check_inboxes()
            await world.check_nothing_is_left()
            await world.restart()
            await world.check_histories()
            world.stop.set()


def execute(setting: Setting, program: Sequence[Step]) -> None:
    try:
        trio.run(run, setting, program, clock=MockClock(autojump_threshold=0))
    except BaseExceptionGroup as group:  # hypothesis tells failures apart by what was raised, and where
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


CHECKS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@settings(CHECKS, max_examples=300)
@given(SETTINGS, RECOVERY)
def test_recovery_is_as_the_model_says(setting: Setting, program: list[Step]) -> None:
    execute(setting, program)


@settings(CHECKS, max_examples=120)
@given(SETTINGS, LETTERS)
def test_the_inbox_is_as_the_model_says(setting: Setting, program: list[Step]) -> None:
    execute(setting, program)
