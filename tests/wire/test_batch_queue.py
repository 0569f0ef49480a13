"""The queue of one connection: rule by rule, and as a state machine against a list."""

from collections import Counter
from math import inf

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trioswitch.wire.batch import PROMOTE_AFTER, BatchQueue, Taken
from trioswitch.wire.messages import Message
from trioswitch.wire.prepared import Prepared
from trioswitch.wire.windows import QueuedMessage, QueuedWindow

KIB = 1024


def prepared(
    priority: int = 0,
    *,
    room: str | None = "room",
    key: str | None = None,
    deliver_by: float | None = None,
    expires_at: float | None = None,
) -> Prepared:
    return Prepared(
        Message(data=None), priority=priority, room=room, key=key, deliver_by=deliver_by, expires_at=expires_at
    )


def queue(max_messages: int = 10, max_bytes: int = KIB, linger: float = 0.0) -> BatchQueue:
    return BatchQueue(max_messages, max_bytes, linger)


def add(
    to: BatchQueue, message: Prepared, *, size: int = 1, at: float = 0.0, conflate: bool = False
) -> QueuedMessage | None:
    return to.add(QueuedMessage(message, size, at, conflate))


def messages(entries: list[QueuedMessage]) -> list[Prepared]:
    return [entry.message for entry in entries]


def take(source: BatchQueue, now: float = 0.0) -> list[Prepared]:
    return messages(source.take(now).batch)


class TestOrder:
    def test_highest_priority_first_and_first_in_first_out_within_it(self) -> None:
        waiting = queue()
        low, high, low_too, high_too = prepared(1), prepared(7), prepared(1), prepared(7)
        for message in (low, high, low_too, high_too):
            add(waiting, message)
        assert take(waiting) == [high, high_too, low, low_too]
        assert waiting.count == waiting.bytes == 0

    def test_nothing_waits_nothing_is_taken(self) -> None:
        assert queue().take(0.0) == Taken([], [])


class TestBounds:
    def test_at_most_max_messages(self) -> None:
        waiting = queue(max_messages=2)
        sent = [prepared() for _ in range(5)]
        for message in sent:
            add(waiting, message)
        assert [take(waiting) for _ in range(3)] == [sent[:2], sent[2:4], sent[4:]]

    def test_at_most_max_bytes(self) -> None:
        waiting = queue(max_bytes=10)
        sent = [prepared() for _ in range(4)]
        for message, size in zip(sent, [6, 4, 6, 5], strict=True):
            add(waiting, message, size=size)
        assert [take(waiting) for _ in range(3)] == [sent[:2], sent[2:3], sent[3:]]

    def test_a_larger_message_goes_alone(self) -> None:
        waiting = queue(max_bytes=10)
        before, large, after = (prepared() for _ in range(3))
        for message, size in ((before, 1), (large, 11), (after, 1)):
            add(waiting, message, size=size)
        assert [take(waiting) for _ in range(3)] == [[before], [large], [after]]

    def test_a_lower_priority_does_not_overtake_what_did_not_fit(self) -> None:
        waiting = queue(max_bytes=10)
        first, too_much, small = prepared(3), prepared(3), prepared(1)
        for message, size in ((first, 6), (too_much, 6), (small, 1)):
            add(waiting, message, size=size)
        assert take(waiting) == [first]
        assert take(waiting) == [too_much, small]


class TestExpiry:
    def test_what_has_expired_is_handed_back_and_not_sent(self) -> None:
        waiting = queue()
        gone, alive = prepared(expires_at=5.0), prepared(expires_at=5.1)
        add(waiting, gone, size=3)
        add(waiting, alive, size=4)
        taken = waiting.take(5.0)
        assert (messages(taken.expired), messages(taken.batch)) == ([gone], [alive])
        assert waiting.count == waiting.bytes == 0

    def test_it_leaves_its_place_in_the_batch_to_others(self) -> None:
        waiting = queue(max_messages=1, max_bytes=10)
        alive = prepared()
        for message in (prepared(expires_at=1.0), prepared(expires_at=1.0), alive):
            add(waiting, message, size=10)
        assert take(waiting, now=1.0) == [alive]

    def test_it_leaves_its_bytes_in_the_batch_to_others(self) -> None:
        waiting = queue(max_bytes=10)
        first, large, last = prepared(), prepared(expires_at=1.0), prepared()
        for message, size in ((first, 5), (large, 10), (last, 5)):
            add(waiting, message, size=size)
        assert take(waiting, now=1.0) == [first, last]


