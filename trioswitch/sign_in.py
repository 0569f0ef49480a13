"""What follows when it is known who a client is: its inbox, the rooms that its token names, and when the token runs out."""

import attrs
from msgspec import UNSET, UnsetType

from ._util import clock
from .auth.expiry import Expiries
from .auth.identity import Identity, literal
from .auth.tokens import RoomToken
from .connections.directory import ConnectionDirectory
from .connections.driver import ConnectionDriver
from .durability.inbox import Inbox
from .errors import CloseCause, Refused
from .rooms.presence import Presence

__all__ = ["SignIn", "expires_in"]


class SignIn:
    """Knows which connections are signed in until when. `run` is its task."""

    def __init__(self, connections: ConnectionDirectory, presence: Presence, inbox: Inbox, max_rooms: int) -> None:
        self._connections = connections
        self._presence = presence
        self._inbox = inbox
        self._max_rooms = max_rooms
        self._expiries: Expiries[tuple[str, str | None]] = Expiries(
            self._expired
        )  # of a connection, or of it in a room
        self.run = self._expiries.run

    def done(self, connection: ConnectionDriver) -> None:
        """It is known who its client is, for the first time."""
        identity = connection.identity
        assert identity is not None
        if identity.user is not None:
            self._inbox.arrived(connection)
        for room in identity.rooms[: self._max_rooms]:
            self._presence.join(connection, room)
        self._watch(connection, identity)

    def renewed(self, connection: ConnectionDriver, identity: Identity) -> None:
        """Its client has sent a new token. Raises Refused for that of another user; it stays in its rooms."""
        if identity.user != (connection.identity and connection.identity.user):
            raise Refused("the token is for another user", code="unauthorised")
        connection.authenticate(identity)
        self._watch(connection, identity)

    def granted(self, connection: ConnectionDriver, token: RoomToken) -> None:
        """Its client has a token for one room."""
        identity, room = connection.identity, literal(token.room)
        assert identity is not None
        presence = identity.join if identity.presence is None else identity.presence
        history = identity.join if identity.history is None else identity.history
        publish = identity.publish
        connection.authenticate(
            attrs.evolve(
                identity,
                join=_with(identity.join, room),
                publish=_with(publish, room) if publish is not None and token.publish else publish,
                presence=_with(presence, room) if token.presence else presence,
                history=_with(history, room) if token.history else history,
            )
        )
        if token.expires_at is not None:
            self._expiries.set((connection.id, token.room), token.expires_at)

    def ended(self, connection: ConnectionDriver) -> None:
        """The connection is over."""
        identity = connection.identity
        if identity is not None and identity.expires_at is not None:
            self._expiries.set((connection.id, None), None)

    def _watch(self, connection: ConnectionDriver, identity: Identity) -> None:
        self._expiries.set((connection.id, None), identity.expires_at)

    def _expired(self, key: tuple[str, str | None]) -> None:
        id, room = key
        for connection in self._connections.find([id]):
            if room is None:
                connection.close(CloseCause.UNAUTHORISED, "the token has expired")
            elif self._presence.leave(connection, room):
                connection.reply_error("unauthorised", f"the token for {room!r} has expired: you have left the room")


def expires_in(identity: Identity) -> float | UnsetType:
    """Seconds until its token runs out."""
    return UNSET if identity.expires_at is None else round(identity.expires_at - clock.wall_time(), 3)


def _with(patterns: tuple[str, ...], pattern: str) -> tuple[str, ...]:
    return patterns if pattern in patterns else (*patterns, pattern)
