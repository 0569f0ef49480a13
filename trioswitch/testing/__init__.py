"""For deterministic tests of applications: a switch with clients on in-memory streams.

Nothing here opens a socket. On a mock clock (pytest-trio's `autojump_clock`, or `trio.run(..., clock=mock_clock())`) a test that
waits for seconds takes none.

    async def test_my_handler(autojump_clock):
        async with open_test_switch(handlers=handlers, on_connect=by_name) as app:
            ann = await app.connect("/ws?name=ann")
            await ann.join("lobby")
            await app.switch.publish("lobby", {"n": 1})
            assert (await ann.receive_until(type="message"))["data"] == {"n": 1}

`open_test_cluster` runs several switches as one server, and `Faults` lets what it consists of fail, as a seed says.
"""

from .cluster import TestCluster, TestNode, open_test_cluster
from .exchange import FaultyExchange
from .faults import Faults, FaultyStore, deterministic
from .memory import MemoryClient, TestSwitch, mock_clock, open_test_switch

__all__ = [
    "Faults",
    "FaultyExchange",
    "FaultyStore",
    "MemoryClient",
    "TestCluster",
    "TestNode",
    "TestSwitch",
    "deterministic",
    "mock_clock",
    "open_test_cluster",
    "open_test_switch",
]
