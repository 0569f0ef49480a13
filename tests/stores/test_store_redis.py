"""The store on Redis, with a real server."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis_server import RedisServer, redis_server
from store_contract import StoreContract

from trioswitch.stores import Store, open_store


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with redis_server(tmp_path) as server:
        yield server


class TestRedisStore(StoreContract):
    knows_users = False

    @pytest.fixture
    async def store(self, redis: RedisServer) -> AsyncIterator[Store]:
        async with open_store(redis.url) as store:
            yield store
