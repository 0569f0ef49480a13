"""How long to wait before the next attempt: full jitter, so that clients of a server that starts again do not come at once."""

from random import Random
from typing import Final

__all__ = ["CEILING", "FIRST_CEILING", "Backoff"]

FIRST_CEILING: Final = 0.5
"""Seconds that the first wait may take."""
CEILING: Final = 20.0
"""Seconds that any wait may take; and what a connection must last to count as a success."""


class Backoff:
    """Waits between zero and a ceiling that doubles with each of them."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._ceiling = FIRST_CEILING

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        delay = self._random.uniform(0, self._ceiling)
        self._ceiling = min(2 * self._ceiling, CEILING)
        return delay

    def lasted(self, seconds: float) -> None:
        """A connection has ended after this long: one that lasted sets the ceiling back."""
        if seconds > CEILING:
            self._ceiling = FIRST_CEILING
