"""The console's page, its login, and what the page asks for."""

import hmac
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import cached_property
from importlib import resources
from typing import Any, Final

import attrs
import msgspec
import trio

from .._util import clock
from ..errors import TrioswitchError
from ..monitoring import Monitor
from ..switch import Switch
from ..web import Page, Pages, Request, Route, Stream

__all__ = ["Console"]

_FILES = resources.files(__package__) / "files"
MIN_PASSWORD: Final = 12
COOKIE: Final = "trioswitch_console"
SESSION_TIME: Final = 12 * 3600.0
"""Seconds after which one has to log in again."""
LOGIN_DELAY: Final = 1.0
"""Seconds until a wrong password is answered."""
SHOWN: Final = 20
"""Rooms, connections and slow consumers in a list."""
FOLLOW_PING: Final = 15.0
"""Seconds after which a stream in which nothing happens says so, or a proxy would close it."""
_encode: Final = msgspec.json.Encoder().encode

Answerer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class Console:
    """Serves `/admin`: `serve(switch, pages=Console(switch, monitor, "a password").pages)`.

    Who knows the password sees everything, messages included, and may disconnect everybody. Raises ValueError for a password of
    fewer than 12 characters.
    """

    def __init__(self, switch: Switch, monitor: Monitor, password: str) -> None:
        if len(password) < MIN_PASSWORD:
            raise ValueError(f"the console's password must have at least {MIN_PASSWORD} characters")
        self._switch = switch
        self._monitor = monitor
        self._password = password.encode()
        self._answers: dict[str, Answerer] = {
            "overview": self._overview,
            "search": self._search,
            "publish": self._publish,
            "disconnect": self._disconnect,
        }

    @cached_property
    def pages(self) -> Pages:
        """All that there is at `/admin`, for a site."""
        page = Page.file(_FILES / "console.html")
        files = {f"/admin/{name}": Page.file(_FILES / name) for name in ("console.css", "console.js")}
        return {
            "/admin": attrs.evolve(page, files=files),
            "/admin/api/login": Route(self._log_in, "POST", max_body=1000),
            "/admin/api/logout": Route(self._log_out, "POST", max_body=1000),
            "/admin/api/session": Route(self._session),
            "/admin/api/follow": Route(self._follow),
            **{f"/admin/api/{name}": Route(self._answered(name), "POST", max_body=100_000) for name in self._answers},
        }

    # --- who is there

    async def _log_in(self, request: Request) -> Page:
        if not _is_own_page(request):
            return _error(403, "the console is for its own page only")
        try:
            password = str(json.loads(request.body)["password"])
        except (ValueError, KeyError, TypeError):
            return _error(400, "the password is missing")
        if not hmac.compare_digest(password.encode(errors="replace"), self._password):
            await trio.sleep(LOGIN_DELAY)
            return _error(401, "this is not the password")
        session = self._signed(f"{clock.wall_time() + SESSION_TIME:.0f}")
        return _page(
            {}, (("Set-Cookie", f"{COOKIE}={session}; Path=/admin; HttpOnly; SameSite=Strict{_secure(request)}"),)
        )

    async def _log_out(self, request: Request) -> Page:
        return _page({}, (("Set-Cookie", f"{COOKIE}=; Path=/admin; Max-Age=0"),))

    async def _session(self, request: Request) -> Page:
        """Whether one is logged in: an answer that browsers do not report as an error."""
        return _page({"logged_in": self._is_logged_in(request)})

    def _is_logged_in(self, request: Request) -> bool:
        """The cookie says until when, and is signed with the password: all workers know it, and it outlives them."""
        cookie = _cookie(request)
        until = cookie.partition(".")[0]
        is_signed = hmac.compare_digest(cookie.encode(errors="replace"), self._signed(until).encode())
        return _is_own_page(request) and is_signed and until.isdigit() and int(until) > clock.wall_time()

    def _signed(self, until: str) -> str:
        return f"{until}.{hmac.new(self._password, until.encode(errors='replace'), 'sha256').hexdigest()}"

    def _answered(self, name: str) -> Callable[[Request], Awaitable[Page]]:
        async def answer(request: Request) -> Page:
            if not self._is_logged_in(request):
                return _error(401, "please log in")
            try:
                asked = json.loads(request.body or b"{}")
                return _page(await self._answers[name](asked if isinstance(asked, dict) else {}))
            except (TrioswitchError, ValueError, TypeError, RecursionError) as error:
                return _error(400, str(error))

        return answer

    # --- what it shows

    async def _overview(self, _asked: dict[str, Any]) -> dict[str, Any]:
        switch = self._switch
        counted = switch.statistics()
        rooms = [switch.room_statistics(name) for name in sorted(counted.rooms, key=counted.rooms.__getitem__)[-SHOWN:]]
        return {
            "connections": counted.active_connections,
            "users": counted.users,
            "rooms": len(counted.rooms),
            "sent": counted.messages_sent,
            "received": counted.messages_received,
            "dropped": sum(counted.drops.values()),
            "drops": dict(counted.drops),
            "pending_bytes": counted.pending_bytes,
            "refused": counted.refused,
            "problems": [problem for problem in (switch.store_error, switch.broker_error) if problem]
            + [alarm.sentence for alarm in self._monitor.alarms.values()],
            "draining": switch.draining,
            "samples": [attrs.asdict(sample) for sample in self._monitor.samples],
            "nodes": [{"name": node.name, **node.statistics} for node in switch.nodes()],
            "busiest": [
                {
                    "name": room.name,
                    "members": room.members,
                    "published": room.published,
                    "dropped": sum(room.drops.values()),
                }
                for room in reversed(rooms)
                if room is not None
            ],
            "slowest": await self._slowest(),
        }

    async def _slowest(self) -> list[dict[str, Any]]:
        """Connections with most bytes in their outboxes."""
        found = []
        for number, id in enumerate(self._switch.connections()):
            if number % 1000 == 999:
                await trio.lowlevel.checkpoint()
            try:
                outbox = self._switch.outbox_statistics(id)
                if outbox.depth:
                    found.append((outbox.bytes, id, self._switch.connection(id).user, outbox))
            except KeyError:
                continue  # it has gone meanwhile
        found.sort(key=lambda each: each[0], reverse=True)
        return [
            {
                "id": id,
                "user": user,
                "bytes": size,
                "messages": outbox.depth,
                "age": outbox.oldest_age,
                "dropped": outbox.messages_dropped,
            }
            for size, id, user, outbox in found[:SHOWN]
        ]

    async def _search(self, asked: dict[str, Any]) -> dict[str, Any]:
        text = str(asked.get("text", "")).strip()
        if not text:
            return {"rooms": {}, "connections": []}
        admin = self._switch.administration
        rooms = await admin.rooms(text if any(char in text for char in "*?[") else f"{text}*")
        found = {each.id: each for each in await admin.connections(user=text)}
        found |= {each.id: each for each in await admin.connections(connection=text)}
        if text in rooms:
            found |= {each.id: each for each in (await admin.connections(room=text))[:SHOWN]}
        shown = sorted(rooms.items(), key=lambda each: each[1], reverse=True)[:SHOWN]
        return {"rooms": dict(shown), "connections": [attrs.asdict(each) for each in list(found.values())[: 5 * SHOWN]]}

    async def _publish(self, asked: dict[str, Any]) -> dict[str, Any]:
        receipt = await self._switch.publish(str(asked.get("room", "")), asked.get("data"))
        return {
            "delivered": receipt.delivered,
            "queued": receipt.queued,
            "dropped": receipt.dropped,
            "offset": receipt.offset,
        }

    async def _disconnect(self, asked: dict[str, Any]) -> dict[str, Any]:
        closed = await self._switch.administration.disconnect(
            connection=str(asked["connection"]) if asked.get("connection") else None,
            user=str(asked["user"]) if asked.get("user") else None,
            reason="disconnected by an operator",
        )
        return {"closed": closed}

    async def _follow(self, request: Request) -> Page | Stream:
        """What is published to a room, as it happens: server-sent events."""
        if not self._is_logged_in(request):
            return _error(401, "please log in")
        room = request.query.get("room", "")
        if not room or len(room.encode(errors="replace")) > 255:
            return _error(400, "name a room")
        return Stream(self._events(room), "text/event-stream", 200, (("X-Accel-Buffering", "no"),))

    async def _events(self, room: str) -> AsyncGenerator[bytes, None]:
        yield b": following\n\n"
        async with self._switch.subscribe(room) as events:
            while True:
                event = None
                with trio.move_on_after(FOLLOW_PING):
                    event = await anext(events)
                if event is None:
                    yield b": nothing\n\n"
                    continue
                fields = {name: value for name, value in vars(event).items() if value is not msgspec.UNSET}
                yield b"data: " + _encode(fields) + b"\n\n"


def _is_own_page(request: Request) -> bool:
    """Whether a page of this server sent the request, as far as the browser tells; programs that are no browsers may, too."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or origin.partition("://")[2] == request.headers.get("host")


def _cookie(request: Request) -> str:
    for part in request.headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return ""


def _secure(request: Request) -> str:
    return "; Secure" if request.headers.get("x-forwarded-proto") == "https" else ""


def _page(answer: dict[str, Any], headers: tuple[tuple[str, str], ...] = ()) -> Page:
    return Page(_encode(answer), "application/json", headers=(("Cache-Control", "no-store"), *headers))


def _error(status: int, message: str) -> Page:
    return Page(_encode({"error": message}), "application/json", status)
