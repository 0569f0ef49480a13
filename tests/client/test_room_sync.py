"""The recovery of one room, without a server: what comes goes in, in any order, and the reader gets it whole, or is told."""

from collections import deque
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trioswitch.client import Announcement, Gap, HistoryPage, Message, Position
from trioswitch.client.room_sync import Buffer, Fetch, Item, RoomSync


def text(offset: int | None, epoch: str = "a") -> Message:
    position = None if offset is None else Position(epoch, offset)
    return Message(type="message", room="r", data=offset, position=position)


def page(*offsets: int, end: int, epoch: str = "a", more: bool = False, recovered: bool = True) -> HistoryPage:
    messages = tuple(text(offset, epoch) for offset in offsets)
    return HistoryPage(messages=messages, position=Position(epoch, end), more=more, recovered=recovered)


def gap(dropped: int | None) -> Gap:
    return Gap(room="r", dropped=dropped)


def new(messages: int = 10, size: int = 1000, **how: Any) -> RoomSync:
    return RoomSync("r", Buffer(messages, size), **how)


def joined(offset: int = 0, **how: Any) -> RoomSync:
    """In a room with history, at this offset."""
    sync = new(**how)
    sync.joined({"epoch": "a", "offset": offset})
    return sync


def hear(sync: RoomSync, *offsets: int | None, epoch: str = "a", size: int = 1) -> None:
    for offset in offsets:
        sync.message(text(offset, epoch), size)


def taken(sync: RoomSync) -> list[Any]:
    """Everything that waits: messages as their offsets."""
    items: list[Item] = []
    while (item := sync.take()) is not None:
        items.append(item)
    return [item.data if isinstance(item, Message) else item for item in items]


# --- rooms with history


def test_messages_keep_their_order_without_duplicates() -> None:
    sync = joined(3)
    hear(sync, 4, 5, 5, 4, 2, 7)
    assert taken(sync) == [4, 5, 7]
    assert sync.position == Position("a", 7)
    assert sync.fetch() is None


def test_replay_may_arrive_before_or_after_its_ack() -> None:
    before, after = new(replay=3), new(replay=3)
    hear(before, 5, 7)
    for sync in (before, after):
        sync.joined({"epoch": "a", "offset": 7})
    hear(before, 8)
    hear(after, 5, 7, 8)
    assert taken(before) == taken(after) == [5, 7, 8]


def test_lost_replay_is_requested_by_position() -> None:
    sync = joined(100, replay=20)
    assert sync.since() == Position("a", 80)


@pytest.mark.parametrize("below", [(), (4, 5)])
def test_gap_is_fetched_before_later_messages(below: tuple[int, ...]) -> None:
    sync = joined(3)
    sync.gap({"room": "r", "dropped": 2, "epoch": "a", "from": 6, "to": 7})  # goes ahead of what waits
    hear(sync, *below)
    hear(sync, 8, 9)
    assert taken(sync) == []
    assert sync.fetch() == Fetch(Position("a", 3), 10)
    assert sync.fetch() is None
    sync.page(page(4, 5, 6, 7, 8, 9, end=9), 100)
    hear(sync, 9, 10)
    assert taken(sync) == [4, 5, 6, 7, 8, 9, 10]


def test_gap_below_the_position_is_ignored() -> None:
    sync = joined(3)
    hear(sync, 4, 5)
    sync.gap({"room": "r", "dropped": 1, "epoch": "a", "from": 4, "to": 5})
    assert sync.fetch() is None
    assert taken(sync) == [4, 5]


def test_messages_discarded_during_the_last_fetch_are_fetched() -> None:
    sync = joined(3)
    sync.gap({"epoch": "a", "from": 4, "to": 4})
    assert sync.fetch()
    hear(sync, 5, 6)
    sync.page(page(4, 5, end=5), 10)
    assert sync.fetch() == Fetch(Position("a", 5), 8)
    sync.page(page(6, end=6), 10)
    assert sync.fetch() is None
    hear(sync, 7)
    assert taken(sync) == [4, 5, 6, 7]


