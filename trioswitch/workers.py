"""Worker processes for what needs a processor, in a bounded pool: the event loop is never held up.

    async with trioswitch.open_workers() as workers, trioswitch.open_switch() as switch:

        @switch.handler("image")
        async def image(connection, message):
            return await workers.run(describe, message["image"])

A job is a function that can be imported by name, and arguments and a result that can be pickled. At most `processes` jobs run
and `waiting` wait; who comes then waits for a place (`run`, `submit`), or is refused (`submit_nowait`). Jobs start in
the order in which they came. The processes are those of trio-parallel: `pip install trioswitch[workers]`.

What becomes of a job:

    run() is cancelled           it leaves the line; one that has started runs on, and its result is thrown away
    it runs over `time_limit`    its process is killed, and it has failed with trio.TooSlowError
    its process dies             it has failed with WorkerDied; the next job gets a new process
    the block is left            all jobs are waited for, those in the line too
    the block is cancelled       its process is killed; `run` raises trio.ClosedResourceError where it was not cancelled itself

A cancelled job is not killed because a new process takes a hundred times as long as a short job: clients that hang up would
keep the server busy with starting processes.
"""

import importlib
import logging
import math
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple

import attrs
import trio

from ._util.process import keep_freed_memory
from .errors import TrioswitchError

