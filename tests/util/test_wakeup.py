"""Waking tasks that wait for a change."""

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trioswitch._util.wakeup import Wakeup


async def test_notify_wakes_all_that_wait_now(clock: MockClock) -> None:
    wakeup, woken = Wakeup(), []

    async def waiter(number: int) -> None:
        await wakeup.wait()
        woken.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(waiter, number)
        await wait_all_tasks_blocked()
        wakeup.notify()
        nursery.start_soon(waiter, 3)  # it waits for the next one
        await wait_all_tasks_blocked()
        assert sorted(woken) == [0, 1, 2]
        wakeup.notify()
    assert sorted(woken) == [0, 1, 2, 3]


async def test_a_notify_that_nobody_waits_for_is_forgotten(clock: MockClock) -> None:
    wakeup = Wakeup()
    wakeup.notify()
    with trio.move_on_after(1) as scope:
        await wakeup.wait()
    assert scope.cancelled_caught


async def test_a_waiter_that_is_cancelled_leaves_the_others_waiting(clock: MockClock) -> None:
    wakeup, woken = Wakeup(), []

    async def waiter() -> None:
        await wakeup.wait()
        woken.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter)
        with trio.move_on_after(1):
            await wakeup.wait()
        assert not woken
        wakeup.notify()
    assert woken
