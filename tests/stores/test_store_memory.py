"""The store in memory."""

import gc
from collections.abc import AsyncIterator

import pytest
from store_contract import StoreContract
from store_support import fill, message

from trioswitch.stores.memory import MemoryStore
from trioswitch.stores.open import open_store
from trioswitch.stores.port import Record, Retention, Store


class TestMemoryStore(StoreContract):
    @pytest.fixture
    async def store(self) -> AsyncIterator[Store]:
        async with open_store("memory") as store:
            yield store


def records() -> int:
    """How many records there are in this process."""
    gc.collect()
    return sum(type(each) is Record for each in gc.get_objects())


async def test_it_holds_no_more_than_the_retention() -> None:
    store, others = MemoryStore(), records()
    assert not store.durable
    for number in range(100):
        await fill(store, 10, retention=Retention(10, None))
        assert number % 10 or records() - others <= 10 + 64 + 10
    await store.append([message(room="old", retention=Retention(1000, 60.0)) for _ in range(500)])
    await store.sweep(200.0, 60.0)
    assert records() - others == 10


@pytest.mark.parametrize("url", ["", "memory:", "kafka://localhost", "sqlite", "sqlite:", "/tmp/x.db"])
async def test_a_store_that_nobody_knows(url: str) -> None:
    with pytest.raises(ValueError, match="it is memory, sqlite:PATH, redis://HOST or postgres://HOST/DATABASE"):
        async with open_store(url):
            pass
