"""Everything that can be configured: the sections of the file, and what each key means.

`config init`, the JSON schema, docs/options.md and the flags of `serve` are made from these classes.
"""

from typing import Any, Final, Literal, NewType

import attrs
from attrs.validators import ge, gt, le, optional

from ..config import Options, RoomPolicy

__all__ = [
    "SECTIONS",
    "ApiKeySettings",
    "ApiSettings",
    "AuthSettings",
    "BackendSettings",
    "ConsoleSettings",
    "EngineSettings",
    "LimitSettings",
    "LogSettings",
    "MonitoringSettings",
    "Seconds",
    "ServerSettings",
    "Settings",
    "Size",
]  # fmt: skip

Seconds = NewType("Seconds", float)
"""A duration, which a file may write with a unit."""
Size = NewType("Size", int)
"""Bytes, which a file may write with a unit."""
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


def setting(default: Any, help: str, *, flag: str | None = None, validator: Any = None, secret: bool = False) -> Any:
    """A key. `flag` is the name of the flag's value, where that differs from the key's; `secret` values are never shown."""
    metadata = {"help": help, "flag": flag, "secret": secret}
    if isinstance(default, list):
        return attrs.field(factory=lambda: list(default), validator=validator, metadata=metadata)
    return attrs.field(default=default, validator=validator, metadata=metadata)


@attrs.frozen(kw_only=True)
class ServerSettings:
    """Where the server listens."""

    host: list[str] = setting(["127.0.0.1"], 'addresses to listen on; "::" is all of them, IPv4 as well')
    port: int = setting(8765, "TCP port; 0 takes a free one", validator=[ge(0), le(65535)])
    insecure: bool = setting(False, "let anybody in from other machines: without [auth], it listens on loopback only")
    uds: str | None = setting(None, "path of a Unix socket to listen on instead of a TCP port")
    uds_mode: str | None = setting(None, 'permissions of the Unix socket, in octal, such as "660"')
    uds_group: str | None = setting(None, "group of the Unix socket, such as that of the proxy which connects to it")
    tls_cert: str | None = setting(None, "file with the certificate chain (PEM): speak TLS; read again at SIGHUP")
    tls_key: str | None = setting(None, "file with the private key (PEM), if it is not in the certificate's file")
    path: str = setting("/ws", "path of the WebSocket; it is at / as well")
    allow_origins: list[str] = setting(
        [], 'web pages that may connect beside those of the server\'s own host, such as "https://example.com"; "*": any',
        flag="allow_origin",
    )  # fmt: skip
    trusted_proxies: list[str] = setting(
        [], 'addresses or networks of proxies, such as "10.0.0.0/8", or "unix socket", whose X-Forwarded-For is believed',
        flag="trusted_proxy",
    )  # fmt: skip
    proxy_protocol: bool = setting(
        False, "trusted proxies begin each connection with a PROXY header, of version 1 or 2"
    )
    transport: Literal["native", "trio-websocket"] = setting("native", "what carries the WebSockets")
    workers: str = setting(
        "1", 'processes that serve clients on the same port, as one server; "auto": one for each core'
    )
    drain_timeout: Seconds = setting(Seconds(10.0), "time for a graceful shutdown", validator=ge(0))
    node_name: str = setting("", "name of this node of a cluster, for people; without one, its id")


@attrs.frozen(kw_only=True)
class EngineSettings:
    """What keeps messages, and what connects several servers."""

    store: str = setting(
        "memory",
        'where stored rooms and inboxes are kept: "memory" (lost with the process), "sqlite:PATH", "redis://...", "postgres://..."',
    )
    broker: str | None = setting(
        None,
        'what connects this server with others, as one: "redis://...", "nats://...", "postgres://..."; needs a store they share',
    )


@attrs.frozen(kw_only=True)
class AuthSettings:
    """Tokens: JSON Web Tokens that clients bring. Without a key here, clients need none."""

    secrets: list[str] = setting(
        [],
        "secrets of at least 32 bytes for tokens with HS256, HS384, HS512; several while one replaces another",
        secret=True,
    )
    public_keys: list[str] = setting(
        [], "files with public keys or certificates (PEM), or JSON Web Key Sets (.json); read again at SIGHUP"
    )
    jwks_url: str | None = setting(None, "URL of a JSON Web Key Set, which is fetched again every 5 minutes")
    audience: str | None = setting(None, "what a token's `aud` must contain")
    issuer: str | None = setting(None, "what a token's `iss` must be")
    join: list[str] = setting(["*"], "rooms, or patterns of rooms, that a token without `caps` lets its user join")
    publish: list[str] | None = setting(
        None, "rooms, or patterns, that it lets its user publish to; without it, those that the user has joined"
    )

    @property
    def uses_tokens(self) -> bool:
        return bool(self.secrets or self.public_keys or self.jwks_url)


