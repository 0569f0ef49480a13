"""What makes a retry harmless: publishes that carried an `idempotency_key`, and what became of them.

Keys of what is stored are remembered by the store as well, over a restart too.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import attrs
import trio

from ..errors import TooManyRetries
from ..stores.port import KEY_TIME
from ..wire.messages import MAX_KEY
from ..wire.prepared import Outcome, Prepared, Receipt

__all__ = ["Retries", "owned_key"]

MAX_KEYS: Final = 100_000
"""Keys whose outcome is remembered in memory, 0.5 KB each; beyond it the oldest are forgotten earlier."""
MAX_WAITING: Final = 100
"""Callers who wait for the outcome of one key, 0.3 KB each: a client asks again now and then, not without end."""

Settle = Callable[[Outcome], None]
_Place = tuple[str, str, str]


def owned_key(owner: str | None, key: str) -> str:
    """The key as it is remembered: that of one user is not another's. `owner` None: it is shared by all without a name.

    Raises ValueError for a key that is none. It has no NUL, so that it cannot be taken for one with an owner.
    """
    if not 1 <= len(key) <= MAX_KEY:
        raise ValueError(f"idempotency_key must have 1 to {MAX_KEY} characters, not {len(key)}")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise ValueError("idempotency_key must be text that UTF-8 can carry") from None
    if "\0" in key:
        raise ValueError("idempotency_key must not contain NUL")
    return key if owner is None else f"{owner}\0{key}"


class _First:
    """The first message with its key, which is under way: who waits to hear what becomes of it."""

    __slots__ = ("at", "waiting")

    def __init__(self, at: float, settle: Settle | None) -> None:
        self.at = at
        self.waiting: list[Settle] = [] if settle is None else [settle]


class Retries:
    """Remembers keys by their scope: the room that is published to, or the user who is sent to.

    Keys of messages under way give way to no others: they are as many as the queues of rooms and inboxes hold.
    """

    def __init__(self) -> None:
        self._pending: OrderedDict[_Place, _First] = OrderedDict()
        self._settled: OrderedDict[_Place, tuple[float, Receipt]] = OrderedDict()

    def is_first(self, kind: str, name: str, message: Prepared) -> bool:
        """Whether a message is to be published: it has no key, or nobody used its key before.

        If it is not, its `settle` is called with what becomes, or became, of the first; or with TooManyRetries.
        """
        if message.idempotency_key is None:
            return True
        place, now, settle = (kind, name, message.idempotency_key), trio.current_time(), message.settle
        self._forget_old(now)
        if (known := self._settled.get(place)) is not None:
            if settle is not None:
                settle(attrs.evolve(known[1], duplicate=True))
            return False
        first = self._pending.get(place)
        if first is None:
            first = self._pending[place] = _First(now, settle)
            message.settle = self._settle(place, first)
            return True
        if settle is not None:
            if len(first.waiting) > MAX_WAITING:
                settle(TooManyRetries("too many retries of this message are waiting for its outcome"))
            else:
                first.waiting.append(lambda outcome: settle(_as_retry(outcome)))
        return False

    def _settle(self, place: _Place, first: _First) -> Settle:
        def settle(outcome: Outcome) -> None:
            if self._pending.get(place) is first:  # else it took too long, and its key is free, or another's
                del self._pending[place]
                if isinstance(outcome, Receipt):  # if not, it was not published: a retry is to be tried
                    self._settled[place] = trio.current_time(), outcome
            waiting, first.waiting = first.waiting, []
            for tell in waiting:
                tell(outcome)

        return settle

    def _forget_old(self, now: float) -> None:
        pending, settled = self._pending, self._settled
        while pending and next(iter(pending.values())).at < now - KEY_TIME:
            pending.popitem(last=False)
        while settled and (len(settled) >= MAX_KEYS or next(iter(settled.values()))[0] < now - KEY_TIME):
            settled.popitem(last=False)


def _as_retry(outcome: Outcome) -> Outcome:
    return attrs.evolve(outcome, duplicate=True) if isinstance(outcome, Receipt) else outcome
