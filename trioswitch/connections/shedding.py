"""Load shedding: before all outboxes together use up their byte budget, the fullest ones lose messages.

Without it, slow clients that fill the budget would make every outbox count as full, those of clients that read included.
"""

from collections.abc import Callable, Iterable
from typing import Final

import trio

from .._util.wakeup import Wakeup
from ..metrics import Traffic
from .outbox import Outbox

__all__ = ["Shedding"]

HIGH: Final = 0.9
"""The share of the budget at which shedding begins."""
LOW: Final = 0.8
"""The share at which it ends."""
PAUSE: Final = 0.05
"""Seconds between two times. What comes meanwhile has a tenth of the budget."""
YIELD_EVERY: Final = 100
"""Outboxes after which other tasks run."""
PRIORITIES: Final = range(11)


class Shedding:
    """Drops waiting messages: those of the lowest priority first, and of one priority those in the fullest outbox first.

    `run` is its task.
    """

    def __init__(self, outboxes: Callable[[], Iterable[Outbox]], traffic: Traffic, budget: int) -> None:
        self._outboxes = outboxes
        self._traffic = traffic
        self._budget = budget
        self._crowded = Wakeup()
        traffic.watch(HIGH * budget, self._crowded.notify)

    async def run(self) -> None:
        """Whenever the budget is nearly used up, shed until there is space again. Never returns."""
        while True:
            while self._traffic.waiting_bytes <= self._traffic.crowded_at:
                await self._crowded.wait()
            await self._shed()
            # What is under way, and answers to commands, cannot be shed: then it is not to be tried for each new message.
            await trio.sleep(PAUSE)

    async def _shed(self) -> None:
        filled = [outbox for outbox in self._outboxes() if outbox.waiting_bytes]
        fullest = sorted(filled, key=lambda outbox: outbox.waiting_bytes, reverse=True)
        for priority in PRIORITIES:
            for number, outbox in enumerate(fullest, 1):
                excess = self._traffic.waiting_bytes - int(LOW * self._budget)
                if excess <= 0:
                    return
                outbox.shed(priority, excess)
                if not number % YIELD_EVERY:
                    await trio.lowlevel.checkpoint()
