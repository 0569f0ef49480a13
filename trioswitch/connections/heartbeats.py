"""WebSocket pings, by one task for all connections: a peer that is gone is found within interval + timeout."""

import trio

from .._util.expiry import DueQueue
from .._util.wakeup import Wakeup
from ..errors import CloseCause
from .driver import ConnectionDriver

__all__ = ["Heartbeats"]


class Heartbeats:
    """Pings each connection every `interval` seconds, and closes it with 4001 if nothing was heard `timeout` later.

    What is due within the `resolution` of one second (or a tenth of the interval) is done together.
    """

    def __init__(self, interval: float, timeout: float) -> None:
        self._interval = interval
        self._timeout = timeout
        self._resolution = min(1.0, interval / 10, timeout / 10)
        self._to_ping: DueQueue[ConnectionDriver, None] = DueQueue()
        self._to_check: DueQueue[ConnectionDriver, None] = DueQueue()
        self._wakeup = Wakeup()

    def add(self, connection: ConnectionDriver) -> None:
        self._to_ping.add(connection, None, trio.current_time() + self._interval)
        self._wakeup.notify()

    def remove(self, connection: ConnectionDriver) -> None:
        self._to_ping.remove(connection)
        self._to_check.remove(connection)

    async def run(self) -> None:
        """The task that pings and checks all connections."""
        while True:
            while not self._to_ping and not self._to_check:
                await self._wakeup.wait()
            due = min(self._to_ping.next_due(), self._to_check.next_due())
            await trio.sleep(max(self._resolution, due - trio.current_time()))
            self._sweep(trio.current_time())

    def _sweep(self, now: float) -> None:
        for connection, _ in self._to_check.pop_due(now):
            if not connection.alive:
                connection.close(CloseCause.HEARTBEAT_MISSED, flush=False)
        for connection, _ in list(self._to_ping.pop_due(now)):
            if connection.cause is None:
                connection.ping()
                if connection not in self._to_check:
                    self._to_check.add(connection, None, now + self._timeout)
                self._to_ping.add(connection, None, now + self._interval)
