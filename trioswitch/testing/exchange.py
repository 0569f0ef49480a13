"""A broker in memory that can be made unreliable."""

import heapq
import itertools
from collections.abc import Callable

import attrs
import trio

from .._util.wakeup import Wakeup
from ..brokers import Exchange, InProcessBroker

__all__ = ["FaultyExchange"]


@attrs.define(order=True)
class _Late:
    """A payload that is under way."""

    due: float
    number: int
    subscriber: InProcessBroker = attrs.field(order=False)
    connection: int = attrs.field(order=False)
    """It is lost when the subscriber has another one by then."""
    topic: str = attrs.field(order=False)
    payload: bytes = attrs.field(order=False)


class FaultyExchange(Exchange):
    """Where the brokers of a simulation meet. It loses payloads, and delays them, when it is told to. `run` is its task."""

    def __init__(self) -> None:
        super().__init__()
        self._loses: Callable[[], bool] | None = None
        self._delays: Callable[[], float] | None = None
        self._late: list[_Late] = []  # a heap
        self._numbers = itertools.count()
        self._last: dict[tuple[InProcessBroker | None, InProcessBroker, str], float] = {}
        self._wakeup = Wakeup()

    def lose(self, loses: Callable[[], bool] | None) -> None:
        """Payloads are lost, without a word, when this says so; None: none of them."""
        self._loses = loses

    def delay(self, delays: Callable[[], float] | None) -> None:
        """Each payload takes as many seconds to each subscriber as this says; None: none.

        Those of one publisher to one subscriber stay in order in each topic, as the port promises. Others overtake each other.
        """
        self._delays = delays

    def publish(self, topic: str, payload: bytes, publisher: InProcessBroker | None = None) -> int:
        if self._loses is not None and self._loses():
            return 1
        return super().publish(topic, payload, publisher)

    def carry(self, publisher: InProcessBroker | None, subscriber: InProcessBroker, topic: str, payload: bytes) -> None:
        now = trio.current_time()
        way = (publisher, subscriber, topic)
        before = self._last.get(way, -1.0)
        due = max(before, now if self._delays is None else now + self._delays())
        if before < now and due <= now:
            super().carry(publisher, subscriber, topic, payload)
            return
        self._last[way] = due
        heapq.heappush(self._late, _Late(due, next(self._numbers), subscriber, subscriber.connections, topic, payload))
        self._wakeup.notify()

    async def run(self) -> None:
        """Carry what was delayed. Never returns."""
        while True:
            now = trio.current_time()
            while self._late and self._late[0].due <= now:
                late = heapq.heappop(self._late)
                if late.subscriber.connections == late.connection:
                    late.subscriber.arrive(late.topic, late.payload)
            if not self._late:
                self._last.clear()
            with trio.move_on_at(self._late[0].due if self._late else float("inf")):
                await self._wakeup.wait()
