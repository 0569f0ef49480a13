"""Delays between connection attempts: exponential with full jitter, so that clients, or nodes, do not reconnect in step."""

from random import Random
from typing import Final

__all__ = ["MAX_DELAY", "Backoff"]

FIRST_CEILING: Final = 0.5
"""Seconds: the ceiling of the first delay."""
MAX_DELAY: Final = 20.0
"""Seconds: the highest ceiling. A connection that lasted longer than the highest one counts as a success."""


class Backoff:
    """Random delays between zero and a ceiling that doubles with each delay, from `first` to `most` seconds."""

    def __init__(self, random: Random, *, first: float = FIRST_CEILING, most: float = MAX_DELAY) -> None:
        self._random = random
        self._first, self._most = first, most
        self._ceiling = first

    def next(self) -> float:
        """Return the seconds to wait before the next attempt, and double the ceiling."""
        delay = self._random.uniform(0, self._ceiling)
        self._ceiling = min(2 * self._ceiling, self._most)
        return delay

    def connection_ended(self, seconds: float) -> None:
        """Reset the ceiling if the connection, which has ended, lasted longer than `most` seconds."""
        if seconds > self._most:
            self._ceiling = self._first