__all__ = ["MissingExtra", "WorkerDied", "Workers", "WorkersStatistics", "open_workers"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

GRACE: Final = 5.0
"""Seconds that idle processes have to end by themselves when the pool is closed; then they are killed."""


class WorkerDied(TrioswitchError):
    """A worker process ended in the middle of a job: it crashed, was killed, or could not start."""


class MissingExtra(TrioswitchError, ImportError):
    """A library is not installed that only this feature needs. The text names the extra that brings it."""


@attrs.frozen
class WorkersStatistics:
    """A pool since it was opened. Every job that was accepted ends in one of done, failed, died, late and withdrawn."""

    processes: int
    """Jobs that can run at a time."""
    running: int
    waiting: int
    """Jobs in the queue; `waiting` of `open_workers` at most."""
    callers: int
    """Tasks that wait for a place in the queue."""
    done: int
    failed: int
    """The function, or what was to be done with its result, raised something."""
    died: int
    late: int
    withdrawn: int
    """Their callers were cancelled before they had started."""
    abandoned: int
    """Their callers were cancelled when they had started; each is counted once more, by its end."""
    busy: float
    """Seconds that jobs ran, those that run now left out."""


@attrs.define(eq=False)
class _Job:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    then: Callable[[Any], object] | None = None
    detached: bool = False
    """Whether nobody waits for the result: a failure goes to the log."""
    accepted: trio.Event = attrs.field(factory=trio.Event)
    """It runs, or has a place in the queue."""
    ended: trio.Event = attrs.field(factory=trio.Event)
    result: Any = None
    error: BaseException | None = None

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        self.args = ()  # they may be large, and a traceback would keep them
        self.result, self.error = result, error
        self.accepted.set()
        self.ended.set()

    @property
    def name(self) -> str:
        return getattr(self.function, "__qualname__", None) or repr(self.function)


@asynccontextmanager
async def open_workers(
    processes: int | None = None,
    waiting: int = 64,
    *,
    time_limit: float = 60.0,
    init: Callable[[], object] = bool,
) -> AsyncIterator["Workers"]:
    """Run a pool: `async with open_workers() as workers`. Its processes have started when the block is entered.

    `processes` jobs run at a time, by default one for each processor but one, which is the event loop's; `waiting` more
    may wait, each with its arguments in memory. A job has `time_limit` seconds (math.inf: no limit). `init` is called in each
    process when it starts: to import what is slow to import, for one.

    The processes import the program's main module: what starts the program there must be under
    `if __name__ == "__main__":`. Raises MissingExtra without trio-parallel, WorkerDied when a process cannot start, and
    ValueError for a number that makes no sense. Open it before the nursery in which connections are served: they end first.
    """
    number = max(1, (os.cpu_count() or 2) - 1) if processes is None else processes
    if number < 1 or waiting < 0 or not time_limit > 0:
        raise ValueError(f"no pool of {number} processes, {waiting} waiting, {time_limit} seconds a job")
    async with _open_context(init) as context:
        workers = Workers(context, number, waiting, time_limit)
        await workers._start()
        try:
            async with trio.open_nursery() as workers._nursery:
                try:
                    yield workers
                finally:
                    workers._closed = True
        finally:
            workers._abandon_all()


@asynccontextmanager
async def _open_context(init: Callable[[], object]) -> AsyncIterator[Any]:
    """trio-parallel's processes. They end when the block is left, whatever happened in it."""
    trio_parallel = _import_trio_parallel()
    start = partial(_start_process, init)
    opened = trio_parallel.open_worker_context(idle_timeout=math.inf, init=start, grace_period=GRACE)
    context = await opened.__aenter__()
    try:
        yield context
    finally:
        try:
            await opened.__aexit__(None, None, None)
        except trio_parallel.BrokenWorkerError as error:  # idle processes died: no job is lost
            _log.warning("worker processes did not end in order: %s", error.args[0])


def _start_process(init: Callable[[], object]) -> None:
    """Runs in each worker process when it starts."""
    keep_freed_memory()  # arguments are often large
    init()


def _import_trio_parallel() -> Any:
    try:
        return importlib.import_module("trio_parallel")
    except ModuleNotFoundError as error:
        if error.name != "trio_parallel":
            raise
        raise MissingExtra("worker processes need trio-parallel: pip install trioswitch[workers]") from None


class Workers:
    """A pool of worker processes. Made by `open_workers`; belongs to its Trio thread."""

    def __init__(self, context: Any, processes: int, waiting: int, time_limit: float) -> None:
        self._context = context
        self._broken: type[Exception] = _import_trio_parallel().BrokenWorkerError
        self._limiter = trio.CapacityLimiter(processes)  # without one of ours, all pools together have trio-parallel's
        self._processes = processes
        self._waiting = waiting
        self._time_limit = time_limit
        self._nursery: trio.Nursery | None = None
        self._closed = False
        self._running = 0
        self._idle = trio.Event()
        self._line: deque[_Job] = deque()
        """The first `waiting` of it are the queue. The others have callers that wait for a place."""
        self._done = self._failed = self._died = self._late = self._withdrawn = self._abandoned = 0
        self._busy = 0.0

    # --- jobs in

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call `function(*args)` in a worker process and return what it returns, or raise what it raises.

        Waits while all places are taken. Raises WorkerDied, trio.TooSlowError after `time_limit`, and
        trio.ClosedResourceError when the pool is closed. Safe to cancel: a job that has not started never will, one that
        has started runs on, and keeps its process until it ends. The arguments are pickled in the event loop: bytes cost nothing.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        job = _Job(function, args)
        self._enter(job)
        try:
            await job.ended.wait()
        except trio.Cancelled:
            self._withdraw(job)
            raise
        error, job.error = job.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # with its traceback it would hold this frame, and this frame it
        result: T = job.result
        return result

    async def submit(self, function: Callable[[*Ts], T], *args: *Ts, then: Callable[[T], object] | None = None) -> None:
        """Have `function(*args)` called in a worker process; returns as soon as there is a place for it.

        `then` is called with the result, in the event loop: it must be quick. What fails is logged and counted. Raises
        trio.ClosedResourceError when the pool is closed. Safe to cancel: the job was not accepted then.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        job = _Job(function, args, then, detached=True)
        self._enter(job)
        if job.accepted.is_set():
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        try:
            await job.accepted.wait()
        except trio.Cancelled:
            self._withdraw(job)
            raise
        if isinstance(job.error, trio.ClosedResourceError):
            raise trio.ClosedResourceError(*job.error.args)

    def submit_nowait(
        self, function: Callable[[*Ts], T], *args: *Ts, then: Callable[[T], object] | None = None
    ) -> None:
        """As `submit`, without waiting. Raises trio.WouldBlock when there is no place."""
        if self.full and not self._closed:
            raise trio.WouldBlock
        self._enter(_Job(function, args, then, detached=True))

    @property
    def full(self) -> bool:
        """Whether who comes now has to wait for a place. A handler may rather refuse: `raise Refused("busy", code="busy")`."""
        return self._running == self._processes and len(self._line) >= self._waiting

    async def wait_idle(self) -> None:
        """Wait until no job runs or waits. Safe to cancel."""
        await trio.lowlevel.checkpoint()
        while self._running:
            await self._idle.wait()

    def statistics(self) -> WorkersStatistics:
        waiting = min(len(self._line), self._waiting)
        return WorkersStatistics(
            processes=self._processes,
            running=self._running,
            waiting=waiting,
            callers=len(self._line) - waiting,
            done=self._done,
            failed=self._failed,
            died=self._died,
            late=self._late,
            withdrawn=self._withdrawn,
            abandoned=self._abandoned,
            busy=self._busy,
        )

    # --- the line

    def _enter(self, job: _Job) -> None:
        if self._closed or self._nursery is None:
            raise trio.ClosedResourceError("the workers were closed")
        if self._running < self._processes:
            self._running += 1
            job.accepted.set()
            self._nursery.start_soon(self._work, job)
            return
        self._line.append(job)
        if len(self._line) <= self._waiting:
            job.accepted.set()

    def _withdraw(self, job: _Job) -> None:
        try:
            self._line.remove(job)
        except ValueError:
            self._abandoned += 1
        else:
            self._withdrawn += 1
            self._move_up()

    def _move_up(self) -> None:
        """The line has become shorter by one: so one caller has got a place."""
        if len(self._line) >= self._waiting > 0:
            self._line[self._waiting - 1].accepted.set()

    def _abandon_all(self) -> None:
        """The pool is gone: nobody must wait for it."""
        self._closed = True
        while self._line:
            self._line.popleft().end(error=trio.ClosedResourceError("the workers were closed"))

    # --- jobs out

    async def _start(self) -> None:
        """Start the processes; a job for each at the same time does it. Raises WorkerDied."""
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self._processes):
                    nursery.start_soon(self._call, bool, ())
        except* self._broken:
            raise WorkerDied(
                "a worker process could not start: what starts the program must be under `if __name__ == '__main__':`"
            ) from None

    async def _work(self, job: _Job) -> None:
        """Carry out a job, and then those in the line until it is empty."""
        while True:
            started = trio.current_time()
            await self._carry_out(job)
            self._busy += trio.current_time() - started
            if job.detached:
                self._conclude(job)
            if not self._line:
                break
            job = self._line.popleft()
            job.accepted.set()
            self._move_up()
        self._running -= 1
        if not self._running:
            self._idle.set()
            self._idle = trio.Event()

    @trio.lowlevel.enable_ki_protection  # so that a KeyboardInterrupt, or SystemExit, is the function's own
    async def _carry_out(self, job: _Job) -> None:
        try:
            with trio.fail_after(self._time_limit):
                result = await self._call(job.function, job.args)
        except trio.Cancelled:
            job.end(error=trio.ClosedResourceError("the workers were closed"))
            raise
        except self._broken as error:
            self._died += 1
            job.end(error=WorkerDied(f"the worker process of {job.name} died: {_fate(error)}"))
        except trio.TooSlowError:
            self._late += 1
            job.end(error=trio.TooSlowError(f"{job.name} took longer than {self._time_limit} seconds"))
        except Exception as error:
            self._failed += 1
            job.end(error=error)
        except BaseException as error:  # the function's own, such as SystemExit: it must not end this process
            self._failed += 1
            job.end(error=RuntimeError(f"{job.name} raised {error!r}"))
        else:
            self._done += 1
            job.end(result)

    async def _call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return await self._context.run_sync(function, *args, kill_on_cancel=True, limiter=self._limiter)

    def _conclude(self, job: _Job) -> None:
        """Nobody waits for it: do with the result what was asked for, and tell the log of a failure."""
        if job.error is None and job.then is not None:
            try:
                job.then(job.result)
            except Exception as error:
                self._done -= 1
                self._failed += 1
                job.error = error
        if job.error is not None:
            _log.error("job %s failed", job.name, exc_info=job.error)
            job.error = None


def _fate(error: Exception) -> str:
    """What trio-parallel knows of the end of a process."""
    code = getattr(error.args[-1], "exitcode", None)
    if code is None:
        return str(error)
    return f"killed by signal {-code}" if code < 0 else f"exit status {code}"
