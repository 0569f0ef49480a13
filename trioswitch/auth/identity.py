"""Who a connection is, and what it may do."""

from fnmatch import fnmatchcase

import attrs

__all__ = ["ANONYMOUS", "Identity"]


@attrs.frozen(kw_only=True)
class Identity:
    """A user, known from a token or from the application's `on_connect`.

    `join` and `publish` are room names or patterns (`*`, `?`, `[a-z]`): rooms that it may join, and rooms that it may
    publish to without having joined them.
    """

    user: str | None
    """None: anonymous. Then the client may name its user itself, in `user_id`."""
    join: tuple[str, ...] = ("*",)
    publish: tuple[str, ...] = ()

    def may_join(self, room: str) -> bool:
        return any(fnmatchcase(room, pattern) for pattern in self.join)

    def may_publish(self, room: str) -> bool:
        return any(fnmatchcase(room, pattern) for pattern in self.publish)


ANONYMOUS = Identity(user=None)
