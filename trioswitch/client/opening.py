"""`open_client`: connects, keeps the client connected, and closes it."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import trio

from .address import Address
from .client import Client
from .inbox import Inbox
from .options import ClientOptions
from .reconnector import Reconnector
from .room_sync import Buffer
from .session import Session
from .tokens import TokenSource, check_token
from .websocket_link import OpenStream

__all__ = ["open_client"]


@asynccontextmanager
async def open_client(
    url: str,
    token: str | TokenSource | None = None,
    user_id: str | None = None,
    *,
    options: ClientOptions | None = None,
    ssl_context: ssl.SSLContext | None = None,
    open_stream: OpenStream | None = None,
    random: Random | None = None,
) -> AsyncIterator[Client]:
    """Connect to a server, and reconnect whenever the connection is lost, until the block is left.

    Args:
        url: `ws://host:port/ws`, `wss://host:port/ws`, or `ws+unix:/path/of/socket`.
        token: is sent in the `Authorization` header; or an async function that returns one: it is called for each connection, and
            again before a token runs out. When it raises OSError, the client tries again later; anything else ends the block.
        user_id: the user name; only servers without authentication accept it.
        options: the client's limits.
        ssl_context: for `wss://`; the default context verifies the certificate against the system's authorities.
        open_stream: opens the stream below the WebSocket instead of `url`, through a proxy, say; it raises OSError if it fails.
        random: the source of delays between connection attempts, for tests.

    Raises:
        ValueError: the URL or the token is not valid.
        CannotConnect: the first connection failed (unless `keep_trying` is set); UntrustedCertificate is one case of it.
        Rejected: the server rejects the client permanently, now or later; then the block is cancelled.

    An exception of the block is raised as it is, in no group. Leaving the block, also by cancellation, closes the connection with
    1000 within `close_timeout` seconds.
    """
    if isinstance(token, str):
        check_token(token)
    elif token is not None and not callable(token):
        raise TypeError(f"a token must be a str, or an async function that returns one, not {token!r}")
    address = Address.parse(url)
    options, random, scope = options or ClientOptions(), random or Random(), trio.CancelScope()
    session = Session(Inbox(Buffer(options.buffer_messages, options.buffer_bytes)), user_id)
    open_stream = open_stream or (lambda: address.open(ssl_context))
    reconnector = Reconnector(address, open_stream, token, options, random, session, rejected=scope.cancel)
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(reconnector.run)
                with scope:
                    yield Client(reconnector, session, options, random)
                if scope.cancelled_caught and session.ended is not None:
                    raise session.ended
            except BaseException as error:
                raised = error
                raise
            finally:
                await reconnector.leave()
    except BaseExceptionGroup:  # the nursery wraps even a single exception
        if raised is None or isinstance(raised, trio.Cancelled):
            raise
    if raised is not None:
        raise raised
