"""From node to node through Redis, server beside server: two nodes of trioswitch, and two of Centrifugo, by the same client.

    python benchmarks/cluster_servers.py redis://127.0.0.1:6379 --centrifugo benchmarks/peers/bin/centrifugo

The Redis should have nothing else to do. Messages of 200 bytes are published at one node through the HTTP API, which both servers
have (`/api/batch`, `parallel`), and counted at a WebSocket connection to the other node, which has subscribed to all rooms. The
servers run in turn, and a run begins with new processes. Nothing is pinned to a core: two nodes, Redis and the client share them.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import trio
from processes import Failed, free_port, running

DATA = "x" * 200
MARK = b'xxxxxxxx"'
"""Once in each message, as it arrives."""
BATCH = 100
"""Messages in one request."""
PUBLISHERS = 8
"""Connections that send requests, one after the other."""
PATIENCE = 60.0
"""Seconds until all has arrived."""
KEY = "a-key-for-benchmarks"
CENTRIFUGO = {
    "client": {"insecure": True, "allowed_origins": ["*"], "channel_limit": 2000},
    "http_api": {"key": KEY},
    "channel": {"without_namespace": {"allow_subscribe_for_client": True}},
    "engine": {"type": "redis"},
    "log": {"level": "error"},
}


@attrs.frozen
class Server:
    name: str
    command: Callable[[Path, int, str], list[str]]
    """Of a node, by its folder, its port and the URL of Redis."""
    path: str
    hello: str
    """What a client says first, if anything."""
    subscribe: Callable[[str], str]


def _trioswitch(directory: Path, port: int, redis: str) -> list[str]:
    keys = directory / "keys.toml"
    keys.write_text(f'[[api.keys]]\nkey = "{KEY}"\n')
    serve = [sys.executable, "-m", "trioswitch", "serve", "--port", str(port), "--config", str(keys)]
    return [*serve, "--store", redis, "--broker", redis, "--max-rooms", "1000"]


def _centrifugo(program: str, directory: Path, port: int, redis: str) -> list[str]:
    config = directory / f"{port}.json"
    engine = {"type": "redis", "redis": {"address": redis}}
    server = {"address": "127.0.0.1", "port": str(port)}
    config.write_text(json.dumps({**CENTRIFUGO, "engine": engine, "http_server": server}))
    return [program, "-c", str(config)]


def servers(centrifugo: str | None) -> Iterator[Server]:
    yield Server("trioswitch", _trioswitch, "/ws", "", lambda room: json.dumps({"type": "join_room", "room": room}))
    if centrifugo is not None:
        yield Server(
            "Centrifugo",
            lambda directory, port, redis: _centrifugo(centrifugo, directory, port, redis),
            "/connection/websocket",
            '{"id":1,"connect":{}}',
            lambda room: json.dumps({"id": 2 + int(room.partition("-")[2]), "subscribe": {"channel": room}}),
        )


@contextmanager
def two_nodes(server: Server, redis: str) -> Iterator[tuple[int, int]]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = free_port(), free_port()
        for port in ports:
            command = server.command(directory, port, redis)
            stack.enter_context(running(command, port, directory / f"{port}.log"))
        yield ports


def text_frame(text: str) -> bytes:
    """As a client sends it, with the mask 0."""
    data = text.encode()
    length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
    return b"\x81" + length + b"\0\0\0\0" + data


async def subscribe(server: Server, port: int, rooms: list[str]) -> trio.SocketStream:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(
        f"GET {server.path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    await stream.receive_some()
    if server.hello:
        await stream.send_all(text_frame(server.hello))
    await stream.receive_some()  # the server's welcome
    for room in rooms:
        await stream.send_all(text_frame(server.subscribe(room)))
    with trio.move_on_after(1):
        while await stream.receive_some():  # what is said to it until then are answers
            pass
    return stream


async def count(stream: trio.SocketStream, expected: int) -> float:
    """Messages a second from the first to the last one."""
    seen, rest, began, ended = 0, b"", 0.0, 0.0
    with trio.move_on_after(PATIENCE):
        while seen < expected:
            received = bytes(await stream.receive_some())
            if not received:
                raise Failed(f"the server has ended the connection after {seen:,} messages: {rest[-60:]!r}")
            data = rest + received
            found = data.count(MARK)
            rest = data[data.rfind(MARK) + len(MARK) :][-len(MARK) + 1 :] if found else data[-len(MARK) + 1 :]
            began = began or time.perf_counter()
            seen += found
            ended = time.perf_counter()
    if seen < expected:
        raise Failed(f"{seen:,} of {expected:,} messages have arrived")
    return seen / (ended - began)


async def publish(port: int, bodies: Iterator[bytes]) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    head = (
        f"POST /api/batch HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\n"
    )
    for body in bodies:
        await stream.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = b""
        while answer.count(b"{") == 0 or answer.count(b"{") != answer.count(b"}"):
            answer += await stream.receive_some()
        if b"200 OK" not in answer or b'"error"' in answer:
            raise Failed(f"a request was answered with {answer[:300]!r}")


async def measure(server: Server, redis: str, rooms: int, messages: int) -> float:
    names = [f"room-{number}" for number in range(rooms)]
    requests = [
        [{"publish": {"channel": names[number % rooms], "data": {"x": DATA}}} for number in range(first, first + BATCH)]
        for first in range(0, messages, BATCH)
    ]
    bodies = iter([json.dumps({"commands": commands, "parallel": True}).encode() for commands in requests])
    with two_nodes(server, redis) as (publishing, subscribing):
        stream = await subscribe(server, subscribing, names)
        async with stream, trio.open_nursery() as nursery:
            for _ in range(PUBLISHERS):
                nursery.start_soon(publish, publishing, bodies)
            return await count(stream, messages)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("redis", metavar="URL")
    parser.add_argument("--centrifugo", metavar="PROGRAM")
    parser.add_argument("--runs", type=int, default=5)
    chosen = parser.parse_args()
    for rooms, messages in ((1, 60_000), (1000, 60_000)):
        compared = list(servers(chosen.centrifugo))
        rates: dict[str, list[float]] = {server.name: [] for server in compared}
        for _ in range(chosen.runs):
            for server in compared:
                try:
                    rates[server.name].append(await measure(server, chosen.redis, rooms, messages))
                except* Failed as failed:
                    print(f"{server.name}: {failed.exceptions[0]}", flush=True)
        for name, found in rates.items():
            if found:
                shown = ", ".join(f"{rate:,.0f}" for rate in found)
                print(f"{rooms:5} rooms  {name:12} {statistics.median(found):9,.0f} messages/s  ({shown})", flush=True)


if __name__ == "__main__":
    trio.run(main)
