"""Every limit and every choice: named, with its unit, its default and the reason for it.

`python -m trioswitch serve --help` is made from this page: an option's flag is its name with dashes.
"""

import enum
import fnmatch
import re
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any, TypeVar

import attrs
from attrs.validators import ge, gt, in_, le, optional

__all__ = ["HistoryStorage", "Options", "Overflow", "RoomPolicy", "one_of"]

_Choice = TypeVar("_Choice", bound=enum.Enum)

KIB, MIB = 1024, 1024 * 1024
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^A-Z/?#\s]+|null|\*")
"""As browsers send it (RFC 6454, section 6.2), or `*` for all."""


class Overflow(enum.Enum):
    """What happens to a member that cannot take more. The others never wait for it, but under `BLOCK`."""

    BLOCK = "block"
    """The room waits for it, up to `block_timeout`; then the message is dropped for it."""
    DROP_OLDEST = "drop_oldest"
    """Its oldest waiting message of this room gives way."""
    DROP_NEWEST = "drop_newest"
    """The new message is not queued for it."""
    CONFLATE = "conflate"
    """A message replaces the waiting one with the same key, at any time; when it is full, as `DROP_OLDEST`."""
    RESYNC = "resync"
    """All its waiting messages of this room are dropped: it is told of the gap and catches up by itself."""
    DISCONNECT = "disconnect"
    """Its connection is closed with 4000; it comes back when it can."""


class HistoryStorage(enum.Enum):
    """Where a room's history is kept."""

    NONE = "none"
    MEMORY = "memory"
    """In this process, and gone with it."""
    STORED = "stored"
    """In the store: a publish is acknowledged, and delivered, after it was committed there."""


DIRECT_OVERFLOW = (Overflow.DROP_OLDEST, Overflow.DROP_NEWEST, Overflow.DISCONNECT)
"""What there is for messages that belong to no room: nobody waits, conflates or catches up there."""


def one_of(kind: type[_Choice], value: _Choice | str) -> _Choice:
    """A choice by its value. Raises ValueError with a sentence."""
    if value not in list(kind) and value not in [choice.value for choice in kind]:
        raise ValueError(f"{value!r} is not one of {', '.join(choice.value for choice in kind)}")
    return kind(value)


def _overflow(value: Overflow | str) -> Overflow:
    return one_of(Overflow, value)


def _keep(value: HistoryStorage | str) -> HistoryStorage:
    return one_of(HistoryStorage, value)


def _policies(policies: "Iterable[RoomPolicy] | RoomPolicy") -> "tuple[RoomPolicy, ...]":
    """Several of them, or one. Raises TypeError."""
    several = (policies,) if isinstance(policies, RoomPolicy) else tuple(policies)
    for policy in several:
        if not isinstance(policy, RoomPolicy):
            raise TypeError(
                f"'policies' must be RoomPolicy objects, such as RoomPolicy(pattern='chat*'), not {policy!r}"
            )
    return several


def _origins(origins: Iterable[str] | str) -> tuple[str, ...]:
    """Several origins, or one. Raises TypeError and ValueError."""
    several = (origins,) if isinstance(origins, str) else tuple(origins)
    for origin in several:
        if not isinstance(origin, str):
            raise TypeError(f"'allow_origins' must be origins such as 'https://example.com', not {origin!r}")
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"'allow_origins' {origin!r} is not an origin: one is in lower case and has no path, such as "
                "'https://example.com'; '*' allows all"
            )
    return several


def _proxies(proxies: Iterable[str] | str) -> tuple[str, ...]:
    """Several networks, or one. Raises TypeError and ValueError."""
    several = (proxies,) if isinstance(proxies, str) else tuple(proxies)
    for proxy in several:
        if not isinstance(proxy, str):
            raise TypeError(f"'trusted_proxies' must be networks such as '10.0.0.0/8', not {proxy!r}")
        try:
            if proxy != "unix socket":
                ip_network(proxy, strict=False)
        except ValueError:
            raise ValueError(
                f"'trusted_proxies' {proxy!r} is neither a network, such as '10.0.0.0/8', nor 'unix socket'"
            ) from None
    return several


def _pattern(_policy: Any, _field: object, pattern: object) -> None:
    if not isinstance(pattern, str):
        raise TypeError(f"'pattern' must be a str: {pattern!r}")
    if not pattern or not pattern.isprintable():
        raise ValueError(f"'pattern' must be a name or a pattern of names: {pattern!a}")


def _path(_options: Any, _field: object, path: object) -> None:
    if not isinstance(path, str):
        raise TypeError(f"'path' must be a str: {path!r}")
    if not re.fullmatch("/[!-~]{0,254}", path) or "?" in path or "#" in path:
        raise ValueError(f"'path' must be a path such as /ws, in ASCII and without a query: {path!r}")