class TestPromotion:
    @staticmethod
    def saturated(*priorities: int, rounds: int, max_messages: int = 1) -> list[list[int]]:
        """The priorities of each batch, when something of each of them waits all the time."""
        waiting = queue(max_messages)
        for priority in priorities * max_messages:
            add(waiting, prepared(priority))
        batches = []
        for _ in range(rounds):
            batches.append([message.priority for message in take(waiting)])
            for priority in batches[-1]:
                add(waiting, prepared(priority))
        return batches

    def test_who_was_passed_over_often_enough_is_served_first_and_once(self) -> None:
        batches = self.saturated(9, 0, rounds=2 * PROMOTE_AFTER + 2, max_messages=3)
        ordinary, promoted = [9, 9, 9], [0, 9, 9]
        assert batches == ([ordinary] * PROMOTE_AFTER + [promoted]) * 2

    def test_its_oldest_message_is_the_one(self) -> None:
        waiting = queue(max_messages=1)
        oldest, younger = prepared(0), prepared(0)
        add(waiting, oldest)
        add(waiting, younger)
        for _ in range(PROMOTE_AFTER):
            add(waiting, prepared(1))
            assert take(waiting)[0].priority == 1
        add(waiting, prepared(1))
        assert take(waiting) == [oldest]

    def test_it_counts_batches_in_a_row(self) -> None:
        """A priority that was served in between begins anew."""
        waiting = queue(max_messages=2)
        for _ in range(PROMOTE_AFTER - 1):
            for priority in (5, 5, 1):
                add(waiting, prepared(priority))
            assert [message.priority for message in take(waiting)] == [5, 5]
        add(waiting, prepared(5))
        assert [message.priority for message in take(waiting)] == [5, 1]
        add(waiting, prepared(5))
        add(waiting, prepared(5))
        assert [message.priority for message in take(waiting)] == [5, 5]

    def test_one_that_has_nothing_alive_to_give_holds_nobody_up(self) -> None:
        waiting = queue(max_messages=1)
        add(waiting, prepared(0, expires_at=1.0))
        for _ in range(PROMOTE_AFTER + 1):
            add(waiting, prepared(1))
        for _ in range(PROMOTE_AFTER):
            take(waiting)
        taken = waiting.take(1.0)
        assert [entry.message.priority for entry in taken.expired] == [0]
        assert [entry.message.priority for entry in taken.batch] == [1]

    @pytest.mark.parametrize("how_many", range(2, 12))
    @pytest.mark.parametrize("max_messages", [1, 2, 3])
    def test_no_priority_starves_another(self, how_many: int, max_messages: int) -> None:
        priorities = list(range(how_many))
        batches = self.saturated(*priorities, rounds=200, max_messages=max_messages)
        assert {len(batch) for batch in batches} == {max_messages}
        longest = PROMOTE_AFTER + how_many
        for start in range(len(batches) - longest):
            served = {priority for batch in batches[start : start + longest] for priority in batch}
            assert served == set(priorities), f"in batches {start} to {start + longest}"

    def test_no_priority_starves_another_where_each_message_fills_a_batch(self) -> None:
        waiting = queue(max_bytes=10)
        served: Counter[int] = Counter()
        for priority in range(11):
            add(waiting, prepared(priority), size=11)
        for _ in range(200):
            [message] = take(waiting)
            served[message.priority] += 1
            add(waiting, prepared(message.priority), size=11)
        assert min(served[priority] for priority in range(11)) >= 200 // (PROMOTE_AFTER + 11)

    def test_a_queue_that_was_cleared_begins_anew(self) -> None:
        waiting = queue(max_messages=1)
        for _ in range(PROMOTE_AFTER + 1):
            add(waiting, prepared(1))
        add(waiting, prepared(0))
        for _ in range(PROMOTE_AFTER):
            take(waiting)
        waiting.clear()
        high, low = prepared(1), prepared(0)
        add(waiting, low)
        add(waiting, high)
        assert take(waiting) == [high]


