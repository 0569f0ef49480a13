"""Signing in: tokens that clients send, what they open, and when they run out."""

import logging

import attrs
import trio
from msgspec import UNSET, UnsetType

from ._util import clock
from ._util.nurseries import without_group
from .auth.authentication import Authentication
from .auth.expiry import Expiries
from .auth.identity import Identity, literal
from .auth.tokens import RoomToken
from .connections.directory import ConnectionDirectory
from .connections.driver import ConnectionDriver
from .connections.limits import ClientLimits
from .durability.inbox import Inbox
from .errors import CloseCause, Refused
from .hooks import CheckRoomToken, OnExpire
from .rooms.presence import Presence
from .wire.commands import Authenticate
from .wire.messages import Ack

__all__ = ["SignIn", "expires_in"]

_log = logging.getLogger(__name__)


@attrs.define(eq=False)
class _Grants:
    """What a connection may do by its identity, and by tokens for single rooms."""

    base: Identity
    tokens: dict[str, RoomToken] = attrs.field(factory=dict)
    """By room."""

    def identity(self) -> Identity:
        """Both together."""
        base = self.base
        join, publish = list(base.join), None if base.publish is None else list(base.publish)
        presence = list(base.join if base.presence is None else base.presence)
        history = list(base.join if base.history is None else base.history)
        for room, token in self.tokens.items():
            pattern = literal(room)
            join.append(pattern)
            if publish is not None and token.publish:
                publish.append(pattern)
            if token.presence:
                presence.append(pattern)
            if token.history:
                history.append(pattern)
        return attrs.evolve(base, join=join, publish=publish, presence=presence, history=history)


class SignIn:
    """Knows which connections are signed in until when. `run` is its task."""

    def __init__(
        self,
        authentication: Authentication,
        check_room_token: CheckRoomToken | None,
        on_expire: OnExpire | None,
        hook_timeout: float,
        connections: ConnectionDirectory,
        presence: Presence,
        inbox: Inbox,
        limits: ClientLimits,
        max_rooms: int,
    ) -> None:
        self._limits = limits
        self._authentication = authentication
        self._check_room_token = check_room_token
        self._on_expire = on_expire
        self._hook_timeout = hook_timeout
        self._connections = connections
        self._presence = presence
        self._inbox = inbox
        self._max_rooms = max_rooms
        self._expiries: Expiries[tuple[str, str | None]] = Expiries(
            self._expired
        )  # of a connection, or of it in a room
        self._grants: dict[str, _Grants] = {}  # of connections that have tokens for rooms, by id
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
            identity = await self._identify(connection, command)
            if connection.cause is None:  # else it was closed meanwhile
                self.renew(connection, identity)
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
            _log.exception("connection %s: a hook failed", connection.id, extra={"connection": connection.id})
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
        if connection.id in self._grants:
            self._grants[connection.id].base = identity
        self._apply(connection, identity)
        self._watch(connection, identity)

    def expire(self, connection: ConnectionDriver, expires_at: float | None) -> None:
        """Its token runs out at another time, in seconds since 1970; None: never."""
        self.renew(connection, attrs.evolve(self._base(connection), expires_at=expires_at))

    def _base(self, connection: ConnectionDriver) -> Identity:
        """Its identity, without its tokens for rooms."""
        grants = self._grants.get(connection.id)
        identity = connection.identity if grants is None else grants.base
        assert identity is not None
        return identity

    async def grant(self, connection: ConnectionDriver, room: str, token: str) -> None:
        """The client has a token for one room: let it do what the token says. Raises Refused, and what a hook raises."""
        if self._check_room_token is None:
            raise Refused("this server does not use tokens for rooms", code="not_available")
        granted = await self._check_room_token(token, room, connection.user)
        if connection.cause is None:  # else it was closed meanwhile
            self._let_into(connection, granted)

    def _let_into(self, connection: ConnectionDriver, token: RoomToken) -> None:
        identity = connection.identity
        assert identity is not None
        grants = self._grants.setdefault(connection.id, _Grants(identity))
        if token.room not in grants.tokens and len(grants.tokens) >= self._max_rooms:
            raise Refused(f"a connection may have tokens for {self._max_rooms} rooms", code="too_many_rooms")
        grants.tokens[token.room] = token
        self._apply(connection, grants.base)
        self._expiries.set((connection.id, token.room), token.expires_at)

    def _apply(self, connection: ConnectionDriver, base: Identity) -> None:
        """Let the connection do what its identity allows, and its tokens for rooms."""
        grants = self._grants.get(connection.id)
        connection.authenticate(base if grants is None else grants.identity())

    def ended(self, connection: ConnectionDriver) -> None:
        """The connection is over."""
        self._expiries.set((connection.id, None), None)
        grants = self._grants.pop(connection.id, None)
        for room in () if grants is None else grants.tokens:
            self._expiries.set((connection.id, room), None)

    def _watch(self, connection: ConnectionDriver, identity: Identity) -> None:
        self._expiries.set((connection.id, None), identity.expires_at)

    def _expired(self, key: tuple[str, str | None]) -> None:
        id, room = key
        for connection in self._connections.find([id]):
            if room is None:
                if self._on_expire is None:
                    connection.close(CloseCause.UNAUTHORISED, "the token has expired")
                elif connection.cause is None:
                    connection.start_soon(self._ask_again, connection, self._on_expire)
                continue
            grants = self._grants[id]
            del grants.tokens[room]
            self._apply(connection, grants.base)
            if not grants.identity().may_join(room) and self._presence.leave(connection, room):
                connection.reply_error("unauthorised", f"the token for {room!r} has expired: you have left the room")

    async def _ask_again(self, connection: ConnectionDriver, on_expire: OnExpire) -> None:
        """The application says until when a connection may stay, if it may."""
        expired = self._base(connection)
        try:
            with trio.fail_after(self._hook_timeout):
                expires_at = await without_group(on_expire(connection.public))
            if connection.cause is not None or self._base(connection) is not expired:
                return  # it has been closed, or its client has sent a new token
            if expires_at is not None and expires_at <= clock.wall_time():
                raise Refused("the token has expired", code="unauthorised")
            self.expire(connection, expires_at)
        except Refused as refused:
            if self._base(connection) is expired:
                # It may come back when whoever has to know can be asked again.
                is_away = refused.code == "unavailable"
                connection.close(CloseCause.OVERLOADED if is_away else CloseCause.UNAUTHORISED, refused.message)
        except trio.TooSlowError:
            _log.error("connection %s: on_expire took too long", connection.id, extra={"connection": connection.id})
            connection.close(CloseCause.OVERLOADED, "nobody says whether the client may stay")
        except Exception:
            _log.exception("connection %s: on_expire failed", connection.id, extra={"connection": connection.id})
            connection.close(CloseCause.INTERNAL)


def expires_in(identity: Identity) -> float | UnsetType:
    """Seconds until its token runs out."""
    return UNSET if identity.expires_at is None else round(identity.expires_at - clock.wall_time(), 3)
