"""The image server of `speed.py`, in a process of its own: prints its port, and ends when its standard input does.

`examples/image_stats` is the same as an application would write it. This one can say in addition when all work is done.
"""

import argparse
import sys
from functools import partial
from typing import Any

import attrs
import numpy as np
import trio

from trioswitch import Connection, Refused, Workers, open_switch, open_workers, serve
from trioswitch._util.process import keep_freed_memory


def describe(image: bytes) -> dict[str, float]:
    """Maximum, minimum, mean and median of pixels of 8 bits. Counting the 256 values says all of it."""
    counts = np.bincount(np.frombuffer(image, np.uint8), minlength=256)
    values = np.flatnonzero(counts)
    middle = np.searchsorted(np.cumsum(counts), [(len(image) + 1) // 2, len(image) // 2 + 1])
    return {
        "max": int(values[-1]),
        "min": int(values[0]),
        "mean": float(counts @ np.arange(256) / len(image)),
        "median": float(middle.mean()),
    }


async def _serve(workers: Workers) -> None:
    async with open_switch() as switch, trio.open_nursery() as nursery:

        @switch.handlers.on("image")
        async def image(_connection: Connection, message: dict[str, Any]) -> dict[str, float]:
            pixels, mode = message.get("image"), message.get("mode")
            if not isinstance(pixels, bytes) or not pixels or mode not in ("slow", "fast"):
                raise Refused("`image` must be bytes, `mode` one of `slow` and `fast`", code="invalid")
            if mode == "slow":
                return await workers.run(describe, pixels)
            await workers.submit(describe, pixels)
            return {"received": len(pixels)}

        @switch.handlers.on("finish")
        async def finish(_connection: Connection, _message: dict[str, Any]) -> dict[str, Any]:
            await workers.wait_idle()
            return attrs.asdict(workers.statistics())

        server = await nursery.start(partial(serve, switch, port=0))
        print(server.port, flush=True)
        await trio.lowlevel.wait_readable(sys.stdin)  # its end: whoever started us has had enough, or is gone
        nursery.cancel_scope.cancel()


async def _main(processes: int | None) -> None:
    async with open_workers(processes) as workers:
        await _serve(workers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int)
    keep_freed_memory()  # as `python -m trioswitch serve` does
    trio.run(_main, parser.parse_args().processes)
