"""WebSocket pings, by one task for all connections: a peer that is gone is found within interval + timeout."""

from collections import OrderedDict

import trio

from ..errors import Cause
from .driver import ConnectionDriver

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
        # Ordered dicts rather than deques: who is gone must not be kept in memory until its turn comes.
        self._to_ping: OrderedDict[ConnectionDriver, float] = OrderedDict()
        self._to_check: OrderedDict[ConnectionDriver, float] = OrderedDict()
        self._work = trio.Event()

    def add(self, connection: ConnectionDriver) -> None:
        self._to_ping[connection] = trio.current_time() + self._interval
        self._work.set()

    def remove(self, connection: ConnectionDriver) -> None:
        self._to_ping.pop(connection, None)
        self._to_check.pop(connection, None)

    async def run(self) -> None:
        while True:
            await self._work.wait()
            heads = [next(iter(queue.values())) for queue in (self._to_ping, self._to_check) if queue]
            if not heads:
                self._work = trio.Event()
                continue
            await trio.sleep(max(self._resolution, min(heads) - trio.current_time()))
            self._sweep(trio.current_time())

    def _sweep(self, now: float) -> None:
        for connection in _due(self._to_check, now):
            if not connection.alive:
                connection.close(Cause.HEARTBEAT_MISSED, flush=False)
        for connection in _due(self._to_ping, now):
            if connection.cause is None:
                connection.ping()
                self._to_check.setdefault(connection, now + self._timeout)
                self._to_ping[connection] = now + self._interval


def _due(queue: OrderedDict[ConnectionDriver, float], now: float) -> list[ConnectionDriver]:
    """Take from the head of a queue whose time has come."""
    due: list[ConnectionDriver] = []
    while queue and next(iter(queue.values())) <= now:
        due.append(queue.popitem(last=False)[0])
    return due
