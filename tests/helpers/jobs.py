"""What the tests have worker processes do. A module of its own that imports little: every process imports it."""

import os
import signal
import sys
import time
from pathlib import Path

PATIENCE = 20.0


def pid() -> int:
    return os.getpid()


def wait_for(gate: Path, answer: str = "") -> str:
    """Work until the file is there. The file `<gate>.started` says that it has begun."""
    gate.with_suffix(".started").touch()
    deadline = time.monotonic() + PATIENCE
    while not gate.exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return answer


def echo(value: object) -> object:
    return value


def fail(text: str) -> None:
    raise ValueError(text)


def leave(status: int) -> None:
    sys.exit(status)


def die(status: int) -> None:
    os._exit(status)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