class TestDue:
    def test_never_while_nothing_waits(self) -> None:
        assert queue(linger=1.0).due() == inf
        assert queue().due() == inf

    def test_at_once_without_a_linger(self) -> None:
        waiting = queue(linger=0.0)
        add(waiting, prepared(), at=3.0)
        assert waiting.due() == -inf

    def test_when_the_linger_since_the_oldest_has_run_out(self) -> None:
        waiting = queue(linger=0.5)
        add(waiting, prepared(1), at=3.0)
        add(waiting, prepared(5), at=3.4)
        assert waiting.oldest() == 3.0
        assert waiting.due() == 3.5

    def test_at_once_when_it_is_full_by_count(self) -> None:
        waiting = queue(max_messages=2, linger=0.5)
        add(waiting, prepared())
        assert waiting.due() == 0.5
        add(waiting, prepared())
        assert waiting.due() == -inf

    def test_at_once_when_it_is_full_by_bytes(self) -> None:
        waiting = queue(max_bytes=10, linger=0.5)
        add(waiting, prepared(), size=9)
        assert waiting.due() == 0.5
        add(waiting, prepared(), size=1)
        assert waiting.due() == -inf

    def test_at_once_for_an_urgent_message(self) -> None:
        waiting = queue(linger=0.5)
        add(waiting, prepared(5))
        assert waiting.due() == 0.5
        add(waiting, prepared(6))
        assert waiting.due() == -inf
        waiting.evict("room", 10)
        waiting.evict("room", 10)
        add(waiting, prepared(5))
        assert waiting.due() == 0.5, "an urgent message that is gone hurries nobody"

    @pytest.mark.parametrize(("deliver_by", "due"), [(0.2, 0.2), (0.5, 0.5), (0.7, 0.5), (None, 0.5)])
    def test_when_a_message_wants_it_whichever_is_first(self, deliver_by: float | None, due: float) -> None:
        waiting = queue(linger=0.5)
        add(waiting, prepared(3))
        add(waiting, prepared(1, deliver_by=deliver_by), at=0.1)
        add(waiting, prepared(1, deliver_by=0.9), at=0.1)
        assert waiting.due() == due


class TestConflation:
    @staticmethod
    def keyed(priority: int = 0, key: str = "k", room: str = "room") -> Prepared:
        return prepared(priority, room=room, key=key)

    def test_the_newest_takes_the_place_of_the_waiting_one(self) -> None:
        waiting = queue()
        old, between, new = self.keyed(), prepared(), self.keyed()
        assert add(waiting, old, size=3, at=1.0, conflate=True) is None
        add(waiting, between, at=2.0)
        replaced = add(waiting, new, size=5, at=3.0, conflate=True)
        assert replaced is not None
        assert (replaced.message, replaced.size) == (old, 3)
        assert (waiting.count, waiting.bytes) == (2, 6)
        assert waiting.oldest() == 1.0, "a key that changes all the time still goes out in time"
        assert take(waiting) == [new, between]

    def test_with_another_priority_it_goes_to_the_end_of_that_one(self) -> None:
        waiting = queue()
        old, low, high, new = self.keyed(5), prepared(1), prepared(5), self.keyed(1)
        add(waiting, old, size=3, conflate=True)
        add(waiting, low)
        add(waiting, high)
        replaced = add(waiting, new, size=4, conflate=True)
        assert replaced is not None
        assert (replaced.message, replaced.size) == (old, 3)
        assert (waiting.count, waiting.bytes) == (3, 6)
        assert take(waiting) == [high, low, new]

    def test_again_and_again(self) -> None:
        waiting = queue()
        versions = [self.keyed(priority) for priority in (1, 1, 2, 2, 1, 3, 3)]
        replaced = [add(waiting, version, size=i, conflate=True) for i, version in enumerate(versions)]
        assert replaced[0] is None
        assert messages([entry for entry in replaced if entry]) == versions[:-1]
        assert [entry.size for entry in replaced if entry] == list(range(len(versions) - 1))
        assert (waiting.count, waiting.bytes) == (1, len(versions) - 1)
        assert take(waiting) == versions[-1:]

    @pytest.mark.parametrize("other", [keyed(key="other"), keyed(room="other")])
    def test_another_key_and_another_room_are_another_thing(self, other: Prepared) -> None:
        waiting = queue()
        message = self.keyed()
        add(waiting, message, conflate=True)
        assert waiting.replaced_by(QueuedMessage(other, 1, 0.0, True)) is None
        assert add(waiting, other, conflate=True) is None
        assert take(waiting) == [message, other]

    def test_only_what_conflates_replaces_and_is_replaced(self) -> None:
        waiting = queue()
        plain, keyed, plain_too = self.keyed(), self.keyed(), self.keyed()
        add(waiting, plain)
        assert waiting.replaced_by(QueuedMessage(keyed, 1, 0.0, True)) is None
        assert add(waiting, keyed, conflate=True) is None
        assert waiting.replaced_by(QueuedMessage(plain_too, 1, 0.0, False)) is None
        would_go = waiting.replaced_by(QueuedMessage(plain_too, 1, 0.0, True))
        assert would_go is not None
        assert would_go.message is keyed
        assert add(waiting, plain_too) is None
        assert take(waiting) == [plain, keyed, plain_too]

    @pytest.mark.parametrize("how", ["take", "evict", "evict_all", "clear", "expire"])
    def test_what_is_gone_cannot_be_replaced(self, how: str) -> None:
        waiting = queue()
        new = self.keyed()
        add(waiting, prepared(room="room", key="k", expires_at=1.0), conflate=True)
        match how:
            case "take":
                waiting.take(0.0)
            case "evict":
                waiting.evict("room", 10)
            case "evict_all":
                waiting.evict_all("room")
            case "clear":
                waiting.clear()
            case "expire":
                waiting.take(1.0)
        assert waiting.replaced_by(QueuedMessage(new, 1, 0.0, True)) is None
        assert add(waiting, new, conflate=True) is None
        assert take(waiting) == [new]


