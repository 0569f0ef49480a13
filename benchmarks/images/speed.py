"""Images over one long connection or many short ones, beside a server that starts a process for each message:

    .venv/bin/python benchmarks/images/speed.py [--images N] [--json FILE] [--plot FILE.png]

The experiment: 1,000 images of 800 x 600 bytes; the server computes maximum, minimum, mean and median in worker processes, and
answers after that (slow) or before (fast). Then the same in the way of the article that thought it up (`speed_seed`): with its
own clients, and with ours, so that it can be seen what the server costs and what the clients.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from trioswitch._util.process import keep_freed_memory
from trioswitch.bench.target import BenchError

if TYPE_CHECKING:
    from speed_client import Client
    from speed_report import Mode, Report

    from trioswitch.bench.show import Show

__all__ = ["main", "run"]

HERE: Final = Path(__file__).resolve().parent

OK, FAILED = 0, 1
NEEDED: Final = ("numpy", "rich", "trio_parallel")
SHAPE: Final = (600, 800)
"""Rows and columns of an image; a pixel is one byte."""
KINDS: Final = 4
"""Different images, sent in turn: an answer that belongs to another image would be noticed."""
START: Final = 60.0
"""Seconds that a server has to start, and its processes with it."""
STOP: Final = 10.0
"""Seconds that a server has to end by itself."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Starts an image server of its own and sends it images: one after the other over one connection, and in "
        "parallel over a short connection each. Beside it: websockets on asyncio with a process for each message.",
    )
    add = parser.add_argument
    add("--images", type=_count, default=1000, metavar="N", help="images in each mode (default: %(default)s)")
    add("--parallel", type=_count, default=100, metavar="N", help="short connections at once (default: %(default)s)")
    add("--processes", type=_count, metavar="N", help="worker processes (default: one for each processor but one)")
    add(
        "--seed-images", type=_count_or_none, metavar="N",
        help="images in each mode of the comparison, 0 for none (default: as many as --images)",
    )  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--plot", type=Path, metavar="FILE.png", help="draw what each image took, and when it was answered")
    return run(parser.parse_args(arguments))


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return count


def _count_or_none(text: str) -> int:
    return 0 if text == "0" else _count(text)


