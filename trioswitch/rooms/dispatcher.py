"""The one task that delivers for all rooms which can be done without waiting."""

from collections import deque
from collections.abc import Callable

import trio

from .._util.wakeup import Wakeup
from .room import Room

__all__ = ["Dispatcher"]


class Dispatcher:
    """Rooms that have something to deliver, in the order in which they got it; each has its turn for one window.

    `start_task` starts the task of a room that needs one; `crashed` is called, while the exception is handled, for a room
    that failed: it goes on in a task of its own, where it can wait before it tries again.
    """

    def __init__(self, start_task: Callable[[Room], None], crashed: Callable[[Room], None]) -> None:
        self._start_task = start_task
        self._crashed = crashed
        self._ready: deque[Room] = deque()
        self._wakeup = Wakeup()
        self._held = False

    def wake(self, room: Room) -> None:
        self._ready.append(room)
        if not self._held:
            self._wakeup.notify()

    def hold(self) -> None:
        """Collect what is published until `release`, so that it goes out in common windows."""
        self._held = True

    def release(self) -> None:
        """Hand out what was collected, without waking the task for it."""
        self._held = False
        self.run_ready()
        if self._ready:
            self._wakeup.notify()

    def run_ready(self) -> None:
        """Give each room that is ready its turn."""
        for _ in range(len(self._ready)):
            room = self._ready.popleft()
            try:
                done = room.dispatch_nowait()
            except Exception:
                self._crashed(room)
                done = False
            if not done:
                self._start_task(room)

    async def run(self) -> None:
        while True:
            while not self._ready:
                await self._wakeup.wait()
            self.run_ready()
            await trio.lowlevel.checkpoint()
