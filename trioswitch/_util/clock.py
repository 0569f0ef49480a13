"""Wall time, for what a person reads and for what outlives the process. Durations and deadlines use `trio.current_time()`."""

import time
from datetime import UTC, datetime

import trio

__all__ = ["timestamp", "to_trio", "to_wall", "wall_time"]

_millisecond, _text = 0, ""
_second, _date = 0, ""


def timestamp() -> str:
    """Now, as ISO 8601 in UTC with milliseconds: `2026-11-20T22:41:04.123Z`.

    The text is kept for as long as it is right, and its seconds, too: a busy server asks for it more often than they change
    (`strftime` takes 2 us).
    """
    global _millisecond, _text, _second, _date
    now = time.time_ns() // 1_000_000
    if now != _millisecond:
        second = now // 1000
        if second != _second:
            _second, _date = second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        _millisecond, _text = now, f"{_date}.{now % 1000:03}Z"
    return _text


def wall_time() -> float:
    """Seconds since 1970: what a store keeps, as Trio's clock begins anew with each process."""
    return time.time()


def to_wall(trio_time: float) -> float:
    """The wall time, in seconds since 1970, of a time on Trio's clock."""
    return wall_time() + trio_time - trio.current_time()


def to_trio(wall: float) -> float:
    """The time on Trio's clock of a wall time in seconds since 1970."""
    return trio.current_time() + wall - wall_time()
