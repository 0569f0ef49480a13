"""Measures what is durable:  python benchmarks/durable.py [--quick] [--page docs/performance.md] [acks|crowd ...]

    acks    publishes to stored rooms acknowledged per second, each publisher waiting for its ack
    crowd   5,000 clients that come back at once, each of which missed 20 messages, until the last has all of them
    elsewhere   the same, to another node of a cluster, for their own was killed: `--redis redis://127.0.0.1:6379`

The server runs on one core, this client on another, both on loopback; the database is a file in a temporary directory.
"""

import argparse
import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from report import between_marks, provenance
from store import rate

from trioswitch import __version__
from trioswitch.bench.host import machine
from trioswitch.bench.wire import Language, Scanner, request
from trioswitch.stores.sqlite.schema import open_connections

LANGUAGE = Language("trioswitch.v1")
PATIENCE = 120.0
"""Seconds after which a measurement is given up."""
CORES = sorted(os.sched_getaffinity(0))
"""What this process may use, before it leaves the first to the server."""
SAVED = 2.0
"""Seconds after which a node has saved all sessions."""
AT_ONCE = 500
"""Handshakes under way at once: more would measure the backlog of the listener."""


class Client:
    """One connection: bytes in, messages out."""

    def __init__(self, port: int, hear: Callable[["Client", dict[str, Any]], None]) -> None:
        self.hear = hear
        self.session, self.rest, self.open = "", b"", False
        self.missed = 0
        self.raw: Callable[[Client, bytes], None] | None = None
        """Where the client's own work would be measured: what takes its bytes as they come."""
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(request("127.0.0.1", "/ws", "trioswitch.v1", compression=False, token=None))
        self.socket.setblocking(False)

    def say(self, **message: Any) -> None:
        self.socket.sendall(LANGUAGE.frame(message))

    def read(self, scanner: Scanner) -> None:
        if self.raw is not None:
            self.raw(self, self.socket.recv(1 << 18))
            return
        data = self.rest + self.socket.recv(1 << 18)
        if not self.open:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self.rest = head
                return
            self.open = True
        scanned = scanner.scan_anew(data)
        self.rest = scanned.rest
        for payload in scanned.messages:
            for message in LANGUAGE.messages(payload):
                self.hear(self, message)


