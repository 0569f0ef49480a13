"""`python -m trioswitch bench`: its sub-commands, what they need, and their exit status (0, 1 for a failure, 2 for usage)."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .target import BenchError, Target
from .wire import MIN_SIZE

if TYPE_CHECKING:
    from .settings import Settings

__all__ = ["add_bench"]

OK, FAILED = 0, 1
NEEDED: Final = ("numpy", "rich")

_SCENARIOS: Final = {
    "fanout": ("one client publishes, all clients of the room receive", 500, 5.0),
    "echo": ("every client has one message under way, through a room of its own", 100, 5.0),
    "idle": ("connect, join, stay", 1000, 10.0),
}


def add_bench(commands: Any) -> None:
    """Add the command `bench` to the sub-parsers of `trioswitch`. `run(namespace)` of what is parsed returns the exit status."""
    bench = commands.add_parser(
        "bench", help="measure a server", description="Measure a server that runs. All clients are on this machine."
    )
    parsers = bench.add_subparsers(required=True, metavar="BENCHMARK")
    for name in _SCENARIOS:
        _add_scenario(parsers, name)


def _add_scenario(parsers: Any, name: str) -> None:
    text, connections, duration = _SCENARIOS[name]
    parser = parsers.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(run=_run, scenario=name, rate=None, size=64)
    add = parser.add_argument
    add("target", type=_target, metavar="URL", help="where the server is, e.g. ws://127.0.0.1:8765/ws")
    add("--connections", type=_count, default=connections, metavar="N", help="clients")
    add("--duration", type=_positive, default=duration, metavar="SECONDS", help="how long is measured")
    if name == "fanout":
        add(
            "--rate", type=_rate, default="search", metavar="N|search",
            help="messages/s that are published; `search` finds the most that arrives with a p99 of 100 ms at most",
        )  # fmt: skip
    if name != "idle":
        add("--size", type=_size, default=64, metavar="BYTES", help=f"content of a message, {MIN_SIZE} at least")
    add(
        "--processes", type=_processes, default="auto", metavar="N|auto",
        help="client processes; `auto` takes as many as there are processors to spare",
    )  # fmt: skip
    add("--protocol", choices=("json", "batch", "msgpack"), default="json", help="client protocol")
    add("--compression", action="store_true", help="offer permessage-deflate")
    add("--token", help="token of the clients")
    add(
        "--room", metavar="NAME", help="room that clients join; echo adds -0, -1 ... (default: a new name for each run)"
    )
    add("--ca", metavar="FILE", help="certificates (PEM) to check the server of a wss:// URL against")
    add(
        "--pid", type=_count, metavar="PID", help="process of the server: shows its memory and its share of a processor"
    )
    add("--json", type=_file, metavar="FILE", help="write everything that was measured")
    add("--plot", type=_file, metavar="FILE.png", help="draw how latency is distributed, and how it went over time")


def _run(chosen: argparse.Namespace) -> int:
    missing = [name for name in (*NEEDED, *(["matplotlib"] if chosen.plot else [])) if find_spec(name) is None]
    if missing:
        return _fail(f"bench needs {' and '.join(missing)}: pip install trioswitch[bench]")
    try:
        return _measure(chosen)
    except BenchError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted")


def _measure(chosen: argparse.Namespace) -> int:
    """Raises BenchError."""
    import msgspec
    import trio

    from . import scenarios, show

    try:
        with show.Show() as progress:
            result = trio.run(scenarios.run, _settings(chosen), progress)
    except* BenchError as group:
        raise _first(group) from None
    except* KeyboardInterrupt:
        raise KeyboardInterrupt from None
    show.show_result(result)
    if chosen.json is not None:
        _write(chosen.json, msgspec.json.format(msgspec.json.encode(result.to_json()), indent=2) + b"\n")
    if chosen.plot is not None:
        from . import plot

        _write(chosen.plot, plot.draw(result))
    return OK


def _settings(chosen: argparse.Namespace) -> "Settings":
    from .settings import Settings

    values = vars(chosen)
    return Settings(**{name: values[name] for name in Settings.__annotations__})


def _first(group: BaseExceptionGroup[BenchError]) -> BenchError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, BenchError)
    return error


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise BenchError(f"cannot write {str(path)!r}: {error.strerror}") from None
    print(f"wrote {path}", file=sys.stderr)


def _fail(sentence: str) -> int:
    print(f"trioswitch: {sentence}", file=sys.stderr)
    return FAILED


# --- the options' values


def _target(text: str) -> Target:
    try:
        return Target.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return count


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _size(text: str) -> int:
    size = int(text)
    if size < MIN_SIZE:
        raise argparse.ArgumentTypeError(f"{text} bytes are too few for a time stamp: {MIN_SIZE} at least")
    return size


def _rate(text: str) -> float | None:
    return None if text == "search" else _positive(text)


def _processes(text: str) -> int | None:
    return None if text == "auto" else _count(text)


def _file(text: str) -> Path:
    """A file that can be written: better to know before the measurement than after it."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written")
    return path
