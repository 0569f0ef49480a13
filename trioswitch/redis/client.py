"""A connection to Redis that is made again whenever it is lost."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any, Final

import trio

from .._util.backoff import Backoff
from .connection import CONNECT_TIMEOUT, Command, RedisConnection, RedisError, RedisLost, connect
from .discovery import find_server
from .url import RedisUrl, Topology

__all__ = ["RedisClient"]

_log = logging.getLogger(__name__)

FIRST_RETRY: Final = 0.2
"""Seconds before the first attempt to connect again, at most; doubled after each, up to MAX_RETRY."""
MAX_RETRY: Final = 4.0
LOOK_INTERVAL: Final = 5.0
"""Seconds between two looks whether another server is the primary by now: the old one may not know it."""
_WRONG_SERVER: Final = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "READONLY", "MASTERDOWN", "LOADING")
"""Words of replies by which a server says that it is not, or not yet, the one to ask."""


class RedisClient:
    """`run` is its task. Until there is a connection, and while there is none, calls fail at once."""

    def __init__(self, url: RedisUrl, on_message: Callable[[bytes, bytes], None] | None = None) -> None:
        self.url = url
        self.reason = "Redis has not been reached yet"
        """Why there is no connection, or why it is about to be given up."""
        self._on_message = on_message
        self._connection: RedisConnection | None = None

    async def run(
        self, on_connected: Callable[[RedisConnection], Awaitable[None]], on_lost: Callable[[str], None]
    ) -> None:
        """Connect again and again, until cancelled.

        `on_connected` prepares a connection before calls use it, and may raise RedisError and RedisLost. `on_lost` is called with
        the reason when a connection was lost, or could not be made.
        """
        backoff = Backoff(Random(), first=FIRST_RETRY, most=MAX_RETRY)
        while True:
            began = trio.current_time()
            try:
                await self._run_once(on_connected)
            except (RedisError, RedisLost) as error:
                self.reason = str(error)
            on_lost(self.reason)
            backoff.connection_ended(trio.current_time() - began)
            await trio.sleep(backoff.next())

    async def _run_once(self, on_connected: Callable[[RedisConnection], Awaitable[None]]) -> None:
        """Connect, and hold the connection until it is lost. Raises RedisError, RedisLost when it cannot be used at all."""
        silent = RedisLost(f"Redis at {self.place} does not answer within {CONNECT_TIMEOUT:g} s")
        try:
            with trio.fail_after(CONNECT_TIMEOUT):
                server = await find_server(self.url)
                connection = await connect(self.url, server, self._on_message)
        except trio.TooSlowError:
            raise silent from None
        problem: RedisError | RedisLost | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive, connection, nursery.cancel_scope)
            try:
                with trio.fail_after(CONNECT_TIMEOUT):
                    await connection.introduce(self.url)
                    await on_connected(connection)
                self._connection = connection
                await self._look_for_another(connection, server)
            except trio.TooSlowError:
                problem = silent
            except (RedisError, RedisLost) as error:
                problem = error
            finally:
                self._connection = None
                nursery.cancel_scope.cancel()
        if problem is not None:
            raise problem

    async def _receive(self, connection: RedisConnection, scope: trio.CancelScope) -> None:
        self.reason = await connection.run()
        scope.cancel()

    async def _look_for_another(self, connection: RedisConnection, server: tuple[str, int]) -> None:
        """Give the connection up when another server is the primary."""
        while self.url.topology is Topology.SERVER:
            await trio.sleep_forever()
        while True:
            await trio.sleep(LOOK_INTERVAL)
            try:
                with trio.move_on_after(CONNECT_TIMEOUT):
                    if (found := await find_server(self.url)) != server:
                        connection.drop(f"Redis at {found[0]}:{found[1]} is the primary now")
            except (RedisError, RedisLost) as error:
                # The connection is used as long as it works.
                _log.debug("nobody says which Redis is the primary: %s", error)

    # --- calls

    @property
    def place(self) -> str:
        """For people: the server that is used, or those that say which."""
        if self._connection is not None:
            return self._connection.place
        return ", ".join(f"{host}:{port}" for host, port in self.url.servers)

    def drop(self, reason: str) -> None:
        """Give the connection up, if there is one."""
        if self._connection is not None:
            self._connection.drop(reason)

    async def calls(self, commands: Sequence[Command]) -> list[Any]:
        """As `RedisConnection.calls`. Raises RedisLost."""
        if self._connection is None:
            await trio.lowlevel.checkpoint()
            raise RedisLost(self.reason)
        replies = await self._connection.calls(commands)
        for reply in replies:
            if isinstance(reply, RedisError) and str(reply).startswith(_WRONG_SERVER):
                self.drop(f"Redis at {self.place} is not the one to ask: {reply}")
        return replies

    async def subscribe(self, command: str, channels: Sequence[bytes]) -> None:
        """As `RedisConnection.subscribe`. Raises RedisLost."""
        if self._connection is None:
            await trio.lowlevel.checkpoint()
            raise RedisLost(self.reason)
        await self._connection.subscribe(command, channels)
