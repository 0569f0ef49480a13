"""How much one connection, one user and one address may take, where that is limited.

Rates are those of token buckets. A client that sends faster is not read for a while, and TCP makes it wait; handshakes, which
nobody can make wait, are refused.
"""

from collections import Counter
from typing import Final

import trio

from ..config import Options
from ..errors import Refused

__all__ = ["ClientLimits", "MessageLimiter"]

MAX_BUCKETS: Final = 100_000
"""Users, or addresses, whose rates are known; beyond that those that are idle for longest are forgotten."""


class _Bucket:
    """Tokens come in at a rate, up to a burst. It may go into debt, which is to be waited for."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = self._tokens = burst
        self._at = trio.current_time()

    def take(self) -> float:
        """Take one token. Returns the seconds until the bucket is out of debt; 0: it is not in debt."""
        now = trio.current_time()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate) - 1
        self._at = now
        return max(0.0, -self._tokens / self._rate)


class _Buckets:
    """A bucket for each name."""

    def __init__(self, rate: float | None, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._by_name: dict[str, _Bucket] = {}

    def get(self, name: str | None) -> _Bucket | None:
        """None: it is not limited."""
        if self._rate is None or name is None:
            return None
        bucket = self._by_name.pop(name, None) or _Bucket(self._rate, self._rate * self._burst)
        self._by_name[name] = bucket  # the newest is the last
        if len(self._by_name) > MAX_BUCKETS:
            del self._by_name[next(iter(self._by_name))]
        return bucket


class MessageLimiter:
    """Counts the messages of one connection: against its own rate, that of its user, and that of its address."""

    __slots__ = ("_address", "_delay", "_limits", "_own")

    def __init__(self, limits: "ClientLimits", own: _Bucket | None, address: _Bucket | None) -> None:
        self._limits = limits
        self._own = own
        self._address = address
        self._delay = 0.0

    def charge(self, user: str) -> bool:
        """Count a message. Returns whether the limit is exceeded."""
        buckets = (self._own, self._address, self._limits.users.get(user))
        self._delay = max([0.0, *[bucket.take() for bucket in buckets if bucket is not None]])
        return self._delay > 0

    @property
    def exceeded(self) -> bool:
        return self._delay > 0

    async def wait(self) -> None:
        """Wait until the client may send again. Safe to cancel."""
        self._limits.pauses += 1
        delay, self._delay = self._delay, 0.0
        await trio.sleep(delay)


class ClientLimits:
    """The limits of a switch, for connections, users and addresses. What is None in the options is not limited."""

    def __init__(self, options: Options) -> None:
        self._max_of_address = options.max_address_connections
        self._max_of_user = options.max_user_connections
        self._own_rate = options.connection_messages
        self._burst = options.rate_burst
        self.users = _Buckets(options.user_messages, self._burst)
        self._addresses = _Buckets(options.address_messages, self._burst)
        self._handshakes = _Buckets(options.address_handshakes, self._burst)
        self._connections: Counter[str] = Counter()
        self._counts_messages = any(
            rate is not None for rate in (options.connection_messages, options.user_messages, options.address_messages)
        )
        self.pauses = 0
        """How often a client was not read for a while, because it sent too fast."""

    def check_address(self, address: str | None) -> None:
        """A client of an address wants to connect. Raises Refused."""
        if address is None:
            return
        if self._max_of_address is not None and self._connections[address] >= self._max_of_address:
            raise Refused("there are too many connections from your address", code="rate_limited")
        bucket = self._handshakes.get(address)
        if bucket is not None and bucket.take() > 0:
            raise Refused("your address connects too often", code="rate_limited")

    def check_user(self, connections: int) -> None:
        """A user with so many connections wants another one. Raises Refused."""
        if self._max_of_user is not None and connections >= self._max_of_user:
            raise Refused("this user has too many connections", code="rate_limited")

    def opened(self, address: str | None) -> None:
        """There is one more connection of an address."""
        if address is not None and self._max_of_address is not None:
            self._connections[address] += 1

    def closed(self, address: str | None) -> None:
        """There is one less."""
        if address is not None and self._max_of_address is not None:
            self._connections[address] -= 1
            if not self._connections[address]:
                del self._connections[address]

    def limiter(self, address: str | None) -> MessageLimiter | None:
        """Who counts the messages of a new connection. None: nobody does."""
        if not self._counts_messages:
            return None
        own = None if self._own_rate is None else _Bucket(self._own_rate, self._own_rate * self._burst)
        return MessageLimiter(self, own, self._addresses.get(address))
