"""Hooks over HTTP, with a backend that is a switch's own routes: what it decides, and what happens when it fails."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from cluster_support import closing

from trioswitch import ConnectRequest, Page, Refused, open_switch, serve
from trioswitch.backend import Backend
from trioswitch.testing import TestSwitch, open_test_switch
from trioswitch.web import Request, Route


@attrs.define
class Decider:
    """Stands for the backend of an application."""

    answers: dict[str, Any] = attrs.field(factory=dict)
    """By what is asked: what is answered, a status, or a delay in seconds."""
    asked: list[tuple[str, dict[str, Any], dict[str, str]]] = attrs.field(factory=list)

    async def __call__(self, request: Request) -> Page:
        what = request.path.removeprefix("/hooks/")
        self.asked.append((what, json.loads(request.body), request.headers))
        answer = self.answers.get(what, {"result": {}})
        if isinstance(answer, float):
            await trio.sleep(answer)
            answer = {"result": {}}
        if isinstance(answer, int):
            return Page.text(answer, "no")
        return Page(answer if isinstance(answer, bytes) else json.dumps(answer).encode(), "application/json")


@asynccontextmanager
async def deciding(**options: Any) -> AsyncIterator[tuple[Decider, TestSwitch, Backend]]:
    decider = Decider()
    async with open_switch() as other, trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, other, port=0, pages={"/hooks/*": Route(decider, "POST")}))
        urls: dict[str, Any] = {
            what: f"http://127.0.0.1:{server.port}/hooks/{what}" for what in ("connect", "refresh", "join", "publish")
        }
        backend = Backend(**urls, **options)
        names = ("on_connect", "on_expire", "on_join", "on_publish")
        hooks = {name: getattr(backend, name) for name in names}
        try:
            async with open_test_switch(**hooks) as app:
                yield decider, app, backend
        finally:
            with trio.CancelScope(shield=True):
                await backend.aclose()
        nursery.cancel_scope.cancel()


async def test_the_backend_decides() -> None:
    async with deciding() as (decider, app, backend):
        decider.answers["connect"] = {"result": {"user": "ada", "channels": ["office"], "info": {"n": 1}}}
        client = await app.connect("/ws?token=t0k3n")
        connection = app.switch.connection(client.connection_id)
        assert connection.identity is not None
        assert (connection.user, connection.identity.info, app.switch.users_in("office")) == ("ada", {"n": 1}, ["ada"])
        assert decider.asked[0][1]["token"] == "t0k3n"
        assert (await client.ask("join_room", room="r"))["type"] == "ack"
        what, body, _ = decider.asked[-1]
        assert (what, body["user"], body["channel"], body["client"]) == ("join", "ada", "r", client.connection_id)
        decider.answers["publish"] = {"result": {"data": {"text": "changed"}}}
        assert (await client.ask("message", room="r", data={"text": "said"}))["type"] == "ack"
        assert decider.asked[-1][1]["data"] == {"text": "said"}
        decider.answers["publish"] = {"error": {"code": 103, "message": "not now"}}
        answer = await client.ask("message", room="r", data=1)
        assert (answer["code"], answer["message"]) == ("forbidden", "not now")
        decider.answers["join"] = {"disconnect": {"code": 4501, "reason": "banned"}}
        await client.send("join_room", room="q")
        assert await closing(client) == (4502, "banned")
        assert backend.failed == 0


async def test_the_backend_says_how_long_a_client_may_stay() -> None:
    async with deciding() as (decider, app, _):
        decider.answers["connect"] = {"result": {"user": "ada", "expire_at": time.time() + 0.3}}
        decider.answers["refresh"] = {"result": {"expire_at": time.time() + 0.6}}
        client = await app.connect()
        with trio.fail_after(5):
            while [what for what, *_ in decider.asked].count("refresh") < 1:
                await trio.sleep(0.01)
            decider.answers["refresh"] = {"result": {"expired": True}}
            assert (await client.ask("heartbeat"))["type"] == "ack"
            assert await closing(client) == (4500, "the token has expired")
        what, body, _headers = decider.asked[-1]
        assert (what, body["user"], body["client"]) == ("refresh", "ada", client.connection_id)
        decider.answers["connect"] = {"result": {"user": "ada", "expire_at": time.time() + 0.2}}
        decider.answers["refresh"] = {"result": {}}
        client = await app.connect()
        await trio.sleep(0.5)
        assert (await client.ask("heartbeat"))["type"] == "ack", "there is no expire_at: it stays"


@pytest.mark.parametrize(
    ("answer", "closed"),
    [
        ({"result": {"expired": True}}, (4500, "the token has expired")),
        ({}, (4500, "the token has expired")),
        ({"result": {"expire_at": 1}}, (4500, "the token has expired")),
        ({"error": {"code": 103, "message": "no"}}, (4500, "no")),
        ({"result": {"expire_at": "soon"}}, (4003, "the backend failed")),
        (b'{"result": {"expire_at": NaN}}', (4003, "the backend failed")),
        (b'{"result": {"expire_at": 1e999}}', (4003, "the backend failed")),
        (b'{"result": {"expire_at": 1' + b"0" * 400 + b"}}", (4003, "the backend failed")),
        (500, (4003, "the backend failed")),
    ],
)
async def test_who_may_not_stay_is_closed_and_comes_back_only_where_the_backend_failed(
    answer: Any, closed: tuple[int, str]
) -> None:
    async with deciding() as (decider, app, _):
        decider.answers |= {"connect": {"result": {"user": "ada", "expire_at": time.time() + 0.1}}, "refresh": answer}
        client = await app.connect()
        assert await closing(client) == closed


@pytest.mark.parametrize(
    "answer",
    [500, 404, b"no JSON", b"[]", b"\xff", b"[" * 10_000, b"{" + b" " * 2_000_000 + b"}"],
    ids=lambda each: repr(each)[:20],
)
async def test_a_backend_that_fails_refuses_for_now(answer: Any) -> None:
    async with deciding() as (decider, app, backend):
        client = await app.connect()
        decider.answers["join"] = answer
        assert (await client.ask("join_room", room="r"))["code"] == "unavailable"
        del decider.answers["join"]
        assert (await client.ask("join_room", room="r"))["type"] == "ack"
        assert backend.failed == 1


async def test_a_backend_that_is_slow_holds_up_nobody_else() -> None:
    async with deciding(timeout=0.3) as (decider, app, _):
        slow, quick = await app.connect(), await app.connect()
        decider.answers["join"] = 5.0
        await slow.send("join_room", room="r", id="slow")
        started = trio.current_time()
        assert (await quick.ask("heartbeat"))["type"] == "ack"
        assert trio.current_time() - started < 0.2
        assert (await slow.receive_until(id="slow"))["code"] == "unavailable"


async def test_a_backend_that_goes_on_failing_is_left_alone() -> None:
    async with deciding() as (decider, app, backend):
        client = await app.connect()
        decider.answers["join"] = 500
        for _ in range(5):
            assert (await client.ask("join_room", room="r"))["code"] == "unavailable"
        asked = len(decider.asked)
        decider.answers.clear()
        for _ in range(20):
            assert (await client.ask("join_room", room="r"))["message"] == "the backend is away"
        assert (len(decider.asked), backend.calls) == (asked, 6)


async def test_claims_that_are_not_valid_refuse() -> None:
    async with deciding() as (decider, _, backend):
        request = ConnectRequest(
            path="/ws", query={}, headers={"cookie": "a=b", "x-other": "c"}, remote="test", token=None
        )
        wrong: list[dict[str, Any]] = [{"user": 5}, {"channels": "a"}, {"caps": {}}, {"expire_at": "soon"}]
        for result in wrong:
            decider.answers["connect"] = {"result": result}
            with pytest.raises(Refused, match="the backend failed"):
                await backend.on_connect(request)
        assert decider.asked[-1][2]["cookie"] == "a=b"
        assert "x-other" not in decider.asked[-1][2]


async def test_without_a_url_nothing_is_asked() -> None:
    backend = Backend()
    request = ConnectRequest(path="/ws", query={}, headers={}, remote="test", token=None)
    assert await backend.on_connect(request) is None
    assert backend.calls == 0
    await backend.aclose()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"connect": "nonsense"}, ValueError),
        ({"join": "ftp://host/path"}, ValueError),
        ({"publish": "http://"}, ValueError),
        ({"connect": "http://host:99999/"}, ValueError),
        ({"connect": 5}, TypeError),
        ({"timeout": "1"}, TypeError),
        ({"max_concurrent": 0}, ValueError),
    ],
)
def test_arguments_that_are_not_valid(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Backend(**arguments)
