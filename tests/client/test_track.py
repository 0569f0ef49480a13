"""The recovery of one room, without a server: what comes goes in, in any order, and the reader gets it whole, or is told."""

from collections import deque
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trioswitch.client import Announcement, Gap, Message, Page, Position
from trioswitch.client.track import Buffer, Fetch, Item, Track


def text(offset: int | None, epoch: str = "a") -> Message:
    position = None if offset is None else Position(epoch, offset)
    return Message(type="message", room="r", data=offset, position=position)


def page(*offsets: int, end: int, epoch: str = "a", more: bool = False, recovered: bool = True) -> Page:
    messages = tuple(text(offset, epoch) for offset in offsets)
    return Page(room="r", messages=messages, end=Position(epoch, end), more=more, recovered=recovered)


def gap(dropped: int | None) -> Gap:
    return Gap(room="r", dropped=dropped)


def new(messages: int = 10, size: int = 1000, **how: Any) -> Track:
    return Track("r", Buffer(messages, size), **how)


def joined(offset: int = 0, **how: Any) -> Track:
    """In a room with history, at this offset."""
    track = new(**how)
    track.joined({"epoch": "a", "offset": offset})
    return track


def hear(track: Track, *offsets: int | None, epoch: str = "a", size: int = 1) -> None:
    for offset in offsets:
        track.message(text(offset, epoch), size)


def taken(track: Track) -> list[Any]:
    """Everything that waits: messages as their offsets."""
    items: list[Item] = []
    while (item := track.take()) is not None:
        items.append(item)
    return [item.data if isinstance(item, Message) else item for item in items]


# --- rooms with history


def test_messages_come_in_their_order_and_doubles_do_not() -> None:
    track = joined(3)
    hear(track, 4, 5, 5, 4, 2, 7)
    assert taken(track) == [4, 5, 7]
    assert track.position == Position("a", 7)
    assert track.fetch() is None


def test_a_replay_may_come_before_its_ack_or_after_it() -> None:
    before, after = new(replay=3), new(replay=3)
    hear(before, 5, 7)
    for track in (before, after):
        track.joined({"epoch": "a", "offset": 7})
    hear(before, 8)
    hear(after, 5, 7, 8)
    assert taken(before) == taken(after) == [5, 7, 8]


def test_a_replay_that_never_came_is_asked_for_by_position() -> None:
    track = joined(100, replay=20)
    assert track.since() == Position("a", 80)


@pytest.mark.parametrize("below", [(), (4, 5)])
def test_a_gap_is_fetched_before_anything_above_it(below: tuple[int, ...]) -> None:
    track = joined(3)
    track.gap({"room": "r", "dropped": 2, "epoch": "a", "from": 6, "to": 7})  # goes ahead of what waits
    hear(track, *below)
    hear(track, 8, 9)
    assert taken(track) == []
    assert track.fetch() == Fetch(Position("a", 3), 10)
    assert track.fetch() is None
    track.page(page(4, 5, 6, 7, 8, 9, end=9), 100)
    hear(track, 9, 10)
    assert taken(track) == [4, 5, 6, 7, 8, 9, 10]


def test_a_gap_that_is_known_already_is_no_gap() -> None:
    track = joined(3)
    hear(track, 4, 5)
    track.gap({"room": "r", "dropped": 1, "epoch": "a", "from": 4, "to": 5})
    assert track.fetch() is None
    assert taken(track) == [4, 5]


def test_what_came_while_the_last_page_was_read_is_fetched_too() -> None:
    track = joined(3)
    track.gap({"epoch": "a", "from": 4, "to": 4})
    assert track.fetch()
    hear(track, 5, 6)
    track.page(page(4, 5, end=5), 10)
    assert track.fetch() == Fetch(Position("a", 5), 8)
    track.page(page(6, end=6), 10)
    assert track.fetch() is None
    hear(track, 7)
    assert taken(track) == [4, 5, 6, 7]


