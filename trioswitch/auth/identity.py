"""Who a connection is, and what it may do."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, Final

import attrs

from .._util.checks import check_text

__all__ = ["ANONYMOUS", "GUEST", "Identity", "literal", "share_of"]

MAX_NAME: Final = 255


def _patterns(patterns: Iterable[str] | str) -> tuple[str, ...]:
    """Several patterns, or one: a single string counts as one pattern."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _optional_patterns(patterns: Iterable[str] | str | None) -> tuple[str, ...] | None:
    return None if patterns is None else _patterns(patterns)


def _check_patterns(_identity: "Identity", field: "attrs.Attribute[Any]", patterns: tuple[str, ...] | None) -> None:
    for pattern in patterns or ():
        check_text(f"each pattern of '{field.name}'", pattern, MAX_NAME)


def _check_flag(_identity: "Identity", field: "attrs.Attribute[Any]", flag: object) -> None:
    if not isinstance(flag, bool):
        raise TypeError(f"'{field.name}' must be True or False: {flag!r}")


def _check_time(_identity: "Identity", field: "attrs.Attribute[Any]", seconds: Any) -> None:
    if seconds is not None and (
        not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds != seconds
    ):
        raise TypeError(f"'{field.name}' must be seconds since 1970: {seconds!r}")


def _check_token_id(_identity: "Identity", _field: object, id: Any) -> None:
    if id is not None and not isinstance(id, str):
        raise TypeError(f"'token_id' must be a str: {id!r}")


def literal(name: str, special: str = "") -> str:
    """A pattern that matches a name; of `*?[`, only those in `special` keep their meaning."""
    return "".join([f"[{char}]" if char in "*?[" and char not in special else char for char in name])


def _allows(patterns: Iterable[str], room: str) -> bool:
    return any(fnmatchcase(room, pattern) for pattern in patterns)


def _check_user(_identity: "Identity", _field: object, user: str | None) -> None:
    if user is not None:
        check_text("the user of an identity", user, MAX_NAME)


@attrs.frozen(kw_only=True)
class Identity:
    """A user, known from a token or from the application's `on_connect`. An attrs class: it is immutable.

    `join`, `publish`, `presence` and `history` are room names or patterns (`*`, `?`, `[a-z]`), one or several. Raises
    TypeError and ValueError for what is not a name or a pattern.
    """

    user: str | None = attrs.field(validator=_check_user)
    """The user's name, 1 to 255 bytes in UTF-8. None: a guest, whose user is the id of its connection."""
    join: tuple[str, ...] = attrs.field(default=("*",), converter=_patterns, validator=_check_patterns)
    """Rooms that it may join."""
    publish: tuple[str, ...] | None = attrs.field(default=None, converter=_optional_patterns, validator=_check_patterns)
    """Rooms that it may publish to, whether it has joined them or not; with `()` none. None: rooms that it has joined, where
    the room's policy lets members publish (`RoomPolicy.members_publish`)."""
    may_choose_name: bool = attrs.field(default=False, validator=_check_flag)
    """Whether a guest's client may name its user, in `user_id`. Anybody can take any name then: do not mix such guests with users
    who authenticate."""
    presence: tuple[str, ...] | None = attrs.field(
        default=None, converter=_optional_patterns, validator=_check_patterns
    )
    """Rooms whose presence it may ask for. None: those that it may join."""
    history: tuple[str, ...] | None = attrs.field(default=None, converter=_optional_patterns, validator=_check_patterns)
    """Rooms whose history it may read. None: those that it may join. What it missed while its connection was lost, it gets in any
    case."""
    rooms: tuple[str, ...] = attrs.field(default=(), converter=_patterns, validator=_check_patterns)
    """Rooms that the server makes it a member of when it connects."""
    expires_at: float | None = attrs.field(default=None, validator=_check_time)
    """Seconds since 1970 at which its connections are closed with 4500, unless the client has sent a new token. None: never."""
    token_id: str | None = attrs.field(default=None, validator=_check_token_id)
    """The id of its token (`jti`), by which it can be revoked."""
    issued_at: float | None = attrs.field(default=None, validator=_check_time)
    """Seconds since 1970 at which its token was issued (`iat`)."""
    info: Any = attrs.field(default=None, eq=False)
    """Anything that the application knows of the user: it reads it as `connection.identity.info`. Clients never see it."""

    def may_join(self, room: str) -> bool:
        """Whether it may join this room."""
        return _allows(self.join, room)

    def may_see_presence(self, room: str) -> bool:
        """Whether it may ask who is in this room."""
        return _allows(self.join if self.presence is None else self.presence, room)

    def may_read_history(self, room: str) -> bool:
        """Whether it may read the history of this room."""
        return _allows(self.join if self.history is None else self.history, room)

    def may_publish(self, room: str, *, as_member: bool) -> bool:
        """Whether it may publish to this room. `as_member`: it has joined the room, and the room lets its members publish."""
        if self.publish is None:
            return as_member
        return _allows(self.publish, room)


GUEST = Identity(user=None)
"""A client that no hook has named, on a server where hooks name clients."""
ANONYMOUS = Identity(user=None, may_choose_name=True)
"""Every client of a server without hooks: it is believed who it says that it is."""


def share_of(identity: Identity) -> str:
    """The name under which the bytes that it stores are counted: a user's own, or one for all guests, who can have many names."""
    return "guests" if identity.user is None else f"user {identity.user}"
