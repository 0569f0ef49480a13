"""Keys that make a retry harmless, as the switch remembers them."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trioswitch import Receipt, StoreError, TooManyRetries
from trioswitch.durability import idempotency as retries
from trioswitch.durability.idempotency import MAX_WAITING, IdempotencyKeys, scoped_key
from trioswitch.stores.port import KEY_TIME
from trioswitch.wire.messages import Message
from trioswitch.wire.prepared import Outcome, Prepared


def publish(known: IdempotencyKeys, key: str) -> tuple[bool, Prepared, list[Outcome]]:
    told: list[Outcome] = []
    message = Prepared(Message(room="r", data=0), idempotency_key=key, on_outcome=told.append)
    return known.claim("room", "r", message), message, told


def report(message: Prepared, outcome: Outcome) -> None:
    assert message.on_outcome is not None
    message.on_outcome(outcome)


async def test_what_is_under_way_is_not_forgotten_for_others(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "MAX_BYTES", 3 * (retries.OVERHEAD + 20))
    known = IdempotencyKeys()
    _, slow, told = publish(known, "slow")
    for number in range(5):
        report(publish(known, str(number))[1], Receipt())
    again, _, told_again = publish(known, "slow")
    assert not again
    report(slow, Receipt(delivered=1))
    assert [repr(outcome) for outcome in told + told_again] == [
        repr(Receipt(delivered=1)),
        repr(Receipt(delivered=1, duplicate=True)),
    ]
    assert publish(known, "0")[0]  # the oldest gave way
    assert not publish(known, "4")[0]


async def test_the_user_with_most_keys_loses_its_own_first(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "MAX_BYTES", 20 * (retries.OVERHEAD + 100))
    known = IdempotencyKeys()
    report(publish(known, scoped_key("ann", "k"))[1], Receipt())
    for number in range(100):
        report(publish(known, scoped_key("eve", str(number)))[1], Receipt())
    assert not publish(known, scoped_key("ann", "k"))[0], "it is still known"
    assert publish(known, scoped_key("eve", "0"))[0]
    assert not publish(known, scoped_key("eve", "99"))[0]
    await trio.sleep(KEY_TIME + 1)
    assert publish(known, scoped_key("ann", "k"))[0]


@pytest.mark.parametrize("outcome", [Receipt(), StoreError("no")])
async def test_who_settles_late_takes_no_key_from_a_newer_one(clock: MockClock, outcome: Any) -> None:
    known = IdempotencyKeys()
    _, old, _ = publish(known, "k")
    await trio.sleep(KEY_TIME + 1)
    assert publish(known, "k")[0]
    report(old, outcome)
    again, _, told = publish(known, "k")
    assert not again
    assert told == []  # it waits for the newer one


async def test_a_key_is_known_for_its_time(clock: MockClock) -> None:
    known = IdempotencyKeys()
    report(publish(known, "k")[1], Receipt())
    await trio.sleep(KEY_TIME - 1)
    assert not publish(known, "k")[0]
    await trio.sleep(2)
    assert publish(known, "k")[0]


async def test_retries_that_wait_are_bounded(clock: MockClock) -> None:
    known = IdempotencyKeys()
    _, first, _ = publish(known, "k")
    waiting = [publish(known, "k")[2] for _ in range(MAX_WAITING)]
    _, _, told = publish(known, "k")
    assert isinstance(told[0], TooManyRetries)
    report(first, Receipt())
    assert all(len(outcomes) == 1 for outcomes in waiting)