def test_a_full_buffer_pauses_the_room_until_half_of_it_is_free() -> None:
    track = joined(0, messages=4)
    hear(track, 1, 2, 3, 4, 5, 6)
    assert track.waiting == 4
    assert track.fetch() is None
    assert track.take() == text(1)
    assert track.fetch() is None
    assert track.take() == text(2)
    assert track.fetch() == Fetch(Position("a", 4), 2)
    track.page(page(5, 6, end=6), 10)
    hear(track, 7)
    assert taken(track) == [3, 4, 5, 6]
    assert track.fetch() == Fetch(Position("a", 6), 4)


def test_bytes_fill_the_buffer_too_but_one_message_fits() -> None:
    track = joined(0, size=100)
    hear(track, 1, size=500)
    hear(track, 2)
    assert taken(track) == [1]
    assert track.fetch() == Fetch(Position("a", 1), 10)


def test_pages_follow_one_another() -> None:
    track = joined(0)
    track.gap({"epoch": "a", "from": 1, "to": 6})
    assert track.fetch()
    track.page(page(1, 2, end=6, more=True), 10)
    assert track.fetch() == Fetch(Position("a", 2), 8)
    track.page(page(3, 6, end=6), 10)
    assert taken(track) == [1, 2, 3, 6]
    assert track.fetch() is None


def test_a_page_may_have_too_much_and_too_little() -> None:
    track = joined(3, size=100)
    track.gap({"epoch": "a", "from": 4, "to": 6})
    assert track.fetch()
    track.page(page(2, 3, 4, 5, 6, end=9), 250)  # the last ones have expired
    assert taken(track) == [4, 5], "two of them fill the buffer"
    assert track.fetch() == Fetch(Position("a", 5), 10)
    track.page(page(6, end=9), 10)
    assert track.position == Position("a", 9)
    assert taken(track) == [6]
    assert track.fetch() is None


def test_an_epoch_that_begins_while_a_page_is_read_is_fetched_too() -> None:
    track = joined(3)
    track.gap({"epoch": "a", "from": 4, "to": 4})
    assert track.fetch()
    hear(track, 1, epoch="b")
    track.page(page(4, end=4), 10)
    assert track.fetch() == Fetch(Position("a", 4), 9)
    track.page(page(1, end=1, epoch="b", recovered=False), 10)
    assert taken(track) == [4, gap(None), 1]


def test_a_page_that_leads_nowhere_is_not_asked_for_again() -> None:
    track = joined(0)
    track.gap({"epoch": "a", "from": 1, "to": 6})
    assert track.fetch()
    track.page(page(end=6, more=True), 10)
    assert track.fetch() is None
    assert taken(track) == [gap(None)]


def test_what_was_trimmed_shows_as_a_gap_in_its_place() -> None:
    track = joined(3)
    hear(track, 4)
    track.gap({"epoch": "a", "from": 5, "to": 9})
    assert track.fetch()
    track.page(page(8, 9, end=9, recovered=False), 10)
    assert taken(track) == [4, gap(3), 8, 9]


def test_a_history_that_is_refused_is_lost() -> None:
    track = joined(3)
    track.gap({"epoch": "a", "from": 5, "to": 9})
    assert track.fetch()
    track.abandon()
    hear(track, 9, 10)
    assert taken(track) == [gap(None), 9, 10]


# --- coming back


def test_it_comes_back_with_its_position() -> None:
    track = joined(3)
    hear(track, 4)
    assert track.since() == Position("a", 4)
    track.joined({"epoch": "a", "offset": 6, "recovered": True})
    hear(track, 5, 6, 7)
    assert taken(track) == [4, 5, 6, 7]


def test_a_room_that_is_behind_goes_on_fetching() -> None:
    track = joined(3)
    track.gap({"epoch": "a", "from": 4, "to": 5})
    assert track.fetch()
    track.refetch()
    assert track.since() is None
    track.joined({"epoch": "a", "offset": 8})
    assert track.fetch() == Fetch(Position("a", 3), 10)
    track.page(page(4, 5, 6, 7, 8, end=8), 10)
    assert taken(track) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("ack_first", [True, False])
