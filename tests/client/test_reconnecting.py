"""The client's connections: connecting, reconnecting, resuming, closing, and permanent rejection."""

import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import trustme
from client_support import PATIENCE, Highest, Peer, client_of, connected, fake_server, in_room, received
from hypothesis import given
from hypothesis import strategies as st
from support import listening
from trio.testing import MockClock, memory_stream_pair

from trioswitch import ConnectRequest, Identity, Refused, open_switch
from trioswitch._util import clock
from trioswitch._util.backoff import Backoff
from trioswitch.client import (
    CannotConnect,
    ClientClosed,
    ClientError,
    Gap,
    Message,
    Rejected,
    RequestFailed,
    State,
    UntrustedCertificate,
    open_client,
)
from trioswitch.client.address import Address
from trioswitch.testing import deterministic

# --- waiting


@given(seed=st.integers(), failures=st.integers(1, 30))
def test_delays_are_random_below_a_doubling_ceiling(seed: int, failures: int) -> None:
    backoff = Backoff(Random(seed))
    for number in range(failures):
        assert 0 <= backoff.next() <= min(0.5 * 2**number, 20)


def test_long_connection_resets_the_ceiling() -> None:
    backoff = Backoff(Highest())
    assert [backoff.next() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 20, 20]
    backoff.connection_ended(20)
    assert backoff.next() == 20
    backoff.connection_ended(20.1)
    assert backoff.next() == 0.5


async def test_reconnects_with_backoff(clock: MockClock) -> None:
    async with connected(welcome={"session": None}) as (server, client, peer):
        server.down = True
        server.attempts.clear()
        lost_at = trio.current_time()
        await peer.vanish()
        await trio.sleep(10)
        assert [at - lost_at for at in server.attempts] == [0.5, 1.5, 3.5, 7.5]
        assert not client.connected
        server.down = False
        await server.accept()
        await trio.sleep(0.1)
        assert client.connected
        assert client.statistics().connections == 2


async def test_reconnect_event_sets_the_delay(clock: MockClock) -> None:
    async with connected() as (server, _client, peer):
        await peer.send("reconnect", after=3.25, reason="going away")
        server.down = True
        server.attempts.clear()
        lost_at = trio.current_time()
        await peer.close(1001)
        await trio.sleep(4)
        assert [at - lost_at for at in server.attempts] == [3.25, 3.75]


@pytest.mark.parametrize(("said", "waits"), [(b"7", 7), (b"86400", 20)])
async def test_retry_after_is_the_minimum_delay(clock: MockClock, said: bytes, waits: int) -> None:
    """All clients are told the same: each adds a time of its own, here the longest."""
    async with connected() as (server, _client, peer):
        server.refuse = (503, [(b"Retry-After", said)], b"full")
        await peer.vanish()
        lost_at = trio.current_time()
        server.attempts.clear()
        await trio.sleep(2 * waits + 4)
        assert [at - lost_at for at in server.attempts] == [0.5, 0.5 + waits + 1, 0.5 + waits + 1 + waits + 2]


async def test_states_follow_the_connection(clock: MockClock) -> None:
    async with connected(welcome={"session": None}) as (server, client, peer), trio.open_nursery() as nursery:
        seen: list[State] = []

        async def follow() -> None:
            async for state in client.states():
                seen.append(state)

        nursery.start_soon(follow)
        await trio.sleep(0.1)
        await peer.close(1001, "bye")
        await server.accept()
        await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert [(state.connected, state.retry_in) for state in seen] == [
        (True, None),
        (False, 0.5),
        (False, None),
        (True, None),
    ]
    assert seen[1].reason == "the connection was lost (1001): bye"


# --- a server that is dead


async def test_missed_heartbeats_end_the_connection(clock: MockClock) -> None:
    async with connected(welcome={"heartbeat": 10.0, "session": None}) as (server, client, peer):
        peer.nursery.start_soon(peer.closed)  # it reads, and says nothing
        await trio.sleep(9.9)
        assert client.connected
        await trio.sleep(0.2)
        assert not client.connected
        await server.accept()


