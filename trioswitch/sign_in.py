"""Signing in: tokens that clients send, what they open, and when they run out."""

import logging

import attrs
from msgspec import UNSET, UnsetType

from ._util import clock
from .auth.authentication import Authentication
from .auth.expiry import Expiries
from .auth.identity import Identity, literal
from .auth.tokens import RoomToken
from .connections.directory import ConnectionDirectory
from .connections.driver import ConnectionDriver
from .connections.limits import ClientLimits
from .durability.inbox import Inbox
from .errors import CloseCause, Refused
from .hooks import CheckRoomToken
from .rooms.presence import Presence
from .wire.commands import Authenticate
from .wire.messages import Ack

__all__ = ["SignIn", "expires_in"]

_log = logging.getLogger(__name__)


class SignIn:
    """Knows which connections are signed in until when. `run` is its task."""

    def __init__(
        self,
        authentication: Authentication,
        check_room_token: CheckRoomToken | None,
        connections: ConnectionDirectory,
        presence: Presence,
        inbox: Inbox,
        limits: ClientLimits,
        max_rooms: int,
    ) -> None:
        self._limits = limits
        self._authentication = authentication
        self._check_room_token = check_room_token
        self._connections = connections
        self._presence = presence
        self._inbox = inbox
        self._max_rooms = max_rooms
        self._expiries: Expiries[tuple[str, str | None]] = Expiries(
            self._expired
        )  # of a connection, or of it in a room
        self._granted: dict[str, set[str]] = {}  # rooms for which a connection has tokens that run out, by its id
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

    # --- tokens in messages

    async def execute(self, connection: ConnectionDriver, command: Authenticate) -> None:
        """The client has sent a token. Raises Refused, and what a hook raises, if it has sent one before."""
        if not self._authentication.uses_tokens:
            raise Refused("this server does not use tokens", code="not_available")
        if connection.identity is None:
            await self._authenticate(connection, command)
        else:
            self.renew(connection, await self._identify(connection, command))
        if command.id is not None and connection.identity is not None:
            expires = expires_in(connection.identity)
            connection.reply(Ack(id=command.id, user_id=connection.user, expires=expires))

    async def _authenticate(self, connection: ConnectionDriver, command: Authenticate) -> None:
        try:
            identity = await self._identify(connection, command)
            if identity.user is not None:
                self._limits.check_user(len(self._connections.of_user(identity.user)))
        except Refused as refused:
            connection.reply_error(refused.code, refused.message, command.id)
            connection.close(CloseCause.UNAUTHORISED if refused.code == "unauthorised" else CloseCause.FORBIDDEN)
            return
        except Exception:
            _log.exception("connection %s: a hook failed", connection.id)
            connection.reply_error("internal", "internal error", command.id)
            connection.close(CloseCause.INTERNAL)
            return
        if connection.cause is not None:
            return  # it was closed while the hooks ran
        self._connections.authenticate(connection, identity)
        if identity.user is not None:
            self._presence.change_user(connection, identity.user, declared=True)
        self.done(connection)

    async def _identify(self, connection: ConnectionDriver, command: Authenticate) -> Identity:
        identity = await self._authentication.identify(attrs.evolve(connection.request, token=command.token))
        assert identity is not None, "it has a token"
        return identity

    def renew(self, connection: ConnectionDriver, identity: Identity) -> None:
        """Its client has a new token. Raises Refused for that of another user; it stays in its rooms."""
        if identity.user != (connection.identity and connection.identity.user):
            raise Refused("the token is for another user", code="unauthorised")
        connection.authenticate(identity)
        self._watch(connection, identity)

    async def grant(self, connection: ConnectionDriver, room: str, token: str) -> None:
        """The client has a token for one room: let it do what the token says. Raises Refused, and what a hook raises."""
        if self._check_room_token is None:
            raise Refused("this server does not use tokens for rooms", code="not_available")
        self._let_into(connection, await self._check_room_token(token, room, connection.user))

    def _let_into(self, connection: ConnectionDriver, token: RoomToken) -> None:
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
            self._granted.setdefault(connection.id, set()).add(token.room)

    def ended(self, connection: ConnectionDriver) -> None:
        """The connection is over."""
        self._expiries.set((connection.id, None), None)
        for room in self._granted.pop(connection.id, ()):
            self._expiries.set((connection.id, room), None)

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
