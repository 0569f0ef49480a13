"""A node's connection to the broker: what it sends is batched, topics are subscribed to as they are needed, and what arrives
goes to the part of the cluster that has asked for its kind.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from math import inf
from typing import Any, Final, TypeVar

import attrs
import trio

from .._util.expiry import DueQueue
from .._util.wakeup import Wakeup
from ..brokers.port import Broker, Sent
from ..errors import BrokerError
from .messages import NodeMessage, decode_parcel, encode_parcel, size_of

__all__ = ["Link", "OnSent"]

_log = logging.getLogger(__name__)

CALL_TIMEOUT: Final = 5.0
"""Seconds that the broker may take for a call. After that the connection is given up, and made anew."""
FIRST_TIMEOUT: Final = 5.0
"""Seconds that a node which starts waits for the broker before it takes clients."""
INTEREST_GRACE: Final = 10.0
"""Seconds that a topic stays subscribed to when nobody needs it: many come back, as the room of a client that reconnects."""
MAX_PENDING: Final = 20_000
"""Messages that wait to be sent. Beyond that publishers wait; what does not wait is not sent, and the sender is told."""
MAX_PENDING_BYTES: Final = 16 * 1024 * 1024
"""Bytes of them, likewise."""
PARCEL_BYTES: Final = 128 * 1024
"""Bytes in one parcel, about; a larger message goes alone. Brokers bound what they keep for a slow node, and parcels count."""
RETRY_DELAY: Final = 0.1
"""Seconds after which topics are subscribed to again that could not be."""
COMPLAINT_INTERVAL: Final = 60.0
"""Seconds between two lines of the log about payloads that cannot be read."""

OnSent = Callable[[BrokerError | None, int | None], None]
"""Called once: with the reason why a message was not sent, or may not have been; else with the number of nodes that it went to,
this one included if it subscribes to the topic, None where the broker does not count."""
M = TypeVar("M", bound=NodeMessage)
_Handler = Callable[[str, str, Any], None]


@attrs.define(eq=False)
class _Outgoing:
    topic: str
    message: NodeMessage
    on_sent: OnSent | None
    size: int


class Link:
    """Implements the broker's `Receiver`. `node` is the id of this node.

    `run_broker`, `run_sender` and `run_interest` are its tasks.
    """

    def __init__(self, broker: Broker, node: str) -> None:
        self.node = node
        self.connected = False
        self.error: str | None = "the broker has not been reached yet"
        """Why there is no connection, in a sentence; None while there is one."""
        self._broker = broker
        self._handlers: dict[tuple[str, type[NodeMessage]], list[_Handler]] = {}
        self._on_connected: list[Callable[[], None]] = []
        self._on_disconnected: list[Callable[[], None]] = []
        self._pending: list[_Outgoing] = []
        self._pending_bytes = 0
        self._to_send = Wakeup()
        self._space = Wakeup()
        self._wanted: dict[
            str, Callable[[str], None] | None
        ] = {}  # topics, and what is called when one is subscribed to
        self._subscribed: set[str] = set()
        self._missing: dict[str, None] = {}  # those that are wanted, and not subscribed to
        self._unwanted: DueQueue[str, None] = DueQueue()  # topics that are given up when their grace is over
        self._interest_changed = Wakeup()
        self._attached = Wakeup()
        self._complained_at = -inf
        self._attempted = trio.Event()

    async def wait_first_attempt(self) -> None:
        """Wait until there is a connection, or the first attempt has failed, for some seconds at most. Safe to cancel."""
        with trio.move_on_after(FIRST_TIMEOUT):
            await self._attempted.wait()

    # --- who is told

    def on(self, topics: str, kind: type[M], handler: Callable[[str, str, M], None]) -> None:
        """Call `handler(node, topic, message)` for messages of a kind, in topics of a kind: `all`, `room`, `user`, `node`."""
        self._handlers.setdefault((topics, kind), []).append(handler)

    def on_change(self, connected: Callable[[], None], disconnected: Callable[[], None] = lambda: None) -> None:
        """Have these called when the connection is there (again), and when it is lost."""
        self._on_connected.append(connected)
        self._on_disconnected.append(disconnected)

    # --- out

    def send(
        self, topic: str, message: NodeMessage, on_sent: OnSent | None = None, *, although_full: bool = False
    ) -> None:
        """Send a message to all nodes that subscribe to a topic. Never waits: what cannot be sent is reported to `on_sent`.

        `although_full` is for what was let in while it was not full, and took a way round.
        """
        if not self.connected or (self.full and not although_full):
            if on_sent is not None:
                reason = "too much waits for the broker" if self.connected else self.error
                on_sent(BrokerError(reason or "there is no connection to the broker"), None)
            return
        size = size_of(message)
        self._pending.append(_Outgoing(topic, message, on_sent, size))
        self._pending_bytes += size
        self._to_send.notify()

    @property
    def full(self) -> bool:
        """Whether publishers should wait (`wait_space`)."""
        return len(self._pending) >= MAX_PENDING or self._pending_bytes >= MAX_PENDING_BYTES

    async def wait_space(self) -> None:
        """Wait until it is not full. Safe to cancel."""
        while self.full:
            await self._space.wait()

    async def publish_now(self, topic: str, message: NodeMessage) -> None:
        """Send a message without the help of a task, if there is a connection. Safe to cancel."""
        if self.connected:
            try:
                await self._broker.publish([(topic, encode_parcel(self.node, [message]))])
            except BrokerError as error:
                _log.debug("a message was not sent: %s", error)

    async def run_sender(self) -> None:
        """The task that sends: while one batch is on its way, the next one gathers."""
        while True:
            while not self._pending:
                await self._to_send.wait()
            await self._publish(self._take_pending())

    def _take_pending(self) -> list[_Outgoing]:
        batch, self._pending, self._pending_bytes = self._pending, [], 0
        self._space.notify()
        return batch

    async def _publish(self, batch: Sequence[_Outgoing]) -> None:
        parcels: list[tuple[str, list[_Outgoing]]] = []
        open_parcels: dict[str, list[_Outgoing]] = {}
        sizes: dict[str, int] = {}
        for outgoing in batch:
            topic, parcel = outgoing.topic, open_parcels.get(outgoing.topic)
            if parcel is None or sizes[topic] + outgoing.size > PARCEL_BYTES:
                parcel, sizes[topic] = [], 0
                open_parcels[topic] = parcel
                parcels.append((topic, parcel))
            parcel.append(outgoing)
            sizes[topic] += outgoing.size
        counts: Sequence[int | None] = [None] * len(parcels)
        error: BrokerError | None = BrokerError("the node ended before the broker had the message")
        try:
            with trio.fail_after(CALL_TIMEOUT):
                counts = await self._broker.publish(
                    [(topic, encode_parcel(self.node, [each.message for each in parcel])) for topic, parcel in parcels]
                )
            error = None
        except trio.TooSlowError:
            error = BrokerError(f"the broker has not answered within {CALL_TIMEOUT:g} s")
            self._broker.drop_connection(str(error))
        except BrokerError as failure:
            error = failure
        finally:
            for (_topic, parcel), count in zip(parcels, counts, strict=True):
                for each in parcel:
                    if each.on_sent is not None:
                        each.on_sent(error, count)

    # --- interest

    def want(self, topic: str, on_attached: Callable[[str], None] | None = None) -> None:
        """Subscribe to a topic. `on_attached(topic)` is called when it is subscribed to: now or soon, and after reconnections."""
        self._unwanted.remove(topic)
        self._wanted[topic] = on_attached
        if topic not in self._subscribed:
            self._missing[topic] = None
            self._interest_changed.notify()
        elif on_attached is not None:
            on_attached(topic)

    def unwant(self, topic: str) -> None:
        """Nobody needs the topic any more. It is given up after a grace."""
        if topic in self._wanted:
            self._wanted[topic] = None
            self._unwanted.add(topic, None, trio.current_time() + INTEREST_GRACE)
            self._interest_changed.notify()

    def attached(self, topic: str) -> bool:
        """Whether everything that is sent to a topic from now on arrives."""
        return topic in self._subscribed

    async def wait_attached(self, topic: str, timeout: float) -> bool:  # noqa: ASYNC109
        """Wait until a topic that is wanted is attached, at most `timeout` seconds. Returns whether it is. Safe to cancel."""
        with trio.move_on_after(timeout):
            while not self.attached(topic) and topic in self._wanted:
                await self._attached.wait()
        return self.attached(topic)

    async def run_interest(self) -> None:
        """The task that subscribes and unsubscribes."""
        while True:
            now = trio.current_time()
            given_up = [topic for topic, _ in self._unwanted.pop_due(now)]
            for topic in given_up:
                del self._wanted[topic]
                self._missing.pop(topic, None)
            stale = [topic for topic in given_up if topic in self._subscribed]
            fresh = list(self._missing) if self.connected else []
            try:
                with trio.fail_after(CALL_TIMEOUT):
                    if stale and self.connected:
                        self._subscribed.difference_update(stale)
                        await self._broker.unsubscribe(stale)
                    if fresh:
                        await self._broker.subscribe(fresh)
                        if self.connected:
                            self._now_attached([topic for topic in fresh if topic in self._wanted])
            except trio.TooSlowError:
                self._broker.drop_connection(f"the broker has not answered within {CALL_TIMEOUT:g} s")
            except BrokerError as error:
                _log.debug("topics were not subscribed to: %s", error)  # the next connection begins with them
                await trio.sleep(RETRY_DELAY)
            if stale or fresh:
                await trio.lowlevel.checkpoint()
                continue
            with trio.move_on_at(self._unwanted.next_due()):
                await self._interest_changed.wait()

    def _now_attached(self, topics: Collection[str]) -> None:
        self._subscribed.update(topics)
        self._attached.notify()
        for topic in topics:
            self._missing.pop(topic, None)
            on_attached = self._wanted.get(topic)
            if on_attached is not None:
                on_attached(topic)

    # --- in

    async def run_broker(self) -> None:
        """The task that holds the connection."""
        await self._broker.run(self)

    def drop_connection(self, reason: str) -> None:
        """The connection looks alive and is not: make a new one."""
        self._broker.drop_connection(reason)

    def topics(self) -> Collection[str]:
        return list(self._wanted)

    def on_connected(self, topics: Collection[str]) -> None:
        if self.error is not None:
            _log.info("the broker is connected")
        self.connected, self.error = True, None
        self._attempted.set()
        for callback in self._on_connected:
            callback()
        self._now_attached([topic for topic in topics if topic in self._wanted])
        self._interest_changed.notify()

    def on_disconnected(self, reason: str) -> None:
        if self.connected:
            _log.error("the connection to the broker is lost: %s", reason)
        elif reason != self.error:
            _log.error("the broker cannot be reached: %s", reason)
        self.connected, self.error = False, reason
        self._attempted.set()
        self._subscribed.clear()
        self._missing = dict.fromkeys(self._wanted)
        self._attached.notify()
        for each in self._take_pending():
            if each.on_sent is not None:
                each.on_sent(BrokerError(reason), None)
        for callback in self._on_disconnected:
            callback()

    def on_payloads(self, payloads: Sequence[Sent]) -> None:
        for topic, payload in payloads:
            kind = topic.partition(":")[0]
            try:
                node, messages = decode_parcel(payload)
            except ValueError as error:
                self._complain(topic, error)
                continue
            for message in messages:
                for handler in self._handlers.get((kind, type(message)), ()):
                    try:
                        handler(node, topic, message)
                    except ValueError as error:
                        self._complain(topic, error)
                    except Exception:  # a fault of ours: what else has arrived must be handled all the same
                        _log.exception("a message from node %s could not be handled", node)

    def _complain(self, topic: str, error: Exception) -> None:
        now = trio.current_time()
        if now - self._complained_at >= COMPLAINT_INTERVAL:
            self._complained_at = now
            _log.error("a message between nodes, in %r, cannot be read and is left out: %s", topic, error)
