"""For deterministic tests of applications: a switch with clients on in-memory streams.

Nothing here opens a socket. On a mock clock (pytest-trio's `autojump_clock`, or `trio.run(..., clock=mock_clock())`) a test that
waits for seconds takes none.

    async def test_my_handler(autojump_clock):
        async with open_test_switch(handlers=handlers, on_connect=by_name) as app:
            ann = await app.connect("/ws?name=ann")
            await ann.join("lobby")
            await app.switch.publish("lobby", {"n": 1})
            assert (await ann.receive_until(type="message"))["data"] == {"n": 1}
"""

from .memory import MemoryClient, TestSwitch, mock_clock, open_test_switch

__all__ = ["MemoryClient", "TestSwitch", "mock_clock", "open_test_switch"]
