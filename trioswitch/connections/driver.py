"""Runs one connection: the nursery of its reader, its flusher and its handlers. When the driver ends, all of them have ended.

This is internal. What applications hold is `connection.Connection`, made by `ConnectionDriver.public` when it is first asked for.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Set
from typing import Any, Final, Protocol

import trio

from .._util.checks import carried_text
from .._util.nurseries import without_group
from ..auth.identity import Identity, share_of
from ..auth.request import ConnectRequest
from ..config import Options
from ..errors import BadInput, CloseCause, DeliveryError, PeerGone, Refused, StoreError, UnencodableData, code_of
from ..metrics import Traffic
from ..transport.port import Transport
from ..wire.commands import Command, Custom
from ..wire.messages import Ack, Error, Event
from ..wire.prepared import Prepared
from .allowance import Allowance
from .connection import Connection, Services
from .limits import MessageLimiter
from .outbox import Outbox

__all__ = ["ConnectionDriver", "Execute", "Handler", "Pending"]

_log = logging.getLogger(__name__)


class Pending(Protocol):
    """The rest of a command that has to wait. It is awaited, or else closed: then what it would report is reported."""

    def __await__(self) -> Any: ...

    def close(self) -> None: ...


Execute = Callable[["ConnectionDriver", Command, int], Pending | None]
"""Executes a command of so many bytes; what it returns, if anything, is awaited before the next one is read."""
Handler = Callable[[Connection, dict[str, Any]], Awaitable[Any]]
"""The application's callback for a message type of its own: what it returns goes into the `ack` as `data`."""
MakeTransport = Callable[["ConnectionDriver"], Transport]

COMMAND_TIME_SLICE: Final = 0.005
"""Seconds for which the commands of one client may run before other tasks do: 64 KiB can hold 1,500 commands."""
REPLY_PRIORITY: Final = 6
"""Answers to the client's own commands are urgent: a linger is for what is sent to many."""


