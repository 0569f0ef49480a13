"""The broker in PostgreSQL, for small clusters: payloads go through a table, and NOTIFY wakes those who read it.

A publish is one transaction and one notification, however many payloads it has. A lock orders them, so that the numbers of rows
are committed in their order, and whoever has read up to a number has missed nothing below it. The table is not logged: what is on
its way does not outlive a crash of PostgreSQL, and no commit waits for the disk. Rows are deleted after `KEEP` seconds; a node
that is slower than that is told that it has missed some.
"""

import random
from collections.abc import Collection, Sequence
from math import inf
from typing import TYPE_CHECKING, Final

import attrs
import trio

from .._util.backoff import Backoff
from ..errors import BrokerError
from ..postgres.client import PostgresClient, PostgresError, call, create_schema, open_connection
from ..postgres.url import PostgresUrl
from .port import Broker, Receiver, Sent

if TYPE_CHECKING:
    from ..postgres.connection import TrioConnection

__all__ = ["PostgresBroker"]

FIRST_RETRY: Final = 0.2
"""Seconds before the first attempt to connect again, at most; doubled after each, up to MAX_RETRY."""
MAX_RETRY: Final = 4.0
READ_ROWS: Final = 200
"""Payloads that are read at once."""
KEEP: Final = 60
"""Seconds that a payload stays in the table."""
CLEAN_INTERVAL: Final = 10.0
"""Seconds between two attempts of a node to delete what is older, about."""
VERSION: Final = 1

_SCHEMA: Final = """
CREATE UNLOGGED TABLE S.payloads (
    number bigserial PRIMARY KEY, topic bytea NOT NULL, payload bytea NOT NULL, at timestamptz NOT NULL
);
CREATE UNLOGGED TABLE S.deleted (number bigint NOT NULL);

CREATE FUNCTION S.publish(_topics bytea[], _payloads bytea[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('S'), hashtext('payloads'));
    INSERT INTO S.payloads (topic, payload, at)
        SELECT topic, payload, clock_timestamp() FROM unnest(_topics, _payloads) WITH ORDINALITY AS sent (topic, payload, place)
        ORDER BY place;
    PERFORM pg_notify('S', '');
END $$;

CREATE FUNCTION S.clean(_seconds float8, _limit bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    _last bigint;
    _count bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('S'), hashtext('cleaning')) THEN
        RETURN 0;  -- another node is at it
    END IF;
    WITH gone AS (
        DELETE FROM S.payloads WHERE number IN (SELECT number FROM S.payloads ORDER BY number LIMIT _limit)
            AND at < clock_timestamp() - _seconds * interval '1 second' RETURNING number
    ) SELECT max(number), count(*) INTO _last, _count FROM gone;
    IF _count > 0 THEN
        DELETE FROM S.deleted;
        INSERT INTO S.deleted VALUES (_last);
    END IF;
    RETURN _count;
END $$;
"""
_READ: Final = """
SELECT (SELECT max(number) FROM S.payloads), (SELECT max(number) FROM S.deleted), found.number, found.topic, found.payload
FROM (SELECT 1) AS once LEFT JOIN (
    SELECT number, topic, payload FROM S.payloads JOIN pg_temp.wanted USING (topic)
    WHERE number > %s ORDER BY number LIMIT %s
) AS found ON true ORDER BY found.number
"""
_CLEAN_STEP: Final = 10_000


class PostgresBroker(Broker):
    """Made by `open_broker`."""

    def __init__(self, url: PostgresUrl) -> None:
        self._url = attrs.evolve(url, schema=f"{url.schema}_broker")
        self._publishing = PostgresClient(self._url, 1, self._prepare)
        self._session: _Session | None = None
        self._reason = "PostgreSQL has not been reached yet"

    async def _prepare(self, connection: "TrioConnection") -> None:
        await create_schema(connection, self._url, _SCHEMA, VERSION)

    def _sql(self, query: str) -> str:
        return query.replace("S.", f'"{self._url.schema}".')

    async def run(self, receiver: Receiver) -> None:
        self._publishing = PostgresClient(self._url, 1, self._prepare)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._clean)
                await self._run_again_and_again(receiver)
        finally:
            await self._publishing.aclose()  # what is still being published closes its connection afterwards

    async def _run_again_and_again(self, receiver: Receiver) -> None:
        backoff = Backoff(random.Random(), first=FIRST_RETRY, most=MAX_RETRY)
        while True:
            began = trio.current_time()
            try:
                await self._run_once(receiver)
            except PostgresError as error:
                self._reason = str(error)
            receiver.on_disconnected(self._reason)
            backoff.connection_ended(trio.current_time() - began)
            await trio.sleep(backoff.next())

    async def _run_once(self, receiver: Receiver) -> None:
        """Connect, and receive until the connection is lost. Raises PostgresError when it cannot be used at all."""
        await self._publishing.rows("SELECT")  # it has made the schema then
        connection = await open_connection(self._url)
        session = _Session(connection, receiver, self._url, self._sql(_READ))
        try:
            topics = receiver.topics()
            await session.begin(topics)
            self._session = session
            receiver.on_connected(topics)
            self._reason = await session.run()
        finally:
            self._session = None
            session.end()
            connection.discard()
            self._publishing.discard_idle()

    async def _clean(self) -> None:
        while True:
            await trio.sleep(CLEAN_INTERVAL * random.uniform(0.5, 1.5))
            if self._session is not None:
                try:
                    deleted = _CLEAN_STEP
                    while deleted == _CLEAN_STEP:
                        sql = self._sql("SELECT S.clean(%s, %s)")
                        ((deleted,),) = await self._publishing.rows(sql, (KEEP, _CLEAN_STEP))
                except PostgresError as error:
                    self.drop_connection(str(error))

    def drop_connection(self, reason: str) -> None:
        if self._session is not None:
            self._session.drop(reason)

    # --- calls

    async def publish(self, payloads: Sequence[Sent]) -> Sequence[int | None]:
        await trio.lowlevel.checkpoint()
        if self._session is None:
            raise BrokerError(self._reason)
        if payloads:
            topics = [topic.encode() for topic, _ in payloads]
            sql = self._sql("SELECT S.publish(%b::bytea[], %b::bytea[])")
            try:
                await self._publishing.rows(sql, (topics, [payload for _, payload in payloads]))
            except PostgresError as error:
                raise BrokerError(str(error)) from None
        return [None] * len(payloads)

    async def subscribe(self, topics: Collection[str]) -> None:
        await self._change(topics, wanted=True)

    async def unsubscribe(self, topics: Collection[str]) -> None:
        await self._change(topics, wanted=False)

    async def _change(self, topics: Collection[str], *, wanted: bool) -> None:
        await trio.lowlevel.checkpoint()
        session = self._session
        if session is None or not await session.change(topics, wanted=wanted):
            raise BrokerError(self._reason)


