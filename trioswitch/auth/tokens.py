"""Tokens: JSON Web Tokens, as an identity provider or the application's backend signs them.

The claims are those that Centrifugo's tokens have, so that a backend which makes these needs no change:
https://centrifugal.dev/docs/server/authentication (seen in November 2026, version 6).
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import attrs
import jwt
from jwt.exceptions import (
    ExpiredSignatureError,
    ImmatureSignatureError,
    InvalidAudienceError,
    InvalidIssuerError,
    InvalidSignatureError,
    MissingRequiredClaimError,
    PyJWTError,
)

from .._util import clock
from ..errors import Refused
from .identity import Identity, literal
from .keys import Key

__all__ = ["KeySource", "RoomToken", "TokenVerifier", "identity_of"]

MAX_TOKEN: Final = 16 * 1024
"""Bytes of a token: as many as the head of a request may have, by default."""
KeySource = Callable[[str | None], Awaitable[Sequence[Key]]]
"""The keys at present; given the `kid` of a token, it may look for newer ones first."""
_ALLOW: Final = {"sub": "join", "pub": "publish", "prs": "presence", "hst": "history"}
_WRONG: Final = (
    (ExpiredSignatureError, "the token has expired"),
    (ImmatureSignatureError, "the token is not valid yet"),
    (InvalidAudienceError, "the token is for another audience"),
    (InvalidIssuerError, "the token is from another issuer"),
    (InvalidSignatureError, "the token's signature is wrong"),
)


@attrs.frozen
class RoomToken:
    """What a token for one room allows."""

    room: str
    user: str
    publish: bool
    presence: bool
    history: bool
    expires_at: float | None
    """Seconds since 1970."""


@attrs.frozen(kw_only=True)
class TokenVerifier:
    """Checks tokens. It is an `Authenticator`: `open_switch(authenticate=TokenVerifier(keys=...))`.

    A token needs a signature of one of the keys. `exp` and `nbf` hold where it has them, `aud` and `iss` where they are
    configured.
    """

    keys: KeySource
    audience: str | None = None
    """What `aud` must contain."""
    issuer: str | None = None
    """What `iss` must be."""
    join: tuple[str, ...] = ("*",)
    """Rooms that a token without `caps` lets its user join."""
    publish: tuple[str, ...] | None = None
    """Rooms that a token without `caps` lets its user publish to; None: those that it has joined."""

    async def __call__(self, token: str) -> Identity:
        """Who a client with this token is. Raises Refused. Safe to cancel."""
        claims = await self._claims(token)
        if "channel" in claims:
            raise _refused("this is a token for a room: a connection needs one for a connection")
        try:
            identity = identity_of(claims, self.join, self.publish)
        except (TypeError, ValueError) as error:
            raise _refused(f"the claims of the token are not valid: {error}") from None
        if identity.expires_at is not None and identity.expires_at <= clock.wall_time():
            raise _refused("the token has expired")
        return identity

    async def check_room_token(self, token: str, room: str, user: str) -> RoomToken:
        """What a token lets a user do in a room. Raises Refused. Safe to cancel."""
        claims = await self._claims(token)
        if claims.get("channel") != room:
            raise Refused("the token is not for this room")
        if claims.get("sub", "") != user:
            raise Refused("the token is for another user")
        allow = claims.get("allow", ())
        if not isinstance(allow, list | tuple):
            raise Refused("the claim `allow` of the token must be a list")
        expires_at = _expiry(claims)
        return RoomToken(room, user, "pub" in allow, "prs" in allow, "hst" in allow, expires_at)

    async def _claims(self, token: str) -> dict[str, Any]:
        """The claims of a token whose signature and times are right. Raises Refused."""
        if len(token) > MAX_TOKEN:
            raise _refused(f"a token may have {MAX_TOKEN} bytes")
        try:
            header = jwt.get_unverified_header(token)
        except (PyJWTError, UnicodeEncodeError):
            raise _refused("this is not a JSON Web Token") from None
        kid, algorithm = header.get("kid"), str(header.get("alg"))
        keys = await self.keys(kid if isinstance(kid, str) else None)
        fitting = [key for key in keys if algorithm in key.algorithms and (key.id is None or kid in (None, key.id))]
        if not fitting:
            raise _refused("no key of this server fits the token's algorithm and key id")
        wrong = _refused("the token's signature is wrong")
        for key in fitting:
            try:
                return jwt.decode(
                    token,
                    key.material,
                    algorithms=[algorithm],
                    audience=self.audience,
                    issuer=self.issuer,
                    options={"verify_aud": self.audience is not None, "verify_sub": False, "verify_jti": False},
                )
            except InvalidSignatureError:
                continue
            except MissingRequiredClaimError as error:
                wrong = _refused(f"the token lacks the claim `{error.claim}`")
            except PyJWTError as error:
                wrong = _refused(
                    next((text for kind, text in _WRONG if isinstance(error, kind)), "the token is not valid")
                )
            break
        raise wrong


def identity_of(claims: Mapping[str, Any], join: tuple[str, ...], publish: tuple[str, ...] | None) -> Identity:
    """Who the claims are about; `join` and `publish` are what it may do if they do not say.

    Raises TypeError and ValueError for claims that are not what they must be.
    """
    user = claims.get("sub", "")
    if not isinstance(user, str):
        raise TypeError("`sub` must be a string")
    rights: dict[str, Any] = {"join": join, "publish": publish}
    if "caps" in claims:
        rights = _capabilities(claims["caps"])
    token_id, issued_at = claims.get("jti"), claims.get("iat")
    return Identity(
        user=user or None,
        **rights,
        info=claims.get("info"),
        rooms=_rooms(claims),
        expires_at=_expiry(claims),
        token_id=token_id if isinstance(token_id, str) else None,
        issued_at=float(issued_at) if isinstance(issued_at, int | float) else None,
    )


def _refused(message: str) -> Refused:
    return Refused(message, code="unauthorised")


def _expiry(claims: Mapping[str, Any]) -> float | None:
    """When what the token opened ends: `expire_at`, 0 for never, rather than `exp`."""
    expire_at = claims.get("expire_at")
    if expire_at is None:
        expire_at = claims.get("exp")
    if expire_at is not None and (not isinstance(expire_at, int | float) or isinstance(expire_at, bool)):
        raise TypeError("`expire_at` must be a number")
    return float(expire_at) if expire_at else None


def _rooms(claims: Mapping[str, Any]) -> tuple[str, ...]:
    """Rooms that the client is in from the beginning: the list `channels`, or the keys of the object `subs`."""
    channels, subs = claims.get("channels", []), claims.get("subs", {})
    if not isinstance(channels, list) or not isinstance(subs, dict):
        raise TypeError("`channels` must be a list, and `subs` an object")
    return tuple(dict.fromkeys([*channels, *subs]))


def _capabilities(caps: object) -> dict[str, tuple[str, ...]]:
    """Patterns by what they allow: `[{"channels": ["chat:*"], "match": "wildcard", "allow": ["sub", "pub"]}]`."""
    rights: dict[str, list[str]] = {right: [] for right in _ALLOW.values()}
    for cap in caps if isinstance(caps, list) else [None]:
        if not isinstance(cap, dict):
            raise TypeError("`caps` must be a list of objects")
        channels, allow, match = cap.get("channels", []), cap.get("allow", []), cap.get("match", "")
        if not isinstance(channels, list) or not isinstance(allow, list):
            raise TypeError("`channels` and `allow` of `caps` must be lists")
        if match not in ("", "wildcard"):
            raise ValueError(f"`match` of `caps` must be empty or 'wildcard', not {match!r}")
        for channel in channels:
            if not isinstance(channel, str):
                raise TypeError("each of `channels` must be a string")
            pattern = literal(channel, "*" if match == "wildcard" else "")
            for right in allow:
                if right in _ALLOW:
                    rights[_ALLOW[right]].append(pattern)
    return {right: tuple(patterns) for right, patterns in rights.items()}
