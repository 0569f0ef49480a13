"""Churn for as long as you like, and whether the server's memory stays as it is.

    python benchmarks/soak.py --seconds 3600
    python benchmarks/soak.py --seconds 3600 --workers 2

Clients connect, join rooms (stored, in memory, and without history), publish, lose their connection, resume, send direct messages
to users who are away, and leave. After the first tenth of the time, memory must not grow, but for the idempotency keys of the
last ten minutes, which are remembered, 64 MiB at most in a process. The exit status is 1 if it does.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import trio
from processes import Failed, free_port, running

from trioswitch.bench.host import memory
from trioswitch.client import ClientError, open_client

USERS = 300
ROOMS = [f"{kind}-{number}" for kind in ("stored", "kept", "plain") for number in range(20)]
POLICIES = ("stored*:history=stored,history-size=50", "kept*:history=memory,history-size=50")
SAMPLE = 1.0
"""Seconds between two looks at the memory."""
ALLOWED = 0.1
"""The share by which memory may be larger in the last third than between the first tenth and the middle; and 8 MiB."""
KEY = 800
"""Bytes of an idempotency key, with the outcome of its message."""
KEYS = 64 * 1024 * 1024
"""Bytes of them in a process at most."""


class Churn:
    def __init__(self, port: int) -> None:
        self.port = port
        self.visits = self.published = self.refused = 0

    async def run(self, chance: random.Random) -> None:
        while True:
            self.visits += 1
            try:
                await self._visit(chance)
            except* ClientError:
                self.refused += 1

    async def _visit(self, chance: random.Random) -> None:
        async with AsyncExitStack() as stack:
            streams: list[trio.SocketStream] = []

            async def connect() -> trio.SocketStream:
                streams.append(await trio.open_tcp_stream("127.0.0.1", self.port))
                return streams[-1]

            user = f"user {chance.randrange(USERS)}"
            url = f"ws://127.0.0.1:{self.port}/ws"
            client = await stack.enter_async_context(open_client(url, user_id=user, open_stream=connect))
            rooms = [await stack.enter_async_context(client.room(name)) for name in chance.sample(ROOMS, 3)]
            for _ in range(chance.randrange(1, 30)):
                room = chance.choice(rooms)
                await room.publish({"x": "y" * chance.randrange(2000)})
                self.published += 1
                if chance.random() < 0.1:
                    await client.send_to_user(f"user {chance.randrange(USERS)}", "hello")
                if chance.random() < 0.1:
                    await trio.aclose_forcefully(streams[-1])  # it resumes by itself
                await trio.sleep(chance.expovariate(20))


async def _soak(port: int, seconds: float, clients: int, seed: int) -> Churn:
    churn = Churn(port)
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for number in range(clients):
                nursery.start_soon(churn.run, random.Random(f"{seed} {number}"))
    return churn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--clients", type=int, default=60, help="at a time")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    port = free_port()
    samples: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        serve = ["serve", "--port", str(port), "--workers", str(chosen.workers), "--store", f"sqlite:{folder}/soak.db"]
        rooms = [argument for policy in POLICIES for argument in ("--room", policy)]
        command = [sys.executable, "-m", "trioswitch", *serve, *rooms, "--session-time", "10", "--inbox-age", "30"]
        try:
            with running(command, port, Path(folder) / "log") as server:
                began = time.monotonic()

                async def run() -> Churn:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(watch)
                        churn = await _soak(port, chosen.seconds, chosen.clients, chosen.seed)
                        nursery.cancel_scope.cancel()
                    return churn

                async def watch() -> None:
                    while True:
                        samples.append((time.monotonic() - began, memory(server.pid)))
                        await trio.sleep(SAMPLE)

                churn = trio.run(run)
                if server.poll() is not None:
                    raise Failed(f"the server ended with status {server.returncode}")
            log = (Path(folder) / "log").read_text()
        except Failed as failed:
            sys.exit(str(failed))
    tenth, last = chosen.seconds / 10, chosen.seconds * 2 / 3
    before = statistics.median([held for at, held in samples if tenth <= at <= chosen.seconds / 2])
    after = statistics.median([held for at, held in samples if at >= last])
    print(
        f"{chosen.seconds:g} s: {churn.visits:,} visits, {churn.published:,} messages, {churn.refused:,} visits refused"
    )
    for part in range(10):
        some = [held for at, held in samples if part * tenth <= at < (part + 1) * tenth]
        print(f"  {part * 10:3} %  {statistics.median(some) / 2**20:7.1f} MiB" if some else "")
    grown = after - before
    print(f"from {before / 2**20:.1f} to {after / 2**20:.1f} MiB: {grown / 2**20:+.1f}")
    if "Traceback" in log or "crashed" in log:
        sys.exit(f"the server complains:\n{log}")
    keys = min(churn.published * KEY * chosen.workers, KEYS * chosen.workers)
    if grown > ALLOWED * before + 8 * 2**20 + keys / 2:  # between the two medians lies half of the time
        sys.exit("the server's memory grows")


if __name__ == "__main__":
    main()
