"""Limits for connections, users and addresses: the server is driven into each, and out of it again."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from raw import RawPeer
from trio.testing import MockClock, memory_stream_pair

from trioswitch import CloseCause, Connection, ConnectRequest, Identity, Options, Refused, Switch, open_switch
from trioswitch.auth.address import client_address, networks
from trioswitch.testing import open_test_switch

PROXY = ("10.0.0.0/8", "unix socket")


@pytest.mark.parametrize(
    ("remote", "forwarded", "address"),
    [
        ("192.0.2.1:5", "", "192.0.2.1"),
        ("192.0.2.1:5", "198.51.100.7", "192.0.2.1"),  # who is not trusted says nothing
        ("10.1.2.3:5", "", "10.1.2.3"),
        ("10.1.2.3:5", "198.51.100.7", "198.51.100.7"),
        ("10.1.2.3:5", "203.0.113.9, 198.51.100.7, 10.9.9.9", "198.51.100.7"),  # the first was invented by the client
        ("10.1.2.3:5", "198.51.100.7:1234", "198.51.100.7"),
        ("10.1.2.3:5", "garbage", "10.1.2.3"),
        ("10.1.2.3:5", "198.51.100.7, garbage, 10.9.9.9", "10.9.9.9"),
        ("10.1.2.3:5", "10.4.4.4", "10.4.4.4"),
        ("unix socket", "198.51.100.7", "198.51.100.7"),
        ("unix socket", "", None),
        ("[2001:db8:1:2:3:4:5:6]:7", "", "2001:db8:1:2::/64"),
        ("[::ffff:10.1.2.3]:7", "2001:db8::1", "2001:db8::/64"),
        ("[fe80::1%eth0]:7", "", "fe80::/64"),
        ("MemoryStream", "198.51.100.7", None),
    ],
)
def test_the_address_of_a_client(remote: str, forwarded: str, address: str | None) -> None:
    headers = {"x-forwarded-for": forwarded} if forwarded else {}
    assert client_address(remote, headers, PROXY, networks(PROXY)) == address


def test_proxies_that_are_none() -> None:
    for value in ("nowhere", "10.0.0.0/99", ""):
        with pytest.raises(ValueError, match="neither a network"):
            Options(trusted_proxies=(value,))
    with pytest.raises(TypeError):
        Options(trusted_proxies=(5,))  # type: ignore[arg-type]
    assert Options(trusted_proxies="10.0.0.0/8").trusted_proxies == ("10.0.0.0/8",)


# --- connections


@asynccontextmanager
async def open_to(options: Options, **hooks: Any) -> AsyncIterator[tuple[Switch, "Dial"]]:
    async with open_switch(options, **hooks) as switch, trio.open_nursery() as nursery:
        yield switch, Dial(switch, nursery)
        nursery.cancel_scope.cancel()


class Dial:
    """Connects as a client of some address, through a proxy that is trusted."""

    def __init__(self, switch: Switch, nursery: trio.Nursery) -> None:
        self._switch = switch
        self._nursery = nursery

    async def __call__(self, address: str, query: str = "") -> tuple[int, RawPeer]:
        ours, theirs = memory_stream_pair()
        self._nursery.start_soon(lambda: self._switch.serve_stream(theirs, remote="10.0.0.1:1"))
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        upgrade = f"Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}X-Forwarded-For: {address}\r\n\r\n"
        await ours.send_all(f"GET /ws{query} HTTP/1.1\r\n{upgrade}".encode())
        data = b""
        while b"\r\n\r\n" not in data:
            data += await ours.receive_some()
        status = int(data.split()[1])
        if status == 429:
            assert b"retry-after: 5" in data.lower()
        return status, RawPeer(ours)


async def test_connections_of_one_address(autojump_clock: MockClock) -> None:
    async with open_to(Options(trusted_proxies=PROXY, max_address_connections=2)) as (switch, dial):
        first, second = await dial("192.0.2.1"), await dial("192.0.2.1")
        assert [first[0], second[0]] == [101, 101]
        assert [(await dial("192.0.2.1"))[0], (await dial("192.0.2.2"))[0]] == [429, 101]
        assert switch.statistics().refusals == {"rate_limited": 1}
        await first[1].aclose()
        await trio.sleep(1)
        assert (await dial("192.0.2.1"))[0] == 101


async def test_handshakes_of_one_address(autojump_clock: MockClock) -> None:
    async with open_to(Options(trusted_proxies=PROXY, address_handshakes=2, rate_burst=2.0)) as (switch, dial):
        assert [(await dial("192.0.2.1"))[0] for _ in range(6)] == [101] * 4 + [429] * 2
        assert (await dial("192.0.2.2"))[0] == 101
        await trio.sleep(1.6)
        assert [(await dial("192.0.2.1"))[0] for _ in range(2)] == [101, 429]
        assert switch.statistics().refused == 3


async def by_name(token: str) -> Identity:
    return Identity(user=token)


async def test_connections_of_one_user(autojump_clock: MockClock) -> None:
    async with open_to(Options(max_user_connections=2), authenticate=by_name) as (_switch, dial):
        peers = [await dial("", f"?token={user}") for user in ("ada", "ada", "bob", "ada")]
        assert [status for status, _ in peers] == [101, 101, 101, 429]
        await peers[0][1].aclose()
        await trio.sleep(1)
        assert (await dial("", "?token=ada"))[0] == 101
    async with open_test_switch(Options(max_user_connections=1), authenticate=by_name) as app:
        await app.connect("/ws?token=ada")
        late = await app.connect()
        answer = await late.ask("authenticate", token="ada")
        assert (answer["code"], answer["message"]) == ("rate_limited", "this user has too many connections")


# --- messages


async def test_a_connection_that_sends_too_fast_is_read_later(autojump_clock: MockClock) -> None:
    async with open_test_switch(Options(connection_messages=10, rate_burst=2.0)) as app:
        fast, slow = await app.connect(), await app.connect()
        for client, user in ((fast, "fast"), (slow, "slow")):
            await client.join("r", user_id=user)
        started = trio.current_time()
        for number in range(60):
            await fast.send("chat_message", room="r", content=f"{number}", id=number)
        assert (await slow.ask("heartbeat"))["type"] == "ack"
        assert trio.current_time() - started < 0.2, "nobody else waits"
        for number in range(60):
            await fast.receive_until(id=number)
        assert trio.current_time() - started == pytest.approx(4.1, abs=0.2)  # 61 messages: 20 at once, 10 in a second
        assert app.switch.statistics().rate_pauses > 0
        await trio.sleep(10)
        started = trio.current_time()
        for _ in range(15):
            assert (await fast.ask("heartbeat"))["type"] == "ack"
        assert trio.current_time() - started < 0.2, "it has recovered"


async def test_connections_of_one_user_share_their_rate(autojump_clock: MockClock) -> None:
    async with open_test_switch(Options(user_messages=10, rate_burst=1.0), authenticate=by_name) as app:
        clients = [await app.connect("/ws?token=ada") for _ in range(2)]
        other = await app.connect("/ws?token=bob")
        started = trio.current_time()

        async def send(client: Any) -> None:
            for _ in range(20):
                await client.ask("heartbeat")

        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(send, client)
            assert (await other.ask("heartbeat"))["type"] == "ack"
            assert trio.current_time() == started
        assert trio.current_time() - started == pytest.approx(3, abs=0.3)


async def test_rooms_that_are_open(autojump_clock: MockClock) -> None:
    async with open_test_switch(Options(max_open_rooms=2)) as app:
        client, other = await app.connect(), await app.connect()
        for room in ("a", "b"):
            await client.join(room, user_id="ada")
        assert (await other.ask("join_room", room="c"))["code"] == "too_many_rooms"
        assert (await other.ask("join_room", room="a"))["type"] == "ack"
        await client.ask("leave_room", room="b")
        assert (await other.ask("join_room", room="c"))["type"] == "ack"


async def test_a_client_that_waits_is_not_taken_for_dead(autojump_clock: MockClock) -> None:
    gone: list[str] = []

    async def on_disconnect(connection: Connection, _cause: object) -> None:
        gone.append(connection.id)

    options = Options(connection_messages=1, rate_burst=1.0, ping_interval=5.0, ping_timeout=5.0)
    async with open_test_switch(options, on_disconnect=on_disconnect) as app:
        client = await app.connect()
        for _ in range(60):
            await client.send("heartbeat")
        await trio.sleep(55)
        assert gone == []


async def test_lines_of_the_log_say_which_client_they_are_about(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def on_connect(request: ConnectRequest) -> Identity:
        if request.path == "/":
            raise Refused("not here")
        return Identity(user="ada")

    async def on_disconnect(_connection: Connection, _cause: CloseCause) -> None:
        raise RuntimeError("a fault of the application")

    caplog.set_level("INFO")
    with pytest.raises(ExceptionGroup):
        async with open_test_switch(on_connect=on_connect) as app:
            await app.connect("/")
    async with open_test_switch(on_connect=on_connect, on_disconnect=on_disconnect) as app:
        client = await app.connect()
        await client.close()
        await trio.sleep(1)
    about = {(record.getMessage().split()[0], *_about(record)) for record in caplog.records}
    assert ("refused", None, "test") in about
    assert ("on_disconnect", client.connection_id, None) in about


def _about(record: logging.LogRecord) -> tuple[str | None, str | None]:
    return getattr(record, "connection", None), getattr(record, "client", None)