def test_full_buffer_pauses_the_room_until_half_is_free() -> None:
    sync = joined(0, messages=4)
    hear(sync, 1, 2, 3, 4, 5, 6)
    assert sync.buffered == 4
    assert sync.fetch() is None
    assert sync.take() == text(1)
    assert sync.fetch() is None
    assert sync.take() == text(2)
    assert sync.fetch() == Fetch(Position("a", 4), 2)
    sync.page(page(5, 6, end=6), 10)
    hear(sync, 7)
    assert taken(sync) == [3, 4, 5, 6]
    assert sync.fetch() == Fetch(Position("a", 6), 4)


def test_buffer_is_limited_in_bytes_but_one_message_fits() -> None:
    sync = joined(0, size=100)
    hear(sync, 1, size=500)
    hear(sync, 2)
    assert taken(sync) == [1]
    assert sync.fetch() == Fetch(Position("a", 1), 10)


def test_pages_are_fetched_one_after_another() -> None:
    sync = joined(0)
    sync.gap({"epoch": "a", "from": 1, "to": 6})
    assert sync.fetch()
    sync.page(page(1, 2, end=6, more=True), 10)
    assert sync.fetch() == Fetch(Position("a", 2), 8)
    sync.page(page(3, 6, end=6), 10)
    assert taken(sync) == [1, 2, 3, 6]
    assert sync.fetch() is None


def test_page_may_overlap_or_be_incomplete() -> None:
    sync = joined(3, size=100)
    sync.gap({"epoch": "a", "from": 4, "to": 6})
    assert sync.fetch()
    sync.page(page(2, 3, 4, 5, 6, end=9), 250)  # the last ones have expired
    assert taken(sync) == [4, 5], "two of them fill the buffer"
    assert sync.fetch() == Fetch(Position("a", 5), 10)
    sync.page(page(6, end=9), 10)
    assert sync.position == Position("a", 9)
    assert taken(sync) == [6]
    assert sync.fetch() is None


def test_epoch_that_begins_during_a_fetch_is_fetched() -> None:
    sync = joined(3)
    sync.gap({"epoch": "a", "from": 4, "to": 4})
    assert sync.fetch()
    hear(sync, 1, epoch="b")
    sync.page(page(4, end=4), 10)
    assert sync.fetch() == Fetch(Position("a", 4), 9)
    sync.page(page(1, end=1, epoch="b", recovered=False), 10)
    assert taken(sync) == [4, gap(None), 1]


def test_page_without_progress_ends_fetching() -> None:
    sync = joined(0)
    sync.gap({"epoch": "a", "from": 1, "to": 6})
    assert sync.fetch()
    sync.page(page(end=6, more=True), 10)
    assert sync.fetch() is None
    assert taken(sync) == [gap(None)]


def test_expired_messages_become_a_gap_in_their_place() -> None:
    sync = joined(3)
    hear(sync, 4)
    sync.gap({"epoch": "a", "from": 5, "to": 9})
    assert sync.fetch()
    sync.page(page(8, 9, end=9, recovered=False), 10)
    assert taken(sync) == [4, gap(3), 8, 9]


def test_refused_history_is_a_gap() -> None:
    sync = joined(3)
    sync.gap({"epoch": "a", "from": 5, "to": 9})
    assert sync.fetch()
    sync.abandon()
    hear(sync, 9, 10)
    assert taken(sync) == [gap(None), 9, 10]


# --- coming back


def test_rejoin_names_the_position() -> None:
    sync = joined(3)
    hear(sync, 4)
    assert sync.since() == Position("a", 4)
    sync.joined({"epoch": "a", "offset": 6, "recovered": True})
    hear(sync, 5, 6, 7)
    assert taken(sync) == [4, 5, 6, 7]


def test_room_that_is_behind_continues_fetching() -> None:
    sync = joined(3)
    sync.gap({"epoch": "a", "from": 4, "to": 5})
    assert sync.fetch()
    sync.fetch_failed()
    assert sync.since() is None
    sync.joined({"epoch": "a", "offset": 8})
    assert sync.fetch() == Fetch(Position("a", 3), 10)
    sync.page(page(4, 5, 6, 7, 8, end=8), 10)
    assert taken(sync) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("ack_first", [True, False])
def test_expired_position_gives_one_gap(ack_first: bool) -> None:
    sync = joined(3)
    assert sync.since()
    ack = {"epoch": "a", "offset": 9, "recovered": False}
    if ack_first:
        sync.joined(ack)
    for _ in range(2):
        sync.gap({"epoch": "a", "from": 4, "to": 7, "lost": True})
    assert sync.position == Position("a", 7)
    hear(sync, 8, 9)
    if not ack_first:
        sync.joined(ack)
    assert taken(sync) == [gap(4), 8, 9]


