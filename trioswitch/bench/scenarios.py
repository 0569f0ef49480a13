"""fanout, echo, idle: what each does, from the first connection to the result."""

import math
import signal
from datetime import UTC, datetime
from typing import Final

import trio

from .fleet import open_fleet
from .measurement import Measurement
from .result import Result, Step
from .session import AT_LAST, IN_TIME, Session
from .settings import LATENCY_LIMIT, Settings
from .show import Show
from .target import BenchError

__all__ = ["run"]

FIRST_DELIVERIES: Final = 10_000
"""Messages/s delivered, over all receivers, with which the search for the highest rate begins."""
STEP: Final = 2.0
"""Seconds for which a rate is tried."""
STEPS: Final = 30
"""Steps at most."""
TRIES: Final = 2
"""How often a rate has to fail."""
CLOSE_ENOUGH: Final = 1.07
"""The search ends when the lowest rate that failed is less than so many times the highest that did not."""
ARRIVED: Final = 0.99
SENT: Final = 0.95
"""Shares of the messages that have to arrive, and to be taken by the server, for a rate to count as reached."""
LAST_TRIES: Final = 5
"""Rates, each 20 % lower, at which the final measurement is tried, when the one that was found does not hold."""


async def run(settings: Settings, show: Show) -> Result:
    """Run a benchmark to its end, or to the first SIGINT or SIGTERM: then the result is what was measured until then.

    Raises BenchError when nothing was measured, and KeyboardInterrupt at the second signal.
    """
    processes = settings.client_processes()
    result = Result(settings, datetime.now(UTC).isoformat(timespec="seconds"), processes)
    async with trio.open_nursery() as nursery, open_fleet(processes) as fleet:
        session = Session(fleet, settings, result, show)
        with trio.CancelScope() as scope:
            await nursery.start(_interrupt, scope)
            await session.connect()
            await {"fanout": _fan_out, "echo": _echo, "idle": _idle}[settings.scenario](session)
        nursery.cancel_scope.cancel()
    if scope.cancelled_caught:
        result.interrupt(session.current)
    if result.measured is None or not result.measured.seconds:
        raise BenchError("interrupted before anything was measured")
    return result


async def _interrupt(scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        await anext(signals)
        scope.cancel()
        await anext(signals)
        raise KeyboardInterrupt


async def _echo(session: Session) -> None:
    await session.echo(session.settings.duration)


async def _idle(session: Session) -> None:
    await session.stay(session.settings.duration)


async def _fan_out(session: Session) -> None:
    settings, result = session.settings, session.result
    if settings.rate is not None:
        await session.fan_out(settings.rate, settings.duration, patience=AT_LAST, keep=True)
        return
    rate = await _search(session)
    for _ in range(LAST_TRIES):
        held = await session.fan_out(rate, settings.duration, patience=IN_TIME, keep=True)
        if _in_time(held, result.receivers, rate):
            return
        await session.come_to_rest(held)
        rate *= 0.8
    result.rate = None


async def _search(session: Session) -> float:
    """The highest rate at which the messages arrive in time: doubled until one fails, then narrowed down in between."""
    result = session.result
    rate = max(1.0, FIRST_DELIVERIES / result.connected)
    good = bad = 0.0
    failures = 0
    for _ in range(STEPS):
        session.show.phase(f"trying {rate:,.0f}/s", STEP)
        tried = await session.fan_out(rate, STEP, patience=IN_TIME, keep=False)
        in_time = _in_time(tried, result.receivers, rate)
        _note(result, tried, rate, in_time=in_time)
        await session.come_to_rest(tried)
        if in_time:
            good, failures = rate, 0
            result.found = (tried, rate)
        else:
            failures += 1
            if failures < TRIES:
                continue  # it may have been something else on this machine
            bad, failures = rate, 0
        if not bad:
            rate = good * 2
        elif good and bad / good <= CLOSE_ENOUGH:
            break
        else:
            rate = math.sqrt(good * bad) if good else bad / 4
    return good or rate


def _in_time(measurement: Measurement, receivers: int, rate: float) -> bool:
    wanted = rate * (measurement.until - measurement.since) / 1e9
    return (
        measurement.latencies.percentile(99) <= LATENCY_LIMIT
        and measurement.received >= ARRIVED * measurement.sent * receivers
        and measurement.sent >= SENT * wanted - 1
    )


def _note(result: Result, tried: Measurement, rate: float, *, in_time: bool) -> None:
    arrived = tried.received / (tried.sent * result.receivers) if tried.sent else 0.0
    result.steps.append(Step(rate, tried.messages_per_s, arrived, tried.latencies.percentile(99), in_time))
