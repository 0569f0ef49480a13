"""Group commit: each item is given back once, whatever the store, the callbacks or the end of the switch do."""

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trioswitch import StoreError, UnencodableData
from trioswitch._util.supervision import supervise
from trioswitch.durability import group_commit
from trioswitch.durability.group_commit import GroupCommit
from trioswitch.durability.store_health import StoreHealth


class Rig:
    """A group commit on a store that takes a second, and what came back."""

    def __init__(self) -> None:
        self.health = StoreHealth()
        self.batches: list[list[int]] = []
        self.succeeded: list[tuple[int, str]] = []
        self.failed: list[tuple[int, str]] = []
        self.error: Exception | None = None
        self.commits: GroupCommit[int, int, str] = GroupCommit(
            self.health, encode=self.encode, write=self.write, succeeded=self.on_success, failed=self.on_failure
        )

    def encode(self, item: int) -> int:
        if item == 13:
            raise UnencodableData("13 cannot be written")
        if item == 666:
            raise ZeroDivisionError("a fault in the encoder")
        return item

    async def write(self, encoded: Sequence[int]) -> list[str]:
        self.batches.append(list(encoded))
        await trio.sleep(1)
        if self.error is not None:
            raise self.error
        return [f"result {item}" for item in encoded]

    def on_success(self, item: int, result: str) -> None:
        self.succeeded.append((item, result))
        if item == 99:
            raise ZeroDivisionError("a fault in the callback")

    def on_failure(self, item: int, error: Exception) -> None:
        self.failed.append((item, str(error)))

    async def run(self) -> None:
        while True:
            while self.commits.pending:
                await self.commits.commit_batch()
            await self.commits.wait()


async def test_what_comes_during_a_commit_is_the_next_batch(clock: MockClock) -> None:
    rig = Rig()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.run)
        rig.commits.add(1)
        await wait_all_tasks_blocked()
        for item in (2, 3, 4):
            rig.commits.add(item)
        assert (rig.commits.pending, rig.commits.uncommitted) == (3, 4)
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    assert rig.batches == [[1], [2, 3, 4]]
    assert rig.succeeded == [(item, f"result {item}") for item in (1, 2, 3, 4)]
    assert (rig.failed, rig.commits.uncommitted) == ([], 0)


async def test_a_batch_is_bounded(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "MAX_BATCH", 2)
    rig = Rig()
    for item in range(5):
        rig.commits.add(item)
    assert list(rig.commits.next_batch()) == [0, 1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.run)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert rig.batches == [[0, 1], [2, 3], [4]]


async def test_an_item_that_cannot_be_written_fails_alone(clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    for item in (1, 13, 666, 2):
        rig.commits.add(item)
    await rig.commits.commit_batch()
    assert [item for item, _ in rig.succeeded] == [1, 2]
    assert rig.failed == [(13, "13 cannot be written"), (666, "the message could not be stored")]
    assert "ZeroDivisionError" in caplog.text


async def test_a_callback_that_fails_does_not_take_the_others_with_it(
    clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig()
    for item in (99, 1):
        rig.commits.add(item)
    await rig.commits.commit_batch()
    assert [item for item, _ in rig.succeeded] == [99, 1]
    assert "ZeroDivisionError" in caplog.text


async def test_a_store_that_fails(clock: MockClock) -> None:
    rig = Rig()
    rig.error = StoreError("the disk is full")
    rig.commits.add(1)
    await rig.commits.commit_batch()
    assert rig.failed == [(1, "the disk is full")]
    assert rig.health.error == "the disk is full"
    rig.error = None
    rig.commits.add(2)
    await rig.commits.commit_batch()
    assert rig.succeeded == [(2, "result 2")]
    assert rig.health.error is None


async def test_a_crash_in_the_middle_of_a_batch(clock: MockClock) -> None:
    """The supervisor starts the task again, and it goes on with what is pending."""
    rig = Rig()
    rig.error = ZeroDivisionError("a fault in the store")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervise, rig.run)
        rig.commits.add(1)
        await wait_all_tasks_blocked()
        rig.commits.add(2)
        await trio.sleep(1.5)
        rig.error = None
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert rig.failed == [(1, "the store failed")]
    assert rig.succeeded == [(2, "result 2")]


async def test_at_the_end_everything_is_given_back(clock: MockClock) -> None:
    rig = Rig()
    with trio.move_on_after(0.5):
        rig.commits.add(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.run)
            await wait_all_tasks_blocked()
            rig.commits.add(2)
    rig.commits.abandon()
    reason = "the server shut down before the commit was confirmed"
    assert rig.failed == [(1, reason), (2, reason)]
    assert (rig.succeeded, rig.commits.uncommitted) == ([], 0)
