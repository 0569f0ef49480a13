"""One task that looks at the process now and then: samples, the lag of the event loop, alarms."""

import logging
import os
import resource
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import attrs
import trio

from .._util import clock
from .._util.process import resident_bytes
from ..metrics import Histogram
from ..switch import Switch

__all__ = ["LAG_BUCKETS", "Alarm", "Monitor", "Sample", "Thresholds"]

_log = logging.getLogger(__name__)

LAG_INTERVAL: Final = 1.0
"""Seconds between two looks at how late the event loop is."""
SAMPLE_INTERVAL: Final = 5.0
SAMPLES: Final = 100
"""As many as the systems in the seeds kept."""
LAG_BUCKETS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
CLEAR: Final = 0.9
"""An alarm ends below this share of its threshold, so that it does not come and go all the time."""


@attrs.frozen(kw_only=True)
class Sample:
    """The process at one moment; `cpu` and `error_rate` are averages since the sample before."""

    at: float
    """Seconds since 1970."""
    memory: int
    """Resident bytes."""
    cpu: float
    """Of one core, 0.0 to 1.0; with threads, more."""
    load: float
    """Processes that run or wait on this machine, on average over a minute."""
    open_files: int
    lag: float
    """Seconds by which the event loop was late, at most."""
    connections: int
    messages_sent: int
    pending_bytes: int
    error_rate: float
    """Of what was to be delivered, the share that was dropped, 0.0 to 1.0."""


@attrs.frozen(kw_only=True)
class Thresholds:
    """Above which values of a sample an alarm is raised. None: never."""

    memory: int | None = None
    cpu: float | None = None
    lag: float | None = None
    error_rate: float | None = None
    connections: int | None = None


@attrs.frozen(kw_only=True)
class Alarm:
    """A threshold that was exceeded, or is no more."""

    name: str
    value: float
    threshold: float
    raised: bool
    at: float

    @property
    def sentence(self) -> str:
        change = "is above" if self.raised else "is below"
        return f"{self.name} is {self.value:g}, which {change} the threshold of {self.threshold:g}"


class Monitor:
    """Looks at a switch and its process. `run` is its task; `on_alarm` is called when an alarm is raised, and when it ends."""

    def __init__(
        self,
        switch: Switch,
        thresholds: Thresholds | None = None,
        on_alarm: Callable[[Alarm], Awaitable[None]] | None = None,
    ) -> None:
        self.switch = switch
        self.thresholds = thresholds or Thresholds()
        self.alarms: dict[str, Alarm] = {}
        """Those that are raised, by name."""
        self.samples: deque[Sample] = deque(maxlen=SAMPLES)
        self.lags = Histogram(LAG_BUCKETS)
        """How late the event loop was, in seconds."""
        self._on_alarm = on_alarm
        self._lag = 0.0
        self._before = (time.monotonic(), time.process_time(), 0, 0)

    async def run(self) -> None:
        """Never returns."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._measure_lag)
            while True:
                await trio.sleep(SAMPLE_INTERVAL)
                for alarm in self._compare(self.take_sample()):
                    if self._on_alarm is not None:
                        nursery.start_soon(self._tell, self._on_alarm, alarm)

    async def _measure_lag(self) -> None:
        while True:
            due = trio.current_time() + LAG_INTERVAL
            await trio.sleep_until(due)
            lag = trio.current_time() - due
            self._lag = max(self._lag, lag)
            self.lags.add(lag)

    def take_sample(self) -> Sample:
        """Look now. It is kept, too."""
        counted = self.switch.statistics()
        now, cpu, sent, dropped = (
            time.monotonic(),
            time.process_time(),
            counted.messages_sent,
            sum(counted.drops.values()),
        )
        then, cpu_then, sent_then, dropped_then = self._before
        self._before = (now, cpu, sent, dropped)
        total = sent - sent_then + dropped - dropped_then
        sample = Sample(
            at=clock.wall_time(),
            memory=resident_bytes(),
            cpu=round((cpu - cpu_then) / max(now - then, 1e-6), 4),
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
            open_files=open_files(),
            lag=round(self._lag, 6),
            connections=counted.active_connections,
            messages_sent=sent,
            pending_bytes=counted.pending_bytes,
            error_rate=round((dropped - dropped_then) / total, 6) if total > 0 else 0.0,
        )
        self._lag = 0.0
        self.samples.append(sample)
        return sample

    def _compare(self, sample: Sample) -> Sequence[Alarm]:
        changes = []
        for name, threshold in attrs.asdict(self.thresholds).items():
            if threshold is None:
                continue
            value, raised = getattr(sample, name), name in self.alarms
            if value > threshold and not raised:
                changes.append(Alarm(name=name, value=value, threshold=threshold, raised=True, at=sample.at))
                self.alarms[name] = changes[-1]
            elif raised and value < CLEAR * threshold:
                changes.append(Alarm(name=name, value=value, threshold=threshold, raised=False, at=sample.at))
                del self.alarms[name]
        for alarm in changes:
            _log.log(logging.WARNING if alarm.raised else logging.INFO, "alarm: %s", alarm.sentence)
        return changes

    @staticmethod
    async def _tell(on_alarm: Callable[[Alarm], Awaitable[None]], alarm: Alarm) -> None:
        try:
            await on_alarm(alarm)
        except Exception:
            _log.exception("telling of an alarm failed")

    def facts(self) -> dict[str, Any]:
        """The samples, the newest last, and the alarms that are raised: for `/api/statistics`."""
        return {
            "samples": [attrs.asdict(sample) for sample in self.samples],
            "alarms": [attrs.asdict(alarm) for alarm in self.alarms.values()],
        }


def open_files() -> int:
    """How many files this process has open; 0 where the system does not tell."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def file_limit() -> int:
    """How many it may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
