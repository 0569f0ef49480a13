"""`serve --workers N`: this process owns the store, the port and the hub. N others serve clients; one that dies is started again.

A worker is the same command with a few hidden options (`add_worker_options`). It has a process group of its own, so that Ctrl-C
reaches this process only. Its standard input is a pipe that ends when this process does.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from .._util.systemd import notify
from ..errors import ServeError
from ..hub.server import Hub
from ..stores.port import Store
from ..transport.listeners import bound_sockets
from ..transport.streams import address

__all__ = ["Workers", "add_worker_options", "end_with_supervisor", "is_ready"]

_log = logging.getLogger(__name__)

NAME_LENGTH: Final = 200
"""Characters of `node_name` that the names of workers begin with: theirs may have 255."""
START_TIMEOUT: Final = 60.0
"""Seconds that a worker may take until it listens."""
RESTART_DELAY: Final = 1.0
"""Seconds before a worker is started again that has died within as short a time; doubled each time, up to MAX_RESTART_DELAY."""
MAX_RESTART_DELAY: Final = 30.0
END_MARGIN: Final = 5.0
"""Seconds beside the drain timeout after which workers that have not ended are killed."""


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """The options that a supervisor gives its workers."""
    parser.add_argument("--worker-hub", metavar="PATH", help=argparse.SUPPRESS)
    parser.add_argument("--worker-ready", metavar="FD", type=int, help=argparse.SUPPRESS)


def is_ready(chosen: argparse.Namespace) -> None:
    """For a worker: tell the supervisor that it listens."""
    os.write(chosen.worker_ready, b"1")
    os.close(chosen.worker_ready)


async def end_with_supervisor() -> None:
    """For a worker: end in good order when the supervisor is gone."""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as pipe:
        while await pipe.receive_some(1):
            pass
    _log.error("the supervisor is gone: this worker ends")
    os.kill(os.getpid(), signal.SIGTERM)


@attrs.define(eq=False)
class _Worker:
    number: int
    process: trio.Process | None = None
    ready: trio.Event = attrs.field(factory=trio.Event)


class Workers:
    """The workers of a supervisor. `arguments` are those of its own command line, and each has a name that begins with `name`."""

    def __init__(self, count: int, arguments: Sequence[str], hosts: Sequence[str], port: int, name: str) -> None:
        self._workers = [_Worker(number) for number in range(1, count + 1)]
        self._arguments = arguments
        self._hosts = hosts
        self._port = port
        self._name = f"{name[:NAME_LENGTH]} " if name else ""
        self._stopping = trio.Event()  # a signal has come: workers that end are not started again

    async def run(
        self,
        store: Store,
        signals: Any,
        drain_timeout: float,
        on_listening: Callable[[list[str]], None],
        on_second_signal: Callable[[], BaseException],
    ) -> None:
        """Run until a signal comes, and the workers have drained.

        `on_listening` is called with the addresses, host and port, when all workers listen. Raises ServeError when a worker
        cannot be started, and what `on_second_signal` returns at a second signal, when all are killed.
        """
        for socket in await bound_sockets(
            self._hosts, self._port
        ):  # fails if another server has the port, and shares it
            socket.close()
        reserved = await bound_sockets(self._hosts, self._port, reuse_port=True)
        with tempfile.TemporaryDirectory(prefix="trioswitch-") as directory:  # nobody else can enter it
            try:
                self._port = reserved[0].getsockname()[1]
                async with trio.open_nursery() as nursery:
                    path = str(Path(directory) / "hub")
                    await nursery.start(Hub(store).serve, path)
                    async with trio.open_nursery() as workers:
                        for worker in self._workers:
                            workers.start_soon(self._keep_running, worker, path)
                        workers.start_soon(self._drain_at_signal, signals, drain_timeout, on_second_signal, workers)
                        workers.start_soon(self._reload_at_signal)
                        for worker in self._workers:
                            await worker.ready.wait()
                        on_listening([address(socket.getsockname()) for socket in reserved])
                    nursery.cancel_scope.cancel()
            finally:
                for socket in reserved:
                    socket.close()

    async def _keep_running(self, worker: _Worker, hub: str) -> None:
        delay = RESTART_DELAY
        while True:
            started = trio.current_time()
            try:
                status = await self._run_once(worker, hub)
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            except OSError as error:  # too many processes, or no memory
                how = f"could not be started: {error.strerror or error}"
            if self._stopping.is_set():
                return
            if not worker.ready.is_set():
                raise ServeError(f"worker {worker.number} could not be started")
            delay = RESTART_DELAY if trio.current_time() - started > delay else min(2 * delay, MAX_RESTART_DELAY)
            _log.error("worker %d %s: it is started again", worker.number, how)
            if delay > RESTART_DELAY:
                with trio.move_on_after(delay):
                    await self._stopping.wait()
                    return

    async def _run_once(self, worker: _Worker, hub: str) -> int:
        """Run a worker until it ends. Returns its exit status."""
        reading, writing = os.pipe()
        given = ("--worker-hub", hub, "--worker-ready", str(writing))
        own = ("--port", str(self._port), "--node-name", f"{self._name}worker {worker.number}")
        try:
            worker.process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "trioswitch", *self._arguments, *given, *own],
                start_new_session=True,
                pass_fds=[writing],
                stdin=subprocess.PIPE,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        assert worker.process.stdin is not None, "the worker ends when it does"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_ready, worker, reading)
                status = await worker.process.wait()
                nursery.cancel_scope.cancel()
        finally:
            if worker.process.returncode is None:
                worker.process.kill()
                with trio.CancelScope(shield=True):
                    await worker.process.wait()
            await trio.aclose_forcefully(worker.process.stdin)
        return status

    async def _watch_ready(self, worker: _Worker, reading: int) -> None:
        async with trio.lowlevel.FdStream(reading) as stream:
            with trio.move_on_after(START_TIMEOUT) as patience:
                if await stream.receive_some(1):
                    worker.ready.set()
        if patience.cancelled_caught and worker.process is not None:
            _log.error("worker %d did not listen within %g s", worker.number, START_TIMEOUT)
            worker.process.kill()

    async def _reload_at_signal(self) -> None:
        """Workers read their configuration again when this process gets SIGHUP."""
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            async for _ in signals:
                for worker in self._workers:
                    if worker.process is not None and worker.process.returncode is None:
                        worker.process.send_signal(signal.SIGHUP)

    async def _drain_at_signal(
        self, signals: Any, drain_timeout: float, on_second_signal: Callable[[], BaseException], workers: trio.Nursery
    ) -> None:
        await anext(signals)
        notify("STOPPING=1")
        self._stopping.set()
        for worker in self._workers:
            if worker.process is not None and worker.process.returncode is None:
                worker.process.terminate()

        async def end_at_second_signal() -> None:
            await anext(signals)
            raise on_second_signal()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_at_second_signal)
            with trio.move_on_after(drain_timeout + END_MARGIN) as patience:
                for worker in self._workers:
                    if worker.process is not None:
                        await worker.process.wait()
            nursery.cancel_scope.cancel()
        if patience.cancelled_caught:
            _log.error("workers did not end in time, and are killed")
        workers.cancel_scope.cancel()
