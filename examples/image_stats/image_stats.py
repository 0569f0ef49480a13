"""Statistics of images, computed in worker processes: the event loop is free while they are. Run it, then `client.py`."""

import argparse
import logging
import signal
import sys
from functools import partial
from typing import Any

import numpy as np
import trio

import trioswitch
from trioswitch.workers import Workers, open_workers

log = logging.getLogger("image_stats")

OPTIONS = trioswitch.Options(max_message_bytes=1024 * 1024, handler_queue=1)
"""Images are large: of one client, one image waits for its turn beside the one that is worked on, and no more is read."""


def describe(image: bytes) -> dict[str, float]:
    """Maximum, minimum, mean and median of pixels of 8 bits. Runs in a worker process.

    There are 256 values at most, so counting them says everything: a fifth of the time of `np.median` alone.
    """
    counts = np.bincount(np.frombuffer(image, np.uint8), minlength=256)
    values = np.flatnonzero(counts)
    up_to = np.cumsum(counts)
    middle = np.searchsorted(
        up_to, [(len(image) + 1) // 2, len(image) // 2 + 1]
    )  # the same one where the number is odd
    return {
        "max": int(values[-1]),
        "min": int(values[0]),
        "mean": float(counts @ np.arange(256) / len(image)),
        "median": float(middle.mean()),
    }


def add_image(switch: trioswitch.Switch, workers: Workers) -> None:
    """Teach the switch `{"type": "image", "image": bytes, "mode": "slow" | "fast"}`."""

    @switch.handlers.on("image")
    async def image(connection: trioswitch.Connection, message: dict[str, Any]) -> dict[str, float]:
        pixels, mode = message.get("image"), message.get("mode", "slow")
        if not isinstance(pixels, bytes) or not pixels:
            raise trioswitch.Refused("`image` must be bytes: speak trioswitch.v1.msgpack", code="invalid")
        if mode == "slow":  # answer when it is known
            return await workers.run(describe, pixels)
        if mode == "fast":  # answer at once; the result goes to the log
            await workers.submit(describe, pixels, then=partial(log.info, "an image of %s: %s", connection.user))
            return {"received": len(pixels)}
        raise trioswitch.Refused("`mode` is `slow` or `fast`", code="invalid")


async def main(host: str, port: int, processes: int | None) -> str | None:
    """Serve until Ctrl-C; images that were answered already are still worked on then. Returns what went wrong, if anything."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with (
            open_workers(processes) as workers,
            trioswitch.open_switch(OPTIONS) as switch,
            trio.open_nursery() as nursery,
        ):
            add_image(switch, workers)
            try:
                server = await nursery.start(partial(trioswitch.serve, switch, host=host, port=port))
            except trioswitch.ServeError as error:
                return str(error)
            print(f"Images are taken at {server.urls[0]} (Ctrl-C ends it)", flush=True)
            await anext(signals)
            server.stop()
            await switch.drain(timeout=5)
            nursery.cancel_scope.cancel()
    return None


if __name__ == "__main__":  # the worker processes import this file too, and must not serve
    parser = argparse.ArgumentParser(description="Statistics of images, computed in worker processes.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8765, help="port to listen on; 0 takes a free one")
    parser.add_argument("--processes", type=int, help="worker processes; default: one for each processor but one")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    sys.exit(trio.run(main, chosen.host, chosen.port, chosen.processes))
