"""A measurement: the reports of all client processes, added up."""

from collections import Counter
from typing import Any

import attrs

from .histogram import Histogram
from .orders import SLOT, Tick

__all__ = ["Measurement", "Moment"]


@attrs.frozen
class Moment:
    """One slot of time: when it ended, in seconds since the start, and what arrived in it."""

    at: float
    messages_per_s: float
    p50_ms: float
    p99_ms: float
    slowest_ms: float


@attrs.define
class _Slot:
    received: int = 0
    latencies: Histogram = attrs.Factory(Histogram)


@attrs.define
class _Process:
    ticks: int = 0
    busy: float = 0.0
    open: int = 0
    lost: dict[str, int] = attrs.Factory(dict)


class Measurement:
    """From `since` until `until` (CLOCK_MONOTONIC, ns); `since` is that of the order `Listen`."""

    def __init__(self, since: int, until: int) -> None:
        self.since = since
        self.until = until
        self.sent = 0
        self.received = 0
        self.latencies = Histogram()
        self.complaint = ""
        self._lateness = 0
        self._slots: dict[int, _Slot] = {}
        self._processes: dict[int, _Process] = {}

    def add(self, index: int, tick: Tick) -> None:
        """Add what client process `index` reports; what it tells of an earlier measurement is passed over."""
        process = self._processes.setdefault(index, _Process())
        process.open, process.lost = tick.open, tick.lost
        if tick.since != self.since:
            return
        if tick.slot * SLOT >= self.since and tick.slot * SLOT < self.until:
            process.ticks += 1
            process.busy += tick.busy
        self.sent += tick.sent
        self.received += tick.received
        self.complaint = self.complaint or tick.complaint
        self._lateness += tick.lateness
        if not tick.received and tick.slot * SLOT < self.since:
            return
        slot = self._slots.setdefault(max(tick.slot, self.since // SLOT), _Slot())
        slot.received += tick.received
        for latencies in (self.latencies, slot.latencies):
            latencies.merge(tick.buckets, tick.counts, tick.total, tick.slowest)

    @property
    def seconds(self) -> float:
        """How long it took so far."""
        reached = max(((slot + 1) * SLOT for slot in self._slots), default=self.since)
        return (min(reached, self.until) - self.since) / 1e9

    @property
    def messages_per_s(self) -> float:
        """What arrived before `until`; later ones are counted in `received` only."""
        in_time = sum(slot.received for number, slot in self._slots.items() if number * SLOT < self.until)
        return in_time / self.seconds if self.seconds > 0 else 0.0

    @property
    def open(self) -> int:
        return sum(process.open for process in self._processes.values())

    @property
    def lost(self) -> dict[str, int]:
        """Connections that the server ended, by reason."""
        lost = Counter[str]()
        for process in self._processes.values():
            lost.update(process.lost)
        return dict(lost)

    @property
    def busy(self) -> float:
        """Share of the time in which the busiest client process ran, or waited for a processor."""
        return max((process.busy / process.ticks for process in self._processes.values() if process.ticks), default=0.0)

    @property
    def lateness(self) -> float:
        """Share of the latency that messages spent in the client, waiting for their turn to be read: a lower bound."""
        return self._lateness / self.latencies.total if self.latencies.total else 0.0

    def moments(self) -> list[Moment]:
        """How it went, slot by slot; what arrived after the end is left out."""
        return [
            Moment(
                at=((number + 1) * SLOT - self.since) / 1e9,
                messages_per_s=slot.received / (SLOT / 1e9),
                p50_ms=slot.latencies.percentile(50),
                p99_ms=slot.latencies.percentile(99),
                slowest_ms=slot.latencies.slowest / 1e6,
            )
            for number, slot in sorted(self._slots.items())
            if (number + 1) * SLOT <= self.until
        ]

    def figures(self) -> dict[str, Any]:
        """For people and for JSON."""
        latencies = self.latencies
        return {
            "seconds": round(self.seconds, 3),
            "sent": self.sent,
            "received": self.received,
            "messages_per_s": round(self.messages_per_s, 1),
            "mean_ms": latencies.mean,
            "p50_ms": latencies.percentile(50),
            "p99_ms": latencies.percentile(99),
            "p999_ms": latencies.percentile(99.9),
            "max_ms": latencies.slowest / 1e6,
        }
