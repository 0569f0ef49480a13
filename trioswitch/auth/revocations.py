"""Tokens that are not accepted any more, although they are valid."""

from collections import OrderedDict
from typing import Final

from .._util import clock
from .identity import Identity

__all__ = ["Revocations"]

MAX_REVOCATIONS: Final = 100_000
"""Users, and token ids, that are known; beyond that the oldest are forgotten."""


class Revocations:
    """Knows tokens by user, by id and by time of issue. They are kept as long as the process runs."""

    def __init__(self) -> None:
        self._users: OrderedDict[str, float] = OrderedDict()
        self._tokens: OrderedDict[tuple[str, str | None], None] = OrderedDict()
        self._before = 0.0

    def add(self, user: str | None, token_id: str | None, issued_before: float | None) -> None:
        """Revoke the token with an id, or all issued before a time (seconds since 1970; None: now), of a user or of all users."""
        if token_id is not None:
            self._tokens[token_id, user] = None
            _shrink(self._tokens)
            return
        before = clock.wall_time() if issued_before is None else issued_before
        if user is None:
            self._before = max(self._before, before)
        else:
            self._users[user] = max(before, self._users.pop(user, 0.0))
            _shrink(self._users)

    def has(self, identity: Identity) -> bool:
        """Whether an identity comes from a token that was revoked. One of unknown time is taken to be old."""
        issued_at, user = identity.issued_at or 0.0, identity.user
        if issued_at < self._before or (user is not None and issued_at < self._users.get(user, 0.0)):
            return True
        id = identity.token_id
        return id is not None and ((id, None) in self._tokens or (id, user) in self._tokens)


def _shrink(known: "OrderedDict[str, float] | OrderedDict[tuple[str, str | None], None]") -> None:
    if len(known) > MAX_REVOCATIONS:
        known.popitem(last=False)
