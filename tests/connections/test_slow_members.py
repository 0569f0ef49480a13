"""Real sockets and a real server: 50 of 500 members do not read; the others get everything, and memory stays in bounds."""

import json
import re
import socket
import sys
from functools import partial
from pathlib import Path
from subprocess import PIPE

import pytest
import trio
from support import PATIENCE, Client, connected

pytestmark = pytest.mark.slow

MEMBERS, STALLED, MESSAGES, SIZE = 500, 50, 400, 8192
OUTBOX = 256 * 1024
REQUEST = (
    b"GET /ws HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def masked(message: dict[str, object]) -> bytes:
    """A short client frame, with a mask of zeros."""
    payload = json.dumps(message).encode()
    assert len(payload) < 126
    return bytes((0x81, 0x80 | len(payload), 0, 0, 0, 0)) + payload


async def member(port: int, *, receive_buffer: int | None = None) -> trio.SocketStream:
    """A raw connection that has joined."""
    sock = trio.socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await sock.connect(("127.0.0.1", port))
    stream = trio.SocketStream(sock)
    await stream.send_all(REQUEST + masked({"type": "join_room", "room": "r"}))
    seen = b""
    while b'"connected"' not in seen:
        seen += await stream.receive_some()
    return stream


async def count_messages(stream: trio.SocketStream, arrived: dict[int, int], number: int) -> None:
    """Count the messages that arrive (their sequence numbers must come in order), until the last one."""
    expected, tail = 0, b""
    while expected < MESSAGES:
        data = tail + await stream.receive_some(1 << 18)
        for found in re.finditer(rb"<(\d+)>", data):
            assert int(found[1]) == expected
            expected += 1
        tail = data[max(data.rfind(b"<"), 0) :][:20] if b"<" in data[-20:] else b""
        if tail.endswith(b">"):
            tail = b""
        arrived[number] = expected


def resident(pid: int, field: str) -> int:
    """Bytes of resident memory of a process: VmRSS now, VmHWM at most so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


async def publish(publisher: Client) -> None:
    padding = "x" * SIZE
    for number in range(MESSAGES):
        await publisher.send("message", room="r", data=f"<{number}>{padding}", exclude_self=True)


async def test_fifty_of_five_hundred_do_not_read() -> None:
    command = [sys.executable, "-X", "dev", "-m", "trioswitch", "serve", "--port", "0"]
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            partial(trio.run_process, [*command, "--outbox-bytes", str(OUTBOX)], stderr=PIPE, check=False)
        )
        with trio.fail_after(10 * PATIENCE):
            line = (await server.stderr.receive_some()).decode()
            port = int(re.search(r":(\d+)/ws", line)[1])  # type: ignore[index]
            stalled = [await member(port, receive_buffer=4096) for _ in range(STALLED)]
            reading = [await member(port) for _ in range(MEMBERS - STALLED)]
            arrived: dict[int, int] = {}
            async with connected(f"ws://127.0.0.1:{port}/ws") as publisher:
                await publisher.join("r")
                before = resident(server.pid, "VmRSS")
                async with trio.open_nursery() as readers:
                    for number, stream in enumerate(reading):
                        readers.start_soon(count_messages, stream, arrived, number)
                    await publish(publisher)
                    receipt = await publisher.ask("message", room="r", data="end", exclude_self=True)
                peak = resident(server.pid, "VmHWM")
            assert arrived == dict.fromkeys(range(MEMBERS - STALLED), MESSAGES)
            assert receipt["delivered"] + receipt["queued"] == MEMBERS, "nobody was thrown out"
            late = b""
            while b'"gap"' not in late:  # one of the others reads again: it is told what it missed
                late = late[-10:] + await stalled[0].receive_some(1 << 18)
            assert peak - before < STALLED * OUTBOX + 16 * 1024 * 1024
            for stream in [*stalled, *reading]:
                await stream.aclose()
            server.terminate()
            await server.wait()
            assert server.returncode == 0
