"""The broker on Redis: publish and subscribe, on a connection each. Redis 6 or later.

A topic is the channel `PREFIX:TOPIC`. Redis hands the messages of a channel to all subscribers in one order. It keeps nothing:
what is published while a subscriber is not connected is lost to it, and a subscriber that is too slow is disconnected
(`client-output-buffer-limit pubsub`). Both are told (`Receiver.on_disconnected`).
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import trio

from ..errors import BrokerError
from ..redis.client import RedisClient
from ..redis.connection import RedisConnection, RedisError, RedisLost
from ..redis.url import RedisUrl, Topology
from .port import Broker, Receiver, Sent

__all__ = ["RedisBroker"]

SUBSCRIBE_CHANNELS: Final = 512
"""Channels in one SUBSCRIBE."""


class RedisBroker(Broker):
    """Made by `open_broker`."""

    def __init__(self, url: RedisUrl) -> None:
        self._prefix = f"{url.prefix}:".encode()
        self._kind = "S" if url.topology is Topology.CLUSTER else ""  # of channels: those of one shard, or of all
        self._publishing = RedisClient(url)
        self._subscribing = RedisClient(url, self._on_message)
        self._receiver: Receiver | None = None

    # --- the connections

    async def run(self, receiver: Receiver) -> None:
        self._receiver = receiver
        connected = _Both(receiver)

        async def publishing_is_up(_connection: RedisConnection) -> None:
            connected.publishing = True
            connected.tell()

        async def subscribing_is_up(connection: RedisConnection) -> None:
            connected.topics = receiver.topics()
            for channels in _in_parts([self._channel(topic) for topic in connected.topics]):
                await connection.subscribe(f"{self._kind}SUBSCRIBE", channels)
            connected.subscribing = True
            connected.tell()

        def publishing_is_lost(reason: str) -> None:
            connected.publishing = False
            connected.lose(reason)
            self._subscribing.drop(reason)

        def subscribing_is_lost(reason: str) -> None:
            connected.subscribing = False
            connected.lose(reason)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._publishing.run, publishing_is_up, publishing_is_lost)
            nursery.start_soon(self._subscribing.run, subscribing_is_up, subscribing_is_lost)

    def drop_connection(self, reason: str) -> None:
        self._subscribing.drop(reason)
        self._publishing.drop(reason)

    def _on_message(self, channel: bytes, payload: bytes) -> None:
        assert self._receiver is not None
        self._receiver.on_payloads([(channel[len(self._prefix) :].decode(), payload)])

    def _channel(self, topic: str) -> bytes:
        return self._prefix + topic.encode()

    # --- calls

    async def publish(self, payloads: Sequence[Sent]) -> Sequence[int | None]:
        with _broker_errors():
            replies = await self._publishing.calls(
                [(f"{self._kind}PUBLISH", self._channel(topic), payload) for topic, payload in payloads]
            )
        for reply in replies:
            if isinstance(reply, RedisError):
                raise BrokerError(f"Redis has refused a message: {reply}")
        return replies

    async def subscribe(self, topics: Collection[str]) -> None:
        await self._change("SUBSCRIBE", topics)

    async def unsubscribe(self, topics: Collection[str]) -> None:
        await self._change("UNSUBSCRIBE", topics)

    async def _change(self, command: str, topics: Collection[str]) -> None:
        with _broker_errors():
            await trio.lowlevel.checkpoint()
            for channels in _in_parts([self._channel(topic) for topic in topics]):
                await self._subscribing.subscribe(self._kind + command, channels)


class _Both:
    """Tells the receiver of the two connections as of one."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.publishing = self.subscribing = False
        self.topics: Collection[str] = ()
        self._told = False

    def tell(self) -> None:
        if self.publishing and self.subscribing and not self._told:
            self._told = True
            self._receiver.on_connected(self.topics)

    def lose(self, reason: str) -> None:
        self._told = False
        self._receiver.on_disconnected(reason)


def _in_parts(channels: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(channels), SUBSCRIBE_CHANNELS):
        yield channels[start : start + SUBSCRIBE_CHANNELS]


@contextmanager
def _broker_errors() -> Iterator[None]:
    try:
        yield
    except RedisLost as lost:
        raise BrokerError(str(lost)) from None
