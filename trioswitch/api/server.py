"""The HTTP API as a route: keys, methods, JSON in and out, batches."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import trio

from ..switch import Switch
from ..web import Page, Pages, Request, Route
from . import requests
from .keys import ApiKey, find_key
from .methods import BAD_REQUEST, DENIED, INTERNAL, NOT_FOUND, ApiError, Methods
from .openapi import description

__all__ = ["Api"]

_log = logging.getLogger(__name__)

TIMEOUT: Final = 30.0
"""Seconds that a call may take: a publish to a room that is full waits, for example."""
MAX_BODY: Final = 4 * 1024 * 1024
UNAUTHORISED: Final = 101
_STATUSES: Final = {102: 404, 104: 404, 107: 400, 108: 400, 112: 416, 103: 403, 106: 429, UNAUTHORISED: 401}
"""HTTP status by error code, for those who ask for it with `X-Centrifugo-Error-Mode: transport`; 500 for all others."""
_decoders: Final = {name: msgspec.json.Decoder(kind).decode for name, kind in requests.REQUESTS.items()}
_encode: Final = msgspec.json.Encoder().encode


class Api:
    """`POST /api/METHOD`, for those who have a key.

    `serve(switch, pages=Api(switch, [ApiKey("...")]).pages)` serves it. `keys` may be replaced at any time.
    """

    def __init__(
        self, switch: Switch, keys: Sequence[ApiKey], statistics: Callable[[], Mapping[str, Any]] = dict
    ) -> None:
        self.keys = keys
        self.refused = 0
        """Calls without a valid key."""
        self.calls = 0
        self._methods = Methods(switch, statistics)
        self.route = Route(self.answer, ("POST",), max_body=MAX_BODY, cross_origin=True)

    @property
    def pages(self) -> Pages:
        """All that there is below `/api/`, for a site: the methods, and `openapi.json`, their description."""
        return {"/api/*": self.route, "/api/openapi.json": Page(_encode(description()), "application/json")}

    async def answer(self, request: Request) -> Page:
        """Answer a request. When it is cancelled, the call may have been carried out or not."""
        key = find_key(self.keys, _given(request))
        if key is None:
            self.refused += 1
            return _page(ApiError(UNAUTHORISED, "the API key is missing or wrong").answer, 401)
        self.calls += 1
        method = request.path.removeprefix("/api").strip("/")
        try:
            with trio.CancelScope(deadline=trio.current_time() + TIMEOUT):
                if method == "batch":
                    return _page({"replies": await self._batch(request.body, key)})
                return _page({"result": await self._call(method, request.body or b"{}", key)})
            return _page(ApiError(INTERNAL, f"it was not done within {TIMEOUT:g} s").answer, 504)
        except ApiError as error:
            status = 200
            if request.headers.get("x-centrifugo-error-mode") == "transport":
                status = _STATUSES.get(error.code, 500)
            return _page(error.answer, status)

    async def _call(self, method: str, body: bytes | msgspec.Raw, key: ApiKey) -> dict[str, Any]:
        decode = _decoders.get(method)
        if decode is None or method == "batch":
            raise ApiError(NOT_FOUND, f"there is no method {method!r}: there are {', '.join(_decoders)}")
        if not key.may_call(method):
            raise ApiError(DENIED, f"the API key is not for the method {method!r}")
        try:
            request = decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ApiError(BAD_REQUEST, str(error)) from None
        return await self._methods.call(method, request, key)

    async def _batch(self, body: bytes, key: ApiKey) -> list[dict[str, Any]]:
        if not key.may_call("batch"):
            raise ApiError(DENIED, "the API key is not for the method 'batch'")
        try:
            batch = _decoders["batch"](body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ApiError(BAD_REQUEST, str(error)) from None
        assert isinstance(batch, requests.Batch)
        replies: list[dict[str, Any]] = [{} for _ in batch.commands]

        async def run(index: int, command: dict[str, msgspec.Raw]) -> None:
            try:
                if len(command) != 1:
                    raise ApiError(BAD_REQUEST, "a command is an object with one key, its method")
                ((method, request),) = command.items()
                replies[index] = {method: await self._call(method, request, key)}
            except ApiError as error:
                replies[index] = error.answer

        if batch.parallel:
            async with trio.open_nursery() as nursery:
                for index, command in enumerate(batch.commands):
                    nursery.start_soon(run, index, command)
        else:
            for index, command in enumerate(batch.commands):
                await run(index, command)
                await trio.lowlevel.checkpoint()
        return replies


def _given(request: Request) -> str:
    """The key in a request."""
    key = request.headers.get("x-api-key")
    if key is None:
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        key = credentials.strip() if scheme.lower() == "apikey" else request.query.get("api_key", "")
    return key


def _page(answer: dict[str, Any], status: int = 200) -> Page:
    headers = (("WWW-Authenticate", "apikey"),) if status == 401 else ()
    return Page(_encode(answer), "application/json", status, headers)
