"""From node to node: how many messages a second, and how long they take.

    python benchmarks/cluster.py hub                        through the hub of `serve --workers`
    python benchmarks/cluster.py redis://127.0.0.1:6379     through a Redis, which should have nothing else to do
    python benchmarks/cluster.py nats://127.0.0.1:4222 --store postgres://postgres@127.0.0.1/postgres

Two processes, each with one node. One publishes, the other subscribes. Figures are of messages of 200 bytes of data, without
history and with it (`stored`), in one room and in many; and of the latency at 1,000 messages a second.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from trioswitch import Options, RoomPolicy, Switch, open_switch
from trioswitch._util.process import collect_rarely
from trioswitch.brokers import Broker, open_broker
from trioswitch.hub.client import open_hub
from trioswitch.hub.server import Hub
from trioswitch.stores import MemoryStore, Store, open_store

DATA = "x" * 200
PUBLISHERS = 200
"""Tasks that publish, each of which waits for its receipt."""
OPTIONS = Options(policies=(RoomPolicy(pattern="stored*", history="stored", history_size=1000),))


@asynccontextmanager
async def engines(broker: str, store: str) -> AsyncIterator[tuple[Store, Broker]]:
    """The URLs of both, or twice the path of a hub."""
    if "://" in broker:
        async with open_store(store) as opened:
            yield opened, open_broker(broker)
    else:
        async with open_hub(broker) as (hub_store, hub_broker):
            yield hub_store, hub_broker


def rooms_of(kind: str, count: int) -> list[str]:
    return [f"{kind}-{number}" for number in range(count)]


async def receive(urls: tuple[str, str], kind: str, rooms: int, messages: int) -> None:
    """The receiving process: it says `ready`, and in the end what it has measured."""
    times: list[float] = []
    latencies: list[float] = []
    finished = trio.Event()

    async def read(switch: Switch, room: str, task_status: trio.TaskStatus[None]) -> None:
        async with switch.subscribe(room) as events:
            task_status.started()
            async for event in events:
                now = time.time()
                data: Any = getattr(event, "data", None)
                if data is None:
                    print("gap", event, flush=True)
                    continue
                times.append(now)
                latencies.append(now - data["at"])
                if len(times) == messages:
                    finished.set()

    async with (
        engines(*urls) as (store, broker),
        open_switch(OPTIONS, store=store, broker=broker) as switch,
        trio.open_nursery() as nursery,
    ):
        for room in rooms_of(kind, rooms):
            await nursery.start(partial(read, switch, room))
        await trio.sleep(1)
        print("ready", flush=True)
        with trio.move_on_after(60):
            await finished.wait()
        nursery.cancel_scope.cancel()
    latencies.sort()
    found = {
        "received": len(times),
        "rate": (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0,
        "p50": statistics.median(latencies) * 1000 if latencies else 0.0,
        "p99": latencies[int(len(latencies) * 0.99)] * 1000 if latencies else 0.0,
    }
    print(json.dumps(found), flush=True)


async def publish(switch: Switch, kind: str, rooms: int, messages: int, rate: float | None) -> None:
    names, numbers = rooms_of(kind, rooms), iter(range(messages))

    async def run() -> None:
        for number in numbers:
            await switch.publish(names[number % rooms], {"at": time.time(), "x": DATA})

    if rate is not None:
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in numbers:
                await trio.sleep_until(start + number / rate)
                event = {"at": time.time(), "x": DATA}
                nursery.start_soon(switch.publish, names[number % rooms], event)
        return
    async with trio.open_nursery() as nursery:
        for _ in range(PUBLISHERS):
            nursery.start_soon(run)


async def measure(
    urls: tuple[str, str], kind: str, rooms: int, messages: int, rate: float | None = None
) -> dict[str, float]:
    command = [sys.executable, __file__, urls[0], "--store", urls[1], "--receive", kind, str(rooms), str(messages)]
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(trio.run_process, command, stdout=subprocess.PIPE, check=False)
        )
        assert process.stdout is not None
        said = b""
        while b"ready" not in said:
            said += await process.stdout.receive_some()
        async with engines(*urls) as (store, broker), open_switch(OPTIONS, store=store, broker=broker) as switch:
            await trio.sleep(0.5)
            await publish(switch, kind, rooms, messages, rate)
            async for data in process.stdout:
                said += data
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


async def run(urls: tuple[str, str], runs: int) -> None:
    cases: list[tuple[str, str, int, int, float | None]] = [
        ("one room", "plain", 1, 100_000, None),
        ("1,000 rooms", "plain", 1000, 50_000, None),
        ("one stored room", "stored", 1, 30_000, None),
        ("1,000 stored rooms", "stored", 1000, 30_000, None),
        ("1,000 messages/s", "plain", 10, 5_000, 1000.0),
        ("1,000 messages/s, stored", "stored", 10, 5_000, 1000.0),
    ]
    for title, kind, rooms, messages, rate in cases:
        found = [await measure(urls, kind, rooms, messages, rate) for _ in range(runs)]
        rates, p50, p99 = (statistics.median([each[name] for each in found]) for name in ("rate", "p50", "p99"))
        received = min(each["received"] for each in found)
        print(
            f"{title:26} {rates:9,.0f}/s   p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   received {received:,} of {messages:,}",
            flush=True,
        )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("broker", metavar="hub|BROKER", help="hub, or the URL of a broker")
    parser.add_argument("--store", metavar="URL", help="default: the broker is the store, too")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--receive", nargs=3, metavar=("KIND", "ROOMS", "MESSAGES"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    urls = (chosen.broker, chosen.store or chosen.broker)
    if chosen.receive:
        kind, rooms, messages = chosen.receive
        await receive(urls, kind, int(rooms), int(messages))
    elif chosen.broker == "hub":
        with tempfile.TemporaryDirectory() as directory:
            path = str(Path(directory) / "hub")
            async with trio.open_nursery() as nursery:
                await nursery.start(Hub(MemoryStore()).serve, path)
                await run((path, path), chosen.runs)
                nursery.cancel_scope.cancel()
    else:
        await run(urls, chosen.runs)


if __name__ == "__main__":
    collect_rarely()  # as `serve` does
    trio.run(main)