class ConnectionDriver:
    """One client. `close` ends it from outside; `cause` says why it ended, once it does.

    Its fields are written by itself only. `services` is what the public `Connection` calls.
    """

    __slots__ = (
        "_code", "_errors", "_handler_scope", "_handlers", "_heard", "_limiter", "_nursery", "_options", "_paused", "_pending",
        "_public", "_reading_over", "_reason", "_rooms", "_services", "_traffic", "allowance", "cause", "has_declared_name", "id",
        "identity", "opened_at", "outbox", "request", "sender", "transport", "user",
    )  # fmt: skip

    def __init__(
        self,
        id: str,
        request: ConnectRequest,
        identity: Identity | None,
        options: Options,
        traffic: Traffic,
        services: Services,
        make_transport: MakeTransport,
        limiter: MessageLimiter | None = None,
    ) -> None:
        self.id = id
        self.request = request
        self.identity = identity
        """None until the client has authenticated itself, where it must."""
        self.user = id if identity is None or identity.user is None else identity.user
        """Its user: from its identity, or what the client called itself; the connection's id before that."""
        self.has_declared_name = identity is not None and identity.user is not None
        """Whether `user` is a name rather than the id of this connection, or of the one whose session it resumed."""
        self.sender = "" if identity is None else share_of(identity)
        """Whose share of a store its messages take."""
        self.cause: CloseCause | None = None
        self.opened_at = trio.current_time()
        self._rooms: set[str] = set()
        self._heard = True  # whether anything has come from the peer since the last ping
        self._paused = False  # whether a command of it waits: nothing is read then, and its silence means nothing
        self._options = options
        self._limiter = limiter
        self._services = services
        self._traffic = traffic
        self._public: Connection | None = None
        self._code, self._reason = 0, ""
        self._errors = 0
        self.allowance = Allowance()
        """For long answers."""
        self._pending: Pending | None = None  # what the last command left to be awaited
        self._nursery: trio.Nursery | None = None
        self._handlers: trio.MemorySendChannel[tuple[Handler, Custom]] | None = None
        self._handler_scope: trio.CancelScope | None = None
        self._reading_over: trio.Event | None = None  # made when our side closes: what waits for the peer's answer
        self.transport = make_transport(self)
        self.outbox = Outbox(id, self.transport, options, traffic, start_soon=self.start_soon, fail=self.fail)

    # --- who it is, and where

    @property
    def public(self) -> Connection:
        """What applications hold of it. It is made late: most connections never meet the application's code."""
        if self._public is not None:
            return self._public
        public = Connection(self, self._services)
        if self.cause is None:  # else it would refer to us, and we to it, for as long as nobody collects cycles
            self._public = public
        return public

    @property
    def publishes_as_member(self) -> bool:
        """Whether its identity lets it publish to the rooms that it has joined, where members may publish."""
        return self.identity is not None and self.identity.publish is None

    @property
    def rooms(self) -> Set[str]:
        """Names of the rooms that it is a member of."""
        return self._rooms

    def enter(self, room: str) -> None:
        """Note that it is a member of a room."""
        self._rooms.add(room)

    def exit(self, room: str) -> None:
        """Note that it is no longer a member of a room."""
        self._rooms.discard(room)

    def become(self, user: str, *, declared: bool) -> None:
        """It belongs to this user from now on. `declared` is the new `has_declared_name`."""
        self.user = user
        self.has_declared_name = declared

    def authenticate(self, identity: Identity) -> None:
        """Its client has proven who it is."""
        self.identity = identity
        self.sender = share_of(identity)

    # --- to the client

    def reply(self, event: Event) -> None:
        """Tell this client something, ahead of what waits for it. Never waits."""
        self.outbox.reply(Prepared(event, priority=REPLY_PRIORITY))

    def reply_at_length(self, event: Event) -> None:
        """As `reply`, with an answer that may be much longer than the question: it is charged."""
        message = Prepared(event, priority=REPLY_PRIORITY)
        self.outbox.reply(message)
        self.allowance.charge(message.weight(self.transport.format.framing))

    def reply_error(self, code: str, message: str, request_id: str | int | None = None) -> None:
        error = Error(code=carried_text(code), message=carried_text(message))
        if request_id is not None:
            error.id = request_id
        self.reply(error)

    @property
    def close_code(self) -> tuple[int, str]:
        """Code and reason of the closing handshake, 1006 where there was none. It is known when the connection has ended."""
        cause = self.cause or CloseCause.VANISHED
        return self._code or cause.code, self._reason

    # --- its life

    async def run(self, execute: Execute, on_open: Callable[["ConnectionDriver"], None]) -> None:
        """Serve the client until it goes or is closed. `on_open` is called when its nursery is open.

        Raises nothing but Cancelled: what goes wrong in here ends this connection only.
        """
        try:
            async with trio.open_nursery() as self._nursery:
                try:
                    on_open(self)
                    gone = await self._read(execute)
                    if self.cause is None:
                        self._code, self._reason = gone.code, gone.reason
                    if self._handler_scope is not None:
                        self._handler_scope.cancel()
                    if self._reading_over is not None and gone.cause is not CloseCause.VANISHED:
                        self._reading_over.set()  # `_close` is under way, and ends the nursery
                        await trio.sleep_forever()
                    await self._conclude(gone)
                    self._nursery.cancel_scope.cancel()
                finally:  # from here on its nursery takes no task any more: no flusher, and no `_close`
                    self.cause = self.cause or CloseCause.DRAIN  # cancelled from outside
                    self.outbox.end()
        except* Exception:
            _log.exception("connection %s failed", self.id, extra={"connection": self.id})
            if self._reading_over is None:  # nobody has closed it for another cause
                self.cause = CloseCause.INTERNAL
        finally:
            if self._pending is not None:
                self._pending.close()
            self._public = None
            self.outbox.close()
            await self.transport.aclose()

    async def _read(self, execute: Execute) -> PeerGone:
        transport = self.transport

        def run(messages: list[bytes]) -> list[bytes] | None:
            return self._execute(messages, execute)

        transport.set_receiver(run)
        try:
            while True:
                left: list[bytes] | None = await transport.receive()
                await self._await_pending()  # with what `run` left behind in the meantime
                while left is not None and (left := run(left)) is not None:
                    await self._await_pending()
        except PeerGone as gone:
            return gone
        except Exception:
            _log.exception("connection %s: a command failed", self.id, extra={"connection": self.id})
            return PeerGone(CloseCause.INTERNAL)

    def _execute(self, messages: list[bytes], execute: Execute) -> list[bytes] | None:
        """Carry out commands in order, up to one that has to wait (`_await_pending`). Returns what is left then, else None."""
        self._heard = True
        transport, outbox, allowance = self.transport, self.outbox, self.allowance
        traffic, limiter = self._traffic, self._limiter
        if pongs := transport.pongs():
            outbox.control(pongs)
        decode, enough = transport.format.protocol.decode, time.monotonic() + COMMAND_TIME_SLICE
        for index, payload in enumerate(messages):
            if self.cause is not None:
                break  # we are closing: what still comes is read, and not acted upon
            size = len(payload)
            traffic.messages_received += 1
            traffic.bytes_received += size
            try:
                command = decode(payload)
            except BadInput as bad:
                self._answer(bad)
            else:
                self._errors = 0
                self._pending = execute(self, command, size)
            too_fast = limiter is not None and limiter.charge(self.user)
            if self._pending is not None or too_fast or outbox.full or allowance.exceeded:
                return messages[index + 1 :]
            if time.monotonic() > enough:
                self._pending = trio.lowlevel.checkpoint()  # noqa: ASYNC105  # the others get their turn
                return messages[index + 1 :]
        return None

    async def _await_pending(self) -> None:
        """Wait for what the last command has to wait for: a full room, a handler, or the client, which must read its answers."""
        waiting, self._pending = self._pending, None
        if waiting is not None:
            self._paused = True
            await waiting
            self._paused = False
        await self.outbox.wait_space()
        for bound in (self.allowance, self._limiter):
            if bound is not None and bound.exceeded:
                self._paused = True
                await bound.wait()
                self._paused = False

    def _answer(self, bad: BadInput) -> None:
        self.reply_error(bad.code, bad.message, bad.request_id)
        if bad.counts:
            self._errors += 1
        if bad.fatal is not None:
            self.close(bad.fatal)
        elif self._errors > self._options.max_errors:
            self.close(CloseCause.POLICY)

    async def _conclude(self, gone: PeerGone) -> None:
        """The peer has closed, or broke the protocol: answer with the right close frame, if it can still be told."""
        self.cause = self.cause or gone.cause
        if gone.cause is CloseCause.VANISHED:
            return
        with trio.move_on_after(self._options.close_timeout):
            try:
                await self.outbox.finish(flush=False)
                await self.transport.send_close(gone.cause.code, gone.reason)
                if gone.cause not in (CloseCause.CLIENT_LEFT, CloseCause.CLIENT_AWAY):
                    await self.transport.wait_closed()
            except PeerGone:
                _log.debug("connection %s went while it was closed", self.id, extra={"connection": self.id})

    def close(
        self, cause: CloseCause, reason: str | None = None, *, flush: bool = True, code: int | None = None
    ) -> None:
        """Begin to end this connection; returns at once. With `flush`, what is pending for it is written first.

        The client sees `code` and `reason`, by default those of the cause.

        It is over when the peer has answered, or after `close_timeout`. The first cause holds.
        """
        if self.cause is not None or self._nursery is None:
            return
        self.cause = cause
        # RFC 6455, section 5.5: a control frame has 125 bytes, two of which are the code.
        self._reason = carried_text(cause.reason if reason is None else reason).encode()[:123].decode(errors="ignore")
        self._code = cause.code if code is None else code
        self._reading_over = trio.Event()
        self._nursery.start_soon(self._close, flush, self._nursery.cancel_scope, self._reading_over)

    async def _close(self, flush: bool, scope: trio.CancelScope, reading_over: trio.Event) -> None:
        assert self.cause is not None
        with trio.move_on_after(self._options.close_timeout):
            try:
                await self.outbox.finish(flush=flush)
                await self.transport.send_close(self._code, self._reason)
                await reading_over.wait()
            except PeerGone:
                _log.debug("connection %s went while it was closed", self.id, extra={"connection": self.id})
        scope.cancel()

    def fail(self, cause: CloseCause) -> None:
        """The outbox cannot go on: the peer is gone, or too slow."""
        if cause is not CloseCause.VANISHED:
            self.close(cause, flush=False)
        elif self._nursery is not None:
            self.cause = self.cause or cause
            self._nursery.cancel_scope.cancel()

    def ping(self) -> None:
        self._heard = False
        data = self.transport.ping()
        if data is not None:
            self.outbox.control(data)

    @property
    def alive(self) -> bool:
        """Whether the peer was heard since the last ping, or could not be."""
        return self._heard or self._paused or self.cause is not None

    def was_heard(self) -> None:
        self._heard = True

    def was_lost(self) -> None:
        """The peer cannot be pinged. The reader hears of it by itself, and of the cause, unless it is paused."""
        if self._paused:
            self.fail(CloseCause.VANISHED)

    # --- the application's handlers

    def start_soon(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Run a task that ends with this connection."""
        assert self._nursery is not None
        self._nursery.start_soon(function, *args)

    async def handle(self, handler: Handler, command: Custom) -> None:
        """Queue a message for the application; waits while `handler_queue` of them wait already. Order is kept."""
        if self._handlers is None:
            self._handlers, waiting = trio.open_memory_channel[tuple[Handler, Custom]](self._options.handler_queue)
            self._handler_scope = trio.CancelScope()
            self.start_soon(self._run_handlers, waiting, self._handler_scope)
        await self._handlers.send((handler, command))

    async def _run_handlers(
        self, waiting: trio.MemoryReceiveChannel[tuple[Handler, Custom]], scope: trio.CancelScope
    ) -> None:
        with scope:
            async for handler, command in waiting:
                await self._handle_one(handler, command)

    async def _handle_one(self, handler: Handler, command: Custom) -> None:
        try:
            answer = await without_group(handler(self.public, command.fields()))
        except BadInput as bad:
            self.reply_error(bad.code, bad.message, bad.request_id)
        except (Refused, DeliveryError, StoreError, UnencodableData) as error:
            self.reply_error(code_of(error), str(error), command.id)
        except Exception:
            _log.exception(
                "connection %s: the handler for %r failed", self.id, command.type, extra={"connection": self.id}
            )
            self.reply_error("internal", f"the handler for `{command.type}` failed", command.id)
        else:
            if command.id is not None:
                self.reply(Ack(id=command.id) if answer is None else Ack(id=command.id, data=answer))
