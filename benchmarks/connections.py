"""Many connections to one machine: `serve --workers N`, and load clients from several loopback addresses.

    python benchmarks/connections.py                  100,000 connections, which have joined one room
    python benchmarks/connections.py --connections 20000 --workers 2

It tells how fast they connect, what each takes of the servers' memory, what all cost while nothing happens, and how long a
message to all of them is on its way. A process may have only so many files open, so that it takes several of either.
"""

import argparse
import json
import math
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from load_client import build_load_client
from processes import Failed, free_port, running

from trioswitch.bench.host import memory, processor_seconds
from trioswitch.client import open_client

ROOM = "all"
SPARE = 1000
"""Files of a process that are not for its connections."""
CONNECT_TIME = 300.0
"""Seconds in which all connections of a load client must be there."""
SETTLE = 10.0
"""Seconds after the last connection before anything is measured."""
MESSAGES = 5
BETWEEN = 6.0
"""Seconds between two messages to all."""


@contextmanager
def load_clients(program: Path, port: int, count: int, each: int) -> Iterator[list["LoadClient"]]:
    clients: list[LoadClient] = []
    try:
        for number in range(math.ceil(count / each)):
            clients.append(LoadClient(program, port, number, min(each, count - number * each)))
            clients[-1].wait_connected()
        yield clients
    finally:
        for client in clients:
            client.process.kill()
            client.process.wait()


class LoadClient:
    """A process of `wsload` whose connections join the room, and receive."""

    def __init__(self, program: Path, port: int, number: int, connections: int) -> None:
        join = f'{{"type":"join_room","room":"{ROOM}","user_id":"c{number}-%I%"}}'
        arguments = [
            "-p",
            str(port),
            "-P",
            "/ws",
            "-n",
            str(connections),
            "-m",
            "idle",
            "-j",
            join,
            "-a",
            str(number + 1),
        ]
        self.connections = connections
        self.process = subprocess.Popen(
            [str(program), *arguments, "-w", "0", "-d", "3600"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait_connected(self) -> None:
        assert self.process.stderr is not None
        deadline = time.monotonic() + CONNECT_TIME
        for line in self.process.stderr:
            if time.monotonic() > deadline:
                raise Failed("the connections take too long")
            if line.startswith("@connected"):
                return
        raise Failed(f"the load client ended with status {self.process.wait()}")

    def end(self) -> dict[str, Any]:
        """What it has measured."""
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=60)
        found: dict[str, Any] = json.loads(said)
        return found


async def publish(url: str) -> None:
    async with open_client(url, user_id="publisher") as client, client.room(ROOM) as room:
        await trio.sleep(SETTLE)
        for _ in range(MESSAGES):
            await room.chat(f"ts={time.clock_gettime_ns(time.CLOCK_MONOTONIC):020}")
            await trio.sleep(BETWEEN)


def measure(connections: int, workers: int, idle: float) -> None:
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        program = build_load_client(Path(directory))
        log = Path(directory) / "server.log"
        serve = ["serve", "--port", str(port), "--workers", str(workers), "--room", f"{ROOM}:announce=no"]
        with running([sys.executable, "-m", "trioswitch", *serve], port, log) as server:
            time.sleep(SETTLE)
            empty = memory(server.pid)
            began = time.monotonic()
            files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            with load_clients(program, port, connections, min(files, 20_000) - SPARE) as clients:
                took = time.monotonic() - began
                time.sleep(SETTLE)
                full, used = memory(server.pid), processor_seconds(server.pid)
                time.sleep(idle)
                share = (processor_seconds(server.pid) - used) / idle
                trio.run(publish, f"ws://127.0.0.1:{port}/ws")
                found = [client.end() for client in clients]
        complaints = re.findall(r"^.*(?:WARNING|ERROR).*$", log.read_text(), re.MULTILINE)
    opened = sum(each["conns"] for each in found)
    arrived = sum(each["messages"] for each in found)
    print(
        f"{opened:,} of {connections:,} connections, {workers} workers, joined in {took:.1f} s ({opened / took:,.0f}/s)"
    )
    print(
        f"memory: {(full - empty) / max(opened, 1) / 1024:.1f} KiB a connection; {empty / 2**20:.0f} MiB before the first"
    )
    print(f"idle for {idle:g} s: {100 * share:.1f} % of a core")
    print(
        f"a message to all: {arrived:,} of {opened * MESSAGES:,} arrived; the slowest {max(e['max_ms'] for e in found):,.0f} ms,"
    )
    print(
        f"  p99 of the slowest client {max(e['p99_ms'] for e in found):,.0f} ms, p50 {max(e['p50_ms'] for e in found):,.0f} ms"
    )
    print(f"dead {sum(each['dead'] for each in found)}; complaints of the servers: {complaints or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=100_000)
    parser.add_argument(
        "--workers", type=int, help="default: one for each 16,000 connections: they are not spread evenly"
    )
    parser.add_argument("--idle", type=float, default=30.0, metavar="SECONDS")
    chosen = parser.parse_args()
    try:
        measure(chosen.connections, chosen.workers or math.ceil(chosen.connections / 16_000), chosen.idle)
    except Failed as failed:
        sys.exit(str(failed))


if __name__ == "__main__":
    main()
