"""Keeps the client connected: connects, and reconnects with delays, until the client is left or rejected."""

from collections.abc import Callable
from random import Random

import attrs
import trio

from .._util.backoff import MAX_DELAY, Backoff
from ..errors import CloseCause
from .address import Address
from .connection import ClientConnection
from .errors import CannotConnect, ClientClosed, ClientError, ConnectionLost, Rejected
from .options import ClientOptions
from .session import Session
from .tokens import TokenSource, TokenUnavailable, current_token
from .websocket_link import OpenStream, WebSocketLink, with_link

__all__ = ["Reconnector", "State"]

PERMANENT = range(4500, 5000)
"""Close codes that tell a client not to reconnect."""


@attrs.frozen
class State:
    """Whether the client is connected, and if not, why."""

    connected: bool
    reason: str = ""
    """Why the last connection ended, or could not be opened; empty if there was none."""
    retry_in: float | None = None
    """Seconds until the next attempt; None if the client is connected, or connecting now."""


class Reconnector:
    """Runs one connection after the other. It calls `rejected` when the server rejects the client after the first connection."""

    def __init__(
        self,
        address: Address,
        open_stream: OpenStream,
        token: str | TokenSource | None,
        options: ClientOptions,
        random: Random,
        session: Session,
        rejected: Callable[[], None],
    ) -> None:
        self._address = address
        self._open_stream = open_stream
        self._token = token
        self._options = options
        self._random = random
        self._session = session
        self._rejected = rejected
        self._backoff = Backoff(random)
        self._scope = trio.CancelScope()
        self._started: trio.TaskStatus[None] | None = None  # None once the first connection has begun
        self._leaving = False
        self.ended = trio.Event()
        """Set when it will not connect any more."""
        self.connection: ClientConnection | None = None
        """The current connection, from the WebSocket handshake on."""
        self.connections = 0
        """How many connections have begun so far."""
        self._connections_before = 0
        """How many had when the last attempt was made."""
        self.state = State(False)
        self.state_changed = trio.lowlevel.ParkingLot()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Connect, and reconnect. Raises CannotConnect and Rejected for the first connection only; later it retries."""
        self._started = task_status
        try:
            with self._scope:
                while not self._leaving:
                    await self._wait_to_reconnect(await self._connect())
        except Rejected as rejected:
            if not self.connections:
                raise
            self._rejected()  # first: the client's block is cancelled, so only tasks outside of it see the error
            self._session.end(rejected)
            self._show(State(False, str(rejected)))
        finally:
            self.ended.set()
            self.state_changed.unpark_all()

    async def leave(self) -> None:
        """Close with 1000 within `close_timeout` seconds, even if this is cancelled. Tasks that still wait get ClientClosed."""
        self._leaving = True
        if self._session.ended is None:
            self._session.end(ClientClosed("the client was closed"))
        if self.connection is None:
            self._scope.cancel()
        else:
            self.connection.leave()
        with trio.move_on_after(self._options.close_timeout, shield=True):
            await self.ended.wait()
        self._scope.cancel()

    async def _connect(self) -> ClientError:
        """Try once to connect, and run the connection. Returns why it failed or ended. Raises Rejected."""
        self._show(State(False, self.state.reason))
        self._connections_before = self.connections
        try:
            return await with_link(
                self._address,
                self._open_stream,
                await current_token(self._token),
                self._options.connect_timeout,
                self._options.max_message_bytes,
                self._run_connection,
            )
        except CannotConnect as error:
            return error
        except TokenUnavailable as error:
            return CannotConnect(str(error))

    async def _run_connection(self, link: WebSocketLink) -> ConnectionLost:
        connection = self.connection = ClientConnection(
            self._session,
            link,
            greeting_timeout=self._options.connect_timeout,
            backoff=Backoff(self._random),
            on_ready=self._on_ready,
            token_source=self._token if callable(self._token) else None,
        )
        try:
            return await connection.run()
        finally:
            self.connection = None
            self._backoff.connection_ended(connection.duration)

    def _on_ready(self) -> None:
        self.connections += 1
        self._show(State(True))
        if self._started is not None:
            self._started.started()
            self._started = None
            self._scope.shield = (
                True  # from now on only `leave` ends it, so that a cancelled client closes its connection, too
            )

    async def _wait_to_reconnect(self, failure: ClientError) -> None:
        """Wait until the next attempt. Raises the failure if there must not be another attempt."""
        if self._leaving:
            return
        after = failure.after if isinstance(failure, CannotConnect | ConnectionLost) else None
        if isinstance(failure, ConnectionLost):
            if failure.code in PERMANENT and not self._may_have_a_new_token(failure.code):
                raise Rejected(failure.code, failure.reason)
            if failure.code == CloseCause.TAKEN_OVER.code:
                self._session.id = None  # otherwise two clients would take the session from each other without end
        if not self.connections and not self._options.keep_trying:
            raise failure if isinstance(failure, CannotConnect) else CannotConnect(str(failure), after)
        if isinstance(failure, ConnectionLost) and after is not None:
            delay = after  # from `reconnect`: the server gives each client a different delay
        else:  # `Retry-After` is the same for all clients, and any proxy may send it
            delay = min(after or 0.0, MAX_DELAY) + self._backoff.next()
        self._show(State(False, str(failure), delay))
        await trio.sleep(delay)

    def _may_have_a_new_token(self, code: int) -> bool:
        """Whether a token that had let us in has run out, or was revoked, and there is a function that gets another."""
        was_let_in = self.connections > self._connections_before
        return code == CloseCause.UNAUTHORISED.code and was_let_in and callable(self._token)

    def _show(self, state: State) -> None:
        self.state = state
        self.state_changed.unpark_all()
