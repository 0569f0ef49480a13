"""Idempotency keys: a retry with the same key publishes nothing, and gets the outcome of the first message.

Keys of what is stored are remembered by the store as well, over a restart too.
"""

from collections.abc import Callable
from typing import Final

import attrs
import trio

from .._util.checks import check_text
from .._util.expiry import DueQueue
from .._util.shares import Shares
from ..errors import TooManyRetries
from ..stores.port import KEY_TIME
from ..wire.commands import MAX_KEY
from ..wire.prepared import Outcome, Prepared, Receipt

__all__ = ["IdempotencyKeys", "scoped_key"]

MAX_BYTES: Final = 64 * 1024 * 1024
"""Bytes of keys whose outcome is remembered in memory, about 100,000 keys. Beyond it the user who has most loses the oldest."""
OVERHEAD: Final = 500
"""Bytes that a key takes beside its text (measured)."""
MAX_WAITING: Final = 100
"""Callers that wait for the outcome of one key, 0.3 KB each."""

OnOutcome = Callable[[Outcome], None]
_ScopedKey = tuple[str, str, str]


def scoped_key(owner: str | None, key: str) -> str:
    """The key as it is remembered: each user has keys of its own. `owner` None: all users without a name share theirs.

    Raises TypeError or ValueError for a key that is not valid. It has no NUL, so that it cannot be taken for one with an owner.
    """
    check_text("idempotency_key", key, MAX_KEY)
    if "\0" in key:
        raise ValueError("idempotency_key must not contain NUL")
    return key if owner is None else f"{owner}\0{key}"


def _owner(key: _ScopedKey) -> str:
    """The user whose key it is; empty for the server's own keys, and those of all users without a name."""
    return key[2].rpartition("\0")[0]


def _weight(key: _ScopedKey) -> int:
    """Bytes that it takes, at most: a character may take four."""
    return OVERHEAD + 4 * (len(key[1]) + len(key[2]))


class _First:
    """The first message with its key, while its outcome is not known: callbacks of those who wait for it."""

    __slots__ = ("waiting",)

    def __init__(self, on_outcome: OnOutcome | None) -> None:
        self.waiting: list[OnOutcome] = [] if on_outcome is None else [on_outcome]


class IdempotencyKeys:
    """Remembers keys by their scope: the room that is published to, or the user that is sent to.

    Keys of messages whose outcome is not known are never evicted: they are as many as the queues of rooms and inboxes hold.
    """

    def __init__(self) -> None:
        self._pending: DueQueue[_ScopedKey, _First] = DueQueue()
        self._receipts: DueQueue[_ScopedKey, Receipt] = DueQueue()
        self._by_owner: dict[str, dict[_ScopedKey, None]] = {}  # those of the receipts, oldest first
        self._shares: Shares[str] = Shares()

    def claim(self, kind: str, name: str, message: Prepared) -> bool:
        """Claim the message's key, which it must have. Returns whether the message is to be published.

        If it is, this replaces its `on_outcome`, which must have been set before: whoever publishes the message must report
        its outcome once. If not, another message with the key was first: then its outcome is reported to `on_outcome`, now or
        when it is known, or TooManyRetries is.
        """
        assert message.idempotency_key is not None
        key, now, on_outcome = (kind, name, message.idempotency_key), trio.current_time(), message.on_outcome
        self._forget_old(now)
        if (receipt := self._receipts.get(key)) is not None:
            if on_outcome is not None:
                on_outcome(attrs.evolve(receipt, duplicate=True))
            return False
        first = self._pending.get(key)
        if first is None:
            first = _First(on_outcome)
            self._pending.add(key, first, now + KEY_TIME)
            message.on_outcome = self._report_to(key, first)
            return True
        if on_outcome is not None:
            if len(first.waiting) > MAX_WAITING:
                on_outcome(TooManyRetries("too many retries of this message are waiting for its outcome"))
            else:
                first.waiting.append(lambda outcome: on_outcome(_of_retry(outcome)))
        return False

    def _report_to(self, key: _ScopedKey, first: _First) -> OnOutcome:
        def report(outcome: Outcome) -> None:
            if self._pending.get(key) is first:  # else it took too long, and its key is free, or another's
                self._pending.remove(key)
                if isinstance(outcome, Receipt):  # if not, it was not published, and may be tried again
                    self._remember(key, outcome)
            waiting, first.waiting = first.waiting, []
            for on_outcome in waiting:
                on_outcome(outcome)

        return report

    def _remember(self, key: _ScopedKey, receipt: Receipt) -> None:
        owner = _owner(key)
        self._receipts.add(key, receipt, trio.current_time() + KEY_TIME)
        self._by_owner.setdefault(owner, {})[key] = None
        self._shares.add(owner, _weight(key))
        while self._shares.total > MAX_BYTES:
            oldest = next(iter(self._by_owner[self._shares.largest()]))
            self._receipts.remove(oldest)
            self._forgotten(oldest)

    def _forgotten(self, key: _ScopedKey) -> None:
        owner = _owner(key)
        keys = self._by_owner[owner]
        del keys[key]
        if not keys:
            del self._by_owner[owner]
        self._shares.add(owner, -_weight(key))

    def _forget_old(self, now: float) -> None:
        for _ in self._pending.pop_due(now):
            pass
        for key, _receipt in self._receipts.pop_due(now):
            self._forgotten(key)


def _of_retry(outcome: Outcome) -> Outcome:
    return attrs.evolve(outcome, duplicate=True) if isinstance(outcome, Receipt) else outcome
