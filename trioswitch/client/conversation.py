"""What a client and a server say on one connection, from `connected` to the close.

Three tasks: one reads and never waits for anything but the socket, so that answers, and the signs of life, always come
through; one writes; one sends heartbeats. The client's own commands go ahead of the application's requests, which wait until
the session is resumed, or the rooms are joined again.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from math import inf
from typing import Any, Final

import trio

from .backoff import Backoff
from .errors import ConnectionLost, RequestFailed
from .link import Link
from .messages import Announcement, Message, Page, Position
from .requests import encode
from .session import Membership, Session

__all__ = ["RETRIED", "Conversation"]

_log = logging.getLogger(__name__)

Answered = Callable[[Mapping[str, Any], int], None]
"""Gets the `ack` or `error`, and its bytes."""
RETRIED: Final = frozenset({"not_stored", "unavailable"})
"""Error codes that ask to try again."""


class Conversation:
    """`greeted` is called when requests begin to flow. One that greets the server for longer than `patience` seconds ends."""

    def __init__(
        self, session: Session, link: Link, *, patience: float, backoff: Backoff, greeted: Callable[[], None]
    ) -> None:
        self._session = session
        self._link = link
        self._patience = patience
        self._backoff = backoff
        self._greeted = greeted
        self._nursery: trio.Nursery | None = None
        self._urgent: deque[bytes] = deque()
        self._open: dict[str, Answered] = {}
        self._asked = 0
        self._welcome: Mapping[str, Any] | None = None
        self._welcomed = trio.Event()
        self._ready = False
        self._leaving = False
        self._lost: ConnectionLost | None = None
        self._after: float | None = None  # when the server wants the client back
        self._ready_at = inf

    async def run(self) -> ConnectionLost:
        """Returns why it ended. When it is cancelled the connection is over, too."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._read)
                nursery.start_soon(self._write)
                with trio.move_on_after(self._patience) as greeting:
                    await self._greet()
                if greeting.cancelled_caught:
                    self._end(ConnectionLost(1006, "the server did not greet in time"))
                else:
                    await self._heartbeats()
        finally:
            lost = self._lost or ConnectionLost(1006, "")
            lost.after = self._after
            self._session.requests.lost(lost)
            self._session.lost()
        return lost

    @property
    def lasted(self) -> float:
        """Seconds since the greeting was over; 0: it is not."""
        return max(0.0, trio.current_time() - self._ready_at)

    def leave(self) -> None:
        """Write what waits, and close with 1000."""
        self.acknowledge(idle=True)
        self._leaving = True
        self._wake()

    def renew(self) -> None:
        """End this connection: the next one brings again what could not be taken on it."""
        self._end(ConnectionLost(1006, "kept messages have to be sent again"))

    # --- what the client says by itself

    def join(self, membership: Membership) -> None:
        fields: dict[str, Any] = {"room": membership.name}
        if self._session.user is not None:
            fields["user_id"] = self._session.user
        if (since := membership.track.since()) is not None:
            fields["since"] = since.to_json()
        elif membership.history and not membership.joined:
            fields["history"] = membership.history

        def answered(answer: Mapping[str, Any], _size: int) -> None:
            if self._session.rooms.get(membership.name) is not membership:
                return
            if answer["type"] == "ack":
                self._session.user_id = answer.get("user_id", self._session.user_id)
                membership.answered(answer)
                self.fetch(membership)
            else:
                del self._session.rooms[membership.name]
                membership.end(RequestFailed(answer.get("code", ""), answer.get("message", "")))

        if self._ready:
            self._ask("join_room", fields, answered)

    def part(self, room: str) -> None:
        """Leave a room, without waiting for the answer."""
        self._say("leave_room", {"room": room})

    def fetch(self, membership: Membership) -> None:
        """Ask for a room's history where its track wants it."""
        if not self._ready or membership.ended is not None or (fetch := membership.track.fetch()) is None:
            return

        def answered(answer: Mapping[str, Any], size: int) -> None:
            if answer["type"] == "ack":
                membership.track.page(Page.read(answer), size)
            elif answer.get("code") in RETRIED:
                assert self._nursery is not None
                self._nursery.start_soon(self._fetch_later, membership)
                return
            else:
                membership.track.abandon()
            membership.wake.unpark_all()
            self.fetch(membership)

        fields = {"room": membership.name, "since": fetch.since.to_json(), "limit": fetch.limit}
        self._ask("history", fields, answered)

    async def _fetch_later(self, membership: Membership) -> None:
        await trio.sleep(self._backoff.next())
        membership.track.refetch()
        self.fetch(membership)

    def acknowledge(self, *, idle: bool) -> None:
        """Acknowledge what the application is done with, if it is worth a message."""
        if self._ready and (upto := self._session.inbox.acknowledge(idle=idle)) is not None:
            self.read_inbox(upto)

    def read_inbox(self, upto: int = 0) -> None:
        """Say that this client acknowledges, if the application reads its direct messages: then they are kept until it does."""
        inbox = self._session.inbox

        def answered(answer: Mapping[str, Any], _size: int) -> None:
            if answer["type"] == "ack":
                inbox.confirmed(upto)
            else:
                inbox.failed()

        if self._ready and inbox.used:
            self._ask("inbox_ack", {"upto": upto}, answered)

    # --- the beginning

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
        self._greeted()
        self._wake()

    async def _resume(self, id: str) -> bool:
        """Whether the server knows the session, and goes on with it."""
        session = self._session
        positions = {
            name: since.to_json()
            for name, membership in session.rooms.items()
            if membership.joined and (since := membership.track.since()) is not None
        }
        answers: list[Mapping[str, Any]] = []
        came = trio.Event()

        def answered(answer: Mapping[str, Any], _size: int) -> None:
            answers.append(answer)
            came.set()
            if answer["type"] == "ack":  # at once: what is replayed comes right behind it
                resume_rooms(answer.get("rooms", {}))

        def resume_rooms(rooms: Mapping[str, Mapping[str, Any]]) -> None:
            for name, membership in session.rooms.items():
                membership.joined = membership.joined and name in rooms
                if membership.joined:
                    membership.answered(rooms[name])
            for name in rooms.keys() - session.rooms.keys():
                self.part(name)

        self._ask("resume", {"session": id, "rooms": positions}, answered)
        await came.wait()
        if answers[0]["type"] != "ack":
            return False
        session.user_id = answers[0].get("user_id", session.user_id)
        return True

    # --- reading

    async def _read(self) -> None:
        try:
            while True:
                event, size = await self._link.receive()
                self._take(event, size)
        except ConnectionLost as lost:
            if not self._leaving:  # otherwise the writer waits for the end of the closing handshake
                self._end(lost)
        except (KeyError, TypeError, ValueError, AttributeError):
            _log.exception("the server sent what cannot be understood")
            self._end(ConnectionLost(1002, "the server sent what cannot be understood"))

    def _take(self, event: Mapping[str, Any], size: int) -> None:
        """One event. What is not known is ignored."""
        type, room = event.get("type"), event.get("room")
        if type in ("ack", "error") and "id" in event:
            answered = self._open.pop(event["id"], None)
            if answered is not None:
                answered(event, size)
            else:
                self._session.requests.answer(event)
        elif type in ("chat_message", "message") and room is not None:
            if (membership := self._session.rooms.get(room)) is not None:
                membership.track.message(Message.read(event), size)
                self._moved(membership)
        elif type in ("direct_message", "group_message", "message"):
            self._session.inbox.message(Message.read(event), size)
            self._session.direct.unpark_all()
        elif type == "system":
            if (membership := self._session.rooms.get(room or "")) is not None:
                membership.announced(Announcement.read(event))
                self._moved(membership)
        elif type == "gap":
            self._gap(room, event)
        elif type == "reconnect":
            self._after = float(event["after"])
        elif type == "connected" and self._welcome is None:
            self._welcome = event
            self._welcomed.set()
        elif type == "error":
            _log.info("the server says: %s: %s", event.get("code"), event.get("message"))
            if event.get("code") == "unencodable" and (membership := self._session.rooms.get(room or "")) is not None:
                membership.track.unreadable(Position.read(event))
                self._moved(membership)

    def _gap(self, room: str | None, event: Mapping[str, Any]) -> None:
        if room is None:
            self._session.inbox.gap(event.get("dropped"))
            self._session.direct.unpark_all()
        elif (membership := self._session.rooms.get(room)) is not None:
            membership.track.gap(event)
            self._moved(membership)

    def _moved(self, membership: Membership) -> None:
        membership.wake.unpark_all()
        self.fetch(membership)

    # --- writing

    def _ask(self, type: str, fields: Mapping[str, Any], answered: Answered) -> None:
        self._asked += 1
        id = f"c{self._asked}"  # the application's requests have numbers
        self._open[id] = answered
        self._say(type, {**fields, "id": id})

    def _say(self, type: str, fields: Mapping[str, Any]) -> None:
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
                    self._end(ConnectionLost(1000, "the client leaves"))
                    return
                else:
                    await self._session.requests.wake.park()
        except ConnectionLost as lost:
            self._end(lost)

    async def _heartbeats(self) -> None:
        """End the connection when nothing has come between two heartbeats."""
        assert self._welcome is not None
        interval = float(self._welcome.get("heartbeat", 25))
        while True:
            heard = self._link.heard
            self._say("heartbeat", {})
            await trio.sleep(interval)
            if self._link.heard == heard:
                self._end(ConnectionLost(1006, "the server gives no sign of life"))

    def _end(self, lost: ConnectionLost) -> None:
        self._lost = self._lost or lost
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
