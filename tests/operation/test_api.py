"""The HTTP API: what its methods do, who may call them, and that Centrifugo's own Python client works against it."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import cent
import pytest
import trio
from cluster_support import closing
from trio.testing import MockClock

from trioswitch import Identity, Options, RoomPolicy, serve
from trioswitch.api import Api, ApiKey
from trioswitch.api.requests import REQUESTS
from trioswitch.testing import TestSwitch, open_test_cluster, open_test_switch
from trioswitch.web import Page, Request

KEY = "a key for everything"
OPTIONS = Options(policies=(RoomPolicy(pattern="h*", history="memory"),))


@attrs.define
class Caller:
    app: TestSwitch
    api: Api

    async def post(self, method: str, body: Any, key: str = KEY, **headers: str) -> tuple[int, dict[str, Any]]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        request = Request(
            method="POST",
            path=f"/api/{method}",
            query={},
            headers={"x-api-key": key, **given},
            body=data,
            remote="test",
        )
        page = await self.api.answer(request)
        return page.status, json.loads(page.body)

    async def call(self, method: str, **fields: Any) -> dict[str, Any]:
        status, answer = await self.post(method, fields)
        assert (status, list(answer)) == (200, ["result"]), answer
        result: dict[str, Any] = answer["result"]
        return result

    async def error(self, method: str, **fields: Any) -> tuple[int, str]:
        status, answer = await self.post(method, fields)
        assert (status, list(answer)) == (200, ["error"]), answer
        return answer["error"]["code"], answer["error"]["message"]


@asynccontextmanager
async def calling(*keys: ApiKey, options: Options = OPTIONS) -> AsyncIterator[Caller]:
    async with open_test_switch(options) as app:
        yield Caller(app, Api(app.switch, keys or [ApiKey(KEY)], lambda: {"samples": []}))


# --- messages


async def test_publish_and_broadcast(autojump_clock: MockClock) -> None:
    async with calling() as caller:
        client = await caller.app.connect()
        await client.join("hall", user_id="ada")
        result = await caller.call("publish", channel="hall", data={"n": 1}, idempotency_key="one", priority=9)
        assert (result["offset"], result["delivered"] + result["queued"], len(result["epoch"])) == (1, 1, 8)
        assert (await client.receive_until(type="message"))["data"] == {"n": 1}
        assert await caller.call("publish", channel="hall", data={"n": 1}, idempotency_key="one") == result
        result = await caller.call("publish", channel="plain", data=None)
        assert result == {"delivered": 0, "queued": 0, "dropped": 0}
        result = await caller.call("broadcast", channels=["hall", "plain", "hall"], data="text", delta=True)
        offsets = [each["result"].get("offset") for each in result["responses"]]
        assert (offsets[1], sorted(offsets[::2])) == (None, [2, 3])
        assert (await client.receive_until(type="message"))["data"] == "text"


async def test_bytes(autojump_clock: MockClock) -> None:
    async with calling() as caller:
        client = await caller.app.connect()
        await client.join("plain", user_id="ada")
        async with caller.app.switch.subscribe("plain") as events:
            await caller.call("publish", channel="plain", b64data="AP+A")
            assert getattr(await anext(events), "data", None) == b"\x00\xff\x80"
        assert (await client.receive_until(type="message"))["data"] == "AP+A"
        for fields in ({"b64data": "AP+A", "data": 1}, {"b64data": "A"}, {"b64data": "é"}, {"b64data": "AP+A!"}):
            assert (await caller.error("publish", channel="plain", **fields))[0] == 107


async def test_users_and_groups(autojump_clock: MockClock) -> None:
    async with calling() as caller:
        client = await caller.app.connect()
        await client.join("hall", user_id="ada")
        result = await caller.call("send_to_user", user="ada", data=[1])
        assert result["delivered"] + result["queued"] + result["kept"] >= 1
        assert (await client.receive_until(type="direct_message"))["data"] == [1]
        assert (await caller.call("send_to_user", user="bob", data=1))["kept"] == 1
        assert (await caller.call("send_to_user", user="bob", data=1, keep=False))["kept"] == 0
        assert await caller.call("groups", group="g", add=["ada", "bob"]) == {"users": ["ada", "bob"]}
        assert (await caller.call("send_to_group", group="g", data=2))["dropped"] == 0
        assert (await client.receive_until(type="group_message"))["data"] == 2
        assert await caller.call("groups", group="g", remove=["bob"]) == {"users": ["ada"]}


async def test_history(autojump_clock: MockClock) -> None:
    async with calling() as caller:
        for number in range(5):
            await caller.call("publish", channel="hall", data=number)
        position = await caller.call("history", channel="hall")
        assert (position["publications"], position["offset"]) == ([], 5)
        epoch = position["epoch"]

        async def read(**fields: Any) -> list[int]:
            found = await caller.call("history", channel="hall", **fields)
            assert [each["offset"] - 1 for each in found["publications"]] == [
                each["data"] for each in found["publications"]
            ]
            return [each["data"] for each in found["publications"]]

        assert await read(limit=-1) == [0, 1, 2, 3, 4]
        assert await read(limit=2) == [3, 4]
        assert await read(limit=2, reverse=True) == [4, 3]
        assert await read(limit=2, since={"offset": 1, "epoch": epoch}) == [1, 2]
        assert await read(limit=2, since={"offset": 4, "epoch": epoch}, reverse=True) == [2, 1]
        assert await read(limit=9, since={"offset": 2, "epoch": epoch}, reverse=True) == [0]
        assert await read(limit=9, since={"offset": 5, "epoch": epoch}) == []
        assert (await caller.error("history", channel="hall", limit=1, since={"offset": 1, "epoch": "old"}))[0] == 112
        assert (await caller.error("history", channel="plain", limit=1))[0] == 108
        client = await caller.app.connect()
        await client.join("hall", user_id="ada")
        await client.send("chat_message", room="hall", content="hello")
        await client.receive_until(type="chat_message")
        (newest,) = (await caller.call("history", channel="hall", limit=1))["publications"]
        assert newest == {"data": "hello", "offset": 6, "info": {"client": "", "user": "ada"}}


# --- users


async def test_presence_and_rooms(autojump_clock: MockClock) -> None:
    async with calling() as caller:
        clients = [await caller.app.connect() for _ in range(3)]
        for client, user in zip(clients, ("ada", "ada", "bob"), strict=True):
            await client.join("hall", user_id=user)
        found = (await caller.call("presence", channel="hall"))["presence"]
        assert found == {
            client.connection_id: {"client": client.connection_id, "user": user}
            for client, user in zip(clients, ("ada", "ada", "bob"), strict=True)
        }
        assert await caller.call("presence_stats", channel="hall") == {"num_clients": 3, "num_users": 2}
        assert await caller.call("presence_stats", channel="none") == {"num_clients": 0, "num_users": 0}
        assert await caller.call("channels") == {"channels": {"hall": {"num_clients": 3}}}
        assert await caller.call("channels", pattern="x*") == {"channels": {}}
        connections = (await caller.call("connections", user="ada"))["connections"]
        assert sorted(connections) == sorted(client.connection_id for client in clients[:2])
        assert connections[clients[0].connection_id]["rooms"] == ["hall"]
        (node,) = (await caller.call("info"))["nodes"]
        assert (node["num_clients"], node["num_users"], node["num_channels"]) == (3, 2, 1)
        statistics = await caller.call("statistics")
        assert (statistics["switch"]["active_connections"], statistics["samples"]) == (3, [])


async def test_statistics_of_drops(autojump_clock: MockClock) -> None:
    async with calling() as caller:
        async with caller.app.switch.subscribe("plain"):
            for number in range(1024 + 3):  # one that does not read
                await caller.app.switch.publish("plain", number)
        counted = (await caller.call("statistics"))["switch"]["drops_by_policy"]
        assert counted == [{"policy": "*", "cause": "overflow", "count": 3}]


async def test_what_only_the_application_knows_of_a_user_is_left_out(autojump_clock: MockClock) -> None:
    async def on_connect(_request: object) -> Identity:
        return Identity(user="ada", info={"row": object()})

    async with open_test_switch(OPTIONS, on_connect=on_connect) as app:
        caller = Caller(app, Api(app.switch, [ApiKey(KEY)]))
        client = await app.connect()
        await client.join("hall")
        found = (await caller.call("presence", channel="hall"))["presence"]
        assert found == {client.connection_id: {"client": client.connection_id, "user": "ada"}}


async def test_users_are_moved_and_closed(autojump_clock: MockClock) -> None:
    async with calling() as caller:
        ada, other = await caller.app.connect(), await caller.app.connect()
        for client in (ada, other):
            await client.join("hall", user_id="ada")
        assert await caller.call("subscribe", user="ada", channel="room") == {}
        assert caller.app.switch.users_in("room") == ["ada"]
        await caller.call("unsubscribe", user="ada", channel="room", client=ada.connection_id)
        assert len((await caller.call("presence", channel="room"))["presence"]) == 1
        await caller.call("disconnect", user="bob")
        await caller.call("disconnect", client=ada.connection_id, user="bob")
        assert len(caller.app.switch.connections("ada")) == 2
        await caller.call(
            "disconnect", user="ada", whitelist=[other.connection_id], disconnect={"code": 1, "reason": "bye"}
        )
        assert await closing(ada) == (4502, "bye")
        await caller.call("refresh", user="ada", expire_at=1)
        assert await closing(other) == (4500, "the token has expired")
        for method in ("subscribe", "disconnect", "refresh"):
            fields = {"channel": "r"} if method == "subscribe" else {}
            assert await caller.error(method, **fields) == (107, "say who: user or client")


async def test_all_nodes_answer(autojump_clock: MockClock) -> None:
    async with open_test_cluster(3, OPTIONS) as cluster:
        for index, user in enumerate(("ada", "ada", "bob")):
            await cluster.join(index, "hall", user)
        api = Api(cluster[0].app.switch, [ApiKey(KEY)])
        caller = Caller(cluster[0].app, api)
        assert await caller.call("presence_stats", channel="hall") == {"num_clients": 3, "num_users": 2}
        assert await caller.call("channels") == {"channels": {"hall": {"num_clients": 3}}}
        assert len((await caller.call("info"))["nodes"]) == 3
        await caller.call("subscribe", user="ada", channel="room")
        await trio.sleep(1)
        assert len((await caller.call("presence", channel="room"))["presence"]) == 2
        assert await cluster[1].app.switch.administration.disconnect(user="ada") == 2
        cluster[2].kill()
        await trio.sleep(6)  # those who do not answer the closing handshake are given up
        started = trio.current_time()
        assert await caller.call("presence_stats", channel="hall") == {"num_clients": 0, "num_users": 0}
        assert trio.current_time() - started <= 2.1  # the dead one is waited for, and left out


# --- who may call


async def test_keys(autojump_clock: MockClock) -> None:
    some = ApiKey(
        "a key for some things", methods=("publish", "presence*", "channels", "connections", "batch"), rooms=("a*",)
    )
    async with calling(ApiKey(KEY), some) as caller:
        for key in ("", "wrong", KEY[:-1], KEY + "x", "\u00e9" * 20):
            status, answer = await caller.post("info", {}, key)
            assert (status, answer["error"]["code"]) == (401, 101)
        assert caller.api.refused == 5
        for headers in ({"authorization": f"apikey {KEY}"}, {"authorization": f"APIKEY  {KEY}"}):
            request = Request(method="POST", path="/api/info", query={}, headers=headers, body=b"", remote="")
            assert (await caller.api.answer(request)).status == 200
        request = Request(method="POST", path="/api/info", query={"api_key": KEY}, headers={}, body=b"", remote="")
        assert (await caller.api.answer(request)).status == 200

        async def code(method: str, body: Any) -> int | None:
            _, answer = await caller.post(method, body, some.key)
            found: int | None = answer.get("error", {}).get("code")
            return found

        await caller.call("publish", channel="b", data=1)
        assert await code("publish", {"channel": "ab", "data": 1}) is None
        assert await code("publish", {"channel": "b", "data": 1}) == 103
        assert await code("presence", {"channel": "ab"}) is None
        assert await code("history", {"channel": "ab"}) == 103
        assert await code("connections", {}) == 103
        assert await code("connections", {"channel": "a"}) is None
        _, answer = await caller.post("batch", {"commands": [{"publish": {"channel": "b", "data": 1}}]}, some.key)
        assert answer["replies"][0]["error"]["code"] == 103


def test_keys_that_are_not_valid() -> None:
    for key in ("short", "", "x" * 15, "\u00e9" * 20, "a key\nof two lines of text"):
        with pytest.raises(ValueError, match="an API key must have at least 16 printable ASCII characters"):
            ApiKey(key)
    assert "secret" not in repr(ApiKey("secret" * 4))


@pytest.mark.parametrize(
    ("method", "body", "code"),
    [
        ("nothing", {}, 104),
        ("", {}, 104),
        ("publish/", {"channel": "r", "data": 1}, None),
        ("publish", b"", 107),
        ("publish", b"{", 107),
        ("publish", b"[]", 107),
        ("publish", b"\xff", 107),
        ("publish", b'{"channel":"r","data":' + b"[" * 100_000, 107),
        ("publish", {"channel": "r"}, 107),
        ("publish", {"channel": "", "data": 1}, 107),
        ("publish", {"channel": "x" * 256, "data": 1}, 107),
        ("publish", {"channel": "\u00e9" * 200, "data": 1}, 107),
        ("publish", {"channel": "r", "data": 1, "tags": {}}, 107),
        ("publish", {"channel": "r", "data": 1, "priority": 11}, 107),
        ("publish", {"channel": "r", "data": 1, "expires": -1}, 107),
        ("publish", {"channel": 5, "data": 1}, 107),
        ("broadcast", {"channels": [], "data": 1}, 107),
        ("history", {"channel": "h", "limit": 5000}, 107),
        ("history", {"channel": "h", "since": {"offset": -1, "epoch": ""}}, 107),
        ("batch", {"commands": []}, 107),
        ("batch", {"commands": [{}]}, None),
        ("revoke_token", {}, 107),
        ("disconnect", {"user": "a", "disconnect": {"reason": "x" * 124}}, 107),
    ],
)
async def test_calls_that_are_wrong(method: str, body: Any, code: int | None) -> None:
    async with calling() as caller:
        status, answer = await caller.post(method, body)
        assert (status, answer.get("error", {}).get("code")) == (200, code), answer
        if code is not None:
            told, _ = await caller.post(method, body, x_centrifugo_error_mode="transport")
            assert told == {107: 400, 104: 404}[code]


async def test_batches(autojump_clock: MockClock) -> None:
    async with calling() as caller:
        commands: list[Any] = [{"publish": {"channel": "hall", "data": number}} for number in range(3)]
        commands += [
            {"info": {}, "channels": {}},
            {"batch": {"commands": []}},
            {"history": {"channel": "hall", "limit": 1}},
        ]
        for parallel in (False, True):
            status, answer = await caller.post("batch", {"commands": commands, "parallel": parallel})
            assert status == 200
            published, errors, last = answer["replies"][:3], answer["replies"][3:5], answer["replies"][5]
            assert [list(reply) for reply in published] == [["publish"]] * 3
            assert [reply["error"]["code"] for reply in errors] == [107, 104]
            if not parallel:
                assert [reply["publish"]["offset"] for reply in published] == [1, 2, 3]
                assert last["history"]["offset"] == 3


async def test_a_call_that_takes_too_long(autojump_clock: MockClock) -> None:
    async with calling(
        options=Options(room_messages=1, policies=(RoomPolicy(overflow="block", block_timeout=100.0),))
    ) as caller:
        switch = caller.app.switch

        async def never(*_arguments: Any, **_more: Any) -> None:
            await trio.sleep_forever()

        switch.publish = never  # type: ignore[method-assign, assignment]
        status, answer = await caller.post("publish", {"channel": "r", "data": 1})
        assert (status, answer["error"]["message"]) == (504, "it was not done within 30 s")


# --- Centrifugo's client


async def test_cent_works_unchanged() -> None:
    async with open_test_switch(OPTIONS) as app, trio.open_nursery() as nursery:
        api = Api(app.switch, [ApiKey(KEY)])
        server = await nursery.start(partial(serve, app.switch, port=0, pages={"/api/*": api.route}))
        client = await app.connect()
        await client.join("hall", user_id="ada")

        def use() -> None:
            with cent.Client(f"http://127.0.0.1:{server.port}/api", KEY) as api:
                assert api.publish(cent.PublishRequest(channel="hall", data={"a": 1})).offset == 1
                result = api.broadcast(cent.BroadcastRequest(channels=["hall", "other"], data=2))
                assert [each.result.offset for each in result.responses if each.result is not None] == [2, 0]
                found = api.history(cent.HistoryRequest(channel="hall", limit=10, reverse=True))
                assert [each.data for each in found.publications] == [2, {"a": 1}]
                assert len(api.presence(cent.PresenceRequest(channel="hall")).presence) == 1
                assert api.presence_stats(cent.PresenceStatsRequest(channel="hall")).num_users == 1
                assert api.channels(cent.ChannelsRequest(pattern="h*")).channels["hall"].num_clients == 1
                assert len(api.info(cent.InfoRequest()).nodes) == 1
                api.subscribe(cent.SubscribeRequest(user="ada", channel="x"))
                api.unsubscribe(cent.UnsubscribeRequest(user="ada", channel="x"))
                api.refresh(cent.RefreshRequest(user="ada"))
                many = [cent.PublishRequest(channel="hall", data=3), cent.PresenceRequest(channel="hall")]
                assert len(api.batch(cent.BatchRequest(requests=many)).replies) == 2
                api.disconnect(cent.DisconnectRequest(user="ada", disconnect=cent.Disconnect(code=3500, reason="bye")))
                with pytest.raises(cent.CentApiResponseError) as error:
                    api.history(cent.HistoryRequest(channel="other"))
                assert error.value.code == 108
            with (
                pytest.raises(cent.CentUnauthorizedError),
                cent.Client(f"http://127.0.0.1:{server.port}/api", "no") as api,
            ):
                api.info(cent.InfoRequest())

        await trio.to_thread.run_sync(use)
        assert await closing(client) == (4502, "bye")
        nursery.cancel_scope.cancel()


# --- its description


async def test_every_method_is_described() -> None:
    async with open_test_switch() as app:
        api = Api(app.switch, [ApiKey(KEY)])
        page = api.pages["/api/openapi.json"]
        assert isinstance(page, Page)
        described = json.loads(page.body)
    assert {path.removeprefix("/api/") for path in described["paths"]} == set(REQUESTS)
    for path, operations in described["paths"].items():
        assert operations["post"]["summary"], path
    documented = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text()
    assert [method for method in REQUESTS if f"`{method}`" not in documented] == []


@pytest.mark.slow
async def test_requests_that_are_made_from_the_description_get_the_answers_that_it_describes() -> None:
    options = Options(policies=(RoomPolicy(pattern="*[aeiou]*", history="memory"),))
    async with open_test_switch(options) as app, trio.open_nursery() as nursery:
        api = Api(app.switch, [ApiKey(KEY)])
        server = await nursery.start(partial(serve, app.switch, port=0, pages=api.pages))
        checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
        done = await trio.run_process(
            [
                *(
                    str(Path(sys.executable).parent / "schemathesis"),
                    "run",
                    f"http://127.0.0.1:{server.port}/api/openapi.json",
                ),
                *("--header", f"X-API-Key: {KEY}", "--max-examples", "15", "--phases", "fuzzing", "--checks", checks),
                *("--no-color", "--suppress-health-check", "all"),
            ],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode()[-3000:] + done.stderr.decode()[-1000:]
        assert api.calls > 18 * 10
        nursery.cancel_scope.cancel()