def _name(_options: Any, _field: object, name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"'node_name' must be a str: {name!r}")
    if not name.isprintable() or len(name) > 255:
        raise ValueError(f"'node_name' must be printable text of at most 255 characters: {name!a}")


def _whole(_options: Any, field: "attrs.Attribute[Any]", value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"'{field.name}' must be a whole number: {value!r}")


def _number(_options: Any, field: "attrs.Attribute[Any]", value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"'{field.name}' must be a number: {value!r}")


def _flag(_options: Any, field: "attrs.Attribute[Any]", value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"'{field.name}' must be True or False: {value!r}")


_KINDS: dict[type, Any] = {bool: _flag, int: _whole, float: _number}


def option(default: Any, help: str, *validators: Any) -> Any:
    """One of a class's options; it takes what its default is. The sentences of its errors begin with its quoted name."""
    kind = () if default is None else (_KINDS[type(default)],)
    return attrs.field(default=default, validator=[*kind, *validators], metadata={"help": help})


@attrs.frozen(kw_only=True)
class RoomPolicy:
    """How rooms whose name matches `pattern` (shell-style: `*`, `?`, `[a-z]`) treat slow members, announcements, history."""

    pattern: str = attrs.field(default="*", validator=_pattern)
    overflow: Overflow = attrs.field(default=Overflow.DROP_OLDEST, converter=_overflow)
    block_timeout: float = option(1.0, "seconds that a room waits for its slowest members under `block`", gt(0))
    members_publish: bool = attrs.field(default=True, validator=_flag)
    """Whether members may publish. If not, only the server may, and clients whose identity names the room in `publish`."""
    announce: bool = attrs.field(default=True, validator=_flag)
    """Whether joins and leaves are announced at all."""
    announce_limit: int = option(100, "users above which joins and leaves are not announced one by one", ge(0))
    history: HistoryStorage = attrs.field(default=HistoryStorage.NONE, converter=_keep)
    history_size: int = option(100, "messages that the history keeps", ge(1), le(2**63 - 1))
    history_age: float | None = option(
        None, "seconds that the history keeps a message; without it, any time", optional([_number, gt(0)])
    )

    def matches(self, room: str) -> bool:
        return fnmatch.fnmatchcase(room, self.pattern)