@pytest.mark.parametrize("ack_first", [True, False])
def test_new_epoch_gives_one_gap_and_all_its_messages(ack_first: bool) -> None:
    sync = joined(3)
    assert sync.since()
    ack = {"epoch": "b", "offset": 2, "recovered": False}
    if ack_first:
        sync.joined(ack)
    sync.gap({"epoch": "b", "lost": True})
    hear(sync, 1, 2, epoch="b")
    if not ack_first:
        sync.joined(ack)
    hear(sync, 3, epoch="b")
    assert taken(sync) == [gap(None), 1, 2, 3]


def test_unannounced_epoch_is_fetched_from_its_beginning() -> None:
    sync = joined(3)
    hear(sync, 2, epoch="b")
    assert sync.fetch() == Fetch(Position("a", 3), 10)
    hear(sync, 3, epoch="b")
    sync.page(page(1, 2, end=2, epoch="b", recovered=False), 10)
    assert sync.fetch() == Fetch(Position("b", 2), 7)
    sync.page(page(3, end=3, epoch="b"), 10)
    hear(sync, 4, epoch="b")
    assert taken(sync) == [gap(None), 1, 2, 3, 4]


def test_late_message_of_an_old_epoch_does_not_change_the_epoch() -> None:
    sync = joined(3)
    hear(sync, 7, epoch="z")
    assert sync.fetch()
    sync.page(page(end=3), 10)
    hear(sync, 4)
    assert taken(sync) == [4]
    assert sync.fetch() is None


@pytest.mark.parametrize("ack_first", [True, False])
def test_shortened_history_gives_one_gap(ack_first: bool) -> None:
    sync = joined(9)
    assert sync.since()
    ack, lost = {"epoch": "a", "offset": 4, "recovered": False}, {"epoch": "a", "lost": True}
    (sync.joined if ack_first else sync.gap)(ack if ack_first else lost)
    (sync.gap if ack_first else sync.joined)(lost if ack_first else ack)
    hear(sync, 5)
    assert taken(sync) == [gap(None), 5]


def test_room_that_gains_or_loses_its_history() -> None:
    sync = joined(3)
    sync.joined({"recovered": False})
    assert sync.fetch() == Fetch(Position("a", 3), 10)
    sync.abandon()
    hear(sync, None)
    assert taken(sync) == [gap(None), None]
    sync = new()
    sync.joined({})
    sync.joined({"epoch": "a", "offset": 5})
    hear(sync, 6)
    assert taken(sync) == [gap(None), 6]


def test_history_unreadable_at_the_join_is_fetched_later() -> None:
    sync = joined(3)
    assert sync.since()
    sync.joined({"recovered": False})
    hear(sync, 7)
    assert sync.fetch() == Fetch(Position("a", 3), 10)
    sync.page(page(4, 5, 6, 7, end=7), 10)
    assert taken(sync) == [4, 5, 6, 7]


def test_stored_room_before_its_first_message() -> None:
    told, fetched = new(), new()
    for sync in (told, fetched):
        sync.joined({"epoch": "", "offset": 0})
        assert sync.since() == Position("", 0)
    told.joined({"epoch": "a", "offset": 1, "recovered": True})
    hear(told, 1, 2)
    fetched.gap({"epoch": "a", "from": 1, "to": 1})
    assert fetched.fetch() == Fetch(Position("", 0), 10)
    fetched.page(page(1, 2, end=2), 10)
    hear(fetched, 2)
    assert taken(told) == taken(fetched) == [1, 2]


# --- rooms without history


def test_without_history_the_oldest_message_is_dropped_and_counted() -> None:
    sync = new(messages=2)
    sync.joined({})
    hear(sync, *[None] * 5)
    assert taken(sync) == [gap(3), None, None]


def test_without_history_gaps_are_merged() -> None:
    sync = new(messages=2)
    sync.joined({})
    sync.gap({"room": "r", "dropped": 2})
    sync.gap({"room": "r", "dropped": 3})
    hear(sync, None, None, None)
    assert taken(sync) == [gap(6), None, None]
    assert gap(1) + gap(None) == gap(None)


