"""The interface of a broker, which carries payloads between the nodes of a cluster, by topic.

    brokers.in_process    between switches of one program
    hub                   between processes of one machine (`serve --workers`)
    brokers.redis         between machines, and so are brokers.nats and brokers.postgres

A broker knows nothing of rooms and messages: a topic is text, a payload is bytes. All subscribers of a topic get its payloads in
one order, the publisher included if it subscribes. What was published while a subscriber was not connected is lost to it; the
broker says so (`Receiver.on_disconnected`), and never loses anything for a subscriber without saying so.
"""

import abc
from collections.abc import Collection, Sequence
from typing import Final, Protocol

__all__ = ["MAX_PAYLOAD", "Broker", "Receiver", "Sent"]

MAX_PAYLOAD: Final = 64 * 1024 * 1024
"""Bytes of one payload at most."""

Sent = tuple[str, bytes]
"""A topic and a payload."""


class Receiver(Protocol):
    """Who is called by `Broker.run`, in its task. The calls do not wait."""

    def topics(self) -> Collection[str]:
        """The topics to subscribe to when a connection is made."""

    def on_connected(self, topics: Collection[str]) -> None:
        """The broker can be used, and these topics are subscribed to, which `topics` has returned."""

    def on_payloads(self, payloads: Sequence[Sent]) -> None:
        """Payloads of topics that are subscribed to, in order."""

    def on_disconnected(self, reason: str) -> None:
        """The connection is lost, or cannot be made, for this reason, a sentence: payloads are missing until `on_connected`."""


class Broker(abc.ABC):
    """A node's connection to the broker. Made by `open_broker`.

    Calls may be made by many tasks at once. They raise BrokerError while there is no connection, and when it is lost under them;
    then it is not known whether they were carried out. Safe to cancel, likewise. Nothing bounds the calls that wait, nor their
    time: callers do.
    """

    @abc.abstractmethod
    async def run(self, receiver: Receiver) -> None:
        """Connect, receive, and reconnect when the connection is lost, until cancelled. Called once."""

    @abc.abstractmethod
    def drop_connection(self, reason: str) -> None:
        """Give the connection up, if there is one, and make a new one: `on_disconnected` follows, with this reason."""

    @abc.abstractmethod
    async def publish(self, payloads: Sequence[Sent]) -> Sequence[int | None]:
        """Publish payloads, in order. Returns for each the number of subscribers that it went to, None where nobody counts."""

    @abc.abstractmethod
    async def subscribe(self, topics: Collection[str]) -> None:
        """Subscribe to topics: on return, all that is published from now on arrives. Subscribing twice is no error."""

    @abc.abstractmethod
    async def unsubscribe(self, topics: Collection[str]) -> None:
        """Nothing of these topics arrives any more. Topics that are not subscribed to are left out."""
