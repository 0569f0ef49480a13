"""The inbox: direct messages that are kept for their user until a client acknowledges them, at least once.

A direct message is kept when its user is away, and also while it is here if one of its clients acknowledges (from its first
`inbox_ack` on): what is on its way to a connection that is lost, but not known to be, comes again. A client that never
acknowledges gets a message as it comes, like in a room; kept for it is only what was sent while it was away, or before it was
clear that it will not acknowledge.

One task commits letters, all that wait at once, and hands them out in the order of their `seq`.
"""

import logging
from collections import Counter
from typing import Final

import trio

from .._util.clock import timestamp, wall_time
from ..config import Options, Overflow
from ..connections.directory import ConnectionDirectory
from ..connections.driver import ConnectionDriver
from ..connections.outbox import Offer
from ..errors import InboxFull, StoreError, UnencodableData
from ..stores.port import InboxLimits, Kept, Letter, Posted, Store
from ..wire.messages import DirectMessage
from ..wire.prepared import Outcome, Prepared, Receipt
from ..wire.records import dump, load
from .store_health import StoreHealth

__all__ = ["Inbox", "Progress"]

_log = logging.getLogger(__name__)

BATCH: Final = 4096
"""Letters in one transaction at most, and that wait for the store at most; then, as at `room_bytes`, senders wait."""
PAGE: Final = 100
"""Letters that are read at once for a user who comes back."""
PAGE_BYTES: Final = 256 * 1024
"""Bytes of them; a larger letter is read alone."""
UNDECIDED: Final = 5.0
"""Seconds after its arrival in which a client may still say that it acknowledges, and nothing is lost."""
RETRY: Final = 5.0
"""Seconds after which a store that could not be read is asked again."""


class Progress:
    """What a connection has of its user's inbox: everything up to `sent`."""

    __slots__ = ("acknowledges", "catching_up", "more", "sent", "undecided_until", "user")

    def __init__(self, user: str) -> None:
        self.user = user
        self.sent = 0
        self.acknowledges = False
        self.undecided_until = trio.current_time() + UNDECIDED
        self.catching_up = False
        self.more = False
        """Whether something was posted since the store was read last."""