class TestEviction:
    def test_the_oldest_of_the_room_in_the_lowest_priority_goes(self) -> None:
        waiting = queue()
        high, other, low, low_too = prepared(4), prepared(1, room="other"), prepared(2), prepared(2)
        for message in (high, other, low, low_too):
            add(waiting, message, size=2)
        gone = [messages(waiting.evict("room", 10)) for _ in range(4)]
        assert gone == [[low], [low_too], [high], []]
        assert (waiting.count, waiting.bytes) == (1, 2)
        assert take(waiting) == [other]

    def test_nothing_above_the_priority_goes(self) -> None:
        waiting = queue()
        message = prepared(4)
        add(waiting, message)
        assert waiting.evict("room", 3) == []
        assert waiting.count == 1
        assert messages(waiting.evict("room", 4)) == [message]

    def test_all_of_a_room(self) -> None:
        waiting = queue()
        mine, theirs = [prepared(p) for p in (1, 4, 1)], [prepared(p, room=None) for p in (4, 1)]
        for message in [*mine, *theirs]:
            add(waiting, message, size=2)
        assert set(messages(waiting.evict_all("room"))) == set(mine)
        assert waiting.evict_all("room") == []
        assert (waiting.count, waiting.bytes) == (2, 4)
        assert take(waiting) == theirs

    def test_all(self) -> None:
        waiting = queue(linger=1.0)
        sent = [prepared(p) for p in (1, 4, 1)]
        for message in sent:
            add(waiting, message)
        assert set(messages(waiting.clear())) == set(sent)
        assert waiting.clear() == []
        assert waiting.count == waiting.bytes == 0
        assert waiting.oldest() == waiting.due() == inf
        assert waiting.take(0.0) == Taken([], [])


@attrs.define(eq=False)
class Waiting:
    """What the model knows of a message that waits."""

    message: Prepared
    size: int
    queued_at: float
    conflate: bool


