"""Hooks over HTTP: a backend in any language decides who may connect, join and publish.

Requests and answers are those of Centrifugo's proxy, so that a backend which serves it needs no change:
https://centrifugal.dev/docs/server/proxy (seen in November 2026, version 6).
"""

import json
import logging
from collections.abc import Sequence
from typing import Any, Final

import trio

from ._util.checks import check_integer, check_seconds
from ._util.http_client import check_http_url, import_httpx, read_at_most
from .auth.identity import Identity
from .auth.request import ConnectRequest
from .auth.tokens import identity_of
from .connections.connection import Connection
from .errors import Refused
from .hooks import JoinRequest, PublishRequest

__all__ = ["Backend"]

_log = logging.getLogger(__name__)

FAILURES: Final = 5
"""Calls that fail one after the other until no more are made for a while."""
PAUSE: Final = 5.0
"""Seconds until it is tried again."""
KEPT: Final = 60.0
"""Seconds that an idle connection to the backend is kept."""
MAX_ANSWER: Final = 1024 * 1024
"""Bytes of an answer."""
MAX_CONCURRENT: Final = 10_000
LATEST: Final = 2.0**53
"""Seconds since 1970: a later time, or none such as NaN, is not a time that a connection expires."""


class Backend:
    """Calls a backend: `open_switch(on_connect=backend.on_connect, on_join=backend.on_join)`, and so with the other hooks.

    Args:
        connect: URL that is asked who a client is.
        refresh: URL that is asked when an identity has expired, whether the client may stay, and until when.
        join: URL that is asked whether a client may join a room.
        publish: URL that is asked whether a client may publish to a room; it may change the data.
        timeout: seconds that an answer may take.
        max_concurrent: calls at once; more wait, within their own timeout.
        headers: names of a client's headers that are passed on.

    A call that fails, or takes too long, refuses the client with `unavailable`: it comes back later. After five such calls in a
    row none is made for five seconds, so that a backend which is overloaded is left alone. Close it with `aclose`. Raises
    TypeError and ValueError for arguments that are not valid, and ImportError without the extra `trioswitch[http]`.
    """

    def __init__(
        self,
        *,
        connect: str | None = None,
        refresh: str | None = None,
        join: str | None = None,
        publish: str | None = None,
        timeout: float = 1.0,
        max_concurrent: int = 100,
        headers: Sequence[str] = ("cookie", "authorization", "origin", "user-agent", "x-request-id"),
    ) -> None:
        self._urls = {"connect": connect, "refresh": refresh, "join": join, "publish": publish}
        for what, url in self._urls.items():
            if url is not None:
                check_http_url(f"the URL for {what}", url)
        check_seconds("timeout", timeout)
        check_integer("max_concurrent", max_concurrent, 1, MAX_CONCURRENT)
        self._timeout = timeout
        self._headers = [name.lower() for name in headers]
        httpx = self._httpx = import_httpx()
        limits = httpx.Limits(
            max_connections=max_concurrent, max_keepalive_connections=max_concurrent, keepalive_expiry=KEPT
        )
        self._client = httpx.AsyncClient(timeout=None, limits=limits)  # each call has a deadline of its own
        self._failures = 0
        self._closed_until = 0.0
        self.calls = 0
        self.failed = 0
        """Calls that got no answer, or none that can be used."""

    async def aclose(self) -> None:
        """Close the connections to the backend."""
        await self._client.aclose()

    # --- hooks

    async def on_connect(self, request: ConnectRequest) -> Identity | None:
        """Who a client is, as the backend says. Raises Refused. Safe to cancel."""
        if self._urls["connect"] is None:
            return None
        body = {
            "client": "",
            "transport": "websocket",
            "protocol": "json",
            "encoding": "json",
            "path": request.path,
            "remote": request.remote,
            **({"token": request.token} if request.token is not None else {}),
        }
        result = await self._call("connect", body, request.headers) or {}
        try:
            return identity_of({**result, "sub": result.get("user", "")}, ("*",), None)
        except (TypeError, ValueError) as error:
            self._fail(f"its answer to connect is not valid: {error}")
            raise Refused("the backend failed", code="unavailable") from None

    async def on_expire(self, connection: Connection) -> float | None:
        """Until when the client may stay, as the backend says. Raises Refused when it may not. Safe to cancel."""
        result = await self._ask("refresh", connection, {})
        if result is None or result.get("expired"):
            raise Refused("the token has expired", code="unauthorised")
        expires_at = result.get("expire_at", 0)
        if isinstance(expires_at, bool) or not isinstance(expires_at, int | float) or not 0 <= expires_at < LATEST:
            self._fail(f"its answer to refresh is not valid: expire_at is {expires_at!r}")
            raise Refused("the backend failed", code="unavailable")
        return expires_at or None

    async def on_join(self, connection: Connection, request: JoinRequest) -> None:
        """Raises Refused unless the backend lets the client join. Safe to cancel."""
        await self._ask("join", connection, {"channel": request.room})

    async def on_publish(self, connection: Connection, request: PublishRequest) -> None:
        """Raises Refused unless the backend lets the client publish; it may send other data. Safe to cancel."""
        result = await self._ask("publish", connection, {"channel": request.room, "data": request.data})
        if result is not None and "data" in result:
            request.data = result["data"]

    async def _ask(self, what: str, connection: Connection, more: dict[str, Any]) -> dict[str, Any] | None:
        body = {
            "client": connection.id,
            "transport": "websocket",
            "protocol": "json",
            "encoding": "json",
            "user": connection.user,
            **more,
        }
        return await self._call(what, body, connection.request.headers, connection)

    # --- calls

    async def _call(
        self, what: str, body: dict[str, Any], headers: Any, connection: Connection | None = None
    ) -> dict[str, Any] | None:
        """The `result` of an answer; None where there is none, or nothing is asked. Raises Refused."""
        url = self._urls[what]
        if url is None:
            return None
        if trio.current_time() < self._closed_until:
            raise Refused("the backend is away", code="unavailable")
        passed = {name: headers[name] for name in self._headers if name in headers}
        self.calls += 1
        try:
            with trio.fail_after(self._timeout):
                async with self._client.stream("POST", url, json=body, headers=passed) as response:
                    if response.status_code != 200:
                        raise ValueError(f"it answers with status {response.status_code}")
                    answer = json.loads(await read_at_most(response, MAX_ANSWER))
            if not isinstance(answer, dict):
                raise ValueError("its answer is no object")
        except trio.TooSlowError:
            self._fail(f"it does not answer within {self._timeout:g} s")
        except (self._httpx.HTTPError, ValueError, RecursionError) as error:
            self._fail(str(error) or type(error).__name__)
        else:
            self._failures = 0
            return self._decide(answer, connection)
        raise Refused("the backend failed", code="unavailable")

    def _fail(self, reason: str) -> None:
        self.failed += 1
        self._failures += 1
        _log.warning("the backend failed: %s", reason)
        if self._failures >= FAILURES:
            self._closed_until = trio.current_time() + PAUSE
            self._failures = FAILURES - 1  # one more call is made then, and decides
            _log.error("the backend is not asked for %g s: %s", PAUSE, reason)

    @staticmethod
    def _decide(answer: dict[str, Any], connection: Connection | None) -> dict[str, Any] | None:
        error, disconnect = answer.get("error"), answer.get("disconnect")
        if isinstance(disconnect, dict):
            reason = str(disconnect.get("reason", ""))[:100]
            if connection is not None:
                connection.switch.kick(connection, reason)
            raise Refused(reason or "the backend refuses this client", code="unauthorised")
        if isinstance(error, dict):
            raise Refused(str(error.get("message", "refused"))[:200])
        result = answer.get("result")
        return result if isinstance(result, dict) else None