def test_a_position_that_was_trimmed_gives_one_gap(ack_first: bool) -> None:
    track = joined(3)
    assert track.since()
    ack = {"epoch": "a", "offset": 9, "recovered": False}
    if ack_first:
        track.joined(ack)
    for _ in range(2):
        track.gap({"epoch": "a", "from": 4, "to": 7, "lost": True})
    assert track.position == Position("a", 7)
    hear(track, 8, 9)
    if not ack_first:
        track.joined(ack)
    assert taken(track) == [gap(4), 8, 9]


@pytest.mark.parametrize("ack_first", [True, False])
def test_another_epoch_gives_one_gap_and_then_all_there_is(ack_first: bool) -> None:
    track = joined(3)
    assert track.since()
    ack = {"epoch": "b", "offset": 2, "recovered": False}
    if ack_first:
        track.joined(ack)
    track.gap({"epoch": "b", "lost": True})
    hear(track, 1, 2, epoch="b")
    if not ack_first:
        track.joined(ack)
    hear(track, 3, epoch="b")
    assert taken(track) == [gap(None), 1, 2, 3]


def test_another_epoch_that_nobody_told_is_fetched_from_its_beginning() -> None:
    track = joined(3)
    hear(track, 2, epoch="b")
    assert track.fetch() == Fetch(Position("a", 3), 10)
    hear(track, 3, epoch="b")
    track.page(page(1, 2, end=2, epoch="b", recovered=False), 10)
    assert track.fetch() == Fetch(Position("b", 2), 7)
    track.page(page(3, end=3, epoch="b"), 10)
    hear(track, 4, epoch="b")
    assert taken(track) == [gap(None), 1, 2, 3, 4]


def test_what_is_late_from_another_epoch_begins_it_not_again() -> None:
    track = joined(3)
    hear(track, 7, epoch="z")
    assert track.fetch()
    track.page(page(end=3), 10)
    hear(track, 4)
    assert taken(track) == [4]
    assert track.fetch() is None


@pytest.mark.parametrize("ack_first", [True, False])
def test_a_history_that_became_shorter_gives_one_gap_and_goes_on(ack_first: bool) -> None:
    track = joined(9)
    assert track.since()
    ack, lost = {"epoch": "a", "offset": 4, "recovered": False}, {"epoch": "a", "lost": True}
    (track.joined if ack_first else track.gap)(ack if ack_first else lost)
    (track.gap if ack_first else track.joined)(lost if ack_first else ack)
    hear(track, 5)
    assert taken(track) == [gap(None), 5]


def test_a_room_gets_a_history_or_loses_it() -> None:
    track = joined(3)
    track.joined({"recovered": False})
    assert track.fetch() == Fetch(Position("a", 3), 10)
    track.abandon()
    hear(track, None)
    assert taken(track) == [gap(None), None]
    track = new()
    track.joined({})
    track.joined({"epoch": "a", "offset": 5})
    hear(track, 6)
    assert taken(track) == [gap(None), 6]


def test_a_history_that_could_not_be_read_at_the_join_is_fetched_later() -> None:
    track = joined(3)
    assert track.since()
    track.joined({"recovered": False})
    hear(track, 7)
    assert track.fetch() == Fetch(Position("a", 3), 10)
    track.page(page(4, 5, 6, 7, end=7), 10)
    assert taken(track) == [4, 5, 6, 7]


def test_a_stored_room_before_its_first_message() -> None:
    told, fetched = new(), new()
    for track in (told, fetched):
        track.joined({"epoch": "", "offset": 0})
        assert track.since() == Position("", 0)
    told.joined({"epoch": "a", "offset": 1, "recovered": True})
    hear(told, 1, 2)
    fetched.gap({"epoch": "a", "from": 1, "to": 1})
    assert fetched.fetch() == Fetch(Position("", 0), 10)
    fetched.page(page(1, 2, end=2), 10)
    hear(fetched, 2)
    assert taken(told) == taken(fetched) == [1, 2]


