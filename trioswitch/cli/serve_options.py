"""The options of `serve`: flags, whose defaults are what the file and the environment say."""

import argparse
import enum
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn, get_args

import attrs

from ..admission import TransportName
from ..brokers.open import open_broker
from ..config import HistoryStorage, Options, Overflow
from ..settings.load import Loaded, load
from ..settings.model import SECTIONS, LogFormat, LogLevel
from ..settings.units import duration, size
from ..stores.open import check_url
from .room_policy import room_policy
from .supervisor import add_worker_options

__all__ = ["Parser", "add_serve_options", "chosen_options", "load_settings", "with_settings"]

USAGE: Final = 2
MAX_WORKERS: Final = 256
COMMON: Final = (
    "help", "help_all", "config", "host", "port", "tls_cert", "tls_key", "room", "store", "broker", "workers", "allow_origin",
    "insecure",
)  # fmt: skip
"""Options that `--help` shows; `--help-all` shows all of them."""


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says what the default is, where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default not in (None, []) else action.help


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, rather than all of the usage before it."""
        self.exit(USAGE, f"trioswitch: error: {message} ({self.prog} --help tells more)\n")


class _StorePort(argparse.Action):
    """Stores the port, and that it was given."""

    def __call__(self, _parser: object, chosen: argparse.Namespace, port: Any, _option: str | None = None) -> None:
        chosen.port, chosen.port_given = port, True


class _Several(argparse.Action):
    """Collects the values of a flag that may be given several times; those of the file are not among them."""

    def __call__(self, _parser: object, chosen: argparse.Namespace, value: Any, _option: str | None = None) -> None:
        given = getattr(chosen, "several", {})
        given.setdefault(self.dest, []).append(value)
        chosen.several = given
        setattr(chosen, self.dest, given[self.dest])


class _HelpAll(argparse.Action):
    """Prints the help with all options."""

    def __init__(self, make: Callable[[], argparse.ArgumentParser], **how: Any) -> None:
        super().__init__(**how, nargs=0, default=argparse.SUPPRESS)
        self._make = make

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        self._make().print_help()
        parser.exit()


def add_serve_options(parser: argparse.ArgumentParser, *, all_of_them: bool = False) -> None:
    """Add the options of `serve` to the parser of a command. Its help shows the common ones, or all."""

    def with_all() -> argparse.ArgumentParser:
        other = Parser(
            prog=parser.prog,
            description=parser.description,
            formatter_class=Formatter,
            usage=parser.usage,
            epilog=parser.epilog,
        )
        add_serve_options(other, all_of_them=True)
        return other

    def add(*names: str, group: Any = parser, **how: Any) -> None:
        dest = how.get("dest", names[0].lstrip("-").replace("-", "_"))
        if not all_of_them and dest not in COMMON:
            how["help"] = argparse.SUPPRESS
        group.add_argument(*names, **how)

    parser.set_defaults(port_given=False)
    parser.add_argument("--help-all", action=_HelpAll, make=with_all, help="show all options and exit")
    add(
        "--config", metavar="FILE", type=Path, default=None,
        help="the configuration, in TOML; flags go before it; without the flag, the variable TRIOSWITCH_CONFIG names it",
    )  # fmt: skip
    add(
        "--host", action=_Several, default=None, metavar="ADDRESS",
        help="address to listen on, may be given several times; ::: all, IPv4 as well; default: 127.0.0.1",
    )  # fmt: skip
    add("--port", type=_port, default=8765, action=_StorePort, help="TCP port; 0 takes a free one")
    add(
        "--insecure", action=argparse.BooleanOptionalAction, default=False,
        help="let anybody in from other machines: without tokens, the server listens on loopback only",
    )  # fmt: skip
    add("--uds", metavar="PATH", help="listen on a Unix socket instead of a TCP port")
    add("--uds-mode", metavar="MODE", type=_mode, help="permissions of the Unix socket, in octal, e.g. 660")
    add("--uds-group", metavar="GROUP", help="group of the Unix socket, e.g. that of the proxy which connects to it")
    add("--tls-cert", metavar="FILE", help="certificate chain (PEM): speak TLS")
    add("--tls-key", metavar="FILE", help="private key (PEM), if it is not in the certificate's file")
    add("--transport", choices=get_args(TransportName), default="native", help="what carries the WebSockets")
    add("--drain-timeout", type=_seconds, default=10.0, metavar="SECONDS", help="time for an orderly end")
    add(
        "--room", action=_Several, default=[], metavar="PATTERN:KEY=VALUE,...", type=room_policy,
        help="policy of rooms whose name matches, e.g. 'ticker.*:overflow=conflate,announce=no'; keys: overflow ("
        + ", ".join(policy.value for policy in Overflow)
        + "), block-timeout, members-publish, announce, announce-limit, history ("
        + ", ".join(keep.value for keep in HistoryStorage)
        + "), history-size, history-age; the first that matches holds",
    )  # fmt: skip
    add(
        "--allow-origin", action=_Several, default=[], metavar="ORIGIN",
        help="web pages that may connect beside those of the server's own host, e.g. https://example.com; *: any",
    )  # fmt: skip
    add(
        "--trusted-proxy", action=_Several, default=[], metavar="NETWORK",
        help="address or network of a proxy, or unix socket, whose X-Forwarded-For tells the address of clients",
    )  # fmt: skip
    add(
        "--proxy-protocol", action=argparse.BooleanOptionalAction, default=False,
        help="trusted proxies begin each connection with a PROXY header, which tells the address of the client",
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
    add_worker_options(parser)
    add(
        "--admin-port", type=_port, metavar="PORT",
        help="a port of its own for the HTTP API, metrics and health, rather than that of clients",
    )  # fmt: skip
    add("--admin-host", default="127.0.0.1", metavar="ADDRESS", help="address of that port")
    add("--log-level", choices=get_args(LogLevel), default="info", help="what is logged, on stderr")
    add("--log-format", choices=get_args(LogFormat), default="text", help="text for people, or JSON, an object a line")
    group = parser.add_argument_group("limits and batching") if all_of_them else parser
    for field in attrs.fields(Options):
        if "help" in field.metadata:
            add(f"--{field.name.replace('_', '-')}", group=group, **_flag(field))


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
    if isinstance(default, float):
        return {"type": _duration, "default": default, "help": text, "metavar": "SECONDS"}
    return {"type": _size if "bytes" in field.name else int, "default": default, "help": text, "metavar": "N"}


# --- the file and the environment


def load_settings(config: Path | None, environment: Mapping[str, str]) -> Loaded:
    """What the file and the environment say. Raises SettingsError."""
    named = environment.get("TRIOSWITCH_CONFIG")
    return load(Path(named) if config is None and named else config, environment)


def with_settings(
    parse: Callable[[], argparse.Namespace], parser: argparse.ArgumentParser, environment: Mapping[str, str]
) -> argparse.Namespace:
    """What the flags say, and where they say nothing, the environment, or else the file. `parse` is called twice.

    The result has `settings`, too. Raises SettingsError.
    """
    loaded = load_settings(parse().config, environment)
    defaults: dict[str, Any] = {}
    for name in SECTIONS:
        section = getattr(loaded.settings, name)
        for field in attrs.fields(type(section)):
            if f"{name}.{field.name}" in loaded.sources:
                defaults[field.metadata.get("flag") or field.name] = getattr(section, field.name)
    if loaded.settings.rooms:
        defaults["room"] = loaded.settings.rooms
    for name, value in list(defaults.items()):
        if isinstance(value, enum.Enum):
            defaults[name] = value.value
    own = {name: value for name, value in defaults.items() if any(action.dest == name for action in _actions(parser))}
    parser.set_defaults(**own, settings=loaded.settings, sources=loaded.sources)
    chosen = parse()
    if "server.port" in loaded.sources:
        chosen.port_given = True
    return chosen


def _actions(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    return parser._actions


def chosen_options(chosen: argparse.Namespace) -> Options:
    """Raises ValueError with a sentence that names the flag."""
    values = {field.name: getattr(chosen, field.name) for field in attrs.fields(Options) if "help" in field.metadata}
    for name, value in values.items():
        try:
            Options(**{name: value})
        except (ValueError, TypeError) as error:
            sentence = error.args[0].removeprefix(f"'{name}' ")
            raise ValueError(f"argument --{name.replace('_', '-')}: {sentence}") from None
    origins, proxies = tuple(chosen.allow_origin), tuple(chosen.trusted_proxy)
    lists = {
        "allow-origin": partial(Options, allow_origins=origins),
        "trusted-proxy": partial(Options, trusted_proxies=proxies),
    }
    for flag, make in lists.items():
        try:
            make()
        except ValueError as error:
            raise ValueError(f"argument --{flag}: {error.args[0].partition(' ')[2]}") from None
    return Options(**values, policies=tuple(chosen.room), allow_origins=origins, trusted_proxies=proxies)


# --- values


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
    seconds = _duration(text)
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return seconds


def _duration(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float(_with_unit(duration, text))


def _size(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return int(_with_unit(size, text))


def _with_unit(parse: Callable[[object], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