def run(chosen: argparse.Namespace) -> int:
    missing = [name for name in (*NEEDED, *(["matplotlib"] if chosen.plot else [])) if find_spec(name) is None]
    if missing:
        return _fail(f"this needs {' and '.join(missing).replace('_', '-')}: pip install trioswitch[bench]")
    for path in (chosen.json, chosen.plot):
        if path is not None and not path.parent.is_dir():  # rather now than after two minutes
            return _fail(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")
    try:
        _tell(_measure(chosen), chosen.json, chosen.plot)
    except (BenchError, OSError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted")
    return OK


def _measure(chosen: argparse.Namespace) -> "Report":
    """Raises BenchError."""
    from trioswitch.bench.show import Show

    keep_freed_memory()
    try:
        with Show() as progress:
            return trio.run(_experiment, chosen, progress)
    except* BenchError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
    except* KeyboardInterrupt:
        raise KeyboardInterrupt from None


def _fail(sentence: str) -> int:
    print(f"speed.py: {sentence}", file=sys.stderr)
    return FAILED


def _tell(report: "Report", to_json: Path | None, to_plot: Path | None) -> None:
    import speed_report

    speed_report.show(report)
    if to_json is not None:
        to_json.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    if to_plot is not None:
        to_plot.write_bytes(speed_report.draw(report))


async def _experiment(chosen: argparse.Namespace, progress: "Show") -> "Report":
    """All modes, one after the other. Raises BenchError."""
    from speed_report import Mode, Report

    seed_images = chosen.images if chosen.seed_images is None else chosen.seed_images
    modes: list[Mode] = []

    def begin(server: str, clients: str, way: str, answer: str) -> "_Notes":
        images = chosen.images if server == "trioswitch" else seed_images
        mode = Mode(server, clients, way, answer, images)
        modes.append(mode)
        return _Notes(mode, progress)

    options = [] if chosen.processes is None else ["--processes", str(chosen.processes)]
    async with _started("speed_server", *options) as port:
        processes = await _ours(f"ws://127.0.0.1:{port}/ws", chosen.parallel, begin)
    if seed_images:
        async with _started("speed_seed", "serve") as port:
            await _theirs(f"ws://127.0.0.1:{port}/", chosen.parallel, begin)
    return Report(chosen.images, seed_images, chosen.parallel, processes, modes)


Begin = Callable[[str, str, str, str], "_Notes"]


class _Notes:
    """Takes down the times of one mode, and moves its bar."""

    def __init__(self, mode: "Mode", progress: "Show") -> None:
        self.mode = mode
        self._progress = progress
        self._zero = time.monotonic()
        progress.phase(f"{mode.server} {mode.name}", mode.images)

    def __call__(self, number: int, begun: float, answered: float) -> None:
        self.mode.times[number] = (begun - self._zero, answered - self._zero)
        done = len(self.mode.times)
        if done % max(1, self.mode.images // 100) == 0:
            self._progress.update(done, f"{done:,} of {self.mode.images:,} images")

    def work_is_done(self) -> None:
        self.mode.work_done = time.monotonic() - self._zero


async def _ours(url: str, at_once: int, begin: Begin) -> int:
    """Serial and parallel, slow and fast. Returns how many worker processes the server has."""
    import numpy as np
    from speed_client import connected, parallel, serial

    random = np.random.default_rng(4)
    kinds = [random.integers(0, 256, SHAPE, np.uint8) for _ in range(KINDS)]
    images = [kind.tobytes() for kind in kinds]
    right = [
        {"max": int(kind.max()), "min": int(kind.min()), "mean": kind.mean(), "median": np.median(kind)}
        for kind in kinds
    ]

    async def send(client: "Client", number: int, answer: str) -> None:
        got = await client.ask("image", mode=answer, image=images[number % KINDS])
        wanted = right[number % KINDS] if answer == "slow" else {"received": len(images[0])}
        if got.keys() != wanted.keys() or any(abs(got[key] - wanted[key]) > 1e-6 for key in got):
            raise BenchError(f"the server answered {got}, which is wrong: {wanted}")

    async with connected(url) as control:
        await send(control, 0, "slow")  # what is done at the first time only shall not be measured
        for way in ("serial", "parallel"):
            for answer in ("slow", "fast"):
                notes = begin("trioswitch", "trioswitch", way, answer)
                sending = partial(send, answer=answer)
                if way == "serial":
                    await serial(url, notes.mode.images, sending, notes)
                else:
                    await parallel(url, notes.mode.images, at_once, sending, notes)
                statistics = await control.ask("finish")
                notes.work_is_done()
    return int(statistics["processes"])


async def _theirs(url: str, at_once: int, begin: Begin) -> None:
    """The seed's server, which always answers fast: with its own clients, and with ours."""
    from speed_client import parallel

    for way in ("serial", "parallel"):
        await _their_clients(url, way, begin("seed", "seed", way, "fast"))
    image = os.urandom(SHAPE[0] * SHAPE[1])

    async def send(client: "Client", _number: int) -> None:
        await client.send(image)
        await client.receive()

    for way, connections in (("serial", 1), ("parallel", at_once)):
        notes = begin("seed", "trioswitch", way, "fast")
        await parallel(url, notes.mode.images, connections, send, notes, subprotocol=None)


async def _their_clients(url: str, way: str, note: _Notes) -> None:
    async with _process("speed_seed", way, "--url", url, "--images", str(note.mode.images)) as process:
        assert process.stdout is not None
        lines = b""
        async for data in process.stdout:
            *whole, lines = (lines + data).split(b"\n")
            for line in whole:
                note(*json.loads(line))


# --- processes


@asynccontextmanager
async def _started(module: str, *arguments: str) -> AsyncIterator[int]:
    """A server in a process of its own; yields its port. Raises BenchError when it does not start."""
    async with _process(module, *arguments) as process:
        assert process.stdout is not None
        line = b""
        with trio.move_on_after(START):
            while not line.endswith(b"\n") and (data := await process.stdout.receive_some()):
                line += data
        if not line.endswith(b"\n"):
            raise BenchError(f"the server {module} did not start")
        yield int(line)


@asynccontextmanager
async def _process(module: str, *arguments: str) -> AsyncIterator[trio.Process]:
    """A module of ours in a process, whose input is closed at the end: that ends it. Whatever it leaves behind is killed."""
    command = [sys.executable, str(HERE / f"{module}.py"), *arguments]
    quiet = subprocess.DEVNULL if module == "speed_seed" else None  # it tells everything of every message
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP):
            await process.stdin.aclose()
            await process.wait()
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP):
            await process.wait()
            await process.stdout.aclose()


if __name__ == "__main__":
    sys.exit(main())