@pytest.mark.parametrize(("recovered", "expected"), [(True, []), (False, [gap(None)]), (None, [gap(None)])])
def test_without_history_a_reconnect_is_a_gap(recovered: bool | None, expected: list[Gap]) -> None:
    sync = new()
    sync.joined({})
    sync.joined({} if recovered is None else {"recovered": recovered})
    assert taken(sync) == expected


def test_announcements_are_optional_and_dropped_when_full() -> None:
    announcement = Announcement(room="r", action="count", user_id=None, online_count=1, timestamp="")
    quiet, loud = joined(0), joined(0, messages=1, announcements=True)
    for sync in (quiet, loud):
        for _ in range(2):
            sync.announcement(announcement)
    assert taken(quiet) == []
    assert taken(loud) == [announcement]


def test_unreadable_message_is_a_gap() -> None:
    sync = joined(0)
    hear(sync, 1)
    sync.unreadable(None)
    hear(sync, 3)
    assert taken(sync) == [1, gap(1), 3]


def test_unreadable_message_keeps_its_position() -> None:
    sync = joined(0)
    hear(sync, 1)
    for _ in range(2):  # a double, as any message
        sync.unreadable(Position("a", 2))
    assert sync.position == Position("a", 2)
    hear(sync, 3)
    sync.gap({"epoch": "a", "from": 4, "to": 6})
    assert sync.fetch() is not None
    sync.page(attrs.evolve(page(4, 6, end=6), unreadable=(Position("a", 5),)), 10)
    assert taken(sync) == [1, gap(1), 3, 4, gap(1), 6]
    sync.gap({"epoch": "a", "from": 7, "to": 7})
    assert sync.fetch() is not None
    sync.page(attrs.evolve(page(end=8, more=True), unreadable=(Position("a", 7),)), 10)
    assert (sync.position, taken(sync)) == (Position("a", 7), [gap(1)])
    assert sync.fetch() is not None  # the page led somewhere


# --- any order of events


@attrs.frozen
class Event:
    kind: str
    body: Any


