"""One benchmark under way: the fleet is told what to do, and what it reports is collected."""

import time
from collections import Counter
from secrets import token_hex
from typing import Final

import trio

from .fleet import Fleet
from .host import memory, processor_seconds
from .measurement import Measurement
from .orders import SLOT, Collect, Connect, Connected, Echo, Finished, Listen, Order, Publish, Tick
from .result import Result
from .settings import LATENCY_LIMIT, PROTOCOLS, Settings
from .show import Show
from .target import BenchError

__all__ = ["Session"]

UNDER_WAY: Final = 256
"""Handshakes at the same time, over all client processes."""
STALLED: Final = 10.0
"""Seconds without a single handshake after which connecting is given up."""
REST: Final = 0.5
"""Seconds after the handshakes in which the server comes to rest: it announces who has joined."""
QUIET: Final = 0.2
"""Seconds in which nothing arrives, before the next measurement begins."""
IN_TIME: Final = LATENCY_LIMIT / 1000 + 0.25
"""Seconds that messages have to arrive, after the last was sent, while the highest rate is searched."""
AT_LAST: Final = 5.0
"""Seconds that they have otherwise, and that the server has to come to rest."""


class Session:
    """`connect` first; then measurements, one after the other."""

    def __init__(self, fleet: Fleet, settings: Settings, result: Result, show: Show) -> None:
        self.settings = settings
        self.result = result
        self.show = show
        self._fleet = fleet
        self._name = f"bench-{token_hex(4)}"
        self._collected = 0
        self.current: Measurement | None = None
        """The measurement that is under way, or was last."""

    # --- connecting

    async def connect(self) -> None:
        """Let all clients join. Raises BenchError when none can, or when handshakes do not end."""
        settings, result = self.settings, self.result
        before = self._server_memory()
        for _ in range(len(self._fleet)):  # all of them are to begin at the same time
            await self._fleet.reply()
        since = time.monotonic_ns()
        handshakes = result.handshakes = Measurement(since, since + 10**18)
        await self._fleet.order_all(Listen(since))
        first = 0
        for index, count in enumerate(self._shares()):
            await self._fleet.order(index, self._connect_order(first, count))
            first += count
        self.show.phase("connecting", settings.connections)
        refused, began, ended = Counter[str](), list[int](), list[int]()
        progress = trio.current_time()
        while len(ended) < len(self._fleet):
            with trio.move_on_at(progress + STALLED) as patience:
                index, reply = await self._fleet.reply()
            if patience.cancelled_caught:
                missing = settings.connections - handshakes.received
                raise BenchError(f"{settings.target.url} left {missing:,} handshakes unanswered for {STALLED:.0f} s")
            if isinstance(reply, Tick):
                handshakes.add(index, reply)
                if reply.received:
                    progress = trio.current_time()
                self.show.update(handshakes.received, f"{handshakes.received:,} joined")
            elif isinstance(reply, Connected):
                began.append(reply.began)
                ended.append(reply.ended)
                result.connected += reply.count
                refused.update(reply.refused)
                result.server = result.server or reply.server
        handshakes.until = max(ended)
        result.connect_seconds = (max(ended) - min(began)) / 1e9
        result.refused = dict(refused)
        if not result.connected:
            raise BenchError(f"no connection to {settings.target.url}: {refused.most_common(1)[0][0]}")
        await trio.sleep(REST)
        if before is not None:
            result.server_bytes = (self._server_memory() or 0) - before

    def _shares(self) -> list[int]:
        """Clients of each process. Who publishes has a process of its own, where there are several."""
        processes, count = len(self._fleet), self.settings.connections
        alone = 1 if processes > 1 and self.settings.scenario == "fanout" else 0
        others = processes - alone
        share, more = divmod(count - alone, others)
        return [1] * alone + [share + (number < more) for number in range(others)]

    def _connect_order(self, first: int, count: int) -> Connect:
        settings = self.settings
        return Connect(
            url=settings.target.url,
            count=count,
            first=first,
            room=settings.room or self._name,
            room_each=settings.scenario == "echo",
            size=settings.size,
            protocol=PROTOCOLS[settings.protocol],
            compression=settings.compression,
            token=settings.token,
            ca=settings.ca,
            under_way=max(1, UNDER_WAY // len(self._fleet)),
        )

    # --- measuring

    async def fan_out(self, rate: float, seconds: float, *, patience: float, keep: bool) -> Measurement:
        """Publish `rate` messages/s for so many seconds; wait up to `patience` seconds for what is still under way.

        With `keep`, it is what the result is about, from its beginning on.
        """
        measurement = self._begin(seconds, rate if keep else None, keep=keep)
        await self._fleet.order_all(Listen(measurement.since))
        await self._measure(measurement, [(0, Publish(rate, measurement.since, measurement.until))])
        with trio.move_on_after(patience):
            while measurement.received < measurement.sent * self.result.receivers:
                await self._collect(measurement)
        return measurement

    async def echo(self, seconds: float) -> None:
        measurement = self._begin(seconds, None, keep=True)
        await self._fleet.order_all(Listen(measurement.since))
        order = Echo(measurement.since, measurement.until)
        await self._measure(measurement, [(index, order) for index in range(len(self._fleet))])

    async def stay(self, seconds: float) -> None:
        """Do nothing but answer pings."""
        measurement = self._begin(seconds, None, keep=True)
        await self._fleet.order_all(Listen(measurement.since))
        started = self._server_seconds()
        while time.monotonic_ns() < measurement.until:
            await self._tick(measurement)
        self._note_server(started, measurement)

    async def come_to_rest(self, measurement: Measurement) -> None:
        """Wait until nothing arrives any more."""
        with trio.move_on_after(AT_LAST):
            received = -1
            while measurement.received != received:
                received = measurement.received
                await trio.sleep(QUIET)
                await self._collect(measurement)

    def _begin(self, seconds: float, rate: float | None, *, keep: bool) -> Measurement:
        since = (time.monotonic_ns() // SLOT + 1) * SLOT
        measurement = self.current = Measurement(since, since + int(seconds * 1e9))
        result = self.result
        result.receivers = result.connected
        if keep:
            result.measured, result.rate = measurement, rate
            self.show.phase("measuring", seconds)
        return measurement

    async def _measure(self, measurement: Measurement, orders: list[tuple[int, Order]]) -> None:
        started = self._server_seconds()
        for index, order in orders:
            await self._fleet.order(index, order)
        finished = 0
        while finished < len(orders):
            finished += await self._tick(measurement)
        self._note_server(started, measurement)

    async def _tick(self, measurement: Measurement) -> bool:
        """Take one reply. Returns whether it says that a process has finished."""
        index, reply = await self._fleet.reply()
        if isinstance(reply, Tick):
            measurement.add(index, reply)
            self.show.update(measurement.seconds, f"{measurement.messages_per_s:,.0f} messages/s")
        return isinstance(reply, Finished)

    async def _collect(self, measurement: Measurement) -> None:
        """Get what has been counted up to now."""
        self._collected += 1
        await self._fleet.order_all(Collect(self._collected))
        waiting = len(self._fleet)
        while waiting:
            index, reply = await self._fleet.reply()
            if isinstance(reply, Tick):
                measurement.add(index, reply)
                waiting -= reply.number == self._collected
        await trio.sleep(QUIET / 10)

    # --- the server, where its process is known

    def _server_memory(self) -> int | None:
        pid = self.settings.pid
        if pid is None:
            return None
        held = memory(pid)
        if not held:
            raise BenchError(f"there is no process {pid}, or it is not yours to look into")
        return held

    def _server_seconds(self) -> tuple[float, float]:
        pid = self.settings.pid
        return (0.0 if pid is None else processor_seconds(pid)), trio.current_time()

    def _note_server(self, started: tuple[float, float], measurement: Measurement) -> None:
        if self.settings.pid is not None and self.result.measured is measurement:
            ran, at = self._server_seconds()
            self.result.server_busy = round((ran - started[0]) / (at - started[1]), 3)