@attrs.frozen(kw_only=True)
class BackendSettings:
    """Hooks over HTTP: URLs of a backend that decides what clients may do."""

    connect: str | None = setting(None, "URL that is asked who a client is; with it, clients may come without a token")
    refresh: str | None = setting(
        None, "URL that is asked whether a client may stay whose token, or whose time, has run out"
    )
    join: str | None = setting(None, "URL that is asked whether a client may join a room")
    publish: str | None = setting(None, "URL that is asked whether a client may publish to a room")
    timeout: Seconds = setting(
        Seconds(1.0), "time for an answer; after it, the client is refused for now", validator=gt(0)
    )
    max_concurrent: int = setting(100, "calls at once; more wait", validator=ge(1))


@attrs.frozen(kw_only=True)
class ApiKeySettings:
    """A key of the HTTP API, and what it may be used for."""

    key: str | None = setting(None, "the key, at least 16 characters", secret=True)
    file: str | None = setting(None, "or a file that holds it; read again at SIGHUP")
    methods: list[str] = setting(["*"], "methods that it may be used for, or patterns of them")
    rooms: list[str] = setting(["*"], "rooms that it may be used for, or patterns of them")


@attrs.frozen(kw_only=True)
class ApiSettings:
    """The HTTP API, for backends. It needs a key."""

    key: str | None = setting(None, "a key of at least 16 characters that may do everything", secret=True)
    keys: list[ApiKeySettings] = setting([], "more keys, each a table [[api.keys]]")
    port: int | None = setting(
        None,
        "a port of its own for the API, metrics and health, rather than that of clients",
        flag="admin_port",
        validator=optional([ge(0), le(65535)]),
    )
    host: str = setting("127.0.0.1", "address of that port", flag="admin_host")


@attrs.frozen(kw_only=True)
class ConsoleSettings:
    """The console for operators, at /admin. It needs a password."""

    password: str | None = setting(
        None, "password of at least 12 characters; who knows it sees everything", secret=True
    )


@attrs.frozen(kw_only=True)
class MonitoringSettings:
    """Alarms: above these values, the log, a metric and a webhook tell, and again when it is over."""

    alarm_memory: Size | None = setting(None, "resident memory of the process")
    alarm_cpu: float | None = setting(None, "cores that the process uses, 0.9 say")
    alarm_lag: Seconds | None = setting(None, "seconds by which the event loop is late")
    alarm_error_rate: float | None = setting(None, "share of messages that are dropped, 0 to 1")
    alarm_connections: int | None = setting(None, "connections that are open")
    alarm_webhook: str | None = setting(None, "URL that each alarm is posted to, as JSON")


@attrs.frozen(kw_only=True)
class LogSettings:
    """The log, on stderr."""

    level: LogLevel = setting("info", "what is logged; changes at SIGHUP", flag="log_level")
    format: LogFormat = setting("text", "text, for people, or one JSON object a line", flag="log_format")


def _limits() -> type:
    """A class with the options that are limits, whose values may have units."""
    elsewhere = {field.name for field in attrs.fields(ServerSettings)}
    fields = {}
    for field in attrs.fields(Options):
        if "help" in field.metadata and field.name not in elsewhere:
            fields[field.name] = attrs.field(
                default=getattr(field.default, "value", field.default),
                type=_type(field),
                converter=field.converter,
                validator=field.validator,
                metadata={"help": field.metadata["help"], "flag": None, "secret": False},
            )
    made: type = attrs.make_class("LimitSettings", fields, frozen=True, kw_only=True)
    made.__doc__ = "Limits and batching: each option of the library's `Options`."
    return made


def _type(field: "attrs.Attribute[Any]") -> Any:
    default = field.default
    if isinstance(default, bool):
        return bool
    if isinstance(default, float):
        return Seconds
    if isinstance(default, int) or default is None:
        kind: Any = Size if "bytes" in field.name else int
        return kind | None if default is None else kind
    return str


LimitSettings: Final[Any] = _limits()


@attrs.frozen(kw_only=True)
class Settings:
    """A whole configuration."""

    server: ServerSettings = attrs.field(factory=ServerSettings)
    engines: EngineSettings = attrs.field(factory=EngineSettings)
    auth: AuthSettings = attrs.field(factory=AuthSettings)
    backend: BackendSettings = attrs.field(factory=BackendSettings)
    api: ApiSettings = attrs.field(factory=ApiSettings)
    console: ConsoleSettings = attrs.field(factory=ConsoleSettings)
    monitoring: MonitoringSettings = attrs.field(factory=MonitoringSettings)
    log: LogSettings = attrs.field(factory=LogSettings)
    limits: LimitSettings = attrs.field(factory=LimitSettings)
    rooms: list[RoomPolicy] = attrs.field(factory=list)
    """Policies of rooms by name pattern, each a table [[rooms]]: the first that matches holds."""


SECTIONS: Final[dict[str, Any]] = {
    "server": ServerSettings,
    "engines": EngineSettings,
    "auth": AuthSettings,
    "backend": BackendSettings,
    "api": ApiSettings,
    "console": ConsoleSettings,
    "monitoring": MonitoringSettings,
    "log": LogSettings,
    "limits": LimitSettings,
}
"""The sections that are tables, by name, in the order in which they are shown."""