class Crowd:
    """Many clients, served by one epoll."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._epoll = select.epoll()
        self._clients: dict[int, Client] = {}
        self._scanner = Scanner(LANGUAGE)

    def add(self, hear: Callable[[Client, dict[str, Any]], None]) -> Client:
        client = Client(self.port, hear)
        self._clients[client.socket.fileno()] = client
        self._epoll.register(client.socket.fileno(), select.EPOLLIN)
        return client

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > deadline:
                raise SystemExit("gave up: the server does not answer")
            for descriptor, _events in self._epoll.poll(0.01, 512):
                self._clients[descriptor].read(self._scanner)

    def drop_all(self) -> None:
        """As a network does: without a close frame."""
        for client in self._clients.values():
            client.socket.close()
        self._clients.clear()


@attrs.define
class Server:
    port: int
    process: subprocess.Popen[str]


@contextmanager
def server(room: str, *shared: str) -> Iterator[Server]:
    """A server as a user starts it, on the first core, with these arguments for the store (and the broker)."""
    command = [sys.executable, "-m", "trioswitch", "serve", "--port", "0", "--log-level", "warning", "--room", room]
    process = subprocess.Popen(_on_core(0, [*command, *shared]), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        yield Server(int(process.stderr.readline().rpartition(":")[2].split("/")[0]), process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


@contextmanager
def stored(room: str) -> Iterator[Server]:
    """A server with a store of its own."""
    with tempfile.TemporaryDirectory() as folder, server(room, "--store", f"sqlite:{folder}/messages.db") as alone:
        yield alone


def _on_core(number: int, command: list[str]) -> list[str]:
    return ["taskset", "-c", str(CORES[number]), *command] if len(CORES) > 1 else command


def raw() -> dict[str, Any]:
    """What the disk does by itself: transactions of 200 rows with nothing around them."""
    with tempfile.TemporaryDirectory() as folder:
        connections = open_connections(Path(folder) / "raw.db")
        with closing(connections.reader), closing(connections.lock), closing(connections.writer) as connection:
            return {
                "publishers": "sqlite3 alone, 200 rows at once",
                "rooms": 20,
                "acks_per_s": rate("raw", connection, 200),
            }


def acks(publishers: int, rooms: int, seconds: float) -> dict[str, Any]:
    """Each publisher sends the next message to its room when the last one was acknowledged."""
    counts, latencies = [0], list[float]()
    sent, frames = dict[Client, float](), dict[Client, bytes]()
    ready = [0]

    def hear(client: Client, message: dict[str, Any]) -> None:
        if message["type"] == "connected":
            client.say(type="join_room", room=f"r{client.socket.fileno() % rooms}", id=0)
        elif message["type"] == "error":
            raise SystemExit(str(message))
        elif message["type"] == "ack":
            ready[0] += 1
            client.raw = answered

    def answered(client: Client, data: bytes) -> None:
        if b'"type":"error"' in data:
            raise SystemExit(f"not acknowledged: {data!r}")
        if b'"type":"ack"' not in data:
            return  # others' messages
        counts[0] += 1
        now = time.perf_counter()
        latencies.append(now - sent[client])
        sent[client] = now
        client.socket.send(frames[client])

    def publish(client: Client) -> None:
        room = f"r{client.socket.fileno() % rooms}"
        message = {"type": "message", "room": room, "data": "x" * 100, "exclude_self": True, "id": 1}
        frames[client] = LANGUAGE.frame(message)
        sent[client] = time.perf_counter()
        client.socket.send(frames[client])

    with stored("*:history=stored,announce=no") as alone:
        crowd = Crowd(alone.port)
        clients = [crowd.add(hear) for _ in range(publishers)]
        crowd.until(lambda: ready[0] == publishers)
        for client in clients:
            publish(client)
        warm = time.monotonic() + 0.3
        crowd.until(lambda: time.monotonic() > warm)
        latencies.clear()
        before, start = counts[0], time.monotonic()
        crowd.until(lambda: time.monotonic() > start + seconds)
        rate = (counts[0] - before) / (time.monotonic() - start)
        crowd.drop_all()
    latencies.sort()
    return {
        "publishers": publishers,
        "rooms": rooms,
        "acks_per_s": rate,
        "p50_ms": 1000 * latencies[len(latencies) // 2],
        "p99_ms": 1000 * latencies[len(latencies) * 99 // 100],
    }


def crowd(keep: str, number: int, missed: int, redis: str | None = None) -> dict[str, Any]:
    """Clients lose their connection, messages are published, and all of them resume at once.

    With the URL of a Redis, there are two nodes: the one of the clients is killed, and they resume on the other one.
    """
    joined, back, complete = [0], [0], [0]
    epoch, offset = [""], [0]
    sessions: list[str] = []

    def arrive(client: Client, message: dict[str, Any]) -> None:
        if message["type"] == "connected":
            sessions.append(message["session"])
            client.say(type="join_room", room="r", id=1)
        elif message["type"] == "ack":
            joined[0] += 1
            epoch[0] = message["epoch"]

    def publish(client: Client, message: dict[str, Any]) -> None:
        if message["type"] == "connected":
            client.say(type="join_room", room="r", id=1)
        elif message["type"] == "ack" and offset[0] < missed:
            epoch[0], offset[0] = message["epoch"], offset[0] + 1
            client.say(type="message", room="r", data="x" * 100, exclude_self=True, id=1)
        elif message["type"] == "ack":
            offset[0] += 1

    def come_back(client: Client, message: dict[str, Any]) -> None:
        if message["type"] == "connected":
            rooms = {"r": {"epoch": epoch[0], "offset": 0}}
            client.say(type="resume", session=sessions.pop(), rooms=rooms, id=1)
        elif message["type"] == "error":
            raise SystemExit(str(message))
        elif message["type"] == "message":
            client.missed += 1
            complete[0] += client.missed == missed
        elif message["type"] == "ack":
            back[0] += 1

    room = f"r:history={keep},announce=no"
    with ExitStack() as stack:
        if redis is None:
            old = new = stack.enter_context(stored(room))
        else:
            redis += f"?prefix=b{time.monotonic_ns()}"  # with nothing in it
            old, new = (stack.enter_context(server(room, "--store", redis, "--broker", redis)) for _ in range(2))
        first = Crowd(old.port)
        for count in range(number):
            first.add(arrive)
            first.until(lambda count=count: joined[0] > count - AT_ONCE)  # type: ignore[misc]
        first.until(lambda: joined[0] == number)
        if new is not old:
            time.sleep(SAVED)
            old.process.kill()
        first.drop_all()
        publisher = Crowd(new.port)
        publisher.add(publish)
        publisher.until(lambda: offset[0] > missed)
        second, start = Crowd(new.port), time.monotonic()
        for count in range(number):
            second.add(come_back)
            second.until(lambda count=count: back[0] > count - AT_ONCE)  # type: ignore[misc]
        second.until(lambda: complete[0] == number and back[0] == number)
        seconds = time.monotonic() - start
        second.drop_all()
        publisher.drop_all()
    return {"history": keep, "clients": number, "missed": missed, "seconds": seconds}


def median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: statistics.median(run[name] for run in runs) if isinstance(value, float) else value
        for name, value in runs[0].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["acks", "crowd"])
    parser.add_argument("--quick", action="store_true", help="small and short: whether it works, not how fast")
    parser.add_argument("--redis", metavar="URL", help="for `elsewhere`; it should be empty")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--page", type=Path, help="a page whose marks `acks` and `crowd` get the tables")
    chosen = parser.parse_args()
    if len(CORES) > 1:
        os.sched_setaffinity(0, CORES[1:])
    runs = 1 if chosen.quick else chosen.runs
    seconds, most, number = (0.5, 20, 100) if chosen.quick else (5.0, 200, 5000)
    measurements: dict[str, list[Callable[[], dict[str, Any]]]] = {
        "acks": [
            *(
                partial(acks, publishers, rooms, seconds)
                for publishers, rooms in ((1, 1), (20, 20), (200, 20), (200, 200))
                if publishers <= most
            ),
            raw,
        ],
        "elsewhere": [partial(crowd, keep, number, 20, chosen.redis) for keep in ("memory", "stored")],
        "crowd": [partial(crowd, keep, number, 20) for keep in ("memory", "stored")],
    }
    for name in chosen.what:
        rows: list[list[dict[str, Any]]] = [[] for _ in measurements[name]]
        for _ in range(runs):
            for row, measure in zip(rows, measurements[name], strict=True):
                row.append(measure())
                print(json.dumps(row[-1]), flush=True)
        text = table([median(row) for row in rows], runs)
        print(text, flush=True)
        if chosen.page:
            chosen.page.write_text(between_marks(chosen.page.read_text(), name, text))


def table(rows: list[dict[str, Any]], runs: int) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|---|" + "---:|" * (len(names) - 1)]
    for row in rows:
        cells = (row.get(name, "") for name in names)
        lines.append(
            "| " + " | ".join(f"{cell:,.2f}" if isinstance(cell, float) else f"{cell}" for cell in cells) + " |"
        )
    measured = {
        "machine": machine(),
        "runs": runs,
        "measured": datetime.now(UTC).isoformat(),
        "versions": {"trioswitch": __version__},
        "revision": None,
    }
    return "\n".join([*lines, "", provenance(measured)])


if __name__ == "__main__":
    main()