async def test_heartbeat_answers_keep_the_connection(clock: MockClock) -> None:
    async with connected(welcome={"heartbeat": 10.0}) as (_server, client, peer):
        for _ in range(10):
            assert "heartbeat" in await peer.websocket.get_message()
            await peer.send("heartbeat_ack", timestamp="")
            assert client.connected
        assert trio.current_time() == 90


async def test_pings_keep_the_connection(clock: MockClock) -> None:
    async with connected(welcome={"heartbeat": 10.0}) as (_server, client, peer):
        peer.nursery.start_soon(peer.closed)  # it reads, and says nothing but
        for _ in range(10):
            await trio.sleep(5)
            with trio.fail_after(1):
                await peer.websocket.ping()
        assert client.connected


async def test_missing_greeting_times_out(clock: MockClock) -> None:
    async with fake_server() as server:
        with pytest.raises(CannotConnect, match="did not send its greeting"):
            async with server.client(connect_timeout=3):
                pass
        assert trio.current_time() == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101 "])
async def test_connection_closed_during_the_handshake(answer: bytes, clock: MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()

    async def open_stream() -> trio.abc.Stream:
        return ours

    async with trio.open_nursery() as nursery:

        async def hang_up() -> None:
            await theirs.receive_some()
            await theirs.send_all(answer)
            await theirs.aclose()

        nursery.start_soon(hang_up)
        with pytest.raises(
            CannotConnect, match="test closed the connection during the handshake: if it expects TLS, use wss://"
        ):
            async with open_client("ws://test/", open_stream=open_stream):
                pass
    assert trio.current_time() == 0


async def test_handshake_without_answer_times_out(clock: MockClock) -> None:
    ours, _theirs = trio.testing.memory_stream_pair()

    async def open_stream() -> trio.abc.Stream:
        return ours

    with pytest.raises(CannotConnect, match="test does not answer"):
        async with open_client("ws://test/", open_stream=open_stream):
            pass
    assert trio.current_time() == 10


async def test_invalid_events_end_the_connection(clock: MockClock) -> None:
    async with connected() as (server, _client, peer):
        await peer.websocket.send_message("[1")
        await peer.closed()
        peer = await server.accept()
        await peer.expect("resume")
        await peer.send("system", room=[])
        await peer.closed()


# --- the first connection


async def test_first_failure_is_raised(clock: MockClock) -> None:
    async with fake_server() as server:
        server.down = True
        with pytest.raises(CannotConnect, match="cannot connect to test: Connection refused"):
            async with server.client():
                pass


async def test_keep_trying_retries_the_first_connection(clock: MockClock) -> None:
    async with fake_server() as server, trio.open_nursery() as nursery:
        server.down = True
        opened = trio.Event()

        async def run() -> None:
            async with server.client(keep_trying=True):
                opened.set()

        nursery.start_soon(run)
        await trio.sleep(5)
        server.down = False
        await server.accept()
        with trio.fail_after(PATIENCE):
            await opened.wait()


async def test_connecting_can_be_cancelled(clock: MockClock) -> None:
    async with fake_server() as server:
        server.down = True
        with trio.move_on_after(5) as scope:
            async with server.client(keep_trying=True):
                pass
        assert scope.cancelled_caught
        assert trio.current_time() == 5


@pytest.mark.parametrize("url", ["http://test/", "ws://", "ws://test:x/", "nonsense", "ws+unix:", "ws+unix://"])
async def test_invalid_urls(url: str) -> None:
    with pytest.raises(ValueError, match=r"not a valid WebSocket URL|no valid port|no path"):
        async with open_client(url):
            pass


async def test_token_is_sent_in_the_authorization_header(clock: MockClock) -> None:
    async with fake_server() as server, trio.open_nursery() as nursery:

        async def greet() -> None:
            assert (await server.accept()).token == "Bearer t0k"

        nursery.start_soon(greet)
        async with server.client(token="t0k") as client:
            assert client.user_id == "ann"
        with pytest.raises(ValueError, match="printable"):
            async with server.client(token="t\n"):
                pass


# --- the end


@pytest.mark.parametrize("code", [4500, 4502, 4999])
async def test_permanent_close_codes_raise_rejected(code: int, clock: MockClock) -> None:
    async with fake_server() as server, trio.open_nursery() as nursery:

        async def greet() -> None:
            peer = await server.accept()
            await trio.sleep(1)
            await peer.close(code, "go away")

        nursery.start_soon(greet)
        with pytest.raises(Rejected) as rejected:
            async with server.client():
                await trio.sleep_forever()
        assert (rejected.value.code, rejected.value.reason) == (code, "go away")
        assert len(server.attempts) == 1


@pytest.mark.parametrize(("status", "code"), [(401, 4500), (403, 4501)])
async def test_permanent_http_statuses_raise_rejected(status: int, code: int, clock: MockClock) -> None:
    async with fake_server() as server:
        server.refuse = (status, [], b"wrong token\n")
        with pytest.raises(Rejected, match="wrong token") as rejected:
            async with server.client():
                pass
    assert rejected.value.code == code
    assert rejected.value.unauthenticated == (status == 401)


async def test_token_that_expires_later_raises_rejected(clock: MockClock) -> None:
    async with fake_server() as server:

        async def be_refused() -> None:
            async with client_of(server) as (_client, peer):
                server.refuse = (401, [], b"")
                await peer.vanish()
                await trio.sleep_forever()

        with pytest.raises(Rejected, match="4500"):
            await be_refused()


class Oops(Exception):
    pass


async def test_exceptions_of_the_block_are_not_wrapped(clock: MockClock) -> None:
    cause = ValueError("cause")
    async with fake_server() as server:
        with pytest.raises(Oops) as caught:
            async with client_of(server) as (client, peer), in_room(client, peer):
                raise Oops("x") from cause
    assert caught.value.__cause__ is cause


async def test_leaving_closes_with_1000(clock: MockClock) -> None:
    async with fake_server() as server, trio.open_nursery() as nursery:
        codes: list[int] = []

        async def greet() -> None:
            codes.append(await (await server.accept()).closed())

        nursery.start_soon(greet)
        async with server.client() as client:
            pass
        with pytest.raises(ClientClosed):
            await client.publish("r", 1)
        with pytest.raises(ClientClosed):
            await anext(client.direct())
        assert [state async for state in client.states()] == []
    assert codes == [1000]


async def test_cancelled_client_closes_with_1000(clock: MockClock) -> None:
    async with fake_server() as server, trio.open_nursery() as nursery:
        codes: list[int] = []

        async def greet() -> None:
            codes.append(await (await server.accept()).closed())

        nursery.start_soon(greet)
        with trio.move_on_after(3) as scope:
            async with server.client() as client:
                await client.publish("r", 1)
        assert scope.cancelled_caught
    assert codes == [1000]
    assert trio.current_time() == 3


async def test_close_timeout_ends_a_close_without_answer(clock: MockClock) -> None:
    async with fake_server() as server, trio.open_nursery() as nursery:

        async def greet() -> None:
            await server.accept()
            await trio.sleep(100)  # nobody takes its messages: soon it does not read its stream either

        nursery.start_soon(greet)
        async with server.client() as client:
            for _ in range(10):
                nursery.start_soon(_ignore, lambda: client.chat("r", "x" * 100))
            await trio.sleep(1)
        assert trio.current_time() <= 3
        nursery.cancel_scope.cancel()


async def _ignore(ask: Callable[[], Any]) -> None:
    with pytest.raises(ClientError):
        await ask()


# --- going on


async def test_session_is_resumed_with_positions(clock: MockClock) -> None:
    async with connected() as (server, client, peer), in_room(client, peer, offset=3) as room:
        await peer.message(4)
        assert await received(room, 1) == [4]
        await peer.vanish()
        peer = await server.accept(session="s2")
        resume = await peer.expect("resume", session="s1", rooms={"r": {"epoch": "a", "offset": 4}})
        await peer.message(5)  # what was missed comes before the answer, or after it
        rooms = {"r": {"recovered": True, "epoch": "a", "offset": 6, "online_count": 7}}
        await peer.ack(resume, session="s1", user_id="ann", rooms=rooms)
        await peer.message(6)
        await peer.message(6)
        await peer.message(7)
        assert await received(room, 3) == [5, 6, 7]
        assert room.online_count == 7
        await peer.vanish()
        await (await server.accept(session="s3")).expect("resume", session="s1")


async def test_unknown_session_makes_the_client_join_again(clock: MockClock) -> None:
    async with connected("ann") as (server, client, peer), in_room(client, peer, offset=3, history=2) as room:
        await peer.vanish()
        peer = await server.accept(session="s2")
        await peer.error(await peer.expect("resume"), "unknown_session")
        join = await peer.let_join(offset=5, recovered=True)
        assert join["since"] == {"epoch": "a", "offset": 1}
        assert join["user_id"] == "ann"
        await peer.message(2)
        assert await received(room, 1) == [2]
        await peer.vanish()
        peer = await server.accept(session="s3")
        await peer.error(await peer.expect("resume", session="s2"), "unknown_session")
        assert (await peer.let_join(epoch="b", recovered=False))["since"] == {"epoch": "a", "offset": 2}
        await peer.send("gap", room="r", epoch="b", lost=True)
        await peer.message(1, epoch="b")
        assert await received(room, 2) == [Gap(room="r", dropped=None), 1]


async def test_rejoining_a_room_without_history_gives_a_gap(clock: MockClock) -> None:
    async with connected() as (server, client, peer), in_room(client, peer, offset=None) as room:
        await peer.vanish()
        peer = await server.accept()
        await peer.error(await peer.expect("resume"), "unknown_session")
        assert "since" not in await peer.let_join(offset=None)
        assert await received(room, 1) == [Gap(room="r", dropped=None)]


async def test_server_without_sessions(clock: MockClock) -> None:
    async with connected(welcome={"session": None}) as (server, client, peer), in_room(client, peer, offset=None):
        await peer.vanish()
        peer = await server.accept(session=None)
        await peer.let_join(offset=None)


async def test_session_that_was_taken_over_is_not_resumed(clock: MockClock) -> None:
    async with connected() as (server, client, peer), in_room(client, peer):
        await peer.close(4002)
        peer = await server.accept(session="s2")
        await peer.let_join(recovered=True)


async def test_rooms_left_while_offline_are_left_after_resume(clock: MockClock) -> None:
    async with connected() as (server, client, peer):
        async with in_room(client, peer):
            await peer.vanish()
            await trio.sleep(0.1)
        peer = await server.accept()
        await peer.ack(await peer.expect("resume", rooms={}), session="s1", rooms={"r": {"recovered": True}})
        await peer.expect("leave_room", room="r")


async def test_room_ends_when_the_server_refuses_the_rejoin(clock: MockClock) -> None:
    async with connected() as (server, client, peer), in_room(client, peer, offset=3) as room:
        await peer.message(4)
        await trio.sleep(0.1)
        await peer.vanish()
        peer = await server.accept()
        await peer.error(await peer.expect("resume"), "unknown_session")
        await peer.error(await peer.expect("join_room"), "forbidden")
        assert await received(room, 1) == [4]
        with pytest.raises(RequestFailed, match="forbidden"):
            await received(room, 1)


async def test_a_room_that_is_unavailable_after_a_reconnect_is_joined_later(clock: MockClock) -> None:
    async with connected() as (server, client, peer), in_room(client, peer, offset=3) as room:
        await peer.vanish()
        peer = await server.accept()
        await peer.error(await peer.expect("resume"), "unknown_session")
        for _ in range(3):
            await peer.error(await peer.expect("join_room", since={"epoch": "a", "offset": 3}), "unavailable")
        await peer.let_join(offset=4, recovered=True)
        await peer.message(4)
        assert await received(room, 1) == [4]


async def test_a_room_that_is_unavailable_at_first_is_not_waited_for(clock: MockClock) -> None:
    async with connected() as (_server, client, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_refuse_join, peer)
            with pytest.raises(RequestFailed, match="unavailable"):
                async with client.room("r"):
                    pass


async def _refuse_join(peer: Peer) -> None:
    await peer.error(await peer.expect("join_room"), "unavailable")


# --- TLS


async def test_certificate_is_verified() -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with trio.fail_after(PATIENCE):
        async with listening(host="localhost", ssl_context=context) as (_switch, server):
            url = f"wss://localhost:{server.port}/ws"
            with pytest.raises(UntrustedCertificate, match="its certificate is not trusted: "):
                async with open_client(url):
                    pass
            async with open_client(url, ssl_context=trusting) as client, client.room("r") as room:
                assert (await room.publish(1)).dropped == 0


async def test_wrong_scheme_gives_a_hint() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with trio.fail_after(PATIENCE):
        async with listening(host="localhost", ssl_context=context) as (_switch, server):
            with pytest.raises(CannotConnect, match=f"localhost:{server.port} .*TLS.*use wss://"):
                async with open_client(f"ws://localhost:{server.port}/ws"):
                    pass
        async with listening(host="localhost") as (_switch, server):
            with pytest.raises(CannotConnect, match="it does not use TLS: use ws://"):
                async with open_client(f"wss://localhost:{server.port}/ws"):
                    pass


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (b"\x15\x03\x01\x00\x02\x02\x46", "expects TLS: use wss://"),
        (b"\x15", "expects TLS: use wss://"),
        (
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 54\r\n\r\n"
            b"<html>The plain HTTP request was sent to HTTPS port\r\n\r\n",
            "expects TLS: use wss://",
        ),
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 4\r\n\r\nBad.", "answered 400 Bad."),
        (b"+OK ready\r\n\r\n", "not a WebSocket server"),
        (b"", "if it expects TLS, use wss://"),
    ],
    ids=["alert", "part of an alert", "nginx", "another 400", "not HTTP", "nothing"],
)
async def test_plain_connection_to_a_tls_port_gives_a_hint(answer: bytes, hint: str, clock: MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()

    async def open_stream() -> trio.abc.Stream:
        return ours

    async def serve() -> None:
        await theirs.receive_some()
        if answer:
            await theirs.send_all(answer)
        await theirs.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(CannotConnect, match=hint):
            async with open_client("ws://test/", open_stream=open_stream):
                pass


async def test_tls_connection_to_a_port_that_closes_gives_a_hint() -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1"))
            port = listener.socket.getsockname()[1]
            with pytest.raises(CannotConnect, match="during the TLS handshake: if it does not use TLS, use ws://"):
                async with open_client(f"wss://127.0.0.1:{port}/"):
                    pass
            nursery.cancel_scope.cancel()


# --- Unix sockets


async def test_unix_socket_by_the_url_that_the_server_prints(tmp_path: Path) -> None:
    path = tmp_path / "a socket:/8765"
    path.parent.mkdir()
    with trio.fail_after(PATIENCE):
        async with listening(uds=path) as (_switch, server):
            async with open_client(server.urls[0]) as client, client.room("r") as room:
                assert (await room.publish(1)).dropped == 0
            async with open_client(f"ws+unix://{path}"):
                pass
        with pytest.raises(CannotConnect, match="8765: No such file or directory"):
            async with open_client(server.urls[0]):
                pass


async def test_unix_socket_of_a_server_with_tls(tmp_path: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with trio.fail_after(PATIENCE):
        async with listening(uds=tmp_path / "socket", ssl_context=context) as (_switch, server):
            with pytest.raises(CannotConnect, match=r"socket .*(TLS.*not supported|closed the connection)"):
                async with open_client(server.urls[0]):
                    pass


# --- URLs


async def test_urls_are_escaped() -> None:
    paths: list[str] = []
    names: list[str] = []

    async def let_in(request: ConnectRequest) -> Identity:
        paths.append(request.path)
        names.append(request.query["name"])
        return Identity(user=None)

    with trio.fail_after(PATIENCE):
        async with listening(hooks={"on_connect": let_in}) as (_switch, server):
            for name in ("J\u00fcrgen", "Ada Lovelace", "a%20b", "50%25", "x=y/z?"):
                async with open_client(f"ws://localhost:{server.port}/ws?name={name}"):
                    pass
    assert names == ["J\u00fcrgen", "Ada Lovelace", "a b", "50%", "x=y/z?"]
    assert Address.parse("ws://b\u00fccher.example/w s").host == "xn--bcher-kva.example"
    assert Address.parse("ws://b\u00fccher.example/w s").target == "/w%20s"
    with pytest.raises(ValueError, match="has no valid host name"):
        Address.parse("ws://" + "x" * 64 + "/")


@pytest.mark.parametrize("token", ["", "\u00fc", "a\nb"])
async def test_invalid_tokens(token: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        async with open_client("ws://localhost:1/", token):
            pass


@pytest.mark.parametrize(("status", "body"), [(200, b"hello"), (404, b"<!DOCTYPE HTML>\n<title>none</title>")])
async def test_server_without_websocket(status: int, body: bytes) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
            port = listener.socket.getsockname()[1]
            with pytest.raises(CannotConnect, match=f"answered {status} and does not offer a WebSocket"):
                async with open_client(f"ws://127.0.0.1:{port}/"):
                    pass
            nursery.cancel_scope.cancel()


async def test_a_function_gives_a_new_token_before_the_old_one_runs_out(autojump_clock: MockClock) -> None:
    with deterministic(1):
        issued: list[float] = []
        failing = False

        async def token() -> str:
            if failing:
                raise OSError("the backend is away")
            issued.append(trio.current_time())
            return f"{len(issued)}"

        async def authenticate(text: str) -> Identity:
            return Identity(user="ada", expires_at=clock.wall_time() + 10 if int(text) < 6 else None)

        async with open_switch(authenticate=authenticate) as switch, trio.open_nursery() as nursery:

            async def open_stream() -> trio.abc.Stream:
                ours, theirs = memory_stream_pair()
                nursery.start_soon(switch.serve_stream, theirs)
                return ours

            async with open_client("ws://server/ws", token, open_stream=open_stream) as client:
                await trio.sleep(20)
                assert issued == pytest.approx([0, 8, 16], abs=0.5)
                failing = True
                await trio.sleep(4.5)
                failing = False
                await trio.sleep(100)
                assert (len(issued), client.connected, switch.connections("ada")) == (6, True, switch.connections())
                assert switch.statistics().connections_opened == 1


@pytest.mark.parametrize("is_good", [True, False])
async def test_a_token_that_ran_out_is_replaced_when_there_is_another_one(
    is_good: bool, autojump_clock: MockClock
) -> None:
    issued: list[float] = []
    away_until = 0.0

    async def token() -> str:
        if trio.current_time() < away_until:
            raise OSError("the backend is away")
        issued.append(trio.current_time())
        return f"{len(issued)}"

    async def authenticate(text: str) -> Identity:
        if text != "1" and not is_good:
            raise Refused("you are not wanted any more", code="unauthorised")
        return Identity(user="ada", expires_at=clock.wall_time() + 10 if text == "1" else None)

    async with open_switch(authenticate=authenticate) as switch, trio.open_nursery() as nursery:

        async def open_stream() -> trio.abc.Stream:
            ours, theirs = memory_stream_pair()
            nursery.start_soon(switch.serve_stream, theirs)
            return ours

        async def live() -> None:
            async with (
                open_client("ws://server/ws", token, open_stream=open_stream) as client,
                client.room("r") as room,
            ):
                nonlocal away_until
                away_until = trio.current_time() + 30
                await trio.sleep(200)
                assert client.connected
                events = aiter(room)
                await switch.publish("r", 1)
                with trio.fail_after(1):
                    while not isinstance(await anext(events), Message):
                        pass  # who has left and come meanwhile

        if is_good:
            with deterministic(1):  # which has the time of day follow Trio's
                await live()
            assert len(issued) == 2
            assert switch.statistics().closes["unauthorised"] == 1
        else:
            with deterministic(1), pytest.raises(Rejected, match="not wanted"):
                await live()


async def test_tokens_that_there_are_none_of(autojump_clock: MockClock) -> None:
    async def away() -> str:
        raise OSError("the backend is away")

    async def empty() -> str:
        return ""

    with pytest.raises(CannotConnect, match="there is no token: the backend is away"):
        async with open_client("ws://127.0.0.1:1/ws", away):
            pass
    with pytest.raises(ValueError, match="must not be empty"):
        async with open_client("ws://127.0.0.1:1/ws", empty):
            pass
    with pytest.raises(TypeError, match="a token must be a str, or an async function"):
        async with open_client("ws://127.0.0.1:1/ws", 5):  # type: ignore[arg-type]
            pass
