"""`python -m trioswitch`: the commands, the options, the signals, the exit status."""

import argparse
import enum
import logging
import os
import re
import resource
import ssl
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, get_args

import attrs
import trio

from .._util import interrupts
from .._util.logs import NonBlockingHandler
from .._util.process import collect_rarely, keep_freed_memory
from ..admission import TransportName
from ..bench.cli import add_bench
from ..brokers.open import open_broker
from ..client.terminal import add_connect
from ..config import HistoryStorage, Options, Overflow
from ..errors import ServeError, StoreError
from ..stores.open import check_url, is_shared
from ..version import __version__
from .room_policy import room_policy
from .serving import Interrupted, run_server, say
from .supervisor import add_worker_options

__all__ = ["main", "make_parser"]

OK, FAILED, USAGE = 0, 1, 2
MAX_WORKERS: Final = 256


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, and exit: 0 after a drain, 2 for a usage error, 1 for anything else."""
    parser = make_parser()
    chosen, unknown = parser.parse_known_args(arguments)
    if unknown:
        getattr(chosen, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    raise_file_limit()
    if chosen.run is not None:
        try:
            interrupts.restore()
            sys.exit(chosen.run(chosen))
        except KeyboardInterrupt:  # before the command watched for it
            sys.exit(FAILED)
    try:
        options = _options(chosen)
        context = _tls(chosen.tls_cert, chosen.tls_key)
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
    except ValueError as error:
        chosen.parser.error(str(error))
    keep_freed_memory()
    collect_rarely()
    log = NonBlockingHandler()
    where = f" [{options.node_name}]" if chosen.worker_hub is not None else ""
    line = f"%(asctime)s %(levelname)s{where} %(name)s: %(message)s"
    logging.basicConfig(handlers=[log], format=line, level=chosen.log_level.upper())
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


# --- the options


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says what the default is, where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default not in (None, []) else action.help


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, rather than all of the usage before it."""
        self.exit(USAGE, f"trioswitch: error: {message} ({self.prog} --help tells more)\n")


class _StorePort(argparse.Action):
    """Stores the port, and that it was given."""

    def __call__(self, _parser: object, chosen: argparse.Namespace, port: Any, _option: str | None = None) -> None:
        chosen.port, chosen.port_given = port, True


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="trioswitch", description="A real-time push server on Trio.")
    parser.add_argument("--version", action="version", version=f"trioswitch {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve_command = commands.add_parser(
        "serve",
        help="run the server",
        description="Run the server until SIGTERM or SIGINT; a second signal ends it at once.",
        formatter_class=_Formatter,
        usage="trioswitch serve [options]",
        epilog="Messages of rooms whose name begins with chat survive a crash: --store sqlite:messages.db --room"
        " 'chat*:history=stored,history-size=10000'. docs/options.md says more about each option.",
    )
    serve_command.set_defaults(run=None, parser=serve_command, port_given=False)
    add = serve_command.add_argument
    add(
        "--host", action="append", default=None, metavar="ADDRESS",
        help="address to listen on, may be given several times; ::: all, IPv4 as well; default: 127.0.0.1",
    )  # fmt: skip
    add("--port", type=_port, default=8765, action=_StorePort, help="TCP port; 0 takes a free one")
    add("--uds", metavar="PATH", help="listen on a Unix socket instead of a TCP port")
    add("--uds-mode", metavar="MODE", type=_mode, help="permissions of the Unix socket, in octal, e.g. 660")
    add("--uds-group", metavar="GROUP", help="group of the Unix socket, e.g. that of the proxy which connects to it")
    add("--tls-cert", metavar="FILE", help="certificate chain (PEM): speak TLS")
    add("--tls-key", metavar="FILE", help="private key (PEM), if it is not in the certificate's file")
    add("--transport", choices=get_args(TransportName), default="native", help="what carries the WebSockets")
    add("--drain-timeout", type=_seconds, default=10.0, metavar="SECONDS", help="time for an orderly end")
    add(
        "--room", action="append", default=[], metavar="PATTERN:KEY=VALUE,...", type=room_policy,
        help="policy of rooms whose name matches, e.g. 'ticker.*:overflow=conflate,announce=no'; keys: overflow ("
        + ", ".join(policy.value for policy in Overflow)
        + "), block-timeout, members-publish, announce, announce-limit, history ("
        + ", ".join(keep.value for keep in HistoryStorage)
        + "), history-size, history-age; the first that matches holds",
    )  # fmt: skip
    add(
        "--allow-origin", action="append", default=[], metavar="ORIGIN",
        help="web pages that may connect beside those of the server's own host, e.g. https://example.com; *: any",
    )  # fmt: skip
    add(
        "--store", type=_store, default="memory", metavar="URL",
        help="where stored rooms and inboxes are kept: memory (lost with the process), sqlite:PATH, redis://, postgres://",
    )  # fmt: skip
    add(
        "--broker", type=_broker, metavar="URL",
        help="what connects this server with others, as one: redis://, nats://, postgres://; needs a --store that they share",
    )  # fmt: skip
    add(
        "--workers", type=_workers, default=1, metavar="N",
        help="processes that serve clients on the same port, as one server; auto: as many as there are cores",
    )  # fmt: skip
    add_worker_options(serve_command)
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="what is logged, on stderr")
    group = serve_command.add_argument_group("limits and batching")
    for field in attrs.fields(Options):
        if "help" in field.metadata:
            group.add_argument(f"--{field.name.replace('_', '-')}", **_flag(field))
    add_connect(commands)
    add_bench(commands)
    return parser


