"""`python -m trioswitch`: the commands, the signals, the exit status."""

import argparse
import logging
import os
import resource
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

import trio

from .._util import interrupts
from .._util.logs import JsonFormatter, NonBlockingHandler, TextFormatter
from .._util.process import collect_rarely, keep_freed_memory
from .._util.systemd import inherited_sockets
from ..bench.cli import add_bench
from ..client.terminal import add_connect
from ..errors import ServeError, StoreError
from ..settings.load import SettingsError
from ..stores.open import is_shared
from ..version import __version__
from .configuration import add_config
from .operation import check_exposure
from .serve_options import Formatter, Parser, add_serve_options, chosen_options, with_settings
from .serving import Interrupted, run_server, say, say_problems
from .tls import tls_context
from .token import add_token
from .trace import add_trace

__all__ = ["main", "make_parser"]

OK, FAILED, USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, and exit: 0 after a drain, 2 for a usage error, 1 for anything else."""
    parser = make_parser()

    def parse() -> argparse.Namespace:
        chosen, unknown = parser.parse_known_args(arguments)
        if unknown:
            getattr(chosen, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
        return chosen

    chosen = parse()
    raise_file_limit()
    if chosen.run is not None:
        try:
            interrupts.restore()
            sys.exit(chosen.run(chosen))
        except KeyboardInterrupt:  # before the command watched for it
            sys.exit(FAILED)
    try:
        chosen = with_settings(parse, chosen.parser, os.environ)
        options = chosen_options(chosen)
        chosen.sockets = inherited_sockets()
        hosts = [each.getsockname()[0] for each in chosen.sockets if each.family != socket.AF_UNIX]
        if not chosen.sockets:
            hosts = [] if chosen.uds else chosen.host or []
        check_exposure(hosts, chosen.settings, insecure=chosen.insecure)
        if chosen.workers > 1 and chosen.sockets:
            raise ValueError("argument --workers: not allowed with a socket of systemd, which is for one process")
        context = tls_context(chosen.tls_cert, chosen.tls_key)
        if chosen.proxy_protocol and not chosen.trusted_proxy:
            raise ValueError("argument --proxy-protocol: needs --trusted-proxy, which says whose headers are believed")
        if chosen.uds is not None and chosen.port_given:
            raise ValueError("argument --port: not allowed with --uds, which listens on a Unix socket only")
        if chosen.workers > 1 and chosen.uds is not None:
            raise ValueError("argument --workers: not allowed with --uds: processes share a TCP port only")
        if chosen.broker is not None and not is_shared(chosen.store):
            raise ValueError("argument --broker: needs a store that all servers share: redis:// or postgres://")
        chosen.workers = 1 if chosen.worker_hub is not None else chosen.workers
        chosen.arguments = sys.argv[1:] if arguments is None else list(arguments)
        if options.needs_store and chosen.store == "memory" and chosen.worker_hub is None:
            raise ValueError(
                "argument --room: history=stored needs a --store that keeps messages: sqlite:PATH, redis:// or postgres://"
            )
    except SettingsError as error:
        say_problems(error)
        sys.exit(USAGE)
    except ValueError as error:
        chosen.parser.error(str(error))
    keep_freed_memory()
    collect_rarely()
    log = NonBlockingHandler()
    where = f" [{options.node_name}]" if chosen.worker_hub is not None else ""
    line = f"%(asctime)s %(levelname)s{where} %(name)s: %(message)s"
    log.setFormatter(JsonFormatter(options.node_name) if chosen.log_format == "json" else TextFormatter(line))
    logging.basicConfig(handlers=[log], level=chosen.log_level.upper())
    try:
        interrupts.restore()
        trio.run(run_server, options, chosen, context, strict_exception_groups=True)
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as failure:
        logging.getLogger(__name__).debug("it ends with", exc_info=failure)
        log.close()
        say(f"trioswitch: {_sentence(failure)}")
        sys.exit(FAILED)
    log.close()
    say("", end="")  # a log line that could not be written must not become the exit status
    sys.exit(OK)


def _sentence(failure: BaseException) -> str:
    """What to tell a person: where several things went wrong together, the one that explains the others."""
    errors = list(_leaves(failure))
    if any(isinstance(error, Interrupted) for error in errors):
        return "stopped at the second signal, before everything was written"
    if any(isinstance(error, KeyboardInterrupt) for error in errors):
        return "interrupted before the server was up"
    text = str(errors[0]) or type(errors[0]).__name__
    return text if isinstance(errors[0], (ServeError, StoreError)) else f"the server failed: {text}"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="trioswitch", description="A real-time push server on Trio.")
    parser.add_argument("--version", action="version", version=f"trioswitch {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve_command = commands.add_parser(
        "serve",
        help="run the server",
        description="Run the server until SIGTERM or SIGINT; a second signal ends it at once.",
        formatter_class=Formatter,
        usage="trioswitch serve [options]",
        epilog="Messages of rooms whose name begins with chat survive a crash: --store sqlite:messages.db --room"
        " 'chat*:history=stored,history-size=10000'. docs/options.md says more about each option.",
    )
    serve_command.set_defaults(run=None, parser=serve_command)
    add_serve_options(serve_command)
    add_config(commands)
    add_token(commands)
    add_trace(commands)
    add_connect(commands)
    add_bench(commands)
    return parser


def raise_file_limit() -> None:
    """Let this process open as many files as it may: every connection is one."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError) as error:  # where `hard` is more than the kernel really gives
        logging.getLogger(__name__).debug("the limit on open files stays: %s", error)