class QueueMachine(RuleBasedStateMachine):
    """Any sequence of operations, against a list in the order in which each priority will be served."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.waiting: list[Waiting] = []
        self.passed: Counter[int] = Counter()
        self.added: list[Prepared] = []
        self.gone: list[Prepared] = []

    @initialize(max_messages=st.integers(1, 4), max_bytes=st.integers(1, 60), linger=st.sampled_from([0.0, 1.0]))
    def open(self, max_messages: int, max_bytes: int, linger: float) -> None:
        self.max_messages, self.max_bytes, self.linger = max_messages, max_bytes, linger
        self.queue = BatchQueue(max_messages, max_bytes, linger)

    # --- what can happen

    @rule(
        priority=st.sampled_from([0, 1, 5, 6, 10]),
        room=st.sampled_from(["a", "b", None]),
        key=st.sampled_from([None, None, "x", "y"]),
        conflate=st.booleans(),
        size=st.integers(1, 30),
        deliver_in=st.none() | st.sampled_from([0.0, 0.5, 1.5]),
        expires_in=st.none() | st.sampled_from([0.0, 0.7, 1.5]),
    )
    def add(
        self,
        priority: int,
        room: str | None,
        key: str | None,
        conflate: bool,
        size: int,
        deliver_in: float | None,
        expires_in: float | None,
    ) -> None:
        message = prepared(
            priority,
            room=room,
            key=key,
            deliver_by=None if deliver_in is None else self.now + deliver_in,
            expires_at=None if expires_in is None else self.now + expires_in,
        )
        new = Waiting(message, size, self.now, conflate and key is not None)
        entry = QueuedMessage(message, size, self.now, new.conflate)
        old = self.find_replaced(new)
        would_go = self.queue.replaced_by(entry)
        assert (would_go and would_go.message) == (old and old.message)
        replaced = self.queue.add(entry)
        self.added.append(message)
        assert (replaced and (replaced.message, replaced.size)) == (old and (old.message, old.size))
        self.put(new, old)

    def put(self, new: Waiting, old: Waiting | None) -> None:
        """In the model, put a message into the place of one that it replaces, or at the end."""
        if old is None:
            self.waiting.append(new)
            return
        self.gone.append(old.message)
        if old.message.priority == new.message.priority:
            new.queued_at = old.queued_at
            self.waiting[self.waiting.index(old)] = new
        else:
            self.waiting.remove(old)
            self.waiting.append(new)

    def find_replaced(self, new: Waiting) -> Waiting | None:
        if not new.conflate:
            return None
        same = [
            old
            for old in self.waiting
            if old.conflate and (old.message.room, old.message.key) == (new.message.room, new.message.key)
        ]
        assert len(same) <= 1
        return same[0] if same else None

    @rule(seconds=st.sampled_from([0.25, 1.0, 2.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        priorities=st.lists(st.sampled_from([0, 1, 5, 6, 10]), min_size=1, max_size=6),
        room=st.sampled_from(["a", "b", None]),
        keys=st.lists(st.sampled_from(["x", "y", None]), min_size=6, max_size=6),
        conflate=st.booleans(),
    )
    def extend(self, priorities: list[int], room: str | None, keys: list[str | None], conflate: bool) -> None:
        """As if each were added by itself, whoever else has the same load in a queue."""
        sent = [prepared(priority, room=room, key=key) for priority, key in zip(priorities, keys, strict=False)]
        entries = [QueuedMessage(message, 1, self.now, conflate and message.key is not None) for message in sent]
        expected = []
        for message, entry in zip(sent, entries, strict=True):
            new = Waiting(message, 1, self.now, entry.conflate)
            old = self.find_replaced(new)
            if old is not None:
                expected.append(old.message)
            self.put(new, old)
        self.added += sent
        assert messages(self.queue.extend(QueuedWindow(entries))) == expected
        assert messages(entries) == sent

    @rule(
        room=st.sampled_from(["a", "b", None]),
        priority=st.sampled_from([0, 4, 5, 10]),
        count=st.integers(-1, 4),
        size=st.integers(-10, 60),
    )
    def evict(self, room: str | None, priority: int, count: int, size: int) -> None:
        mine = [each for each in self.waiting if each.message.room == room and each.message.priority <= priority]
        mine.sort(key=lambda each: each.message.priority)  # the first of the lowest
        expected: list[Waiting] = []
        while mine and (len(expected) < count or sum(each.size for each in expected) < size):
            expected.append(mine.pop(0))
        evicted = self.queue.evict(room, priority, count, size)
        assert [(entry.message, entry.size) for entry in evicted] == [(each.message, each.size) for each in expected]
        self.remove(messages(evicted))

    @rule(room=st.sampled_from(["a", "b", None]))
    def evict_all(self, room: str | None) -> None:
        expected = {each.message for each in self.waiting if each.message.room == room}
        evicted = messages(self.queue.evict_all(room))
        assert len(evicted) == len(expected)
        assert set(evicted) == expected
        self.remove(evicted)

    @precondition(lambda self: len(self.waiting) > 5)
    @rule()
    def clear(self) -> None:
        cleared = messages(self.queue.clear())
        assert len(cleared) == len(self.waiting)
        assert set(cleared) == {each.message for each in self.waiting}
        self.remove(cleared)
        self.passed.clear()

    @rule()
    def take(self) -> None:
        before = list(self.waiting)
        taken = self.queue.take(self.now)
        batch, expired = messages(taken.batch), messages(taken.expired)
        self.remove([*batch, *expired])
        sizes = {each.message: each.size for each in before}
        assert [entry.size for entry in taken.batch] == [sizes[message] for message in batch]
        assert not any(self.has_expired(message) for message in batch)
        assert all(self.has_expired(message) for message in expired)
        self.check_order(before, batch, expired)
        self.check_promotion(before, batch)
        self.check_bounds(batch, [sizes[message] for message in batch])
        left = {each.message.priority for each in self.waiting}
        served = {message.priority for message in batch}
        self.passed = Counter({priority: self.passed[priority] + 1 for priority in left - served})

    @rule(batches=st.integers(1, PROMOTE_AFTER + 1), priority=st.sampled_from([5, 10]))
    def crowd(self, batches: int, priority: int) -> None:
        """What it takes to pass over the others until they are promoted."""
        for _ in range(batches):
            for _ in range(self.max_messages):
                self.add(priority, "a", None, False, 1, None, None)
            self.take()

    # --- what must hold of a batch

    def has_expired(self, message: Prepared) -> bool:
        return message.expires_at is not None and message.expires_at <= self.now

    @staticmethod
    def check_order(before: list[Waiting], batch: list[Prepared], expired: list[Prepared]) -> None:
        """Within a priority, the oldest go first: those taken, in their order, are the first of the lane."""
        for priority in range(11):
            lane = [each.message for each in before if each.message.priority == priority]
            sent = [message for message in batch if message.priority == priority]
            dropped = [message for message in expired if message.priority == priority]
            first = lane[: len(sent) + len(dropped)]
            assert [message for message in first if message in sent] == sent
            assert [message for message in first if message in dropped] == dropped

    def check_promotion(self, before: list[Waiting], batch: list[Prepared]) -> None:
        """At the front one of each promoted priority, the one passed over most first; then the highest priority first."""
        alive = {each.message.priority for each in before if not self.has_expired(each.message)}
        promoted = [priority for priority in alive if self.passed[priority] >= PROMOTE_AFTER]
        promoted.sort(key=lambda priority: (-self.passed[priority], -priority))
        front = [message.priority for message in batch[: len(promoted)]]
        assert front == promoted[: len(front)]
        rest = [message.priority for message in batch[len(promoted) :]]
        assert rest == sorted(rest, reverse=True)
        assert not rest or all(each.message.priority <= rest[-1] for each in self.waiting), "a lower one overtook"

    def check_bounds(self, batch: list[Prepared], sizes: list[int]) -> None:
        """Within the bounds, and no smaller than they ask for: what is left did not fit."""
        assert len(batch) <= self.max_messages
        assert sum(sizes) <= self.max_bytes or len(batch) == 1
        if self.waiting and len(batch) < self.max_messages:
            heads = {each.message.priority: each for each in reversed(self.waiting)}
            candidates = [heads[p] for p in heads if p == max(heads) or self.passed[p] >= PROMOTE_AFTER]
            assert batch
            assert any(
                sum(sizes) + each.size > self.max_bytes and not self.has_expired(each.message) for each in candidates
            )

    def remove(self, messages: list[Prepared]) -> None:
        assert len(messages) == len(set(messages)), "the same message twice"
        assert set(messages) <= {each.message for each in self.waiting}, "it did not wait (any more)"
        self.waiting = [each for each in self.waiting if each.message not in messages]
        self.gone += messages

    # --- what holds at any time

    @invariant()
    def counts_are_exact(self) -> None:
        if not self.added:
            return
        assert self.queue.count == len(self.waiting)
        assert self.queue.bytes == sum(each.size for each in self.waiting)
        assert self.queue.oldest() == min((each.queued_at for each in self.waiting), default=inf)

    @invariant()
    def it_is_due_in_time(self) -> None:
        if not self.added:
            return
        full = len(self.waiting) >= self.max_messages or sum(each.size for each in self.waiting) >= self.max_bytes
        if not self.waiting:
            due = inf
        elif full or not self.linger or any(each.message.priority > 5 for each in self.waiting):
            due = -inf
        else:
            wanted = [each.message.deliver_by for each in self.waiting if each.message.deliver_by is not None]
            due = min([min(each.queued_at for each in self.waiting) + self.linger, *wanted])
        assert self.queue.due() == due

    def teardown(self) -> None:
        """Nothing lost, nothing doubled: every message was taken, expired, evicted or replaced once, or waits."""
        if not self.added:
            return
        rest = messages(self.queue.clear())
        assert Counter(self.gone + rest) == Counter(self.added)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=100, stateful_step_count=60)
