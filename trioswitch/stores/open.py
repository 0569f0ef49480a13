"""Opens a store from its URL, such as `sqlite:messages.db`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ..postgres.url import parse_postgres_url
from ..redis.url import is_redis, parse_redis_url
from .memory import MemoryStore
from .port import Store
from .postgres.store import open_postgres_store
from .redis.store import open_redis_store
from .sqlite.store import SqliteStore

__all__ = ["check_url", "is_shared", "open_store"]

_POSTGRES = ("postgres://", "postgresql://")


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[Store]:
    """Open a store: `async with open_store("sqlite:chat.db") as store`.

    The URL is `memory`, `sqlite:PATH`, `redis://HOST` or `postgres://HOST/DATABASE` (docs/cluster.md).

    Finishes what waits when the block is left, also when that is cancelled. Raises ValueError for another name, and
    StoreError when the store cannot be opened.
    """
    check_url(url)
    if is_redis(url):
        async with open_redis_store(parse_redis_url(url)) as redis:
            yield redis
        return
    if url.startswith(_POSTGRES):
        async with open_postgres_store(parse_postgres_url(url)) as postgres:
            yield postgres
        return
    store = MemoryStore() if url == "memory" else await SqliteStore.open(Path(url.partition(":")[2]))
    try:
        yield store
    finally:
        await store.aclose()


def is_shared(url: str) -> bool:
    """Whether servers on several machines can share the store."""
    return is_redis(url) or url.startswith(_POSTGRES)


def check_url(url: str) -> str:
    """The same, if it names a store. Raises ValueError."""
    if is_redis(url):
        parse_redis_url(url)
        return url
    if url.startswith(_POSTGRES):
        parse_postgres_url(url)
        return url
    scheme, _, path = url.partition(":")
    if scheme == "sqlite" and path.startswith("//"):
        relative = path.lstrip("/")
        raise ValueError(f"unknown store {url!r}: did you mean sqlite:/{relative} or, from here, sqlite:{relative}?")
    if path == ":memory:":
        raise ValueError(f"unknown store {url!r}: what is in memory only is called memory")
    if url != "memory" and not (scheme == "sqlite" and path):
        known = "memory, sqlite:PATH, redis://HOST or postgres://HOST/DATABASE"
        raise ValueError(f"unknown store {url!r}: it is {known}")
    return url