@attrs.define(eq=False)
class _Change:
    """Topics that are to be subscribed to, or no more."""

    topics: Sequence[bytes]
    wanted: bool
    done: trio.Event = attrs.field(factory=trio.Event)
    worked: bool = False


class _Session:
    """The connection that receives: its task alone uses it. What it wants stands in a temporary table."""

    def __init__(self, connection: "TrioConnection", receiver: Receiver, url: PostgresUrl, read: str) -> None:
        self._connection = connection
        self._receiver = receiver
        self._url = url
        self._read = read
        self._last = 0
        self._changes: list[_Change] = []
        self._waiting = trio.CancelScope()
        self._lost: str | None = None

    async def begin(self, topics: Collection[str]) -> None:
        """Listen, and find out where the table ends. Raises PostgresError."""
        connection = self._connection
        with call(self._url):
            await connection.rows(f'LISTEN "{self._url.schema}"')
            await connection.rows("CREATE TEMPORARY TABLE wanted (topic bytea PRIMARY KEY)")
            await self._want([topic.encode() for topic in topics], wanted=True)
            ((last, *_),) = await connection.rows(f'SELECT coalesce(max(number), 0) FROM "{self._url.schema}".payloads')
        self._last = last

    async def run(self) -> str:
        """Receive until the connection is lost. Returns why."""
        connection = self._connection
        try:
            while self._lost is None:
                with call(self._url):
                    while self._changes:
                        change = self._changes[0]  # it stays there until it is done: see `end`
                        await self._want(change.topics, wanted=change.wanted)
                        del self._changes[0]
                        change.worked = True
                        change.done.set()
                    while connection.take_notified():
                        await self._receive()
                with trio.CancelScope() as self._waiting, call(self._url, inf):
                    if not self._changes and self._lost is None:
                        await connection.wait_notified()
        except PostgresError as error:
            return str(error)
        return self._lost

    async def _want(self, topics: Sequence[bytes], *, wanted: bool) -> None:
        if wanted:
            sql = "INSERT INTO pg_temp.wanted SELECT DISTINCT unnest(%b::bytea[]) ON CONFLICT DO NOTHING"
        else:
            sql = "DELETE FROM pg_temp.wanted WHERE topic = ANY (%b::bytea[])"
        await self._connection.rows(sql, (topics,))

    async def _receive(self) -> None:
        """Read what is new in the table. Raises PostgresError when something of it is gone already."""
        while True:
            rows = await self._connection.rows(self._read, (self._last, READ_ROWS))
            newest, deleted = rows[0][:2]
            if deleted is not None and deleted > self._last:
                raise PostgresError("this node was too slow for the broker: messages for it were deleted")
            found = [row for row in rows if row[2] is not None]
            self._last = found[-1][2] if len(found) == READ_ROWS else max(self._last, newest or 0)
            if found:
                self._receiver.on_payloads([(bytes(topic).decode(), bytes(payload)) for *_, topic, payload in found])
            if len(found) < READ_ROWS:
                return

    # --- called by other tasks

    def drop(self, reason: str) -> None:
        self._lost = self._lost or reason
        self._waiting.cancel()

    async def change(self, topics: Collection[str], *, wanted: bool) -> bool:
        """Whether it was done: not, if the connection was lost before."""
        if not topics:
            return True
        change = _Change([topic.encode() for topic in topics], wanted)
        self._changes.append(change)
        self._waiting.cancel()
        await change.done.wait()
        return change.worked

    def end(self) -> None:
        """Nobody waits for it any more."""
        for change in self._changes:
            change.done.set()
