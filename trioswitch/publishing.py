"""How the server's own code says what is to be delivered, and hears what became of it."""

import copy
import logging
from collections.abc import Iterable
from typing import Any, TypedDict

import trio
from msgspec import UNSET

from .durability.idempotency import owned_key
from .wire.messages import MAX_NAME, Event, Message, Recorded
from .wire.prepared import Outcome, Prepared, Receipt
from .wire.protocols import JSON_CODEC

__all__ = ["Delivery", "Settled", "check_name", "event_of", "log_loss", "prepare"]

_log = logging.getLogger(__name__)


class Delivery(TypedDict, total=False):
    """How a message is to be delivered: keyword arguments of `publish` and of everything that sends."""

    priority: int
    """0 to 10, default 0. The highest goes first; above 5 a message goes at once, whatever the linger."""
    max_delay: float | None
    """Seconds from now by which a linger ends for it."""
    expires: float | None
    """Seconds from now after which it is not written any more."""
    key: str | None
    """What it is the newest state of: under the policy `conflate` it replaces a waiting one of the same key."""
    exclude: Iterable[str]
    """Ids of connections that do not get it; those that ask the history do."""
    idempotency_key: str | None
    """Makes a retry of `publish` or `send_to_user` harmless: the same key within 10 minutes gets the first one's receipt."""


def check_name(what: str, name: object) -> None:
    """Raises TypeError or ValueError for what is no name of a room or user: clients could not say it either."""
    if not isinstance(name, str):
        raise TypeError(f"a {what} is named by a string, not by {type(name).__name__}")
    if not 1 <= len(name) <= MAX_NAME:
        raise ValueError(f"the name of a {what} has 1 to {MAX_NAME} characters, not {len(name)}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name of a {what} cannot be carried by UTF-8: {name!a}") from None


def prepare(event: Event, room: str | None, delivery: Delivery) -> Prepared:
    """A message of the server's own code. Raises UnencodableData, TypeError and ValueError for what cannot be sent."""
    if room is not None:
        check_name("room", room)
    if unknown := delivery.keys() - Delivery.__annotations__.keys():
        raise TypeError(f"unknown keyword argument {min(unknown)!r}")
    now = trio.current_time()
    priority, max_delay, expires = delivery.get("priority", 0), delivery.get("max_delay"), delivery.get("expires")
    if type(priority) is not int or not 0 <= priority <= 10:
        raise ValueError(f"priority must be an integer from 0 to 10, not {priority!r}")
    for name, seconds in (("max_delay", max_delay), ("expires", expires)):
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"{name} must be a number of seconds, not {seconds!r}")
    idempotency_key = delivery.get("idempotency_key")
    if idempotency_key is not None:
        idempotency_key = owned_key("", idempotency_key)  # no user has an empty name
    event = copy.copy(event)  # it is stamped when it goes out, and the caller may use it again
    if isinstance(event, Recorded):
        event.epoch = event.offset = UNSET  # of the room that it comes from, if it does
    size = len(JSON_CODEC.encode(event))  # raises here, in the caller, rather than in the room
    return Prepared(
        event,
        room=room,
        priority=priority,
        deliver_by=None if max_delay is None else now + max_delay,
        expires_at=None if expires is None else now + expires,
        key=delivery.get("key"),
        idempotency_key=idempotency_key,
        exclude=frozenset(delivery.get("exclude", ())),
        size=size,
    )


class Settled:
    """Waits for what becomes of a message."""

    def __init__(self, message: Prepared) -> None:
        self._event = trio.Event()
        self._outcome: Outcome | None = None
        message.settle = self._settle

    def _settle(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._event.set()

    async def wait(self) -> Receipt:
        await self._event.wait()
        assert self._outcome is not None
        if isinstance(self._outcome, Receipt):
            return self._outcome
        raise self._outcome


def log_loss(outcome: Outcome) -> None:
    if not isinstance(outcome, Receipt):
        _log.error("a message was not published: %s", outcome)


def event_of(data: Any, room: str | None, delivery: Delivery) -> Event:
    """An event as it is; other data as a `message`."""
    if isinstance(data, Event):
        return data
    key = delivery.get("key")
    return Message(data=data, room=UNSET if room is None else room, key=UNSET if key is None else key)
