"""A broker between switches of one program: for tests and simulations of a cluster, and for programs with several switches."""

from collections.abc import Collection, Sequence
from typing import Final

import trio

from ..errors import BrokerError
from .port import Broker, Receiver, Sent

__all__ = ["Exchange", "InProcessBroker"]

MAX_PENDING: Final = 10_000
"""Payloads that wait for a subscriber. One that is slower is disconnected, and connects again."""


class Exchange:
    """Where the brokers of several switches meet. It belongs to one Trio thread."""

    def __init__(self) -> None:
        self._subscribers: dict[str, dict[InProcessBroker, None]] = {}

    def broker(self) -> "InProcessBroker":
        """A broker for one switch."""
        return InProcessBroker(self)

    def publish(self, topic: str, payload: bytes, publisher: "InProcessBroker | None" = None) -> int:
        """Returns how many subscribers there are."""
        subscribers = list(self._subscribers.get(topic, ()))
        for subscriber in subscribers:
            self.carry(publisher, subscriber, topic, payload)
        return len(subscribers)

    def carry(
        self, publisher: "InProcessBroker | None", subscriber: "InProcessBroker", topic: str, payload: bytes
    ) -> None:
        """Bring a payload from a publisher, which may be unknown, to a subscriber."""
        subscriber.arrive(topic, payload)

    def subscribe(self, subscriber: "InProcessBroker", topic: str) -> None:
        self._subscribers.setdefault(topic, {})[subscriber] = None

    def unsubscribe(self, subscriber: "InProcessBroker", topic: str) -> None:
        subscribers = self._subscribers.get(topic, {})
        if subscriber in subscribers:
            del subscribers[subscriber]
            if not subscribers:
                del self._subscribers[topic]

    def forget(self, subscriber: "InProcessBroker") -> None:
        for topic in list(self._subscribers):
            self.unsubscribe(subscriber, topic)


class InProcessBroker(Broker):
    """Made by `Exchange.broker`. `disconnect` and `reconnect` do what a real network does by itself."""

    def __init__(self, exchange: Exchange) -> None:
        self.connections: int = 0
        """Connections so far, the present one included."""
        self._exchange = exchange
        self._connected = False
        self._allowed = trio.Event()
        self._allowed.set()
        self._send, self._receive = trio.open_memory_channel[Sent](MAX_PENDING)
        self._reason = ""
        self._connection = trio.CancelScope()

    # --- for tests

    def disconnect(self, reason: str = "disconnected by the test") -> None:
        """Lose the connection, and what is on its way, until `reconnect`."""
        self._allowed = trio.Event()
        self._lose(reason)

    def reconnect(self) -> None:
        """Allow connections again."""
        self._allowed.set()

    # --- the port

    async def run(self, receiver: Receiver) -> None:
        try:
            while True:
                await self._allowed.wait()
                self._send, self._receive = trio.open_memory_channel[Sent](MAX_PENDING)
                self.connections += 1
                topics = receiver.topics()
                for topic in topics:
                    self._exchange.subscribe(self, topic)
                self._connected = True
                receiver.on_connected(topics)
                with trio.CancelScope() as self._connection:
                    await self._receive_until_lost(receiver)
                receiver.on_disconnected(self._reason)
        finally:
            self._lose("closed")

    async def _receive_until_lost(self, receiver: Receiver) -> None:
        while True:
            first = await self._receive.receive()
            waiting = self._receive.statistics().current_buffer_used
            receiver.on_payloads([first, *[self._receive.receive_nowait() for _ in range(waiting)]])

    def drop_connection(self, reason: str) -> None:
        if self._connected:
            self._lose(reason)

    async def publish(self, payloads: Sequence[Sent]) -> Sequence[int | None]:
        await self._check()
        return [self._exchange.publish(topic, payload, self) for topic, payload in payloads]

    async def subscribe(self, topics: Collection[str]) -> None:
        await self._check()
        for topic in topics:
            self._exchange.subscribe(self, topic)

    async def unsubscribe(self, topics: Collection[str]) -> None:
        await self._check()
        for topic in topics:
            self._exchange.unsubscribe(self, topic)

    async def _check(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self._connected:
            raise BrokerError("there is no connection to the broker")

    # --- called by the exchange

    def arrive(self, topic: str, payload: bytes) -> None:
        try:
            self._send.send_nowait((topic, payload))
        except trio.WouldBlock:
            self._lose("it was too slow for the broker")

    def _lose(self, reason: str) -> None:
        self._exchange.forget(self)
        self._connected = False
        self._reason = reason
        self._connection.cancel()
