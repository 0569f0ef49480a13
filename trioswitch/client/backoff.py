"""Delays between connection attempts: exponential with full jitter, so that clients do not reconnect in step."""

from random import Random
from typing import Final

__all__ = ["MAX_DELAY", "Backoff"]

FIRST_CEILING: Final = 0.5
"""Seconds: the ceiling of the first delay."""
MAX_DELAY: Final = 20.0
"""Seconds: the highest ceiling. A connection that lasted longer than this counts as a success."""


class Backoff:
    """Random delays between zero and a ceiling that doubles with each delay."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._ceiling = FIRST_CEILING

    def next(self) -> float:
        """Return the seconds to wait before the next attempt, and double the ceiling."""
        delay = self._random.uniform(0, self._ceiling)
        self._ceiling = min(2 * self._ceiling, MAX_DELAY)
        return delay

    def connection_ended(self, seconds: float) -> None:
        """Reset the ceiling if the connection, which has ended, lasted longer than `MAX_DELAY` seconds."""
        if seconds > MAX_DELAY:
            self._ceiling = FIRST_CEILING
