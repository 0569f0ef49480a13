"""Who a connection is, and what it may do."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, Final

import attrs

from .._util.checks import check_text

__all__ = ["ANONYMOUS", "Identity"]

MAX_NAME: Final = 255


def _patterns(patterns: Iterable[str] | str) -> tuple[str, ...]:
    """Several patterns, or one: a single string counts as one pattern."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _check_patterns(_identity: "Identity", field: "attrs.Attribute[Any]", patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        check_text(f"each pattern of '{field.name}'", pattern, MAX_NAME)


def _check_user(_identity: "Identity", _field: object, user: str | None) -> None:
    if user is not None:
        check_text("the user of an identity", user, MAX_NAME)


@attrs.frozen(kw_only=True)
class Identity:
    """A user, known from a token or from the application's `on_connect`. An attrs class: it is immutable.

    `join` and `publish` are room names or patterns (`*`, `?`, `[a-z]`), one or several: rooms that it may join, and rooms that
    it may publish to without having joined them. Raises TypeError and ValueError for what is not a name or a pattern.
    """

    user: str | None = attrs.field(validator=_check_user)
    """The user's name, 1 to 255 characters. None: anonymous; then the client may name its user itself, in `user_id`."""
    join: tuple[str, ...] = attrs.field(default=("*",), converter=_patterns, validator=_check_patterns)
    publish: tuple[str, ...] = attrs.field(default=(), converter=_patterns, validator=_check_patterns)
    info: Any = attrs.field(default=None, eq=False)
    """Anything that the application knows of the user: it reads it as `connection.identity.info`. Clients never see it."""

    def may_join(self, room: str) -> bool:
        """Whether it may join this room."""
        return any(fnmatchcase(room, pattern) for pattern in self.join)

    def may_publish(self, room: str) -> bool:
        """Whether it may publish to this room without having joined it."""
        return any(fnmatchcase(room, pattern) for pattern in self.publish)


ANONYMOUS = Identity(user=None)
