"""The broker on NATS: a JetStream stream in memory puts messages in order, and NATS itself delivers them. NATS 2.8.3 or later.

NATS alone keeps the order of each publisher, but two subscribers may get the messages of two publishers in different orders. So
a topic has two subjects. What is published to `PREFIX.in.TOPIC` goes into the stream `PREFIX`, which acknowledges it; the stream
publishes it again, in its order, to `PREFIX.out.TOPIC`, which nodes subscribe to. The stream keeps a message no longer than
that takes.

A payload that is larger than a message of NATS may be (`max_payload`) goes in parts. A subscriber that is too slow is
disconnected (`max_pending`), and is told.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from itertools import cycle
from random import Random
from typing import Any, Final
from urllib.parse import quote

import attrs
import trio

from .._util.backoff import Backoff
from ..errors import BrokerError
from ..nats.connection import Message, NatsConnection, NatsLost, connect
from ..nats.url import NatsUrl
from .port import Broker, Receiver, Sent

__all__ = ["NatsBroker"]

CONNECT_TIMEOUT: Final = 5.0
"""Seconds that a connection may take, with TLS, the password and the stream."""
FIRST_RETRY: Final = 0.2
"""Seconds before the first attempt to connect again, at most; doubled after each, up to MAX_RETRY."""
MAX_RETRY: Final = 4.0
STREAM_BYTES: Final = 64 * 1024 * 1024
"""Bytes that the stream may keep."""
STREAM_AGE: Final = 10
"""Seconds that it keeps a message."""
MAX_PARTIAL: Final = 64
"""Payloads of which some parts have arrived. Beyond that the oldest are given up: their publisher has died."""
LEAST_PAYLOAD: Final = 4096
"""Bytes that a message of NATS must be able to have."""
HEADER_SPACE: Final = 512
"""Bytes of headers that are added to a payload on its way, at most, beside the subject's."""
_HEADERS: Final = b"NATS/1.0\r\nTrioswitch: %b\r\n\r\n"
_REPLIES: Final = 1
"""The subscription to answers; those to topics have greater numbers."""


class NatsBroker(Broker):
    """Made by `open_broker`."""

    def __init__(self, url: NatsUrl) -> None:
        self._url = url
        self._session: _Session | None = None
        self._reason = "NATS has not been reached yet"

    async def run(self, receiver: Receiver) -> None:
        backoff = Backoff(Random(), first=FIRST_RETRY, most=MAX_RETRY)
        for server in cycle(self._url.servers):
            began = trio.current_time()
            try:
                await self._run_once(server, receiver)
            except (NatsLost, BrokerError) as error:
                self._reason = str(error)
            receiver.on_disconnected(self._reason)
            backoff.connection_ended(trio.current_time() - began)
            await trio.sleep(backoff.next())

    async def _run_once(self, server: tuple[str, int], receiver: Receiver) -> None:
        """Connect, and hold the connection until it is lost. Raises NatsLost and BrokerError when it cannot be used at all."""
        silent = BrokerError(f"NATS at {server[0]}:{server[1]} does not answer within {CONNECT_TIMEOUT:g} s")
        session = _Session(self._url, receiver)
        try:
            with trio.fail_after(CONNECT_TIMEOUT):
                connection = await session.connect(server)
        except trio.TooSlowError:
            raise silent from None
        problem: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hold, connection, nursery.cancel_scope)
            try:
                with trio.fail_after(CONNECT_TIMEOUT):
                    await session.begin()
                    topics = receiver.topics()
                    await session.subscribe(topics)
                self._session = session
                receiver.on_connected(topics)
                await trio.sleep_forever()
            except trio.TooSlowError:
                problem = silent
            except (NatsLost, BrokerError) as error:
                problem = error
            finally:
                self._session = None
                session.end()
                nursery.cancel_scope.cancel()
        if problem is not None:
            raise problem

    async def _hold(self, connection: NatsConnection, scope: trio.CancelScope) -> None:
        self._reason = await connection.run()
        scope.cancel()

    def drop_connection(self, reason: str) -> None:
        if self._session is not None:
            self._session.connection.drop(reason)

    # --- calls

    async def publish(self, payloads: Sequence[Sent]) -> Sequence[int | None]:
        await self._call(lambda session: session.publish(payloads))
        return [None] * len(payloads)

    async def subscribe(self, topics: Collection[str]) -> None:
        await self._call(lambda session: session.subscribe(topics))

    async def unsubscribe(self, topics: Collection[str]) -> None:
        await self._call(lambda session: session.unsubscribe(topics))

    async def _call(self, call: "Callable[[_Session], Awaitable[None]]") -> None:
        await trio.lowlevel.checkpoint()
        if self._session is None:
            raise BrokerError(self._reason)
        try:
            await call(self._session)
        except NatsLost as lost:
            raise BrokerError(str(lost)) from None


