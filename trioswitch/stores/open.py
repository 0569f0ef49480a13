"""Opens a store from its URL, such as `sqlite:messages.db`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from .memory import MemoryStore
from .port import Store
from .sqlite.store import SqliteStore

__all__ = ["check_url", "open_store"]


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
    check_url(url)
    return MemoryStore() if url == "memory" else await SqliteStore.open(Path(url.partition(":")[2]))


def check_url(url: str) -> str:
    """The same, if it names a store. Raises ValueError."""
    scheme, _, path = url.partition(":")
    if scheme == "sqlite" and path.startswith("//"):
        relative = path.lstrip("/")
        raise ValueError(f"unknown store {url!r}: did you mean sqlite:/{relative} or, from here, sqlite:{relative}?")
    if path == ":memory:":
        raise ValueError(f"unknown store {url!r}: what is in memory only is called memory")
    if url != "memory" and not (scheme == "sqlite" and path):
        raise ValueError(f"unknown store {url!r}: it is memory or sqlite:PATH")
    return url
