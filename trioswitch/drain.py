"""The graceful end: clients are told to reconnect elsewhere, and get what waits for them."""

import random
from collections.abc import Sequence
from math import ceil
from typing import Final

import trio

from .connections.driver import ConnectionDriver
from .errors import CloseCause
from .parts import Parts
from .wire.messages import Reconnect

__all__ = ["drain", "flush"]

WAVE: Final = 100
"""Connections that are closed at once; more are closed in several waves, and other tasks run in between."""
WAVES_TIME: Final = 2.0
"""Seconds from the first wave to the last, at most; a quarter of the drain's time."""
RECONNECT_SPREAD: Final = 5.0
"""Seconds over which the clients of a server that drains are told to reconnect, each after a time of its own."""


async def flush(parts: Parts) -> None:
    """Write everything that is pending now. Safe to cancel."""
    await parts.rooms.wait_dispatched()
    await parts.connections.flush()


async def drain(parts: Parts, timeout: float) -> bool:  # noqa: ASYNC109
    """Admit nobody, write what is pending, close every connection with 1001. Returns whether all had ended in time."""
    connections, endpoints = parts.connections, parts.endpoints.connections
    connections.begin_drain()
    with trio.move_on_after(timeout):
        with trio.move_on_after(timeout / 2):
            await flush(parts)
            await parts.inbox.flush()
        await _send_away(connections.everyone(), min(WAVES_TIME, timeout / 4))
        for connection in endpoints.everyone():
            connection.close(CloseCause.DRAIN)
        await connections.wait_empty()
        await endpoints.wait_empty()
    return not connections.total and not endpoints.total


async def _send_away(everyone: Sequence[ConnectionDriver], seconds: float) -> None:
    """Tell clients to reconnect, each after a time of its own, and close them: in waves, so that others can take them."""
    waves = ceil(len(everyone) / WAVE)
    for number in range(waves):
        if number:
            await trio.sleep(seconds / waves)
        for connection in everyone[number * WAVE : (number + 1) * WAVE]:
            after = round(random.uniform(0.5, RECONNECT_SPREAD), 3)
            connection.reply(Reconnect(after=after, reason=CloseCause.DRAIN.reason))
            connection.close(CloseCause.DRAIN)
