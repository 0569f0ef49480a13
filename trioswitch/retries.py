"""What makes a retry harmless: publishes that carried an `idempotency_key`, and what became of them.

Keys of what is stored are remembered by the store as well, over a restart too.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import attrs
import trio

from .stores import KEY_TIME
from .wire.prepared import Outcome, Prepared, Receipt

__all__ = ["Retries"]

MAX_KEYS: Final = 100_000
"""Keys that are remembered in memory, 0.5 KB each; beyond it the oldest are forgotten earlier."""

Settle = Callable[[Outcome], None]


class _First:
    """The first message with its key: what became of it, or who waits to hear that."""

    __slots__ = ("at", "outcome", "waiting")

    def __init__(self, at: float, settle: Settle | None) -> None:
        self.at = at
        self.outcome: Receipt | None = None
        self.waiting: list[Settle] = [] if settle is None else [settle]


class Retries:
    """Remembers keys by their scope: the room that is published to, or the user who is sent to."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str, str], _First] = OrderedDict()

    def is_first(self, kind: str, name: str, message: Prepared) -> bool:
        """Whether a message is to be published: it has no key, or nobody used its key before.

        If it is not, its `settle` is called with what becomes, or became, of the first.
        """
        if message.idempotency_key is None:
            return True
        place, now = (kind, name, message.idempotency_key), trio.current_time()
        self._forget_old(now)
        first = self._known.get(place)
        if first is None:
            first = self._known[place] = _First(now, message.settle)
            message.settle = self._settle(place, first)
            return True
        settle = message.settle
        if settle is not None:
            if first.outcome is not None:
                settle(attrs.evolve(first.outcome, duplicate=True))
            else:
                first.waiting.append(lambda outcome: settle(_as_retry(outcome)))
        return False

    def _settle(self, place: tuple[str, str, str], first: _First) -> Settle:
        def settle(outcome: Outcome) -> None:
            if isinstance(outcome, Receipt):
                first.outcome = outcome
            else:
                self._known.pop(place, None)  # it was not published: a retry is to be tried
            waiting, first.waiting = first.waiting, []
            for tell in waiting:
                tell(outcome)

        return settle

    def _forget_old(self, now: float) -> None:
        known = self._known
        while known and (len(known) >= MAX_KEYS or next(iter(known.values())).at < now - KEY_TIME):
            known.popitem(last=False)


def _as_retry(outcome: Outcome) -> Outcome:
    return attrs.evolve(outcome, duplicate=True) if isinstance(outcome, Receipt) else outcome