def _flag(field: "attrs.Attribute[Any]") -> dict[str, Any]:
    """An option's command-line flag, from its definition in `config`."""
    default, text = field.default, field.metadata["help"].replace("%", "%%")
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction, "default": default, "help": text}
    if isinstance(default, enum.Enum):
        choices = [choice.value for choice in type(default) if choice in field.metadata.get("choices", type(default))]
        return {"choices": choices, "default": default.value, "help": text}
    if isinstance(default, str):
        return {"default": default, "help": text, "metavar": field.metadata.get("metavar", "PATH")}
    kind = float if isinstance(default, float) else int
    return {"type": kind, "default": default, "help": text, "metavar": "SECONDS" if kind is float else "N"}


_ALLOW_ORIGINS = "'allow_origins' "


def _options(chosen: argparse.Namespace) -> Options:
    """Raises ValueError with a sentence that names the flag."""
    values = {field.name: getattr(chosen, field.name) for field in attrs.fields(Options) if "help" in field.metadata}
    for name, value in values.items():
        try:
            Options(**{name: value})
        except (ValueError, TypeError) as error:
            sentence = error.args[0].removeprefix(f"'{name}' ")
            raise ValueError(f"argument --{name.replace('_', '-')}: {sentence}") from None
    try:
        return Options(**values, policies=tuple(chosen.room), allow_origins=tuple(chosen.allow_origin))
    except ValueError as error:
        raise ValueError(f"argument --allow-origin: {error.args[0].removeprefix(_ALLOW_ORIGINS)}") from None


def _mode(text: str) -> int:
    if not re.fullmatch("0?[0-7]{3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not permissions in octal, such as 660")
    return int(text, 8)


def _workers(text: str) -> int:
    if text == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of processes, 1 to {MAX_WORKERS}, nor auto")
    return int(text)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a valid port (0 to 65535)")
    return int(text)


def _broker(text: str) -> str:
    try:
        open_broker(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _store(text: str) -> str:
    try:
        return check_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return seconds


def _tls(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """Raises ValueError."""
    if certificate is None:
        if key is not None:
            raise ValueError("argument --tls-key: needs --tls-cert")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(_what_is_wrong(certificate, key, error)) from None
    return context


def _what_is_wrong(certificate: str, key: str | None, error: OSError) -> str:
    """Why a certificate and its key cannot be used, with the flag and the file that are to blame."""
    flag, path = "--tls-cert", certificate
    try:
        if b"CERTIFICATE-----" not in Path(path).read_bytes():
            return f"argument {flag}: there is no certificate (PEM) in {path!r}"
        if key is not None:
            flag, path = "--tls-key", key
        if b"PRIVATE KEY-----" not in Path(path).read_bytes():
            hint = ": name its file with --tls-key" if key is None else ""
            return f"argument {flag}: there is no private key (PEM) in {path!r}{hint}"
    except OSError as unreadable:
        return f"argument {flag}: cannot read {path!r}: {unreadable.strerror or unreadable}"
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
        return f"argument {flag}: the private key in {path!r} is that of another certificate"
    return f"argument --tls-cert: cannot use {certificate!r}: {reason or error.strerror or error}"


def _no_password() -> str:
    """OpenSSL would ask on the terminal, and a server that is started by a machine would wait there forever."""
    raise ValueError("argument --tls-key: the private key is encrypted: give one without a password")


def raise_file_limit() -> None:
    """Let this process open as many files as it may: every connection is one."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError) as error:  # where `hard` is more than the kernel really gives
        logging.getLogger(__name__).debug("the limit on open files stays: %s", error)