@attrs.frozen(kw_only=True)
class Options:
    """The switch's options. Frozen: an option that changed under way would hold for some connections only."""

    batch_messages: int = option(64, "messages in one batch at most", ge(1), le(65535))
    batch_bytes: int = option(64 * KIB, "bytes in one batch at most; a larger message goes alone", ge(1))
    linger: float = option(
        0.0,
        "seconds that a batch waits for more messages; 0 writes at once (batches still form by themselves while a socket "
        "is busy), the 0.05 of many push servers trades latency for fewer writes",
        ge(0),
    )
    outbox_messages: int = option(1024, "messages that may wait for one connection", ge(1))
    outbox_bytes: int = option(1 * MIB, "bytes that may wait for one connection", ge(1))
    total_outbox_bytes: int = option(
        512 * MIB, "bytes that may wait for all connections together; above it every outbox counts as full", ge(1)
    )
    direct_overflow: Overflow = attrs.field(
        default=Overflow.DROP_NEWEST,
        converter=_overflow,
        validator=in_(DIRECT_OVERFLOW),
        metadata={
            "help": "what happens to a direct, group or broadcast message for a full outbox",
            "choices": DIRECT_OVERFLOW,
        },
    )
    room_messages: int = option(4096, "messages that may wait in a room; then its publishers wait", ge(1))
    room_bytes: int = option(4 * MIB, "bytes that may wait in a room; then its publishers wait", ge(1))
    window_messages: int = option(1024, "messages that a room delivers at once at most", ge(1))
    window_bytes: int = option(
        256 * KIB, "bytes that a room delivers at once at most; a larger message goes alone", ge(1)
    )
    policies: tuple[RoomPolicy, ...] = attrs.field(default=(), converter=_policies)
    """Policies for rooms by name pattern: the first that matches holds, `RoomPolicy()` where none does."""
    allow_origins: tuple[str, ...] = attrs.field(default=(), converter=_origins)
    """Origins of web pages that may connect beside those of the server's own host; a star allows any."""
    path: str = attrs.field(
        default="/ws", validator=_path, metadata={"help": "path of the WebSocket; it is at / as well"}
    )
    max_head_bytes: int = option(
        16 * KIB, "bytes in the head of a request, of a WebSocket or a page; a longer one gets 431", ge(512)
    )
    max_message_bytes: int = option(
        1 * MIB, "bytes in one message from a client; a larger one closes with 1009", ge(125)
    )
    max_fragments: int = option(1024, "fragments in one message from a client", ge(1))
    max_rooms: int = option(128, "rooms that one connection may be in, about 5 KB each", ge(1))
    max_errors: int = option(10, "malformed messages in a row before a connection is closed with 1008", ge(0))
    handler_queue: int = option(16, "messages that wait for the application's handlers of one connection", ge(1))
    compression: bool = option(True, "whether permessage-deflate is offered")
    compression_min_bytes: int = option(
        1 * KIB, "bytes from which a message is compressed: smaller ones gain little", ge(1)
    )
    compression_level: int = option(6, "zlib's level, 1 (fast) to 9 (small)", ge(1), le(9))
    incoming_context_takeover: bool = option(
        False, "whether clients may keep their compression context, at 40 KB of memory for each connection"
    )
    ping_interval: float = option(25.0, "seconds between two WebSocket pings to a client", gt(0))
    ping_timeout: float = option(20.0, "seconds in which a client must answer a ping, or is closed with 4001", gt(0))
    handshake_timeout: float = option(10.0, "seconds for a whole handshake, TLS and authentication included", gt(0))
    session_time: float = option(
        120.0, "seconds in which a client that lost its connection may resume its session; 0: it never can", ge(0)
    )
    leave_grace: float = option(
        10.0, "seconds that such a client keeps its place in rooms before it is announced to have left", ge(0)
    )
    max_sessions: int = option(
        100_000,
        "sessions of clients that are away; beyond it the one that is away longest ends",
        ge(1),
    )
    total_session_bytes: int = option(
        256 * MIB, "bytes of sessions of clients that are away; beyond it the largest end", ge(1)
    )
    inbox_messages: int = option(
        100, "direct messages that wait for a user who is away; more are refused. 0: none are kept", ge(0)
    )
    inbox_bytes: int = option(1 * MIB, "bytes of direct messages that wait for one user; more are refused", ge(1))
    total_inbox_bytes: int = option(
        512 * MIB, "bytes of direct messages that wait for all users together; more are refused", ge(1)
    )
    inbox_age: float = option(7 * 86400.0, "seconds that they wait at most", gt(0))
    history_bytes: int = option(
        512 * MIB,
        "bytes that all histories in memory may take; beyond it the room that takes most keeps fewer messages",
        ge(1),
    )
    total_stored_bytes: int = option(
        4096 * MIB,
        "bytes that the messages of all stored rooms may take; beyond it publishing to them is refused",
        ge(1),
    )
    close_timeout: float = option(5.0, "seconds for flushing and closing one connection", gt(0))
    hook_timeout: float = option(5.0, "seconds that on_disconnect and on_expire may take", gt(0))
    node_name: str = attrs.field(
        default="",
        validator=_name,
        metadata={"help": "name of this node of a cluster, for people; without one, its id", "metavar": "NAME"},
    )
    node_timeout: float = option(
        10.0, "seconds after which a node of a cluster that is silent is taken for dead, and its users have left", ge(5)
    )
    max_address_connections: int | None = option(
        None, "connections from one address at most; more get 429. Of IPv6, 64 bits count", optional([_whole, ge(1)])
    )
    max_user_connections: int | None = option(
        None, "connections of one user at most; more get 429", optional([_whole, ge(1)])
    )
    max_open_rooms: int | None = option(
        None, "rooms that are open at once; clients cannot join others", optional([_whole, ge(1)])
    )
    address_handshakes: int | None = option(
        None, "clients of one address that may connect in a second, on average; more get 429", optional([_whole, ge(1)])
    )
    connection_messages: int | None = option(
        None,
        "messages that one connection may send in a second, on average; faster ones are read later",
        optional([_whole, ge(1)]),
    )
    user_messages: int | None = option(
        None, "the same for all connections of one user together", optional([_whole, ge(1)])
    )
    address_messages: int | None = option(
        None, "the same for all connections from one address together", optional([_whole, ge(1)])
    )
    rate_burst: float = option(5.0, "seconds' worth of these rates that may come at once", gt(0))
    trusted_proxies: tuple[str, ...] = attrs.field(default=(), converter=_proxies)
    """Addresses and networks of proxies, or `unix socket`, whose `X-Forwarded-For` tells the address of a client."""
    max_connections: int | None = option(
        None,
        "connections at most; more get 503. Default: the limit on open files, less 64 for everything else",
        optional([_whole, ge(1)]),
    )

    @property
    def needs_store(self) -> bool:
        """Whether a policy promises what only a durable store can keep."""
        return any(policy.history is HistoryStorage.STORED for policy in self.policies)

    def policy(self, room: str) -> RoomPolicy:
        return next((policy for policy in self.policies if policy.matches(room)), _DEFAULT_POLICY)


_DEFAULT_POLICY = RoomPolicy()
