"""WebSocket pings, by one task for all connections: a peer that is gone is found within interval + timeout."""

from collections import deque

import trio

from .connection import Connection
from .errors import Cause

__all__ = ["Heartbeats"]


class Heartbeats:
    """Pings each connection every `interval` seconds, and closes it with 4001 when `timeout` later nothing was heard.

    Intervals are the same for all, so two queues in order of time are enough: who is to be pinged next, and whose answer
    is due next. What is due within the `resolution` of one second (or a tenth of the interval) is done together.
    """

    def __init__(self, interval: float, timeout: float) -> None:
        self._interval = interval
        self._timeout = timeout
        self._resolution = min(1.0, interval / 10, timeout / 10)
        self._to_ping: deque[tuple[float, Connection]] = deque()
        self._to_check: deque[tuple[float, Connection]] = deque()
        self._work = trio.Event()

    def add(self, connection: Connection) -> None:
        self._to_ping.append((trio.current_time() + self._interval, connection))
        self._work.set()

    async def run(self) -> None:
        while True:
            await self._work.wait()
            heads = [queue[0][0] for queue in (self._to_ping, self._to_check) if queue]
            if not heads:
                self._work = trio.Event()
                continue
            await trio.sleep(max(self._resolution, min(heads) - trio.current_time()))
            self._sweep(trio.current_time())

    def _sweep(self, now: float) -> None:
        while self._to_check and self._to_check[0][0] <= now:
            _, connection = self._to_check.popleft()
            if not connection.alive:
                connection.close(Cause.HEARTBEAT_MISSED, flush=False)
        while self._to_ping and self._to_ping[0][0] <= now:
            _, connection = self._to_ping.popleft()
            if connection.cause is None:
                connection.ping()
                self._to_check.append((now + self._timeout, connection))
                self._to_ping.append((now + self._interval, connection))
