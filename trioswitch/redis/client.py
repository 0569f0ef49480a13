"""A connection to Redis that is made again whenever it is lost."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from .connection import CONNECT_TIMEOUT, Command, RedisConnection, RedisError, RedisLost, connect, introduce
from .url import RedisUrl

__all__ = ["RedisClient"]

RETRY_DELAY: Final = 0.1
"""Seconds before the first attempt to connect again; doubled after each that fails, up to MAX_RETRY_DELAY."""
MAX_RETRY_DELAY: Final = 2.0


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
        delay = RETRY_DELAY
        while True:
            try:
                await self._run_once(on_connected)
                delay = RETRY_DELAY
            except (RedisError, RedisLost) as error:
                self.reason = str(error)
            on_lost(self.reason)
            await trio.sleep(delay)
            delay = min(2 * delay, MAX_RETRY_DELAY)

    async def _run_once(self, on_connected: Callable[[RedisConnection], Awaitable[None]]) -> None:
        """Connect, and hold the connection until it is lost. Raises RedisError, RedisLost when it cannot be used at all."""
        silent = RedisLost(f"Redis at {self.url.place} does not answer within {CONNECT_TIMEOUT:g} s")
        try:
            with trio.fail_after(CONNECT_TIMEOUT):
                connection = await connect(self.url, self._on_message)
        except trio.TooSlowError:
            raise silent from None
        problem: RedisError | RedisLost | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive, connection, nursery.cancel_scope)
            try:
                with trio.fail_after(CONNECT_TIMEOUT):
                    await introduce(connection, self.url)
                    await on_connected(connection)
                self._connection = connection
                await trio.sleep_forever()
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

    # --- calls

    def drop(self, reason: str) -> None:
        """Give the connection up, if there is one."""
        if self._connection is not None:
            self._connection.drop(reason)

    async def calls(self, commands: Sequence[Command]) -> list[Any]:
        """As `RedisConnection.calls`. Raises RedisLost."""
        if self._connection is None:
            await trio.lowlevel.checkpoint()
            raise RedisLost(self.reason)
        return await self._connection.calls(commands)

    async def subscribe(self, command: str, channels: Sequence[bytes]) -> None:
        """As `RedisConnection.subscribe`. Raises RedisLost."""
        if self._connection is None:
            await trio.lowlevel.checkpoint()
            raise RedisLost(self.reason)
        await self._connection.subscribe(command, channels)
