"""A console with a line editor at the bottom of the terminal, made with prompt_toolkit. Events appear above the edited line.

prompt_toolkit runs on asyncio. Its event loop runs in a worker thread, so that Trio has the main thread and its signals.
Trio calls into the editor with `call_soon_threadsafe`; the editor calls back with `TrioToken.run_sync_soon`. Neither side waits
for the other, but for `show`, which blocks while MAX_PENDING lines have not been written, as `print` blocks on a slow terminal.

The editor stays active when a line is entered: it takes the line away, and the session shows what became of it.
"""

import asyncio
import os
import signal
import sys
import termios
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio
from prompt_toolkit import PromptSession
from prompt_toolkit.application import in_terminal
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output.vt100 import Vt100_Output

from .console import Lines

__all__ = ["PromptConsole", "open_prompt"]

MAX_PENDING: Final = 1000
"""Lines between the two threads, in each direction."""


@asynccontextmanager
async def open_prompt(term: str, on_interrupt: Callable[[], None]) -> AsyncIterator["PromptConsole"]:
    """Run a line editor on stdin and stdout, which are a terminal, until the block is left.

    Args:
        term: the type of the terminal, from the environment variable TERM.
        on_interrupt: called when Ctrl-C is pressed.

    The terminal is restored in any case. Cancelling is safe.
    """
    console = PromptConsole(term, on_interrupt)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, console.run)
        nursery.start_soon(console.watch_size)
        try:
            yield console
        finally:
            console.stop()
            nursery.cancel_scope.cancel()


class PromptConsole:
    """Made by `open_prompt`. The comments say which thread calls a method."""

    def __init__(self, term: str, on_interrupt: Callable[[], None]) -> None:
        self._on_interrupt = on_interrupt
        self._trio = trio.lowlevel.current_trio_token()
        self._entered, self._lines = trio.open_memory_channel[str](MAX_PENDING)
        self._modes = termios.tcgetattr(sys.stdin)  # before the editor changes them
        output = Vt100_Output.from_pty(sys.stdout, term=term)
        output.enable_cpr = False  # the editor needs no cursor position, and some terminals do not report it
        self._session: PromptSession[str] = PromptSession(
            lambda: self._prompt,
            history=InMemoryHistory(),
            key_bindings=self._key_bindings(),
            erase_when_done=True,
            input=create_input(sys.stdin),
            output=output,
        )
        self._session.app.terminal_size_polling_interval = None  # `watch_size` is told of changes
        self._lock = threading.Condition()  # for the fields below
        self._loop: asyncio.AbstractEventLoop | None = None  # None while the editor does not run
        self._pending: list[str] = []
        self._stopped = False
        self._prompt = "> "

    # --- called in the Trio thread

    def lines(self) -> Lines:
        return self._lines

    def show(self, line: str) -> None:
        with self._lock:
            self._lock.wait_for(lambda: self._loop is None or len(self._pending) < MAX_PENDING)
            self._pending.append(line)
            if self._loop is None:
                self._flush()
            elif len(self._pending) == 1:
                self._loop.call_soon_threadsafe(self._print_above)

    def note(self, line: str) -> None:
        if sys.stderr is not None and not sys.stderr.isatty():
            print(line, file=sys.stderr, flush=True)
        else:
            self.show(line)

    def set_prompt(self, prompt: str) -> None:
        with self._lock:
            self._prompt = prompt
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._session.app.invalidate)

    async def watch_size(self) -> None:
        """Draw the prompt again whenever the size of the terminal has changed."""
        with trio.open_signal_receiver(signal.SIGWINCH) as changes:
            async for _ in changes:
                with self._lock:
                    if self._loop is not None:
                        self._loop.call_soon_threadsafe(self._draw_again)

    def stop(self) -> None:
        """End the editor, if it runs or is about to."""
        with self._lock:
            self._stopped = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._exit)

    def _enter(self, line: str) -> None:
        try:
            self._entered.send_nowait(line)
        except trio.WouldBlock:
            self.show(f"! {MAX_PENDING} lines are pending; this one was not executed: {line!r}")

    def _suspend(self, continued: asyncio.Event) -> None:
        """Suspend the process group, and set the event when it continues.

        The main thread takes the signal before `kill` returns. In the editor's thread, `kill` might return before the process is
        suspended: the terminal would be in raw mode again by then.
        """
        with self._lock:
            if self._loop is not None:
                termios.tcsetattr(sys.stdin, termios.TCSANOW, self._modes)
                os.kill(0, signal.SIGTSTP)
                self._loop.call_soon_threadsafe(continued.set)

    # --- called in the editor's thread

    def run(self) -> None:
        """Edit lines until Ctrl-C, Ctrl-D, or `stop`."""
        asyncio.run(self._edit())

    async def _edit(self) -> None:
        with self._lock:
            self._loop = asyncio.get_running_loop()
        try:
            await self._session.prompt_async(
                handle_sigint=False,
                set_exception_handler=False,
                pre_run=lambda: self._exit() if self._stopped else None,
            )
        except EOFError:  # Ctrl-D, or the terminal is gone
            pass
        except KeyboardInterrupt:
            self._trio.run_sync_soon(self._on_interrupt)
        finally:
            with self._lock:
                self._flush()
                self._loop = None
                self._lock.notify_all()
            self._trio.run_sync_soon(self._entered.close)

    def _exit(self) -> None:
        if self._session.app.is_running and not self._session.app.is_done:
            self._session.app.exit(result="")

    def _draw_again(self) -> None:
        app = self._session.app
        if not app.is_done:
            app.renderer.erase()
            app.invalidate()

    def _print_above(self) -> None:
        with self._lock:
            app = self._session.app
            if app.is_done:  # the prompt is about to be erased: `_edit` prints what is pending then
                return
            app.renderer.erase()
            app.output.write_raw("".join(f"{line}\n" for line in self._pending))
            app.output.flush()
            self._pending.clear()
            self._lock.notify_all()
            app.invalidate()

    def _key_bindings(self) -> KeyBindings:
        bindings = KeyBindings()

        @bindings.add("enter", filter=has_focus(DEFAULT_BUFFER))
        def enter(event: KeyPressEvent) -> None:
            text = event.current_buffer.text
            event.current_buffer.reset(append_to_history=True)
            for line in text.split("\n"):  # several, if they were pasted
                self._trio.run_sync_soon(self._enter, line)

        @bindings.add("c-z", filter=has_focus(DEFAULT_BUFFER))
        def suspend(event: KeyPressEvent) -> None:
            event.app.create_background_task(self._suspend_in_terminal())

        return bindings

    async def _suspend_in_terminal(self) -> None:
        async with in_terminal():  # it takes the prompt away, and sets the editor's modes again in the end
            continued = asyncio.Event()
            self._trio.run_sync_soon(self._suspend, continued)
            await continued.wait()

    # --- called in either thread, with the lock

    def _flush(self) -> None:
        for line in self._pending:
            print(line, flush=True)
        self._pending.clear()
