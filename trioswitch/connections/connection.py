"""The nursery of one connection: its reader, its flusher and its handlers. When it ends, all of them have ended."""

import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import trio

from ..auth.identity import Identity
from ..config import Options
from ..errors import BadInput, Cause, PeerGone, Refused, StoreError
from ..metrics import Traffic
from ..transport.port import Transport
from ..wire.messages import Ack, Command, Custom, Error, Event
from ..wire.prepared import Prepared
from .outbox import Outbox
from .request import ConnectRequest

__all__ = ["Connection", "Dispatch", "Handler"]

_log = logging.getLogger(__name__)

Dispatch = Callable[["Connection", Command, int], Coroutine[Any, Any, None] | None]
"""Carries out a command of so many bytes; what it returns, if anything, is awaited before the next one is read."""
Handler = Callable[["Connection", dict[str, Any]], Awaitable[Any]]
"""The application's answer to a message type of its own: what it returns goes into the `ack` as `data`."""
Make = Callable[["Connection"], Transport]

SLICE = 0.005
"""Seconds that the commands of one client may take at a stretch: 64 KiB of them can be 1,500, and some cost a lot."""
REPLY_PRIORITY = 6
"""Answers to the client itself are urgent: a linger is for what is sent to many."""


class Connection:
    """One client. `close` is what ends it from outside; `cause` says why it ended, once it does."""

    __slots__ = (
        "_errors", "_handler_scope", "_handlers", "_nursery", "_options", "_reading_over", "_reason", "_waiting",
        "cause", "heard", "id", "identity", "inbox", "named", "opened_at", "outbox", "paused", "request", "resuming",
        "rooms", "session", "transport", "user",
    )  # fmt: skip

    def __init__(
        self,
        id: str,
        request: ConnectRequest,
        identity: Identity | None,
        options: Options,
        traffic: Traffic,
        make: Make,
    ) -> None:
        self.id = id
        self.request = request
        self.identity = identity
        """None until the client has authenticated itself, where it must."""
        self.user = id if identity is None or identity.user is None else identity.user
        """Its user: from its identity, or what the client called itself; its own id before that."""
        self.named = identity is not None and identity.user is not None
        """Whether its user is a name, rather than its own id, or that of the connection whose session it resumed."""
        self.rooms: set[str] = set()
        self.session = ""
        """The id of its session; empty when another connection has taken it over."""
        self.resuming: Any = None
        """While it resumes a session: what it does not have again yet (`sessions.Session`)."""
        self.inbox: Any = None
        """What it has of its user's inbox (`inbox.Progress`)."""
        self.cause: Cause | None = None
        self.heard = True
        """Whether anything has come from the peer since the last ping."""
        self.paused = False
        """Whether a command of it waits for a room or a handler: we do not read then, and its silence means nothing."""
        self.opened_at = trio.current_time()
        self._options = options
        self._reason = ""
        self._errors = 0
        self._waiting: Coroutine[Any, Any, None] | None = None  # what the last command left to be awaited
        self._nursery: trio.Nursery | None = None
        self._handlers: trio.MemorySendChannel[tuple[Handler, Custom]] | None = None
        self._handler_scope: trio.CancelScope | None = None
        self._reading_over: trio.Event | None = None  # made when our side closes: what waits for the peer's answer
        self.transport = make(self)
        self.outbox = Outbox(id, self.transport, options, traffic, start_soon=self.start_soon, fail=self.fail)

    # --- to the client

    def reply(self, event: Event) -> None:
        """Tell this client something, ahead of what waits for it. Never waits."""
        self.outbox.reply(Prepared(event, priority=REPLY_PRIORITY))

    def reply_error(self, code: str, message: str, request_id: str | int | None = None) -> None:
        error = Error(code=code, message=message)
        if request_id is not None:
            error.id = request_id
        self.reply(error)

    # --- its life

    async def run(self, dispatch: Dispatch, on_open: Callable[["Connection"], None]) -> None:
        """Serve the client until it goes or is closed. `on_open` is called when its nursery is open.

        Raises nothing but Cancelled: what goes wrong in here ends this connection only.
        """
        try:
            async with trio.open_nursery() as self._nursery:
                try:
                    on_open(self)
                    gone = await self._read(dispatch)
                    if self._handler_scope is not None:
                        self._handler_scope.cancel()
                    if self._reading_over is not None and gone.cause is not Cause.VANISHED:
                        self._reading_over.set()  # `_close` is under way, and ends the nursery
                        await trio.sleep_forever()
                    await self._conclude(gone)
                    self._nursery.cancel_scope.cancel()
                finally:  # from here on its nursery takes no task any more: no flusher, and no `_close`
                    self.cause = self.cause or Cause.DRAIN  # cancelled from outside
                    self.outbox.end()
        except* Exception:
            _log.exception("connection %s failed", self.id)
            if self._reading_over is None:  # nobody has closed it for another cause
                self.cause = Cause.INTERNAL
        finally:
            if self._waiting is not None:
                self._waiting.close()
            self.outbox.close()
            await self.transport.aclose()

    async def _read(self, dispatch: Dispatch) -> PeerGone:
        transport = self.transport

        def take(messages: list[bytes]) -> list[bytes] | None:
            return self._take(messages, dispatch)

        transport.hand_to(take)
        try:
            while True:
                left: list[bytes] | None = await transport.receive()
                await self._catch_up()  # with what `take` left behind in the meantime
                while left is not None and (left := take(left)) is not None:
                    await self._catch_up()
        except PeerGone as gone:
            return gone
        except Exception:
            _log.exception("connection %s: a command failed", self.id)
            return PeerGone(Cause.INTERNAL)

    def _take(self, messages: list[bytes], dispatch: Dispatch) -> list[bytes] | None:
        """Carry out commands in order, up to one that has to wait (`_catch_up`). Returns what is left then, else None."""
        self.heard = True
        transport, outbox = self.transport, self.outbox
        if pongs := transport.pongs():
            outbox.control(pongs)
        decode, enough = transport.format.protocol.decode, time.monotonic() + SLICE
        for index, payload in enumerate(messages):
            if self.cause is not None:
                break  # we are closing: what still comes is read, and not acted upon
            try:
                command = decode(payload)
            except BadInput as bad:
                self._answer(bad)
            else:
                self._errors = 0
                self._waiting = dispatch(self, command, len(payload))
            if self._waiting is not None or outbox.full:
                return messages[index + 1 :]
            if time.monotonic() > enough:
                self._waiting = trio.lowlevel.checkpoint()  # noqa: ASYNC105  # the others get their turn
                return messages[index + 1 :]
        return None

    async def _catch_up(self) -> None:
        """Wait for what the last command has to wait for: a full room, a handler, or the client, which must read its answers."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self.paused = True
            await waiting
            self.paused = False
        await self.outbox.wait_space()

    def _answer(self, bad: BadInput) -> None:
        self.reply_error(bad.code, bad.message, bad.request_id)
        if bad.counts:
            self._errors += 1
        if bad.fatal is not None:
            self.close(bad.fatal)
        elif self._errors > self._options.max_errors:
            self.close(Cause.POLICY)

    async def _conclude(self, gone: PeerGone) -> None:
        """The peer has closed, or broke the protocol: answer with the right close frame, if it can still be told."""
        self.cause = self.cause or gone.cause
        if gone.cause is Cause.VANISHED:
            return
        with trio.move_on_after(self._options.close_timeout):
            try:
                await self.outbox.finish(flush=False)
                await self.transport.send_close(gone.cause, gone.reason)
                if gone.cause not in (Cause.CLIENT_LEFT, Cause.CLIENT_AWAY):
                    await self.transport.wait_closed()
            except PeerGone:
                _log.debug("connection %s went while it was closed", self.id)

    def close(self, cause: Cause, reason: str | None = None, *, flush: bool = True) -> None:
        """Begin to end this connection; returns at once. With `flush`, what waits for it is written first.

        It is over when the peer has answered, or after `close_timeout`. The first cause holds.
        """
        if self.cause is not None or self._nursery is None:
            return
        self.cause, self._reason = cause, cause.reason if reason is None else reason
        self._reading_over = trio.Event()
        self._nursery.start_soon(self._close, flush, self._nursery.cancel_scope, self._reading_over)

    async def _close(self, flush: bool, scope: trio.CancelScope, reading_over: trio.Event) -> None:
        assert self.cause is not None
        with trio.move_on_after(self._options.close_timeout):
            try:
                await self.outbox.finish(flush=flush)
                await self.transport.send_close(self.cause, self._reason)
                await reading_over.wait()
            except PeerGone:
                _log.debug("connection %s went while it was closed", self.id)
        scope.cancel()

    def fail(self, cause: Cause) -> None:
        """The outbox cannot go on: the peer is gone, or too slow."""
        if cause is not Cause.VANISHED:
            self.close(cause, flush=False)
        elif self._nursery is not None:
            self.cause = self.cause or cause
            self._nursery.cancel_scope.cancel()

    def ping(self) -> None:
        self.heard = False
        data = self.transport.ping()
        if data is not None:
            self.outbox.control(data)

    @property
    def alive(self) -> bool:
        """Whether the peer was heard since the last ping, or could not be."""
        return self.heard or self.paused or self.cause is not None

    def was_heard(self) -> None:
        self.heard = True

    def was_lost(self) -> None:
        """The peer cannot be pinged. The reader hears of it by itself, and of the cause, unless it is paused."""
        if self.paused:
            self.fail(Cause.VANISHED)

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
            answer = await handler(self, command.fields)
        except Refused as refused:
            self.reply_error(refused.code, refused.message, command.id)
        except StoreError as error:
            self.reply_error("not_stored", str(error), command.id)
        except Exception:
            _log.exception("connection %s: the handler for %r failed", self.id, command.type)
            self.reply_error("internal", f"the handler for `{command.type}` failed", command.id)
        else:
            if command.id is not None:
                self.reply(Ack(id=command.id) if answer is None else Ack(id=command.id, data=answer))
