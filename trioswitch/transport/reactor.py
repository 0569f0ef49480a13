"""One epoll object for the sockets of all connections, waited for by one task.

A task that waits for its own socket costs an epoll_ctl, a reschedule and 1 KB of Trio's state for each message. Here one task
waits for all of them, reads what has arrived, and carries commands out on the spot; a connection's own task is woken only
when a command has to wait, or the connection ends. Measured: see `docs/decisions/`.
"""

import select
import time
from collections.abc import Callable
from typing import Final

import trio

__all__ = ["Reactor"]

TURN: Final = 128
"""Sockets that are read in one turn at most; then other tasks run."""
TURN_TIME: Final = 0.005
"""Seconds after which a turn ends, though sockets are left: 64 KiB of small commands take longer than this by themselves."""


def _gone() -> None:
    """For a socket that an earlier callback of the same turn has closed."""


class Reactor:
    """Calls back when a socket is readable. `begin` and `end` are called before and after each turn."""

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._begin = begin
        self._end = end
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}

    @staticmethod
    def available() -> bool:
        """Whether this platform has epoll; without it each connection waits for itself."""
        return hasattr(select, "epoll")

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back whenever this socket is readable, until `unwatch`. The callback must not raise."""
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """To be called before the descriptor is closed. Does nothing for one that is not watched."""
        if self._callbacks.pop(fd, None) is not None and not self._epoll.closed:
            self._epoll.unregister(fd)

    async def run(self) -> None:
        ready: list[tuple[int, int]] = []
        while True:
            if ready:  # epoll would tell of the first ones first again, and never of these
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                ready = self._epoll.poll(0, TURN)[::-1]
            self._begin()
            try:
                end = time.monotonic() + TURN_TIME
                while ready and time.monotonic() < end:
                    fd, _events = ready.pop()
                    self._callbacks.get(fd, _gone)()
            finally:
                self._end()

    def close(self) -> None:
        self._epoll.close()
