"""Tokens of clients: fixed ones, and functions that get new ones."""

from collections.abc import Awaitable, Callable

__all__ = ["TokenSource", "TokenUnavailable", "check_token", "current_token"]

TokenSource = Callable[[], Awaitable[str]]
"""Gets a token. Raises OSError when it cannot, for now."""


class TokenUnavailable(Exception):
    """There is no token for now. The text is one sentence for a person."""


def check_token(token: object) -> str:
    """Raises ValueError for what a header cannot carry, and TypeError for what is no text."""
    if not isinstance(token, str):
        raise TypeError(f"a token must be a str, not {token!r}")
    if not (token and token.isascii() and token.isprintable()):
        raise ValueError("a token must consist of printable ASCII characters, and must not be empty")
    return token


async def current_token(token: str | TokenSource | None) -> str | None:
    """A fixed token, or a new one. Raises TokenUnavailable."""
    if token is None or isinstance(token, str):
        return token
    try:
        return check_token(await token())
    except OSError as error:
        raise TokenUnavailable(f"there is no token: {error}") from None