class Recovery(RuleBasedStateMachine):
    """A server with a small outbox, answers ahead of it, a history that is trimmed and lost, and a reader that takes its time.

    Whatever happens: no doubles, the right order, and where a message is missing there is a gap in its place.
    """

    LIMIT = 4
    OUTBOX = 3

    def __init__(self) -> None:
        super().__init__()
        self.sync = new(messages=self.LIMIT)
        self.epoch = 0
        self.last = 0
        self.kept: dict[int, int] = {}  # offset -> its number among all that were ever published
        self.first = 1
        self.published = 0
        self.connected = True
        self.ahead: deque[Event] = deque()
        self.outbox: deque[Event] = deque()
        self.fetches: deque[Fetch] = deque()
        self.answers: deque[Event] = deque()
        self.got: list[int | None] = []  # None: a gap
        self.innocent = True  # nothing was lost for good so far
        self.sync.joined({"epoch": "0", "offset": 0})

    # --- the server

    def message(self, offset: int) -> Message:
        return attrs.evolve(text(offset, str(self.epoch)), data=self.kept[offset])

    @rule(hole=st.booleans(), oldest=st.booleans())
    def publish(self, hole: bool, oldest: bool) -> None:
        self.last += 1
        if hole:  # for nobody here, or expired
            return
        self.kept[self.last] = self.published
        self.published += 1
        if not self.connected:
            return
        self.outbox.append(Event("message", self.message(self.last)))
        if len(self.outbox) > self.OUTBOX:
            dropped = self.outbox.popleft() if oldest else self.outbox.pop()
            position = dropped.body.position
            self.add_gap(position.epoch, position.offset)

    def add_gap(self, epoch: str, offset: int) -> None:
        for event in self.ahead:
            if event.kind == "gap" and event.body["epoch"] == epoch and "lost" not in event.body:
                event.body["from"] = min(event.body["from"], offset)
                event.body["to"] = max(event.body["to"], offset)
                return
        self.ahead.append(Event("gap", {"epoch": epoch, "from": offset, "to": offset}))

    @precondition(lambda self: self.kept)
    @rule()
    def trim(self) -> None:
        oldest = min(self.kept)
        del self.kept[oldest]
        self.first = oldest + 1
        self.innocent = False

    @rule()
    def lose_the_history(self) -> None:
        self.epoch += 1
        self.last, self.first, self.kept, self.innocent = 0, 1, {}, False

    @precondition(lambda self: self.connected)
    @rule()
    def disconnect(self) -> None:
        self.connected = False
        for queue in (self.ahead, self.outbox, self.fetches, self.answers):
            queue.clear()
        self.sync.fetch_failed()

    @precondition(lambda self: not self.connected)
    @rule(ack_first=st.booleans())
    def come_back(self, ack_first: bool) -> None:
        self.connected = True
        since = self.sync.since()
        ack: dict[str, Any] = {"epoch": str(self.epoch), "offset": self.last}
        if since is not None:
            same = since.epoch == str(self.epoch)
            after = since.offset if same else 0
            ack["recovered"] = same and after >= self.first - 1
            if not same:
                self.ahead.append(Event("gap", {"epoch": str(self.epoch), "lost": True}))
            elif not ack["recovered"]:
                lost = {"epoch": str(self.epoch), "from": after + 1, "to": self.first - 1, "lost": True}
                self.ahead.append(Event("gap", lost))
            for offset in self.kept:
                if offset > after:
                    self.outbox.append(Event("message", self.message(offset)))
        if ack_first:
            self.ahead.appendleft(Event("joined", ack))
        else:
            self.ahead.append(Event("joined", ack))

    @precondition(lambda self: self.fetches)
    @rule()
    def read_history(self) -> None:
        fetch = self.fetches.popleft()
        same = fetch.since.epoch == str(self.epoch)
        after = fetch.since.offset if same else 0
        offsets = [offset for offset in self.kept if offset > after]
        self.answers.append(
            Event(
                "page",
                HistoryPage(
                    messages=tuple(self.message(offset) for offset in offsets[: fetch.limit]),
                    position=Position(str(self.epoch), self.last),
                    more=len(offsets) > fetch.limit,
                    recovered=same and after >= self.first - 1,
                ),
            )
        )

    @precondition(lambda self: self.answers)
    @rule()
    def answer(self) -> None:
        self.ahead.append(self.answers.popleft())

    # --- the client

    @precondition(lambda self: self.ahead or self.outbox)
    @rule()
    def hear(self) -> None:
        event = self.ahead.popleft() if self.ahead else self.outbox.popleft()
        if event.kind == "message":
            self.sync.message(event.body, 1)
        elif event.kind == "gap":
            self.sync.gap(event.body)
        elif event.kind == "page":
            self.sync.page(event.body, 1)
        else:
            self.sync.joined(event.body)
        self.ask()

    @rule()
    def take(self) -> None:
        item = self.sync.take()
        if item is not None:
            self.got.append(item.data if isinstance(item, Message) else None)
        self.ask()

    def ask(self) -> None:
        if self.connected and (fetch := self.sync.fetch()) is not None:
            assert fetch.limit > 0
            self.fetches.append(fetch)

    # --- what must hold

    @invariant()
    def the_buffer_is_bounded(self) -> None:
        assert self.sync.buffered <= self.LIMIT + 1, "one gap more, at the end"

    @invariant()
    def what_the_reader_got_is_right(self) -> None:
        expected, warned = 0, False
        for number in self.got:
            if number is None:
                warned = True
                assert not self.innocent, "a gap, and everything could have been had"
                continue
            assert number >= expected, "a double, or not in order"
            assert number == expected or warned, f"{expected} is missing in silence"
            expected, warned = number + 1, False

    def teardown(self) -> None:
        """In the end everything comes, or a gap says that it does not."""
        if not self.connected:
            self.come_back(ack_first=True)
        for _ in range(1000):
            before = len(self.got)
            for step, possible in (
                (self.hear, self.ahead or self.outbox),
                (self.read_history, self.fetches),
                (self.answer, self.answers),
            ):
                if possible:
                    step()
            self.take()
            if len(self.got) == before and not (self.ahead or self.outbox or self.fetches or self.answers):
                break
        else:
            raise AssertionError("it never comes to rest")
        self.what_the_reader_got_is_right()
        numbers = [number for number in self.got if number is not None]
        if not numbers or numbers[-1] < self.published - 1:
            assert self.published == 0 or (self.got and self.got[-1] is None), "the last ones are missing in silence"


TestRecovery = Recovery.TestCase
TestRecovery.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
