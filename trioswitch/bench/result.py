"""The result of a benchmark: the figures, the versions and the machine, and warnings about their reliability."""

from typing import Any, Final

import attrs

from ..version import __version__
from .host import machine
from .measurement import Measurement
from .settings import Settings

__all__ = ["Result", "Step"]

BUSY: Final = 0.85
"""Share of a processor above which a client process is what was measured."""
LATE: Final = 0.3
"""Share of the latency above which it was the client's."""


@attrs.frozen
class Step:
    """One rate that was tried, in messages/s."""

    rate: float
    messages_per_s: float
    arrived: float
    p99_ms: float
    in_time: bool


@attrs.define
class Result:
    """Filled in as the benchmark goes; complete enough to be shown at any time after the handshakes."""

    settings: Settings
    started: str
    """ISO 8601, UTC."""
    processes: int
    server: str = ""
    refused: dict[str, int] = attrs.Factory(dict)
    handshakes: Measurement | None = None
    connected: int = 0
    connect_seconds: float = 0.0
    measured: Measurement | None = None
    rate: float | None = None
    """messages/s published in `measured`."""
    receivers: int = 0
    steps: list[Step] = attrs.Factory(list)
    """The rates that the search has tried."""
    found: tuple[Measurement, float] | None = None
    """The highest rate that held in the search so far, and what was measured with it."""
    server_bytes: int | None = None
    """Memory that the server took for the connections."""
    server_busy: float | None = None
    """Share of a processor that the server used in `measured`."""
    interrupted: bool = False
    only_searched: bool = False
    """Whether it was interrupted before the measurement that follows the search."""

    def interrupt(self, current: Measurement | None) -> None:
        """The benchmark was interrupted, while `current` was measured.

        Where the search for the highest rate was interrupted, the figures are those of the highest rate that held, or, when none
        had held yet, of the rate that was being tried.
        """
        self.interrupted = True
        if self.measured is None or not self.measured.seconds:
            self.measured, self.rate = self.found or (current, None)
            self.only_searched = self._searched

    @property
    def connects_per_s(self) -> float:
        return self.connected / self.connect_seconds if self.connect_seconds else 0.0

    @property
    def arrived(self) -> float | None:
        """Share of the messages sent to a room that arrived, over all receivers."""
        measured = self.measured
        if measured is None or self.settings.scenario != "fanout" or not measured.sent or not self.receivers:
            return None
        return measured.received / (measured.sent * self.receivers)

    def warnings(self) -> list[str]:
        """What speaks against the figures, a sentence each."""
        said, measured = list[str](), self.measured
        if self.interrupted:
            said.append(self._interruption())
        for reason, count in self.refused.items():
            said.append(f"{count:,} clients were not let in: {reason}.")
        if measured is None:
            return said
        for reason, count in measured.lost.items():
            said.append(f"{count:,} connections were lost: {reason}.")
        if measured.complaint:
            said.append(f"The server answered with an error: {measured.complaint}.")
        if self.settings.scenario != "idle":
            said += self._doubts(measured)
        return said

    @property
    def _searched(self) -> bool:
        return self.settings.scenario == "fanout" and self.settings.rate is None

    def _interruption(self) -> str:
        if not self.only_searched:
            return "It was interrupted: the figures are of what had been measured until then."
        tried = f"The search for the highest rate was interrupted after {len(self.steps)} tries."
        if self.found is None:
            return f"{tried} No rate had held: the figures are of the last one."
        return f"{tried} The figures are of the highest rate that had held: {self.found[1]:,.0f} messages/s."

    def _doubts(self, measured: Measurement) -> list[str]:
        said = list[str]()
        if measured.busy > BUSY:
            said.append(
                f"A client process was busy, or waited for a processor, {measured.busy:.0%} of the time: this measures the "
                f"client as much as the server. Give it more with --processes (now {self.processes}), or more processors."
            )
        if measured.lateness > LATE:
            said.append(
                f"At least {measured.lateness:.0%} of the latency is the client's own: messages had arrived and waited to be "
                f"read. More --processes (now {self.processes}) or fewer --connections tell more of the server."
            )
        if self._searched and self.rate is None and not self.interrupted:
            said.append(
                f"No rate held for {self.settings.duration:g} s: these figures are of the lowest that was tried. Something else "
                "may have had the processors meanwhile."
            )
        return said

    def to_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        settings, measured, handshakes = self.settings, self.measured, self.handshakes
        return {
            "benchmark": settings.scenario,
            "started": self.started,
            "url": settings.target.url,
            "server": self.server,
            "client": f"trioswitch/{__version__}",
            "machine": machine(),
            "settings": {
                name: getattr(settings, name)
                for name in ("connections", "duration", "size", "rate", "protocol", "compression")
            },
            "processes": self.processes,
            "interrupted": self.interrupted,
            "connected": self.connected,
            "connects_per_s": round(self.connects_per_s, 1),
            "handshakes": None if handshakes is None else handshakes.figures(),
            "refused": self.refused,
            "rate": self.rate,
            "receivers": self.receivers,
            "arrived": self.arrived,
            "measured": None if measured is None else measured.figures(),
            "open": None if measured is None else measured.open,
            "lost": {} if measured is None else measured.lost,
            "client_busy": None if measured is None else round(measured.busy, 3),
            "client_lateness": None if measured is None else round(measured.lateness, 3),
            "server_bytes_per_connection": self.bytes_per_connection,
            "server_busy": self.server_busy,
            "steps": [attrs.asdict(step) for step in self.steps],
            "moments": [] if measured is None else [attrs.asdict(moment) for moment in measured.moments()],
            "warnings": self.warnings(),
        }

    @property
    def bytes_per_connection(self) -> int | None:
        """None: not asked for, or no more than the server had before (it keeps what earlier clients needed)."""
        grown = self.server_bytes is not None and self.server_bytes > 0 and self.connected
        return round((self.server_bytes or 0) / self.connected) if grown else None
