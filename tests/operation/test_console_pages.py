"""The console: who gets in, and what its page gets. `tests/browser/test_console.py` uses the page."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
import trio

from trioswitch import Options, RoomPolicy, serve
from trioswitch.console import Console
from trioswitch.monitoring import Monitor
from trioswitch.testing import TestSwitch, open_test_switch

PASSWORD = "a long password"


@asynccontextmanager
async def console() -> AsyncIterator[tuple[TestSwitch, httpx.AsyncClient]]:
    options = Options(policies=(RoomPolicy(pattern="h*", history="memory"),))
    async with open_test_switch(options) as app, trio.open_nursery() as nursery:
        pages = Console(app.switch, Monitor(app.switch), PASSWORD).pages
        server = await nursery.start(partial(serve, app.switch, port=0, pages=pages))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=20) as client:
            yield app, client
        nursery.cancel_scope.cancel()


async def log_in(client: httpx.AsyncClient) -> None:
    answer = await client.post("/admin/api/login", json={"password": PASSWORD})
    assert answer.status_code == 200
    flags = answer.headers["set-cookie"]
    assert all(flag in flags for flag in ("HttpOnly", "SameSite=Strict", "Path=/admin"))
    assert "Secure" not in flags


async def ask(client: httpx.AsyncClient, what: str, **fields: Any) -> Any:
    answer = await client.post(f"/admin/api/{what}", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_only_who_knows_the_password_gets_in() -> None:
    async with console() as (_, client):
        for path in ("/admin", "/admin/console.js", "/admin/console.css"):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/admin/api/session")).json() == {"logged_in": False}
        for what in ("overview", "search", "publish", "disconnect"):
            assert (await client.post(f"/admin/api/{what}", json={})).status_code == 401
        assert (await client.get("/admin/api/follow?room=r")).status_code == 401
        started = trio.current_time()
        assert (await client.post("/admin/api/login", json={"password": "a long passwore"})).status_code == 401
        assert trio.current_time() - started >= 1
        for body in (b"", b"[]", b"{", b'{"password": null}', b"[" * 900):
            assert (await client.post("/admin/api/login", content=body)).status_code in (400, 401)
        await log_in(client)
        assert (await client.get("/admin/api/session")).json() == {"logged_in": True}
        good = client.cookies["trioswitch_console"]
        until, _, signature = good.partition(".")
        for forged in (
            "",
            ".",
            f"{int(until) + 1}.{signature}",
            f"1.{signature}",
            f"{until}.",
            f"{until}.{signature}x",
        ):
            answer = await client.post("/admin/api/overview", headers={"Cookie": f"trioswitch_console={forged}"})
            assert answer.status_code == (401 if forged != good else 200), forged
        await client.post("/admin/api/logout")
        assert (await client.get("/admin/api/session")).json() == {"logged_in": False}


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_pages_of_other_origins_do_not(headers: dict[str, str]) -> None:
    async with console() as (app, client):
        await log_in(client)
        answer = await client.post("/admin/api/login", json={"password": PASSWORD}, headers=headers)
        assert answer.status_code == 403
        guest = await app.connect()
        answer = await client.post("/admin/api/disconnect", json={"connection": guest.connection_id}, headers=headers)
        assert answer.status_code == 401
        assert len(app.switch.connections()) == 1


async def test_what_the_page_gets() -> None:
    async with console() as (app, client):
        await log_in(client)
        ada = await app.connect()
        await ada.join("hall", user_id="ada")
        await app.switch.publish("hall", 1)
        overview = await ask(client, "overview")
        assert (overview["connections"], overview["users"], overview["problems"]) == (1, 1, [])
        assert overview["busiest"] == [{"name": "hall", "members": 1, "published": 2, "dropped": 0}]  # the join, too
        assert [each["user"] for each in overview["slowest"]] in ([], ["ada"])
        found = await ask(client, "search", text="ada")
        assert [each["user"] for each in found["connections"]] == ["ada"]
        assert (await ask(client, "search", text="ha"))["rooms"] == {"hall": 1}
        assert [each["user"] for each in (await ask(client, "search", text="hall"))["connections"]] == ["ada"]
        assert await ask(client, "search", text=" ") == {"rooms": {}, "connections": []}
        assert (await ask(client, "publish", room="hall", data={"n": 2}))["offset"] == 2
        for wrong in ({"room": "", "data": 1}, {"room": "\u00e9" * 200}, {}):
            assert (await client.post("/admin/api/publish", json=wrong)).status_code == 400
        assert (await ask(client, "disconnect", connection=ada.connection_id)) == {"closed": 1}
        assert (await ask(client, "disconnect", connection="nobody")) == {"closed": 0}


async def test_a_room_is_followed_until_the_page_goes() -> None:
    async with console() as (app, client):
        await log_in(client)
        cookie = f"trioswitch_console={client.cookies['trioswitch_console']}"
        async with await trio.open_tcp_stream("127.0.0.1", client.base_url.port or 0) as stream:
            await stream.send_all(
                f"GET /admin/api/follow?room=hall HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n".encode()
            )
            data = b""
            with trio.fail_after(5):
                while b": following" not in data:
                    data += await stream.receive_some()
                while app.switch.room_statistics("hall") is None:
                    await trio.sleep(0.01)
                await app.switch.publish("hall", {"n": 1})
                while b"data: " not in data:
                    data += await stream.receive_some()
            assert b"Content-Type: text/event-stream" in data
            event = json.loads(data.partition(b"data: ")[2].partition(b"\n")[0])
            assert (event["room"], event["data"], event["offset"]) == ("hall", {"n": 1}, 1)
        with trio.fail_after(5):
            while (room := app.switch.room_statistics("hall")) is not None and room.members:
                await app.switch.publish("hall", 2)
                await trio.sleep(0.05)
        for room_name in ("", "x" * 256):
            assert (await client.get(f"/admin/api/follow?room={room_name}")).status_code == 400


def test_a_password_that_is_too_short() -> None:
    with pytest.raises(ValueError, match="at least 12 characters"):
        Console(None, None, "short")  # type: ignore[arg-type]
