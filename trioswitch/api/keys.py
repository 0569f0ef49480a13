"""Keys of the HTTP API: who may call which method, for which rooms."""

import hmac
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

import attrs

__all__ = ["ApiKey", "find_key"]

MIN_KEY: Final = 16


def _patterns(patterns: Iterable[str] | str) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _check_key(_key: Any, _field: object, key: Any) -> None:
    if not isinstance(key, str) or len(key) < MIN_KEY or not key.isascii() or not key.isprintable():
        raise ValueError(f"an API key must have at least {MIN_KEY} printable ASCII characters")


@attrs.frozen(repr=False)
class ApiKey:
    """A key, and what it is good for: method names and room names, or patterns of them. Raises ValueError."""

    key: str = attrs.field(validator=_check_key)
    methods: tuple[str, ...] = attrs.field(default=("*",), converter=_patterns)
    rooms: tuple[str, ...] = attrs.field(default=("*",), converter=_patterns)

    def __repr__(self) -> str:
        return f"ApiKey(methods={self.methods!r}, rooms={self.rooms!r})"

    def may_call(self, method: str) -> bool:
        return "*" in self.methods or any(fnmatchcase(method, pattern) for pattern in self.methods)

    def may_use(self, room: str) -> bool:
        return self.is_for_all_rooms or any(fnmatchcase(room, pattern) for pattern in self.rooms)

    @property
    def is_for_all_rooms(self) -> bool:
        return "*" in self.rooms


def find_key(keys: Sequence[ApiKey], given: str) -> ApiKey | None:
    """The key that was given. It takes equally long whichever it is, and whether or not it is one."""
    found = None
    data = given.encode()
    for key in keys:
        if hmac.compare_digest(key.key.encode(), data):
            found = key
    return found
