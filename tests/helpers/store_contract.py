"""What every store must do. An engine passes when a subclass of `StoreContract` with a fixture `store` does."""

from collections import defaultdict
from math import inf
from typing import Any

import pytest
import trio
from store_support import bounds, fill, inbox_message, inbox_messages, message, newest, offsets, read, upto

from trioswitch.stores.port import (
    KEY_TIME,
    POSITION_TIME,
    Appended,
    GroupChange,
    HistoryRecords,
    InboxResult,
    Record,
    Refusal,
    Retention,
    SavedSession,
    Store,
    StoredInboxMessage,
)


class StoreContract:
    knows_users = True
    """Whether the engine tells, without asking anybody, which users have no inbox messages."""

    # --- positions

    async def test_offsets_count_from_one_by_room(self, store: Store) -> None:
        appended = await store.append([message(room=room) for room in ("a", "b", "a", "a", "b")])
        assert [one.offset for one in appended] == [1, 1, 2, 3, 2]
        assert [one.offset for one in await store.append([message(room="b")])] == [3]
        assert not any(one.duplicate for one in appended)

    async def test_each_room_has_its_own_epoch_and_keeps_it(self, store: Store) -> None:
        a, b = await store.append([message(room="a"), message(room="b")])
        assert a.epoch
        assert b.epoch
        assert a.epoch != b.epoch
        (again,) = await store.append([message(room="a")])
        assert again == Appended(a.epoch, 2, duplicate=False)
        assert (await read(store, "a")).epoch == (await newest(store, "a")).epoch == a.epoch

    async def test_reading_makes_no_room(self, store: Store) -> None:
        nothing = HistoryRecords(epoch="", first=1, last=0, records=[])
        for _ in range(2):
            assert await read(store, "nowhere") == nothing
            assert await newest(store, "nowhere") == nothing
        assert await inbox_messages(store, "nobody") == []
        await store.acknowledge("nobody", 5)

    async def test_which_users_may_have_inbox_messages(self, store: Store) -> None:
        """It may be wrong about who has none, and never about who has some."""
        await store.add_to_inboxes([inbox_message(user="bob")], limits=upto(1))
        assert store.may_have_inbox_messages("bob")

    async def test_nothing_to_do(self, store: Store) -> None:
        assert await store.append([]) == []
        assert await store.add_to_inboxes([], limits=upto(1)) == []
        await store.sweep(100.0, 100.0)

    # --- reading

    async def test_what_was_kept_comes_back(self, store: Store) -> None:
        epoch = (await store.append([message(b"one", at=1.25), message(b"", at=2.5, expires_at=1e9)]))[0].epoch
        records = [Record(1, b"one", 1.25, None), Record(2, b"", 2.5, 1e9)]
        assert await read(store) == await newest(store) == HistoryRecords(epoch, 1, 2, records)

    async def test_pages(self, store: Store) -> None:
        await fill(store, 10)
        assert offsets(await read(store, limit=4)) == [1, 2, 3, 4]
        assert offsets(await read(store, after=4, limit=4)) == [5, 6, 7, 8]
        assert offsets(await read(store, after=8, limit=4)) == [9, 10]
        assert offsets(await newest(store, limit=4)) == [7, 8, 9, 10]
        for page in (await read(store, after=10), await read(store, after=1 << 70), await read(store, limit=0)):
            assert (page.first, page.last, page.records) == (1, 10, [])
        assert offsets(await newest(store, limit=0)) == []

    async def test_a_page_ends_at_its_bytes_but_has_one_record(self, store: Store) -> None:
        await store.append([message(b"x" * size) for size in (40, 40, 40, 200, 10)])
        assert offsets(await read(store, max_bytes=80)) == [1, 2]
        assert offsets(await read(store, max_bytes=79)) == [1]
        assert offsets(await read(store, after=3, max_bytes=100)) == [4]
        assert offsets(await newest(store, max_bytes=209)) == [5]
        assert offsets(await newest(store, max_bytes=210)) == [4, 5]
        assert offsets(await newest(store, max_bytes=0)) == [5]

    async def test_what_has_expired_is_left_out_but_not_missed(self, store: Store) -> None:
        times = [None, 110.0, None, 120.0]
        await store.append([message(expires_at=expires_at) for expires_at in times])
        assert offsets(await read(store, now=109.0)) == [1, 2, 3, 4]
        for _ in ("before it is swept", "afterwards"):
            for get in (read, newest):
                page = await get(store, now=110.0)
                assert (bounds(page), offsets(page)) == ((1, 4), [1, 3, 4])
                page = await get(store, now=1000.0)
                assert (bounds(page), offsets(page)) == ((1, 4), [1, 3])
                assert offsets(await get(store, now=1000.0, limit=2)) == [1, 3]
            await store.sweep(110.5, inf)
        assert [one.offset for one in await store.append([message()])] == [5]

    async def test_a_room_whose_last_message_expired_goes_on_counting(self, store: Store) -> None:
        await store.append([message(expires_at=101.0)])
        await store.sweep(200.0, inf)
        page = await read(store, now=200.0)
        assert (bounds(page), page.records) == ((1, 1), [])
        assert [one.offset for one in await store.append([message()])] == [2]

    # --- retention

    @pytest.mark.parametrize("at_once", [1, 7, 500])
    async def test_the_newest_are_kept(self, store: Store, at_once: int) -> None:
        retention = Retention(5, None)
        for start in range(0, 500, at_once):
            await fill(store, min(at_once, 500 - start), retention=retention)
            last = min(start + at_once, 500)
            page = await read(store)
            assert bounds(page) == (max(1, last - 4), last)
            assert offsets(page) == list(range(page.first, last + 1))
        assert offsets(await newest(store)) == offsets(await read(store, after=300)) == [496, 497, 498, 499, 500]

    async def test_the_retention_is_that_of_the_last_append(self, store: Store) -> None:
        await fill(store, 10)
        await fill(store, 1, retention=Retention(3, None))
        assert offsets(await read(store)) == [9, 10, 11]
        await fill(store, 1)
        assert offsets(await read(store)) == [9, 10, 11, 12]  # what is gone does not come back
        await fill(store, 1, retention=Retention(0, None))
        page = await read(store)
        assert (bounds(page), page.records) == ((14, 13), [])

    @pytest.mark.parametrize("swept", [False, True])
    async def test_what_is_too_old_is_gone(self, store: Store, swept: bool) -> None:
        retention = Retention(1000, 60.0)
        for at in (100.0, 110.0, 120.0):
            await fill(store, 3, at=at, retention=retention)
        expected = {160.0: 1, 161.0: 4, 170.0: 4, 171.0: 7, 180.0: 7, 181.0: 10, 500.0: 10}
        for now, first in expected.items():
            if swept:
                await store.sweep(now, inf)
            for page in (await read(store, now=now), await newest(store, now=now)):
                assert (bounds(page), offsets(page)) == ((first, 9), list(range(first, 10)))
        await fill(store, 1, at=500.0, retention=retention)
        page = await read(store, now=500.0)
        assert (bounds(page), offsets(page)) == ((10, 10), [10])

    async def test_a_clock_that_was_set_back(self, store: Store) -> None:
        retention = Retention(1000, 60.0)
        for at in (100.0, 200.0, 150.0, 210.0):
            await fill(store, 1, at=at, retention=retention)
        page = await read(store, now=205.0)
        assert (bounds(page), offsets(page)) == ((2, 4), [2, 3, 4])
        page = await read(store, now=250.0)
        assert (page.first, offsets(page)) == (2, [2, 4])

    async def test_sweeping_keeps_what_is_to_be_kept(self, store: Store) -> None:
        for number in range(300):
            await fill(
                store, 3, f"room{number}", at=100.0 + number, retention=Retention(10, 100.0 if number % 2 else None)
            )
        await store.sweep(300.0, inf)
        for number in range(300):
            page = await read(store, f"room{number}", now=300.0)
            kept = [1, 2, 3] if number % 2 == 0 or number >= 100 else []
            assert (page.first, offsets(page)) == (1 if kept else 4, kept)

    async def test_a_big_room_is_swept(self, store: Store) -> None:
        retention = Retention(100_000, 60.0)
        await fill(store, 5000, at=100.0, retention=retention)
        await fill(store, 3000, at=110.0, retention=retention)
        await store.append([message(at=110.0, expires_at=111.0, retention=retention) for _ in range(2500)])
        await store.sweep(165.0, inf)
        page = await read(store, now=165.0, limit=10_000)
        assert (page.first, page.last) == (5001, 10_500)
        assert offsets(page) == list(range(5001, 8001))

    async def test_an_empty_room_is_remembered_for_a_while(self, store: Store) -> None:
        epoch = await fill(store, 3, retention=Retention(10, 60.0))
        await store.sweep(200.0, inf)
        await store.sweep(100.0 + POSITION_TIME, inf)
        page = await read(store, now=100.0 + POSITION_TIME)
        assert (page.epoch, *bounds(page)) == (epoch, 4, 3)
        await store.sweep(200.0 + POSITION_TIME, inf)
        assert (await read(store)).epoch == ""
        (appended,) = await store.append([message()])
        assert appended.offset == 1
        assert appended.epoch != epoch

    # --- idempotency keys

    async def test_the_same_key_is_kept_once(self, store: Store) -> None:
        epoch = await fill(store, 1)
        first, twice, other_room, other_key = await store.append(
            [message(key="k"), message(b"again", key="k"), message(room="b", key="k"), message(key="l")]
        )
        assert (first, twice) == (Appended(epoch, 2, duplicate=False), Appended(epoch, 2, duplicate=True))
        assert (other_room.offset, other_room.duplicate, other_key.offset) == (1, False, 3)
        assert await store.append([message(key="l"), message(), message(key="k")]) == [
            Appended(epoch, 3, duplicate=True),
            Appended(epoch, 4, duplicate=False),
            Appended(epoch, 2, duplicate=True),
        ]
        assert [record.payload for record in (await read(store)).records] == [b"1", b"x", b"x", b"x"]

    async def test_keys_outlive_their_messages(self, store: Store) -> None:
        retention = Retention(2, 10.0)
        await store.append([message(key="k", retention=retention)])
        await fill(store, 200, retention=retention)
        await store.sweep(100.0 + KEY_TIME - 1, inf)
        (appended,) = await store.append([message(key="k", at=100.0 + KEY_TIME - 1, retention=retention)])
        assert (appended.offset, appended.duplicate) == (1, True)

    async def test_keys_are_forgotten_in_the_end(self, store: Store) -> None:
        await store.append([message(key="k")])
        await store.add_to_inboxes([inbox_message(key="k")], limits=upto(10))
        for times in range(1, 5):
            await store.sweep(100.0 + times * (KEY_TIME + 1), inf)
        (appended,) = await store.append([message(key="k")])
        assert (appended.offset, appended.duplicate) == (2, False)
        assert await store.add_to_inboxes([inbox_message(key="k")], limits=upto(10)) == [
            InboxResult(2, duplicate=False)
        ]

    # --- inboxes

    async def test_inbox_messages_are_kept_until_they_are_acknowledged(self, store: Store) -> None:
        posted = await store.add_to_inboxes(
            [inbox_message(b"a"), inbox_message(b"b", "bob"), inbox_message(b"c", at=1.5, expires_at=1e9)],
            limits=upto(10),
        )
        assert posted == [InboxResult(1, False), InboxResult(1, False), InboxResult(2, False)]
        assert await inbox_messages(store) == [
            StoredInboxMessage(1, b"a", 100.0, None),
            StoredInboxMessage(2, b"c", 1.5, 1e9),
        ]
        assert [one.seq for one in await inbox_messages(store, limit=1)] == [1]
        assert [one.seq for one in await inbox_messages(store, after=1)] == [2]
        await store.acknowledge("ann", 1)
        assert [one.seq for one in await inbox_messages(store)] == [2]
        assert [one.seq for one in await inbox_messages(store, "bob")] == [1]
        await store.acknowledge("ann", 1 << 70)
        assert await inbox_messages(store) == []

    async def test_a_number_is_never_used_again(self, store: Store) -> None:
        await store.add_to_inboxes([inbox_message()] * 3, limits=upto(10))
        await store.acknowledge("ann", 3)
        await store.sweep(100.0 + POSITION_TIME, 1.0)
        assert await store.add_to_inboxes([inbox_message()], limits=upto(10)) == [InboxResult(4, False)]

    async def test_a_full_inbox_takes_no_more(self, store: Store) -> None:
        assert [one.seq for one in await store.add_to_inboxes([inbox_message()] * 5, limits=upto(3))] == [1, 2, 3, 0, 0]
        assert await store.add_to_inboxes([inbox_message(key="k"), inbox_message(user="bob")], limits=upto(3)) == [
            InboxResult(0, False, Refusal.INBOX),
            InboxResult(1, False),
        ]
        await store.acknowledge("ann", 1)
        assert await store.add_to_inboxes([inbox_message(key="k")], limits=upto(3)) == [InboxResult(4, False)]
        assert await store.add_to_inboxes([inbox_message(key="k")], limits=upto(3)) == [InboxResult(4, True)]
        assert await store.add_to_inboxes([inbox_message()], limits=upto(0)) == [InboxResult(0, False, Refusal.INBOX)]
        assert [one.seq for one in await inbox_messages(store)] == [2, 3, 4]

    async def test_an_inbox_has_a_limit_in_bytes(self, store: Store) -> None:
        limits = upto(10, size=100)
        posted = await store.add_to_inboxes(
            [inbox_message(b"x" * size) for size in (101, 60, 41, 40, 1)], limits=limits
        )
        assert [one.seq for one in posted] == [0, 1, 0, 2, 0]
        posted = await store.add_to_inboxes(
            [inbox_message(b"x"), inbox_message(b"", key="k"), inbox_message(b"x" * 100, "bob")], limits=limits
        )
        assert [one.seq for one in posted] == [0, 3, 1]
        await store.acknowledge("ann", 1)
        assert await store.add_to_inboxes([inbox_message(b"x" * 61), inbox_message(b"x" * 60)], limits=limits) == [
            InboxResult(0, False, Refusal.INBOX),
            InboxResult(4, False),
        ]
        await store.add_to_inboxes([inbox_message(b"x" * 100, "eve", expires_at=110.0)], limits=limits)
        assert await store.add_to_inboxes([inbox_message(b"x", "eve", at=110.0)], limits=limits) == [
            InboxResult(2, False)
        ]

    async def test_a_sender_takes_as_much_as_is_left_for_all_others(self, store: Store) -> None:
        async def fill(sender: str, *, inboxes: bool) -> int:
            """Messages of 100 bytes that are kept of a sender, until one is refused."""
            for count in range(100):
                if inboxes:
                    limits = upto(1000, total=2_000)
                    one = inbox_message(b"x" * 100, f"user{sender}{count}", sender=sender)
                    result: Any = (await store.add_to_inboxes([one], limits=limits))[0]
                    kept = result.seq
                else:
                    result = (
                        await store.append([message(b"x" * 100, sender + str(count), sender=sender)], total_bytes=2_000)
                    )[0]
                    kept = result.offset
                if not kept:
                    assert result.refusal is Refusal.SENDER
                    return count
            raise AssertionError("nothing was refused")

        for inboxes in (True, False):
            assert [await fill(sender, inboxes=inboxes) for sender in ("eve", "mallory", "ann")] == [10, 5, 3]

    async def test_what_is_gone_does_not_count_for_its_sender(self, store: Store) -> None:
        retention, limits = Retention(2, None), upto(1000, total=200)
        big = b"x" * 100

        async def append(sender: str, expires_at: float | None = None) -> Refusal | None:
            one = message(big, retention=retention, sender=sender, expires_at=expires_at)
            return (await store.append([one], total_bytes=200))[0].refusal

        async def post(sender: str, expires_at: float | None = None) -> Refusal | None:
            one = inbox_message(big, sender=sender, expires_at=expires_at)
            return (await store.add_to_inboxes([one], limits=limits))[0].refusal

        for put in (append, post):
            assert await put("eve", 150.0) is None
            assert await put("eve") is Refusal.SENDER
            assert await put("") is None, "the server itself may take all"
            assert await put("") is Refusal.TOTAL
            assert await put("ann") is Refusal.TOTAL
        await store.acknowledge("ann", 2)
        await store.sweep(200.0, 1e9)
        assert await post("eve") is None
        assert await append("eve") is None

    async def test_one_batch_is_counted_as_it_grows(self, store: Store) -> None:
        batch = [message(b"x" * 100, f"r{number}", sender="eve") for number in range(12)]
        results = await store.append(batch, total_bytes=2_000)
        assert [one.offset for one in results] == [1] * 10 + [0] * 2
        assert (await store.read("r11", after=0, limit=1, max_bytes=1, now=100.0)).last == 0, "no room is made for it"
        posted = await store.add_to_inboxes(
            [inbox_message(b"x" * 100, f"u{number}", sender="eve") for number in range(12)], limits=upto(5, total=2_000)
        )
        assert [one.seq for one in posted] == [1] * 10 + [0] * 2

    async def test_a_retry_needs_no_space(self, store: Store) -> None:
        (first,) = await store.append([message(b"x" * 100, key="k", sender="eve")], total_bytes=200)
        (again,) = await store.append([message(b"x" * 100, key="k", sender="eve")], total_bytes=100)
        assert (again.offset, again.duplicate, again.refusal) == (first.offset, True, None)

    async def test_all_inboxes_have_a_limit_together(self, store: Store) -> None:
        limits = upto(10, total=100)

        async def fits(size: int) -> bool:
            """Exactly so much, and no more."""
            posted = await store.add_to_inboxes(
                [inbox_message(b"x" * size, "one"), inbox_message(b"x", "two")], limits=limits
            )
            await store.acknowledge("one", 1 << 70)
            return [one.seq > 0 for one in posted] == [True, False]

        assert await fits(100)
        posted = await store.add_to_inboxes(
            [inbox_message(b"x" * 60), inbox_message(b"x" * 41, "bob"), inbox_message(b"x" * 40, "bob")], limits=limits
        )
        assert [one.seq for one in posted] == [1, 0, 1]
        assert [one.seq for one in await store.add_to_inboxes([inbox_message(b"x", "eve")], limits=limits)] == [0]
        await store.acknowledge("ann", 1)
        await store.acknowledge("ann", 1)
        assert await fits(60)
        await store.add_to_inboxes([inbox_message(b"x" * 30, "eve", expires_at=110.0)], limits=limits)
        assert await fits(30)
        await store.sweep(111.0, inf)
        assert await fits(60)
        await store.sweep(500.0, 60.0)
        assert await fits(100)

    async def test_who_is_refused_leaves_nothing_behind(self, store: Store) -> None:
        await store.add_to_inboxes([inbox_message(key="k"), inbox_message(user="bob")], limits=upto(10, total=0))
        assert await inbox_messages(store) == []
        assert not (self.knows_users and store.may_have_inbox_messages("ann"))
        assert await store.add_to_inboxes([inbox_message(key="k")], limits=upto(10)) == [InboxResult(1, False)]

    async def test_a_page_of_an_inbox_ends_at_its_bytes_but_has_one(self, store: Store) -> None:
        await store.add_to_inboxes([inbox_message(b"x" * size) for size in (40, 40, 200, 10)], limits=upto(10))
        for after, max_bytes, seqs in ((0, 80, [1, 2]), (0, 79, [1]), (0, 0, [1]), (2, 100, [3]), (2, 210, [3, 4])):
            assert [one.seq for one in await inbox_messages(store, after=after, max_bytes=max_bytes)] == seqs

    async def test_an_empty_inbox_is_forgotten_in_the_end(self, store: Store) -> None:
        """And its numbers are given to nobody: a client that stayed would take a new inbox message for an old one."""
        await store.add_to_inboxes(
            [inbox_message(), inbox_message(), inbox_message(key="k"), inbox_message(user="bob", at=1000.0)],
            limits=upto(10),
        )
        await store.sweep(161.0, 60.0)
        assert await inbox_messages(store) == []
        await store.sweep(159.0 + POSITION_TIME, 60.0)
        assert await store.add_to_inboxes([inbox_message(user="ann")], limits=upto(10)) == [InboxResult(4, False)]
        await store.acknowledge("ann", 4)
        for _ in range(2):
            await store.sweep(161.0 + POSITION_TIME, 60.0)
        assert not (self.knows_users and store.may_have_inbox_messages("ann"))
        new = await store.add_to_inboxes([inbox_message(user=user) for user in ("ann", "eve", "bob")], limits=upto(10))
        assert [one.seq for one in new] == [5, 5, 2]
        assert store.may_have_inbox_messages("ann")

    async def test_an_inbox_with_messages_is_not_forgotten(self, store: Store) -> None:
        await store.add_to_inboxes([inbox_message()], limits=upto(10))
        await store.sweep(200.0 + POSITION_TIME, 10 * POSITION_TIME)
        assert await store.add_to_inboxes([inbox_message()], limits=upto(10)) == [InboxResult(2, False)]
        assert [one.seq for one in await inbox_messages(store)] == [1, 2]

    async def test_inbox_messages_expire_and_make_space(self, store: Store) -> None:
        await store.add_to_inboxes([inbox_message(expires_at=110.0), inbox_message()], limits=upto(2))
        assert [one.seq for one in await inbox_messages(store, now=109.0)] == [1, 2]
        assert [one.seq for one in await inbox_messages(store, now=110.0)] == [2]
        assert await store.add_to_inboxes([inbox_message(at=111.0)], limits=upto(2)) == [InboxResult(3, False)]
        await store.sweep(112.0, inf)
        assert [one.seq for one in await inbox_messages(store, now=105.0)] == [2, 3]

    async def test_inbox_messages_get_too_old(self, store: Store) -> None:
        await store.add_to_inboxes([inbox_message(at=at) for at in (100.0, 110.0, 120.0)], limits=upto(10))
        await store.sweep(175.0, 60.0)
        assert [one.seq for one in await inbox_messages(store, now=175.0)] == [3]

    async def test_the_same_inbox_message_is_kept_once(self, store: Store) -> None:
        assert await store.add_to_inboxes(
            [inbox_message(key="k"), inbox_message(key="k"), inbox_message(user="bob", key="k")], limits=upto(10)
        ) == [
            InboxResult(1, False),
            InboxResult(1, True),
            InboxResult(1, False),
        ]
        await store.acknowledge("ann", 1)
        assert await store.add_to_inboxes([inbox_message(key="k"), inbox_message()], limits=upto(10)) == [
            InboxResult(1, True),
            InboxResult(2, False),
        ]

    # --- many at once

    async def test_many_tasks(self, store: Store) -> None:
        """Offsets are unique and without gaps, and each task's messages are in its order."""
        seen: dict[str, dict[int, bytes]] = defaultdict(dict)

        async def publish(task: int) -> None:
            for number in range(10):
                batch = [message(f"{task}:{number}", f"room{n}") for n in ((task + number) % 3, task % 3)]
                for one, appended in zip(batch, await store.append(batch), strict=True):
                    assert appended.offset not in seen[one.room]
                    seen[one.room][appended.offset] = one.payload

        async with trio.open_nursery() as nursery:
            for task in range(20):
                nursery.start_soon(publish, task)
        for room, payloads in seen.items():
            page = await read(store, room, limit=1000)
            assert [(one.offset, one.payload) for one in page.records] == sorted(payloads.items())
            assert offsets(page) == list(range(1, page.last + 1))
            numbers: dict[str, int] = defaultdict(int)
            for record in page.records:
                publisher, number = record.payload.decode().split(":")
                assert int(number) >= numbers[publisher]
                numbers[publisher] = int(number)

    async def test_many_tasks_with_the_same_key(self, store: Store) -> None:
        results: list[Appended] = []

        async def publish() -> None:
            results.extend(await store.append([message(key="k")]))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(publish)
        assert {one.offset for one in results} == {1}
        assert sum(not one.duplicate for one in results) == 1

    async def test_a_read_sees_what_was_committed(self, store: Store) -> None:
        async def publish_and_read(room: str) -> None:
            for number in range(1, 6):
                await store.append([message(room=room)])
                assert (await read(store, room)).last == number

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(publish_and_read, f"room{number}")

    async def test_cancelled_before_it_began(self, store: Store) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.append([message()])
        assert scope.cancelled_caught
        assert (await read(store)).epoch == ""

    async def test_a_cancelled_write_harms_nobody(self, store: Store) -> None:
        async def publish(number: int) -> None:
            with trio.CancelScope() as scope:
                if number % 2:
                    nursery.start_soon(cancel, scope)
                await store.append([message(str(number))])

        async def cancel(scope: trio.CancelScope) -> None:
            scope.cancel()

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(publish, number)
        await store.append([message(b"last")])
        page = await read(store)
        assert offsets(page) == list(range(1, page.last + 1))
        assert {str(number).encode() for number in range(0, 50, 2)} <= {one.payload for one in page.records}

    # --- contents

    async def test_big_payloads(self, store: Store) -> None:
        payloads = [bytes([number]) * (1 << 20) for number in range(4)]
        await store.append([message(payload) for payload in payloads])
        await store.add_to_inboxes([inbox_message(payloads[3])], limits=upto(1))
        page = await read(store, max_bytes=3 << 20)
        assert [record.payload for record in page.records] == payloads[:3]
        assert (await inbox_messages(store))[0].payload == payloads[3]

    @pytest.mark.parametrize(
        "name", ["", " ", "a\0b", "Ünïcödé", "e\u0301", "日本語", "🎉" * 200, "'; --", "room\n", "%_*?"]
    )
    async def test_names_and_keys_are_any_text(self, store: Store, name: str) -> None:
        (other,) = await store.append([message(room=name + "x", key=name)])
        (appended, again) = await store.append([message(b"here", name, key=name), message(b"", name, key=name)])
        assert (appended.offset, again.duplicate, other.duplicate) == (1, True, False)
        assert [record.payload for record in (await read(store, name)).records] == [b"here"]
        await store.add_to_inboxes([inbox_message(user=name, key=name)], limits=upto(1))
        assert len(await inbox_messages(store, name)) == 1
        await store.acknowledge(name, 1)
        assert await inbox_messages(store, name) == []

    # --- the end

    async def test_after_the_end(self, store: Store) -> None:
        await store.append([message()])
        await store.aclose()
        await store.aclose()
        for call in (lambda: store.append([message()]), lambda: read(store), lambda: store.acknowledge("ann", 1)):
            with pytest.raises(trio.ClosedResourceError):
                await call()

    # --- what nodes of a cluster share

    async def test_positions(self, store: Store) -> None:
        (first,) = await store.append([message(room="a")])
        await store.append([message(room="a"), message(room="b")])
        found = await store.positions(["a", "nobody", "b", "a"])
        assert found[0] == found[3] == (first.epoch, 2)
        assert found[1] == ("", 0)
        assert found[2][1] == 1
        assert await store.positions([]) == []

    async def test_sessions_are_kept_until_they_expire(self, store: Store) -> None:
        await store.save_sessions(
            [SavedSession("a", b"1", 10.0), SavedSession("b", b"2", 20.0), SavedSession("a", b"3", 10.0)]
        )
        assert await store.load_session("a", 9.0) == b"3"
        assert await store.load_session("a", 10.0) is None
        assert await store.load_session("nobody", 0.0) is None
        await store.save_sessions(
            [SavedSession("a", b"4", 30.0), SavedSession("b", None, 0.0), SavedSession("c", None, 0.0)]
        )
        assert await store.load_session("a", 29.0) == b"4"
        assert await store.load_session("b", 0.0) is None
        await store.sweep(31.0, 60.0)
        assert await store.load_session("a", 0.0) is None
        await store.save_sessions([])

    async def test_a_session_is_taken_once(self, store: Store) -> None:
        await store.save_sessions([SavedSession("a", b"1", 10.0)])
        taken: list[bytes | None] = []

        async def take() -> None:
            taken.append(await store.take_session("a", 5.0))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(take)
        assert sorted(taken, key=str) == sorted([b"1", *[None] * 9], key=str)
        await store.save_sessions([SavedSession("b", b"1", 10.0)])
        assert await store.take_session("b", 10.0) is None
        assert await store.take_session("b", 5.0) is None

    async def test_groups_are_changed_in_order(self, store: Store) -> None:
        assert await store.read_groups() == []
        await store.change_groups(
            [GroupChange("g", "ann", True), GroupChange("g", "bob", True), GroupChange("h", "ann", True)]
        )
        await store.change_groups(
            [GroupChange("g", "ann", True), GroupChange("g", "bob", False), GroupChange("h", "eve", False)]
        )
        await store.change_groups([])
        assert sorted(await store.read_groups()) == [("g", "ann"), ("h", "ann")]