# --- rooms without history


def test_without_history_the_oldest_gives_way_and_is_counted() -> None:
    track = new(messages=2)
    track.joined({})
    hear(track, *[None] * 5)
    assert taken(track) == [gap(3), None, None]


def test_without_history_gaps_show_and_add_up() -> None:
    track = new(messages=2)
    track.joined({})
    track.gap({"room": "r", "dropped": 2})
    track.gap({"room": "r", "dropped": 3})
    hear(track, None, None, None)
    assert taken(track) == [gap(6), None, None]
    assert gap(1) + gap(None) == gap(None)


@pytest.mark.parametrize(("recovered", "expected"), [(True, []), (False, [gap(None)]), (None, [gap(None)])])
def test_without_history_an_absence_is_a_gap(recovered: bool | None, expected: list[Gap]) -> None:
    track = new()
    track.joined({})
    track.joined({} if recovered is None else {"recovered": recovered})
    assert taken(track) == expected


def test_announcements_come_where_they_were_asked_for_and_find_place() -> None:
    announcement = Announcement(room="r", action="count", user_id=None, online_count=1, timestamp="")
    quiet, loud = joined(0), joined(0, messages=1, announcements=True)
    for track in (quiet, loud):
        for _ in range(2):
            track.announcement(announcement)
    assert taken(quiet) == []
    assert taken(loud) == [announcement]


def test_a_message_that_cannot_be_read_is_a_gap() -> None:
    track = joined(0)
    hear(track, 1)
    track.unreadable(None)
    hear(track, 3)
    assert taken(track) == [1, gap(1), 3]


def test_a_message_that_cannot_be_read_has_its_place() -> None:
    track = joined(0)
    hear(track, 1)
    for _ in range(2):  # a double, as any message
        track.unreadable(Position("a", 2))
    assert track.position == Position("a", 2)
    hear(track, 3)
    track.gap({"epoch": "a", "from": 4, "to": 6})
    assert track.fetch() is not None
    track.page(attrs.evolve(page(4, 6, end=6), unreadable=(Position("a", 5),)), 10)
    assert taken(track) == [1, gap(1), 3, 4, gap(1), 6]
    track.gap({"epoch": "a", "from": 7, "to": 7})
    assert track.fetch() is not None
    track.page(attrs.evolve(page(end=8, more=True), unreadable=(Position("a", 7),)), 10)
    assert (track.position, taken(track)) == (Position("a", 7), [gap(1)])
    assert track.fetch() is not None  # the page led somewhere


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
        self.track = new(messages=self.LIMIT)
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
        self.track.joined({"epoch": "0", "offset": 0})

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
        self.track.refetch()

    @precondition(lambda self: not self.connected)
    @rule(ack_first=st.booleans())
    def come_back(self, ack_first: bool) -> None:
        self.connected = True
        since = self.track.since()
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
                Page(
                    room="r",
                    messages=tuple(self.message(offset) for offset in offsets[: fetch.limit]),
                    end=Position(str(self.epoch), self.last),
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
            self.track.message(event.body, 1)
        elif event.kind == "gap":
            self.track.gap(event.body)
        elif event.kind == "page":
            self.track.page(event.body, 1)
        else:
            self.track.joined(event.body)
        self.ask()

    @rule()
    def take(self) -> None:
        item = self.track.take()
        if item is not None:
            self.got.append(item.data if isinstance(item, Message) else None)
        self.ask()

    def ask(self) -> None:
        if self.connected and (fetch := self.track.fetch()) is not None:
            assert fetch.limit > 0
            self.fetches.append(fetch)

    # --- what must hold

    @invariant()
    def the_buffer_is_bounded(self) -> None:
        assert self.track.waiting <= self.LIMIT + 1, "one gap more, at the end"

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
