"""What one client may ask for: long answers are charged to the client that asks for them."""

from typing import Final

import trio

__all__ = ["Allowance"]

ANSWER_RATE: Final = 4 * 1024 * 1024
"""Bytes of long answers a second that a client may ask for: presence, histories, what it missed. A question of 40 bytes may ask
for 256 KiB. A client that has asked for more waits before its next command is executed, at most a second."""
ANSWER_BURST: Final = 16 * 1024 * 1024
"""Bytes of such answers that it may ask for before it has to wait."""


class Allowance:
    """A token bucket that is looked at late: time passes in it only when it is exceeded."""

    __slots__ = ("_since", "_used")

    def __init__(self) -> None:
        self._used = 0
        self._since = trio.current_time()

    def charge(self, size: int) -> None:
        """Count bytes that the client has asked for."""
        self._used += size

    @property
    def exceeded(self) -> bool:
        return self._used > ANSWER_BURST

    async def wait(self) -> None:
        """Wait until the client may ask again. Safe to cancel."""
        now = trio.current_time()
        left = max(0, self._used - int((now - self._since) * ANSWER_RATE))
        self._used, self._since = min(left, ANSWER_BURST + ANSWER_RATE), now
        await trio.sleep(max(0, self._used - ANSWER_BURST) / ANSWER_RATE)
