"""The command `connect`: its options, its signals, its exit status.

Events are shown on stdout, one line each; lines about the client itself on stderr. On a terminal, a prompt with line editing is
at the bottom (if prompt_toolkit is installed), and lines have colours and the time of day. It ends at the end of stdin (Ctrl-D),
with `/quit`, and at SIGINT (Ctrl-C) or SIGTERM.
"""

import argparse
import logging
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import attrs
import trio

from ..address import Address
from ..errors import ClientError, Rejected, RequestFailed, UntrustedCertificate
from ..opening import open_client
from .console import Console, PlainConsole
from .rendering import Renderer, plain
from .session import TerminalSession, parse_count

__all__ = ["add_connect"]

OK, FAILED = 0, 1
NO_PROMPT: Final = "line editing needs prompt_toolkit: pip install 'trioswitch[terminal]'"


def add_connect(commands: Any) -> None:
    """Add the command `connect` to the sub-parsers of `trioswitch`; its `run(namespace)` returns the exit status."""
    parser = commands.add_parser(
        "connect",
        help="talk to a server: a client for the terminal",
        description="Show what happens in rooms, and send lines from stdin to the current room. /help lists the commands.",
    )
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add(
        "url",
        type=_url,
        metavar="URL",
        help="the server: ws://127.0.0.1:8765/ws, wss://..., or ws+unix:/path/of/socket",
    )
    add("--room", action="append", default=[], metavar="ROOM", help="a room to join; the last one is the current room")
    add("--user", metavar="NAME", help="your user name, on a server that requires no token")
    add("--token", help="the token, on a server that requires one")
    add("--ca", metavar="FILE", help="trust the certificates in this file (PEM) instead of those of the system")
    add(
        "--history",
        type=_count,
        default=0,
        metavar="N",
        help="show the newest N messages when a room is joined (default: 0)",
    )


@attrs.frozen
class _Terminal:
    """What stdin and stdout are connected to."""

    interactive: bool
    """Lines are entered by a person."""
    shown: bool
    """Lines are shown to a person."""
    type: str
    """The terminal's type: TERM."""

    @classmethod
    def of_process(cls) -> "_Terminal":
        term = os.environ.get("TERM", "dumb") or "dumb"
        interactive, shown = (file is not None and file.isatty() for file in (sys.stdin, sys.stdout))
        return cls(interactive, shown, term)

    @property
    def controllable(self) -> bool:
        """Whether the terminal shows escape sequences as colours and cursor movements."""
        return self.shown and self.type != "dumb"

    def renderer(self) -> Renderer:
        """NO_COLOR is respected (https://no-color.org)."""
        return Renderer(colours=self.controllable and not os.environ.get("NO_COLOR"), times=self.shown)


class _NoteHandler(logging.Handler):
    """Shows log records like other lines about the client, rather than in the middle of the edited line."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        self._note(plain(record.getMessage()))


def _run(chosen: argparse.Namespace) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return trio.run(_main, chosen, strict_exception_groups=True)
    except KeyboardInterrupt:  # before the signal was received by Trio, or after
        return OK


async def _main(chosen: argparse.Namespace) -> int:
    terminal = _Terminal.of_process()
    open_prompt = _load_prompt() if terminal.interactive and terminal.controllable else None
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals, trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at_signal, signals, scope)
            try:
                async with _open_console(open_prompt, terminal, scope) as console:
                    status = await _talk(chosen, terminal, console)
            finally:
                nursery.cancel_scope.cancel()
        return status
    return OK


async def _talk(chosen: argparse.Namespace, terminal: _Terminal, console: Console) -> int:
    """Connect, and run a session until its lines end. Returns the exit status."""
    hint = _hint(chosen)
    echoed = terminal.interactive and terminal.shown and isinstance(console, PlainConsole)
    session = TerminalSession(console, terminal.renderer(), history=chosen.history, echoed=echoed, hint=hint)
    handler = _NoteHandler(session.error)
    logging.getLogger("trioswitch").addHandler(handler)
    try:
        context = None if chosen.ca is None else _trusting(chosen.ca)
        async with open_client(chosen.url, chosen.token, chosen.user, ssl_context=context) as client:
            if terminal.interactive:
                session.note("/help lists the commands")
                if isinstance(console, PlainConsole) and terminal.controllable:
                    session.note(NO_PROMPT)
            await session.run(client, chosen.room)
    except (ClientError, ValueError) as error:
        console.note(f"trioswitch: {plain(str(error))}{hint(error) if isinstance(error, ClientError) else ''}")
        return FAILED
    finally:
        logging.getLogger("trioswitch").removeHandler(handler)
    return FAILED if session.failures and not terminal.interactive else OK


OpenPrompt = Callable[[str, Callable[[], None]], AbstractAsyncContextManager[Console]]


def _load_prompt() -> OpenPrompt | None:
    """None if prompt_toolkit, which is an optional dependency, is not installed."""
    try:
        from .prompt import open_prompt
    except ModuleNotFoundError as error:
        if error.name != "prompt_toolkit":
            raise
        return None
    return open_prompt


@asynccontextmanager
async def _open_console(
    open_prompt: OpenPrompt | None, terminal: _Terminal, scope: trio.CancelScope
) -> AsyncIterator[Console]:
    if open_prompt is None:
        yield PlainConsole(on_closed=scope.cancel)
        return
    async with open_prompt(terminal.type, scope.cancel) as prompt:
        yield prompt


async def _cancel_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()


def _hint(chosen: argparse.Namespace) -> Callable[[ClientError], str]:
    """Returns a function that tells which option avoids an error."""

    def hint(error: ClientError) -> str:
        if isinstance(error, UntrustedCertificate):
            return " (--ca FILE names the certificates to trust)"
        if isinstance(error, Rejected | RequestFailed) and error.unauthenticated:
            if chosen.token is None:
                return " (--token TOKEN authenticates)"
            return " (--token has a token that the server does not accept)"
        return ""

    return hint


# --- the values of options


def _url(text: str) -> str:
    try:
        Address.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _trusting(path: str) -> ssl.SSLContext:
    """Raises ValueError."""
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise ValueError(f"--ca: cannot read certificates from {path!r}: {error.strerror or error}") from None


def _count(text: str) -> int:
    try:
        return parse_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
