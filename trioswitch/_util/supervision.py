"""Tasks that must go on: a crash is logged, and the task is started again."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

__all__ = ["RESTART_DELAY", "supervise"]

_log = logging.getLogger(__name__)

RESTART_DELAY: Final = 1.0
"""Seconds that a task which crashes at once again stays down, so that a broken one does not take the whole core."""


async def supervise(run: Callable[[], Awaitable[None]], crashed: Callable[[], None] | None = None) -> None:
    """Run a task until it returns. `crashed` is called, while the exception is handled, instead of logging it here."""
    while True:
        started = trio.current_time()
        try:
            await run()
        except Exception:
            _report(run, crashed)
            if trio.current_time() - started < RESTART_DELAY:
                await trio.sleep(RESTART_DELAY)
        else:
            return


def _report(run: Callable[[], Awaitable[None]], crashed: Callable[[], None] | None) -> None:
    try:
        if crashed is not None:
            crashed()
            return
    except Exception:  # what cleans up after a crash must not be the second one
        _log.exception("cleaning up after the crash of %s failed", getattr(run, "__qualname__", run))
    _log.exception("%s crashed and is started again", getattr(run, "__qualname__", run))