@attrs.define(eq=False)
class _Request:
    """Waits for answers. `answers` are what the server has said, in JSON; None: nobody is there to answer."""

    count: int
    answers: list[bytes | None] = attrs.field(factory=list)
    done: trio.Event = attrs.field(factory=trio.Event)


class _Session:
    """What belongs to one connection."""

    connection: NatsConnection

    def __init__(self, url: NatsUrl, receiver: Receiver) -> None:
        self._url = url
        self._receiver = receiver
        self._id = os.urandom(8).hex()
        self._requests: dict[str, _Request] = {}
        self._last_number = _REPLIES
        self._subscriptions: dict[str, int] = {}
        self._topics: dict[int, str] = {}
        self._probes: dict[bytes, trio.Event] = {}
        self._partial: OrderedDict[bytes, list[bytes]] = OrderedDict()

    # --- in

    def on_message(self, message: Message) -> None:
        if message.subscription == _REPLIES:
            self._answered(message)
            return
        topic = self._topics.get(message.subscription)
        if topic is None:
            return  # it was on its way when the topic was given up
        note = _note(message.headers)
        if not note:
            self._receiver.on_payloads([(topic, message.payload)])
            return
        kind, _, id = note.partition(b" ")
        if kind == b"probe":
            if (probe := self._probes.get(id)) is not None:
                probe.set()
        elif kind == b"part":
            self._partial.setdefault(id, []).append(message.payload)
            if len(self._partial) > MAX_PARTIAL:
                self._partial.popitem(last=False)
        elif kind == b"end" and (parts := self._partial.pop(id, None)) is not None:
            self._receiver.on_payloads([(topic, b"".join([*parts, message.payload]))])

    def _answered(self, message: Message) -> None:
        request = self._requests.get(message.subject)
        if request is not None:
            no_responders = message.headers.startswith(b"NATS/1.0 503")
            request.answers.append(None if no_responders else message.payload)
            if len(request.answers) == request.count:
                request.done.set()

    def end(self) -> None:
        """The connection is lost: nobody waits for it any more."""
        for request in self._requests.values():
            request.done.set()
        for probe in self._probes.values():
            probe.set()

    # --- out

    async def connect(self, server: tuple[str, int]) -> NatsConnection:
        """Raises NatsLost. Called once, first."""
        self.connection = await connect(self._url, server, self.on_message)
        return self.connection

    async def begin(self) -> None:
        """Look whether the server can be used, and make the stream. Raises NatsLost, BrokerError."""
        self.connection.write(b"SUB _INBOX.%b.* %d\r\n" % (self._id.encode(), _REPLIES))
        await self.connection.flush()
        place, name = self.connection.place, self._url.prefix
        if not self.connection.info.get("jetstream"):
            raise BrokerError(f"NATS at {place} has no JetStream: start it with --jetstream")
        if (most := int(self.connection.info.get("max_payload", LEAST_PAYLOAD))) < LEAST_PAYLOAD:
            raise BrokerError(
                f"NATS at {place} takes messages of {most} bytes: set max_payload to {LEAST_PAYLOAD} or more"
            )
        wanted = _stream(self._url)
        found = (await self._ask(f"$JS.API.STREAM.INFO.{name}", {})).get("config", {})
        if all(found.get(setting) == value for setting, value in wanted.items()):
            return
        change = "UPDATE" if found else "CREATE"
        if error := (await self._ask(f"$JS.API.STREAM.{change}.{name}", wanted)).get("error"):
            raise BrokerError(f"NATS at {place} cannot make the stream {name!r}: {error.get('description')}")

    async def _ask(self, subject: str, question: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(question).encode()
        (answer,) = await self._request(1, lambda reply: [(subject.encode(), reply, b"", data)])
        if answer is None:
            raise BrokerError(f"JetStream of NATS at {self.connection.place} does not work")
        try:
            found = json.loads(answer)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise BrokerError(f"JetStream of NATS at {self.connection.place} answers what nobody understands")
        return found

    async def publish(self, payloads: Sequence[Sent]) -> None:
        limit = int(self.connection.info.get("max_payload", STREAM_BYTES)) - HEADER_SPACE
        messages: list[tuple[bytes, bytes, bytes]] = []
        for topic, payload in payloads:
            subject = self._subject("in", topic)
            if len(payload) <= limit:
                messages.append((subject, b"", payload))
                continue
            id = os.urandom(8).hex().encode()
            for start in range(0, len(payload), limit):
                kind = b"part" if start + limit < len(payload) else b"end"
                messages.append((subject, _HEADERS % (kind + b" " + id), payload[start : start + limit]))
        answers = await self._request(
            len(messages), lambda reply: [(subject, reply, headers, data) for subject, headers, data in messages]
        )
        for answer in answers:
            if answer is None or b'"error"' in answer:
                # The stream is gone, or its server. A new connection finds out.
                reason = f"NATS at {self.connection.place} has not taken a message: {_complaint(answer)}"
                self.connection.drop(reason)
                raise BrokerError(reason)

    async def subscribe(self, topics: Collection[str]) -> None:
        if not topics:
            return
        for topic in topics:
            if topic not in self._subscriptions:
                self._last_number += 1
                self._subscriptions[topic] = self._last_number
                self._topics[self._last_number] = topic
                self.connection.write(b"SUB %b %d\r\n" % (self._subject("out", topic), self._last_number))
        # Servers of a NATS cluster tell each other of subscriptions in order: what comes back from the last topic has found all.
        id = os.urandom(8).hex().encode()
        self._probes[id] = probe = trio.Event()
        headers = _HEADERS % (b"probe " + id)
        try:
            await self._request(1, lambda reply: [(self._subject("in", topic), reply, headers, b"")])
            await probe.wait()
        finally:
            del self._probes[id]
        if self.connection.lost is not None:
            raise NatsLost(self.connection.lost)

    async def unsubscribe(self, topics: Collection[str]) -> None:
        for topic in topics:
            number = self._subscriptions.pop(topic, None)
            if number is not None:
                del self._topics[number]
                self.connection.write(b"UNSUB %d\r\n" % number)
        await trio.lowlevel.checkpoint()

    async def _request(
        self, count: int, messages: Callable[[bytes], Sequence[tuple[bytes, bytes, bytes, bytes]]]
    ) -> list[bytes | None]:
        """Publish messages (subject, reply, headers, payload), and wait for the answer to each. Raises NatsLost."""
        if not count:
            return []
        self._last_number += 1
        reply = f"_INBOX.{self._id}.{self._last_number}"
        self._requests[reply] = request = _Request(count)
        try:
            self.connection.write(b"".join([_encode(*message) for message in messages(reply.encode())]))
            await request.done.wait()
        finally:
            del self._requests[reply]
        if len(request.answers) < count:
            raise NatsLost(self.connection.lost or "the connection was lost")
        return request.answers

    def _subject(self, direction: str, topic: str) -> bytes:
        return f"{self._url.prefix}.{direction}.{quote(topic, safe='').replace('.', '%2E')}".encode()


def _stream(url: NatsUrl) -> dict[str, Any]:
    return {
        "name": url.prefix,
        "subjects": [f"{url.prefix}.in.>"],
        "retention": "limits",
        "discard": "old",
        "storage": "memory",
        "max_age": STREAM_AGE * 1_000_000_000,
        "max_bytes": STREAM_BYTES,
        "duplicate_window": STREAM_AGE * 1_000_000_000,
        "num_replicas": url.replicas,
        "republish": {"src": f"{url.prefix}.in.>", "dest": f"{url.prefix}.out.>"},
    }


def _encode(subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> bytes:
    if headers:
        sizes = (len(headers), len(headers) + len(payload))
        return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, *sizes, headers, payload)
    return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(payload), payload)


def _note(headers: bytes) -> bytes:
    """What the sender has written into the headers; the stream writes more of them."""
    _, mark, rest = headers.partition(b"\r\nTrioswitch: ")
    return rest.partition(b"\r\n")[0] if mark else b""


def _complaint(answer: bytes | None) -> str:
    if answer is None:
        return "nobody is there to take it"
    error = json.loads(answer)["error"]
    return f"{error.get('description')}"
