"""From a store's name to the store."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from . import Store
from .memory import MemoryStore
from .sqlite import SqliteStore

__all__ = ["open_store"]


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[Store]:
    """Open a store, `memory` or `sqlite:PATH`: `async with open_store("sqlite:chat.db") as store`.

    Finishes what waits when the block is left, also when that is cancelled. Raises ValueError for another name, and
    StoreError when the store cannot be opened.
    """
    store = await _open(url)
    try:
        yield store
    finally:
        await store.aclose()


async def _open(url: str) -> Store:
    scheme, _, path = url.partition(":")
    if url == "memory":
        return MemoryStore()
    if scheme == "sqlite" and path:
        return await SqliteStore.open(Path(path))
    raise ValueError(f"unknown store {url!r}: it is memory or sqlite:PATH")
