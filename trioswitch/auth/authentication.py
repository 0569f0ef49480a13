"""Authentication: who a client is. Every client goes through it once, whichever way its token came."""

from collections.abc import Awaitable, Callable

import attrs

from .._util.nurseries import without_group
from ..errors import Refused
from .identity import ANONYMOUS, GUEST, Identity
from .request import ConnectRequest
from .revocations import Revocations

__all__ = ["Authentication", "Authenticator", "OnConnect"]

Authenticator = Callable[[str], Awaitable[Identity]]
"""From a token to an identity. Raises Refused."""
OnConnect = Callable[[ConnectRequest], Awaitable[Identity | None]]
"""Called before a client is admitted, when its token has been checked. Returns who the client is, or None for no change."""


class Authentication:
    """The application's hooks that decide who a client is, and whether it is admitted."""

    def __init__(
        self, authenticate: Authenticator | None, on_connect: OnConnect | None, revocations: Revocations
    ) -> None:
        self._authenticate = authenticate
        self._on_connect = on_connect
        self._revocations = revocations

    @property
    def uses_tokens(self) -> bool:
        """Whether a client needs a token."""
        return self._authenticate is not None

    async def identify(self, request: ConnectRequest) -> Identity | None:
        """Who the client is. None: it needs a token, and has yet to send it.

        Raises Refused, whatever a hook raises otherwise, and TypeError for a hook that returns anything but an Identity.
        """
        identity = ANONYMOUS if self._on_connect is None else GUEST
        if self._authenticate is not None:
            if request.token is None:
                return None
            identity = await self._check_token(self._authenticate, request.token)
            if self._revocations.has(identity):
                raise Refused("the token was revoked", code="unauthorised")
            request = attrs.evolve(request, identity=identity)
        if self._on_connect is not None:
            answer = await without_group(self._on_connect(request))
            if answer is not None:
                identity = _checked("on_connect", answer)
        return identity

    @staticmethod
    async def _check_token(authenticate: Authenticator, token: str) -> Identity:
        try:
            return _checked("authenticate", await without_group(authenticate(token)))
        except Refused as refused:
            raise Refused(refused.message, code="unauthorised") from None


def _checked(hook: str, answer: object) -> Identity:
    if not isinstance(answer, Identity):
        raise TypeError(f"{hook} must return an Identity, not {answer!r}")
    return answer
