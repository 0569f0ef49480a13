"""The reactor on real sockets: nobody is starved, and nothing that goes wrong in one connection reaches another."""

import json
import socket

import pytest
import trio
from support import PATIENCE, connected, listening

FLOODERS = 8
BEAT = b'{"type": "heartbeat"}'


async def flood(port: int) -> None:
    """Send small commands as fast as the server takes them, and throw the answers away."""
    request = (
        b"GET /ws HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    commands = (bytes((0x81, 0x80 | len(BEAT), 0, 0, 0, 0)) + BEAT) * 2000
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as nursery:

        async def throw_away() -> None:
            async for _ in stream:
                pass

        await stream.send_all(request)
        nursery.start_soon(throw_away)
        while True:
            await stream.send_all(commands)


@pytest.mark.slow
async def test_a_quiet_client_is_heard_while_others_flood() -> None:
    async with listening() as (switch, server), trio.open_nursery() as nursery:
        assert server.port is not None
        async with connected(server.urls[0]) as early:
            for _ in range(FLOODERS):
                nursery.start_soon(flood, server.port)
            while len(switch.connections()) < FLOODERS + 1:
                await trio.sleep(0.01)
            async with connected(server.urls[0]) as late:
                for client in (early, late):
                    for _ in range(20):
                        with trio.fail_after(PATIENCE):
                            await client.nothing_more()
        nursery.cancel_scope.cancel()


async def test_what_arrives_with_the_end_is_carried_out() -> None:
    """A message, and the close frame behind it, in one read."""
    async with listening() as (switch, server), switch.subscribe("r") as events:
        async with await trio.open_tcp_stream("127.0.0.1", server.port or 0) as stream:
            await stream.send_all(
                b"GET /ws HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            await stream.receive_some()
            join = json.dumps({"type": "join_room", "room": "r"}).encode()
            line = json.dumps({"type": "chat_message", "room": "r", "content": "bye"}).encode()
            frames = [bytes((0x81, 0x80 | len(text), 0, 0, 0, 0)) + text for text in (join, line)]
            close = bytes((0x88, 0x80 | 2, 0, 0, 0, 0)) + (1000).to_bytes(2, "big")
            await stream.send_all(b"".join([*frames, close]))
            with trio.fail_after(PATIENCE):
                while True:
                    event = await anext(events)
                    if event.type == "chat_message":
                        break
                while switch.connections():
                    await trio.sleep(0.01)
        assert switch.statistics().closes == {"client_left": 1}


async def test_many_come_and_go() -> None:
    """Descriptors are used again at once; nobody gets what was meant for another."""
    async with listening() as (switch, server):
        assert server.port is not None
        for round_ in range(30):
            async with connected(server.urls[0]) as one, connected(server.urls[0]) as two:
                await one.join(f"room {round_}")
                await two.join(f"room {round_}")
                await one.send("chat_message", room=f"room {round_}", content=str(round_))
                assert (await two.receive_until(type="chat_message"))["content"] == str(round_)
            broken = socket.create_connection(("127.0.0.1", server.port))
            broken.close()
        with trio.fail_after(PATIENCE):
            while switch.connections():
                await trio.sleep(0.01)
