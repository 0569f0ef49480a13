"""The broker within one process."""

from collections.abc import AsyncIterator

import pytest
import trio
from broker_contract import BrokerContract, Client, Connect

from trioswitch.brokers import Exchange


class TestInProcessBroker(BrokerContract):
    @pytest.fixture
    async def connect(self) -> AsyncIterator[Connect]:
        exchange = Exchange()
        async with trio.open_nursery() as nursery:

            async def connect(*topics: str) -> Client:
                client = Client(exchange.broker(), list(topics))
                nursery.start_soon(client.broker.run, client)
                await client.wait(lambda: client.connected)
                return client

            yield connect
            nursery.cancel_scope.cancel()
