"""The settings of a benchmark."""

import os
from pathlib import Path
from typing import Final

import attrs

from .fleet import clients_in_one_process
from .target import BenchError, Target

__all__ = ["LATENCY_LIMIT", "PROTOCOLS", "Settings"]

LATENCY_LIMIT: Final = 100.0
"""ms: what arrives with a p99 above it has not arrived in time, as far as the search for the highest rate goes."""
PROTOCOLS: Final = {"json": "trioswitch.v1", "batch": "trioswitch.v1.batch", "msgpack": "trioswitch.v1.msgpack"}
"""The WebSocket subprotocol of each client protocol."""
WORTH_A_PROCESS: Final = 50
"""Connections for which another client process is started, where there is a processor for it."""


@attrs.frozen(kw_only=True)
class Settings:
    """Sizes are in bytes, times in seconds, rates in messages/s."""

    scenario: str
    target: Target
    connections: int
    duration: float
    size: int
    rate: float | None
    """None: search for the highest that arrives in time."""
    processes: int | None
    """None: as many as there are processors to spare."""
    protocol: str
    compression: bool
    room: str | None
    """The room that clients join, for servers that permit certain rooms only. None: a name of the run's own."""
    token: str | None = attrs.field(default=None, repr=False)
    ca: str | None
    pid: int | None
    """The server's process, if its memory and its share of a processor are to be shown."""
    json: Path | None
    plot: Path | None

    def client_processes(self) -> int:
        """How many there are to be. Raises BenchError where the limit on open files wants more of them."""
        fit = clients_in_one_process()
        needed = -(-self.connections // fit)
        if self.processes is None:
            spare = len(os.sched_getaffinity(0)) - 1  # the server has one of them
            return max(needed, min(spare, self.connections // WORTH_A_PROCESS), 1)
        if self.processes < needed:
            raise BenchError(
                f"{self.connections} connections need {needed} client processes: each may open {fit} (see `ulimit -n`)"
            )
        return min(self.processes, self.connections)
