"""Processes of a benchmark: where they run, how a server is started and ended, and which port it gets."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

START = 20.0
"""Seconds that a server has to start."""
STOP = 10.0
"""Seconds that a server has to end after SIGTERM."""


class Failed(Exception):
    """A run has no result. The text says why."""


def cores() -> tuple[list[str], list[str]]:
    """The commands that pin the server and the load client to a core each. Both are empty on a machine with one core."""
    available = sorted(os.sched_getaffinity(0))
    if len(available) < 2:
        return [], []
    return ["taskset", "-c", str(available[0])], ["taskset", "-c", str(available[1])]


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(
    command: list[str], port: int, log: Path, *, environment: Mapping[str, str] | None = None, cwd: Path | None = None,
    start: float = START, stop: float = STOP,
) -> Iterator[subprocess.Popen[bytes]]:  # fmt: skip
    """Run a server in a process group of its own until the block ends. The block begins when the server accepts connections.

    Its output goes to the file `log`. Raises Failed when it does not start within `start` seconds. At the end, it gets SIGTERM,
    and SIGKILL when it has not ended `stop` seconds later.
    """
    with log.open("wb") as file:
        try:
            server = subprocess.Popen(
                command, stdout=file, stderr=file, env={**os.environ, **(environment or {})}, cwd=cwd,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise Failed(f"cannot start {command[0]}: {error.strerror}") from None
        try:
            _wait_for(port, server, log, start)
            yield server
        finally:
            _end(server, stop)


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            break
        except OSError:
            if server.poll() is not None or time.monotonic() > give_up:
                raise Failed(f"the server did not start: {last_line(log)}") from None
            time.sleep(0.05)
    time.sleep(0.5)


def _end(server: subprocess.Popen[bytes], seconds: float) -> None:
    for force in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, force)
            server.wait(seconds)
        except ProcessLookupError:
            server.wait()
        except subprocess.TimeoutExpired:
            continue
        break


def last_line(log: Path) -> str:
    """The last line of a server's log."""
    lines = log.read_text(errors="replace").strip(" +-|\n").splitlines()
    return lines[-1].strip() if lines else "its log is empty"