class Inbox:
    """Sends to users. One for each switch."""

    def __init__(self, connections: ConnectionDirectory, store: Store, health: StoreHealth, options: Options) -> None:
        self._connections = connections
        self._options = options
        self._store = store
        self._health = health
        self._progress: dict[str, Progress] = {}  # by id of the connection
        self._limits = InboxLimits(
            letters=self._options.inbox_messages,
            bytes=self._options.inbox_bytes,
            total_bytes=self._options.total_inbox_bytes,
        )
        self._waiting: list[tuple[str, Prepared]] = []
        self._waiting_bytes = 0
        self._in_flight: list[tuple[str, Prepared]] = []
        self._under_way: Counter[str] = Counter()  # letters that are not handed out yet, by user
        self._work = trio.Event()
        self._space = trio.Event()

    @property
    def uncommitted(self) -> int:
        """Messages that wait for the store, or are being committed."""
        return self._under_way.total()

    # --- sending

    def send_nowait(self, user: str, message: Prepared, *, keep: bool = True) -> None:
        """Send to a user, or keep it. What became of it is told by its `settle`, now or when it was committed.

        Raises trio.WouldBlock when too much waits for the store.
        """
        connections = self._connections.of_user(user)
        keep = keep and self._options.inbox_messages > 0
        if keep and (not connections or self._under_way[user] or any(map(self._keeps, connections))):
            if self._is_busy():
                raise trio.WouldBlock
            self._under_way[user] += 1
            self._waiting_bytes += message.size
            self._waiting.append((user, message))
            self._work.set()
        else:
            _settle(message, self._connections.send_nowait(connections, message))

    async def send(self, user: str, message: Prepared, *, keep: bool = True) -> None:
        """As `send_nowait`, and wait for space. Safe to cancel: then it was not sent."""
        while self._is_busy():
            await self._space.wait()
        self.send_nowait(user, message, keep=keep)

    def _is_busy(self) -> bool:
        return len(self._waiting) >= BATCH or self._waiting_bytes >= self._options.room_bytes

    async def flush(self) -> None:
        """Wait until everything that was sent is committed and handed out, or refused. Safe to cancel."""
        while self._under_way:
            await self._space.wait()

    async def run(self) -> None:
        """The task that commits letters, and hands them out. Started again after a crash, it goes on with what waits."""
        while True:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                self._waiting_bytes -= sum([message.size for _user, message in batch])
                self._space.set()
                self._space = trio.Event()
                await self._post(batch)
            await self._work.wait()
            self._work = trio.Event()

    async def _post(self, batch: list[tuple[str, Prepared]]) -> None:
        letters: list[Letter] = []
        self._in_flight = []
        for user, message in batch:
            try:
                letters.append(_letter(user, message))
            except UnencodableData as error:
                self._done(user, message, error)
            else:
                self._in_flight.append((user, message))
        try:
            posted = await self._store.post(letters, limits=self._limits)
        except StoreError as error:
            self._health.failed(error)
            self._give_back(error)
        except Exception:
            self._give_back(StoreError("the store failed"))
            raise
        else:
            self._health.works()
            flight, self._in_flight = self._in_flight, []
            for (user, message), place in zip(flight, posted, strict=True):
                self._done(user, message, self._hand_out(user, message, place))

    def _give_back(self, error: StoreError) -> None:
        flight, self._in_flight = self._in_flight, []
        for user, message in flight:
            self._done(user, message, error)

    def _done(self, user: str, message: Prepared, outcome: Outcome) -> None:
        self._under_way[user] -= 1
        if not self._under_way[user]:
            del self._under_way[user]
            if not self._under_way:
                self._space.set()
                self._space = trio.Event()
        _settle(message, outcome)

    def abandon(self) -> None:
        """The switch ends: whoever waits for a receipt hears that there will be none."""
        self._in_flight, self._waiting, self._waiting_bytes = [*self._in_flight, *self._waiting], [], 0
        self._give_back(StoreError("the server ended before it was known to be committed"))

    def _hand_out(self, user: str, message: Prepared, place: Posted) -> Outcome:
        if place.duplicate:
            return Receipt(kept=1, seq=place.seq, duplicate=True)
        if not place.seq:
            return self._is_full(user, message)
        event = message.event
        assert isinstance(event, DirectMessage)
        event.seq = place.seq
        counts = Counter(self._hand_to(connection, message) for connection in self._connections.of_user(user))
        return Receipt(counts[Offer.WRITTEN], counts[Offer.QUEUED], kept=1, seq=place.seq)

    def _is_full(self, user: str, message: Prepared) -> Outcome:
        """A client that does not acknowledge gets the message all the same; for others it would not be at least once."""
        connections = self._connections.of_user(user)
        if connections and not any(map(self._acknowledges, connections)):
            return self._connections.send_nowait(connections, message)
        return InboxFull(f"the inbox of {user!r} is full")

    def _hand_to(self, connection: ConnectionDriver, message: Prepared) -> Offer:
        if connection.cause is not None:
            return Offer.DROPPED  # it ends, and its nursery takes no task any more
        progress, event = self._progress.get(connection.id) or self._begin(connection), message.event
        assert isinstance(event, DirectMessage)
        assert isinstance(event.seq, int)
        if event.seq <= progress.sent:
            return Offer.QUEUED  # it came after the commit, and has read it in the store
        if not progress.catching_up:
            offered = connection.outbox.offer(message, Overflow.BLOCK)
            if offered is not Offer.FULL:
                progress.sent = event.seq
                return offered
        self._catch_up_soon(connection, progress)
        return Offer.QUEUED

    # --- receiving

    def arrived(self, connection: ConnectionDriver) -> None:
        """A connection has got its user: hand out what waits for it."""
        if self._options.inbox_messages:
            progress = self._begin(connection)
            if self._under_way[connection.user] or self._store.may_have_letters(connection.user):
                self._catch_up_soon(connection, progress)

    def _begin(self, connection: ConnectionDriver) -> Progress:
        progress = Progress(connection.user)
        progress.acknowledges = self._acknowledges(connection)
        self._progress[connection.id] = progress
        return progress

    def forget(self, connection: ConnectionDriver) -> None:
        """A connection has ended."""
        self._progress.pop(connection.id, None)

    def _acknowledges(self, connection: ConnectionDriver) -> bool:
        progress = self._progress.get(connection.id)
        return progress is not None and progress.acknowledges

    def _keeps(self, connection: ConnectionDriver) -> bool:
        """Whether a connection needs messages to be kept: it acknowledges, may yet say that it does, or is catching up."""
        progress = self._progress.get(connection.id)
        if progress is None:
            return False
        return progress.acknowledges or progress.catching_up or trio.current_time() < progress.undecided_until

    async def acknowledge(self, connection: ConnectionDriver, upto: int) -> None:
        """Its user has everything up to this seq. Raises StoreError. Safe to cancel: then it may be done or not."""
        if self._options.inbox_messages:
            if connection.id not in self._progress:
                self.arrived(connection)
            self._progress[connection.id].acknowledges = True
        if upto:
            await self._store.acknowledge(connection.user, upto)

    def _catch_up_soon(self, connection: ConnectionDriver, progress: Progress) -> None:
        progress.more = True
        if not progress.catching_up:
            progress.catching_up = True
            connection.start_soon(self._catch_up, connection, progress)

    async def _catch_up(self, connection: ConnectionDriver, progress: Progress) -> None:
        """Hand out what waits, as fast as the client reads, until nothing is left."""
        while progress.more and self._progress.get(connection.id) is progress:
            progress.more = False
            try:
                letters = await self._store.letters(
                    progress.user, after=progress.sent, limit=PAGE, max_bytes=PAGE_BYTES, now=wall_time()
                )
            except StoreError as error:
                self._health.failed(error, "reading")
                await trio.sleep(RETRY)
                progress.more = True
                continue
            self._health.works("reading")
            progress.more = progress.more or bool(letters)  # a page may end at its bytes
            wall, now = wall_time(), trio.current_time()
            for letter in letters:
                if letter.at < wall - self._options.inbox_age:
                    progress.sent = letter.seq  # the next sweep forgets it
                    continue
                expires_at = None if letter.expires_at is None else now + letter.expires_at - wall
                try:
                    message = Prepared(_event(letter), expires_at=expires_at, size=len(letter.payload))
                except ValueError:
                    _log.exception("letter %d of %r cannot be read, and is passed over", letter.seq, progress.user)
                else:
                    await connection.outbox.put(message)
                if self._progress.get(connection.id) is not progress:
                    return
                progress.sent = letter.seq
        progress.catching_up = False


def _letter(user: str, message: Prepared) -> Letter:
    """Raises UnencodableData."""
    wall, event = wall_time(), message.event
    message.stamp(timestamp())
    assert isinstance(event, DirectMessage)
    expires_at = None if message.expires_at is None else wall + message.expires_at - trio.current_time()
    return Letter(user=user, payload=dump(event), at=wall, expires_at=expires_at, key=message.idempotency_key)


def _event(letter: Kept) -> DirectMessage:
    """Raises ValueError."""
    event = load(letter.payload)
    if not isinstance(event, DirectMessage):
        raise ValueError(f"not a direct message: {letter.payload[:80]!r}")
    event.seq = letter.seq
    return event


def _settle(message: Prepared, outcome: Outcome) -> None:
    if message.settle is not None:
        message.settle(outcome)
