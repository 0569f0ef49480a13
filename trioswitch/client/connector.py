"""Stays connected: one connection after the other, with the waits between them, until the client is left or rejected."""

from collections.abc import Callable
from random import Random

import attrs
import trio

from .backoff import CEILING, Backoff
from .conversation import Conversation
from .errors import CannotConnect, ClientClosed, ClientError, ConnectionLost, Rejected
from .link import Address, Link, OpenStream, with_link
from .options import ClientOptions
from .session import Session

__all__ = ["Connector", "State"]

TAKEN_OVER = 4002
"""Close code: another connection has resumed the session."""


@attrs.frozen
class State:
    """Whether the client is connected; where not, why, and in how many seconds it tries again (None: it tries now)."""

    connected: bool
    reason: str = ""
    retry_in: float | None = None


class Connector:
    """`rejected` is called when the server does not want the client any more."""

    def __init__(
        self,
        address: Address,
        open_stream: OpenStream,
        token: str | None,
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
        self._started: trio.TaskStatus[None] | None = None  # None: the first connection has been there
        self._leaving = False
        self.over = trio.Event()
        self.conversation: Conversation | None = None
        self.connections = 0
        self.state = State(False)
        self.state_changed = trio.lowlevel.ParkingLot()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Connect, again and again. Raises CannotConnect and Rejected for the first connection, and nothing later."""
        self._started = task_status
        try:
            with self._scope:
                while not self._leaving:
                    await self._go_on(await self._connect())
        except Rejected as rejected:
            if not self.connections:
                raise
            self._rejected()  # first: who waits in the block is cancelled, and only who waits elsewhere is told
            self._session.end(rejected)
            self._show(State(False, str(rejected)))
        finally:
            self.over.set()
            self.state_changed.unpark_all()

    async def leave(self) -> None:
        """Close with 1000 within `close_timeout`, whether this is cancelled or not. Everybody who waits gets ClientClosed."""
        self._leaving = True
        if self._session.ended is None:
            self._session.end(ClientClosed("the client has been left"))
        if self.conversation is None:
            self._scope.cancel()
        else:
            self.conversation.leave()
        with trio.move_on_after(self._options.close_timeout, shield=True):
            await self.over.wait()
        self._scope.cancel()

    async def _connect(self) -> ClientError:
        """One attempt, and the connection that it may give. Returns why it ended; raises Rejected."""
        self._show(State(False, self.state.reason))
        try:
            return await with_link(
                self._address,
                self._open_stream,
                self._token,
                self._options.connect_timeout,
                self._options.max_message_bytes,
                self._converse,
            )
        except CannotConnect as error:
            return error

    async def _converse(self, link: Link) -> ConnectionLost:
        conversation = self.conversation = Conversation(
            self._session,
            link,
            patience=self._options.connect_timeout,
            backoff=Backoff(self._random),
            greeted=self._greeted,
        )
        try:
            return await conversation.run()
        finally:
            self.conversation = None
            self._backoff.lasted(conversation.lasted)

    def _greeted(self) -> None:
        self.connections += 1
        self._show(State(True))
        if self._started is not None:
            self._started.started()
            self._started = None
            self._scope.shield = True  # from now on `leave` ends it: a client that is cancelled says goodbye, too

    async def _go_on(self, failure: ClientError) -> None:
        """Wait for the time of the next attempt. Raises the failure where there is to be none."""
        if self._leaving:
            return
        after = failure.after if isinstance(failure, CannotConnect | ConnectionLost) else None
        if isinstance(failure, ConnectionLost):
            if 4500 <= failure.code <= 4999:
                raise Rejected(failure.code, failure.reason)
            if failure.code == TAKEN_OVER:
                self._session.id = None  # to take it back from there would go on forever
        if not self.connections and not self._options.keep_trying:
            raise failure if isinstance(failure, CannotConnect) else CannotConnect(str(failure), after)
        if isinstance(failure, ConnectionLost) and after is not None:
            delay = after  # `reconnect`: a time of this client's own
        else:  # `Retry-After` is the same for all, and anybody's word
            delay = min(after or 0.0, CEILING) + self._backoff.next()
        self._show(State(False, str(failure), delay))
        await trio.sleep(delay)

    def _show(self, state: State) -> None:
        self.state = state
        self.state_changed.unpark_all()
