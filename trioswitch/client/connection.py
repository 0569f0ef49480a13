"""One connection of a client, from the server's `connected` to the close.

It has three tasks. The first one reads, and waits for nothing but the socket, so that answers and heartbeats are always
received. The second one writes. The third one greets the server, and then sends heartbeats. The client's own commands are sent
ahead of the application's requests, which are held back until the session is resumed or the rooms are joined again.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from math import inf
from typing import Any, Final

import trio

from .._util.backoff import Backoff
from .errors import ConnectionLost, RequestFailed
from .messages import Announcement, HistoryPage, Message, position_of
from .requests import encode
from .session import Membership, Session
from .tokens import TokenSource, TokenUnavailable, current_token
from .websocket_link import WebSocketLink

__all__ = ["RETRIED", "ClientConnection"]

_log = logging.getLogger(__name__)

OnAnswer = Callable[[Mapping[str, Any], int], None]
"""Called with an `ack` or `error`, and its size in bytes."""
RENEW_AT: Final = 0.8
"""The share of a token's time after which a new one is sent."""
MIN_RENEWAL: Final = 1.0
"""Seconds between two new tokens, at least."""
RETRIED: Final = frozenset({"not_stored", "unavailable"})
"""Error codes of failures that are temporary: the client tries again."""


class ClientConnection:
    """Runs the protocol on an open link.

    It calls `on_ready` when the application's requests can be sent. It ends if that takes more than `greeting_timeout` seconds.
    """

    def __init__(
        self,
        session: Session,
        link: WebSocketLink,
        *,
        greeting_timeout: float,
        backoff: Backoff,
        on_ready: Callable[[], None],
        token_source: TokenSource | None = None,
    ) -> None:
        self._token_source = token_source
        self._session = session
        self._link = link
        self._greeting_timeout = greeting_timeout
        self._backoff = backoff
        self._on_ready = on_ready
        self._nursery: trio.Nursery | None = None
        self._urgent: deque[bytes] = deque()
        self._pending: dict[str, OnAnswer] = {}
        self._last_id = 0
        self._welcome: Mapping[str, Any] | None = None
        self._welcomed = trio.Event()
        self._ready = False
        self._leaving = False
        self._lost: ConnectionLost | None = None
        self._after: float | None = None  # the delay before reconnecting that the server asked for
        self._ready_at = inf

    async def run(self) -> ConnectionLost:
        """Run until the connection ends, and return why. Cancelling it ends the connection without a close frame."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._read)
                nursery.start_soon(self._write)
                with trio.move_on_after(self._greeting_timeout) as greeting:
                    await self._greet()
                if greeting.cancelled_caught:
                    self._end(ConnectionLost(1006, "the server did not send its greeting in time"))
                else:
                    await self._heartbeats()
        finally:
            lost = self._lost or ConnectionLost(1006, "")
            lost.after = self._after
            self._session.requests.connection_lost(lost)
            self._session.connection_lost()
        return lost

    @property
    def duration(self) -> float:
        """Seconds since the connection became ready; 0 if it is not ready."""
        return max(0.0, trio.current_time() - self._ready_at)

    def leave(self) -> None:
        """Send what is pending, and close with 1000."""
        self.acknowledge(idle=True)
        self._leaving = True
        self._wake()

    def renew(self) -> None:
        """End this connection, so that the server sends refused direct messages again on the next one."""
        self._end(
            ConnectionLost(1006, "the client reconnects to receive direct messages that did not fit into its buffer")
        )

    # --- the client's own commands

    def join(self, membership: Membership) -> None:
        """Join a room, or join it again; does nothing before the connection is ready."""
        fields: dict[str, Any] = {"room": membership.name}
        if self._session.requested_user is not None:
            fields["user_id"] = self._session.requested_user
        if (since := membership.sync.since()) is not None:
            fields["since"] = since
        elif membership.history and not membership.joined:
            fields["history"] = membership.history

        def on_answer(answer: Mapping[str, Any], _size: int) -> None:
            if self._session.rooms.get(membership.name) is not membership:
                return
            if answer["type"] == "ack":
                self._session.user_id = answer.get("user_id", self._session.user_id)
                membership.on_joined(answer)
                self.fetch(membership)
            elif membership.answered.is_set() and answer.get("code") in RETRIED:
                assert self._nursery is not None
                self._nursery.start_soon(self._join_later, membership)
            else:
                del self._session.rooms[membership.name]
                membership.end(RequestFailed(answer.get("code", ""), answer.get("message", "")))

        if self._ready:
            self._ask("join_room", fields, on_answer)

    async def _join_later(self, membership: Membership) -> None:
        """Join again a room that the client was in before, and that the server cannot let it into now."""
        await trio.sleep(self._backoff.next())
        if self._session.rooms.get(membership.name) is membership:
            self.join(membership)

    def leave_room(self, room: str) -> None:
        """Leave a room; the answer is ignored."""
        self._send("leave_room", {"room": room})

    def fetch(self, membership: Membership) -> None:
        """Fetch a part of a room's history if its `sync` asks for it; does nothing before the connection is ready."""
        if not self._ready or membership.ended is not None or (fetch := membership.sync.fetch()) is None:
            return

        def on_answer(answer: Mapping[str, Any], size: int) -> None:
            if answer["type"] == "ack":
                membership.sync.page(HistoryPage.from_ack(answer), size)
            elif answer.get("code") in RETRIED:
                assert self._nursery is not None
                self._nursery.start_soon(self._fetch_later, membership)
                return
            else:
                membership.sync.abandon()
            membership.wake.unpark_all()
            self.fetch(membership)

        fields = {"room": membership.name, "since": fetch.since, "limit": fetch.limit}
        self._ask("history", fields, on_answer)

    async def _fetch_later(self, membership: Membership) -> None:
        await trio.sleep(self._backoff.next())
        membership.sync.fetch_failed()
        self.fetch(membership)

    def acknowledge(self, *, idle: bool) -> None:
        """Acknowledge the direct messages that the application is done with, if it is worth a command."""
        if self._ready and (upto := self._session.inbox.acknowledge(idle=idle)) is not None:
            self.read_inbox(upto)

    def read_inbox(self, upto: int = 0) -> None:
        """Acknowledge messages up to a number; 0 only announces that this client acknowledges, so that they are kept."""
        inbox = self._session.inbox

        def on_answer(answer: Mapping[str, Any], _size: int) -> None:
            if answer["type"] == "ack":
                inbox.confirmed(upto)
            else:
                inbox.ack_failed()

        if self._ready and inbox.used:
            self._ask("inbox_ack", {"upto": upto}, on_answer)

    # --- greeting

    async def _greet(self) -> None:
        await self._welcomed.wait()
        welcome = self._welcome
        assert welcome is not None
        session = self._session
        resumed = session.id is not None and await self._resume(session.id)
        if not resumed:
            session.id = welcome.get("session")
            session.user_id = welcome.get("user_id")
        self._ready = True
        for membership in list(session.rooms.values()):
            if not resumed or not membership.joined:
                self.join(membership)
            self.fetch(membership)
        self.read_inbox(session.inbox.begin(resumed=resumed))
        self._ready_at = trio.current_time()
        self._on_ready()
        self._wake()
        if self._token_source is not None and (expires := welcome.get("expires")) is not None:
            assert self._nursery is not None
            self._nursery.start_soon(self._renew_token, self._token_source, expires)

    async def _renew_token(self, source: TokenSource, expires: float) -> None:
        """The task that sends new tokens, each before the one before it runs out."""
        answers: list[Mapping[str, Any]] = []
        while True:
            await trio.sleep(max(RENEW_AT * expires, MIN_RENEWAL))
            try:
                token = await current_token(source)
            except TokenUnavailable as unavailable:
                _log.warning("%s", unavailable)
                expires = 0.0  # it is tried again soon
                continue
            answered = trio.Event()

            def on_answer(answer: Mapping[str, Any], _size: int, answered: trio.Event = answered) -> None:
                answers.append(answer)
                answered.set()

            self._ask("authenticate", {"token": token}, on_answer)
            await answered.wait()
            if answers[-1]["type"] != "ack" or answers[-1].get("expires") is None:
                return  # the server closes the connection when the old one runs out; or the new one does not
            expires = answers[-1]["expires"]

    async def _resume(self, id: str) -> bool:
        """Ask the server to resume the session. Returns whether it did."""
        session = self._session
        positions = {
            name: since
            for name, membership in session.rooms.items()
            if membership.joined and (since := membership.sync.since()) is not None
        }
        answers: list[Mapping[str, Any]] = []
        answered = trio.Event()

        def on_answer(answer: Mapping[str, Any], _size: int) -> None:
            answers.append(answer)
            answered.set()
            if answer["type"] == "ack":  # now, because replayed messages follow immediately
                resume_rooms(answer.get("rooms", {}))

        def resume_rooms(rooms: Mapping[str, Mapping[str, Any]]) -> None:
            for name, membership in session.rooms.items():
                membership.joined = membership.joined and name in rooms
                if membership.joined:
                    membership.on_joined(rooms[name])
            for name in rooms.keys() - session.rooms.keys():
                self.leave_room(name)

        self._ask("resume", {"session": id, "rooms": positions}, on_answer)
        await answered.wait()
        if answers[0]["type"] != "ack":
            return False
        session.user_id = answers[0].get("user_id", session.user_id)
        return True

    # --- reading

    async def _read(self) -> None:
        try:
            while True:
                event, size = await self._link.receive()
                self._dispatch(event, size)
        except ConnectionLost as lost:
            if not self._leaving:  # otherwise the writer completes the closing handshake
                self._end(lost)
        except (KeyError, TypeError, ValueError, AttributeError):
            _log.exception("the server sent an invalid event")
            self._end(ConnectionLost(1002, "the server sent an invalid event"))

    def _dispatch(self, event: Mapping[str, Any], size: int) -> None:
        """Handle one event. Unknown events are ignored."""
        type, room = event.get("type"), event.get("room")
        if type in ("ack", "error") and "id" in event:
            on_answer = self._pending.pop(event["id"], None)
            if on_answer is not None:
                on_answer(event, size)
            else:
                self._session.requests.answer(event)
        elif type in ("chat_message", "message") and room is not None:
            if (membership := self._session.rooms.get(room)) is not None:
                membership.sync.message(Message.from_event(event), size)
                self._on_change(membership)
        elif type in ("direct_message", "group_message", "message"):
            self._session.inbox.message(Message.from_event(event), size)
            self._session.direct_wake.unpark_all()
        elif type == "system":
            if (membership := self._session.rooms.get(room or "")) is not None:
                membership.on_announcement(Announcement.from_event(event))
                self._on_change(membership)
        elif type == "gap":
            self._gap(room, event)
        elif type == "reconnect":
            self._after = float(event["after"])
        elif type == "connected" and self._welcome is None:
            self._welcome = event
            self._welcomed.set()
        elif type == "error":
            _log.info("the server reports an error: %s: %s", event.get("code"), event.get("message"))
            if event.get("code") == "unencodable" and (membership := self._session.rooms.get(room or "")) is not None:
                membership.sync.unreadable(position_of(event))
                self._on_change(membership)

    def _gap(self, room: str | None, event: Mapping[str, Any]) -> None:
        if room is None:
            self._session.inbox.gap(event.get("dropped"))
            self._session.direct_wake.unpark_all()
        elif (membership := self._session.rooms.get(room)) is not None:
            membership.sync.gap(event)
            self._on_change(membership)

    def _on_change(self, membership: Membership) -> None:
        membership.wake.unpark_all()
        self.fetch(membership)

    # --- writing

    def _ask(self, type: str, fields: Mapping[str, Any], on_answer: OnAnswer) -> None:
        self._last_id += 1
        id = f"c{self._last_id}"  # the ids of the application's requests are numbers
        self._pending[id] = on_answer
        self._send(type, {**fields, "id": id})

    def _send(self, type: str, fields: Mapping[str, Any]) -> None:
        self._urgent.append(encode({"type": type, **fields}))
        self._wake()

    def _wake(self) -> None:
        self._session.requests.wake.unpark_all()

    def _next(self) -> bytes | None:
        if self._urgent:
            return self._urgent.popleft()
        if not self._ready or self._welcome is None:
            return None
        return self._session.requests.next(self._welcome.get("max_message_bytes", 1024 * 1024))

    async def _write(self) -> None:
        try:
            while True:
                payload = self._next()
                if payload is not None:
                    await self._link.send(payload)
                elif self._leaving:
                    await self._link.close()
                    self._end(ConnectionLost(1000, "the client was closed"))
                    return
                else:
                    await self._session.requests.wake.park()
        except ConnectionLost as lost:
            self._end(lost)

    async def _heartbeats(self) -> None:
        """Send heartbeats; end the connection when nothing was received between two of them."""
        assert self._welcome is not None
        interval = float(self._welcome.get("heartbeat", 25))
        while True:
            received = self._link.received
            self._send("heartbeat", {})
            await trio.sleep(interval)
            if self._link.received == received:
                self._end(ConnectionLost(1006, "the server does not answer heartbeats"))

    def _end(self, lost: ConnectionLost) -> None:
        self._lost = self._lost or lost
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
