"""Waking tasks that wait for something to change."""

import trio

__all__ = ["Wakeup"]


class Wakeup:
    """Tasks wait for a change; `notify` wakes all that wait now, and costs hardly anything while nobody does.

    A waiter checks its condition again after each wake-up:

        while not self._pending:
            await self._wakeup.wait()

    No wake-up is lost, as long as there is no checkpoint between the check and `wait`: both run in one Trio thread.
    """

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: trio.Event | None = None  # made when somebody waits

    def notify(self) -> None:
        """Wake all tasks that wait now."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Wait for the next `notify`. Safe to cancel."""
        if self._event is None:
            self._event = trio.Event()
        await self._event.wait()
