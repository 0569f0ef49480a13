"""Where clients come in: TCP, TLS, Unix sockets, HTTP on the same port; and what happens when files run out."""

import errno
import json
import os
import resource
import socket
import ssl
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio_asyncio
import trio_websocket
import trustme
import websockets.asyncio.client
from raw import CLOSE, RawPeer, frame, upgrade
from served import GENEROUS, served
from support import Client, client_over, connected

import trioswitch
from trioswitch import ConnectRequest, Options, Refused, ServeError, Server, Switch, serve
from trioswitch.web import Page, health

PAGE = Page(b"<p>a page</p>")


@asynccontextmanager
async def listening(
    options: Options | None = None, *, hooks: dict[str, Any] | None = None, **how: Any
) -> AsyncIterator[tuple[Switch, Server]]:
    """A switch on a real socket, with pages."""
    async with trioswitch.open_switch(options, **(hooks or {})) as switch, trio.open_nursery() as nursery:
        pages = {"/": PAGE, "/health": health(switch)}
        server = await nursery.start(lambda **status: serve(switch, **{"port": 0, "pages": pages, **how}, **status))
        yield switch, server
        nursery.cancel_scope.cancel()


async def dial(server: Server, context: ssl.SSLContext | None = None) -> RawPeer:
    """With a context: over TLS."""
    assert server.port is not None
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    return RawPeer(trio.SSLStream(stream, context, server_hostname="localhost") if context is not None else stream)


async def request(server: Server, text: str) -> tuple[RawPeer, Any]:
    peer = await dial(server)
    await peer.send(text.encode())
    return peer, await peer.answer()


# --- HTTP on the same port


@pytest.mark.parametrize("transport", ["native", "trio-websocket"])
async def test_pages_beside_the_websocket(transport: str) -> None:
    async with listening(transport=transport) as (_switch, server):
        for method, path, status, body in (
            ("GET", "/", 200, PAGE.body),
            ("GET", "/?a=b", 200, PAGE.body),
            ("HEAD", "/", 200, b""),
            ("GET", "/nowhere", 404, b"there is nothing at /nowhere\n"),
            ("POST", "/nowhere", 404, None),
            ("POST", "/", 405, None),
            ("DELETE", "/health", 405, None),
            ("GET", "/ws", 426, None),
            ("GET", "http://[", 404, None),
        ):
            peer = await dial(server)
            await peer.send(f"{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
            if method == "HEAD":
                head = await peer.end()
                assert head.startswith(b"HTTP/1.1 200 ")
                assert head.endswith(b"\r\n\r\n")
                assert b"Content-Length: %d\r\n" % len(PAGE.body) in head
            else:
                answer = await peer.answer()
                assert answer.status == status, (method, path)
                assert answer.body == body or (body is None and answer.body)
                assert answer.fields["connection"] == "close"
                assert answer.fields["x-content-type-options"] == "nosniff"
                assert await peer.end() == b""
                if status == 405:
                    assert answer.fields["allow"] == "GET, HEAD"
                if status == 426:
                    assert answer.fields["upgrade"] == "websocket"
            await peer.aclose()
        async with connected(server.urls[0]) as client:
            await client.nothing_more()


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nbad field\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.7\r\nHost: a\r\nConnection: close\r\n\r\n", 200),
        ("GET / HTTP/1.0\r\n\r\n", 200),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        ("GET /" + "x" * 20_000 + " HTTP/1.1\r\nHost: a\r\n\r\n", 431),
    ],
)
async def test_bad_requests_for_pages(text: str, status: int) -> None:
    async with listening() as (_switch, server):
        peer, answer = await request(server, text)
        assert answer.status == status
        assert await peer.end() == b""
        await peer.aclose()


async def test_what_is_pipelined_behind_a_request_does_not_cost_its_answer() -> None:
    """To close while the peer's bytes are unread would reset the connection, and the answer with it."""
    async with listening() as (_switch, server), connected(server.urls[0]) as client:
        for behind in (b"GET / HTTP/1.1\r\n\r\n" * 1000, bytes(range(256)) * 8000):
            peer = await dial(server)
            await peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n")
            try:
                await peer.send(behind)
            except trio.BrokenResourceError:
                pytest.fail("it was reset while it sent")
            assert (await peer.answer()).status == 405
            await client.nothing_more()
            await peer.aclose()


async def test_who_reads_nothing_of_a_page_is_given_up() -> None:
    big = Page(b"x" * 20_000_000)
    options = Options(handshake_timeout=0.5)
    async with listening(options, pages={"/": big}) as (_switch, server):
        peer = await dial(server)
        await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        async with connected(server.urls[0]) as client:
            await client.nothing_more()
        await trio.sleep(1)
        answer = await peer.end()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert len(answer) < len(big.body)
        assert answer.endswith(b"x"), "no second answer in the midst of the first"
        await peer.aclose()


async def test_health_during_a_drain() -> None:
    async with listening() as (switch, server):
        peer, answer = await request(server, "GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.status == 200
        assert json.loads(answer.body) == {"status": "ok", "version": trioswitch.__version__, "connections": 0}
        await peer.aclose()
        async with connected(server.urls[0]) as client, trio.open_nursery() as nursery:
            nursery.start_soon(switch.drain)
            await client.receive_until(type="reconnect")
            peer, answer = await request(server, "GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert answer.status == 503
            assert json.loads(answer.body)["status"] == "draining"
            await peer.aclose()
            peer, answer = await request(server, upgrade().decode())
            assert answer.status == 503
            assert answer.fields["retry-after"] == "5"
            await peer.aclose()
            assert (await client.closed())[0] == 1001


# --- addresses


async def test_a_port_that_is_taken_is_told_in_a_sentence() -> None:
    async with listening() as (switch, server):
        with pytest.raises(ServeError, match=f"cannot listen on 127.0.0.1 port {server.port}: Address already in use"):
            await serve(switch, port=server.port or 0)


async def test_the_port_is_free_again_when_the_server_has_stopped() -> None:
    async with trioswitch.open_switch() as switch, trio.open_nursery() as nursery:
        first = await nursery.start(lambda **status: serve(switch, port=0, **status))
        async with connected(first.urls[0]) as client:  # who is connected stays so
            first.stop()
            await trio.testing.wait_all_tasks_blocked()
            second = await nursery.start(lambda **status: serve(switch, port=first.port, **status))
            assert second.urls == first.urls
            async with connected(second.urls[0]) as other:
                await other.nothing_more()
            await client.nothing_more()
        nursery.cancel_scope.cancel()


def ipv6_works() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not ipv6_works(), reason="no IPv6 here")
async def test_ipv6() -> None:
    seen: list[str] = []

    async def on_connect(request: ConnectRequest) -> None:
        seen.append(request.remote)

    async with listening(host="::1", hooks={"on_connect": on_connect}) as (_switch, server):
        assert server.urls == (f"ws://[::1]:{server.port}/ws",)
        async with connected(server.urls[0]) as client:
            await client.nothing_more()
        assert seen[0].startswith("[::1]:")


async def test_an_address_family_that_is_missing_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """`localhost` is often both `::1` and `127.0.0.1`, where only the second can be used."""

    class NoIPv6(socket.socket):
        def __init__(self, family: int = -1, *args: Any, **how: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *args, **how)

    ipv6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
    ipv4 = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
    found = [ipv6, ipv4]

    async def getaddrinfo(host: object, port: object, **how: object) -> list[Any]:
        return found

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "socket", NoIPv6)
    async with trioswitch.open_switch() as switch, trio.open_nursery() as nursery:
        server = await nursery.start(lambda **status: serve(switch, host="localhost", port=0, **status))
        assert server.urls == (f"ws://127.0.0.1:{server.port}/ws",)
        found.remove(ipv4)
        with pytest.raises(ServeError, match="Address family not supported"):
            await serve(switch, host="localhost", port=0)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("transport", ["native", "trio-websocket"])
async def test_the_application_is_told_where_a_client_comes_from(transport: str, tmp_path: Path) -> None:
    seen: list[str] = []

    async def on_connect(request: ConnectRequest) -> None:
        seen.append(request.remote)

    hooks = {"on_connect": on_connect}
    async with listening(transport=transport, hooks=hooks) as (_switch, server):
        peer = await dial(server)
        await peer.open()
        host, port = peer.stream.socket.getsockname()  # type: ignore[attr-defined]
        await peer.aclose()
    async with listening(transport=transport, hooks=hooks, uds=tmp_path / "s") as (_switch, server):
        peer = RawPeer(await trio.open_unix_socket(str(tmp_path / "s")))
        await peer.open()
        await peer.aclose()
    assert seen == [f"{host}:{port}", "unix socket"]


# --- Unix sockets


@asynccontextmanager
async def client_on(path: Path) -> AsyncIterator[Client]:
    async with client_over(await trio.open_unix_socket(str(path))) as client:
        yield client


@pytest.mark.parametrize("transport", ["native", "trio-websocket"])
async def test_a_unix_socket(tmp_path: Path, transport: str) -> None:
    path = tmp_path / "s"
    async with listening(uds=path, transport=transport) as (_switch, server):
        assert server.urls == (f"ws+unix:{path}",)
        assert server.port is None
        async with client_on(path) as ann, client_on(path) as bob:
            await ann.join("r")
            await bob.join("r")
            await ann.send("chat_message", room="r", content="hi")
            assert (await bob.receive_until(type="chat_message"))["content"] == "hi"
    assert not path.exists()


async def test_a_unix_socket_of_a_server_that_was_killed_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    assert path.exists()
    async with listening(uds=path), client_on(path) as client:
        await client.nothing_more()


async def test_a_unix_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with listening(uds=path) as (switch, _server):
        with pytest.raises(ServeError, match=": another server does"):
            await serve(switch, uds=path)
        async with client_on(path) as client:
            await client.nothing_more()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    async with trioswitch.open_switch() as switch:
        with pytest.raises(ServeError, match="there is something else, which is left alone"):
            await serve(switch, uds=path)
    assert path.read_text() == "precious"


async def test_a_server_that_ends_does_not_take_its_successors_socket_away(tmp_path: Path) -> None:
    """A new server may take the path over while the old one drains."""
    path = tmp_path / "s"
    async with trioswitch.open_switch() as switch, trio.open_nursery() as nursery:
        async with trio.open_nursery() as old_nursery:
            old = await old_nursery.start(lambda **status: serve(switch, uds=path, **status))
            async with client_on(path) as client:
                old.stop()
                await trio.testing.wait_all_tasks_blocked()
                await nursery.start(lambda **status: serve(switch, uds=path, **status))
                await client.nothing_more()
        assert stat.S_ISSOCK(path.stat().st_mode)
        async with client_on(path) as other:
            await other.nothing_more()
        nursery.cancel_scope.cancel()
    assert not path.exists()


# --- TLS


@attrs.frozen
class Certificates:
    server: ssl.SSLContext
    client: ssl.SSLContext
    chain: Path
    key: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    chain, key = folder / "chain.pem", folder / "key.pem"
    certificate.private_key_pem.write_to_path(str(key))
    for number, pem in enumerate(certificate.cert_chain_pems):
        pem.write_to_path(str(chain), append=number > 0)
    return Certificates(server, client, chain, key)


@pytest.mark.parametrize("transport", ["native", "trio-websocket"])
async def test_tls(certificates: Certificates, transport: str) -> None:
    """Whoever speaks something else, or hangs up in the midst, is of no matter to the others."""
    async with listening(ssl_context=certificates.server, transport=transport) as (switch, server):
        assert server.urls == (f"wss://127.0.0.1:{server.port}/ws",)
        url = f"wss://localhost:{server.port}/ws"
        async with (
            connected(url, ssl_context=certificates.client) as ann,
            connected(url, ssl_context=certificates.client) as bob,
        ):
            await ann.join("r")
            await bob.join("r")
            plain = await dial(server)
            await plain.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"200" not in await plain.end()
            await plain.aclose()
            half = await dial(server)
            await half.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
            await half.aclose()
            distrusting = trio.SSLStream(
                await trio.open_tcp_stream("127.0.0.1", server.port or 0),
                ssl.create_default_context(),
                server_hostname="localhost",
            )
            with pytest.raises(trio.BrokenResourceError):
                await distrusting.do_handshake()
            await trio.aclose_forcefully(distrusting)
            big = "x" * 500_000
            await ann.send("message", room="r", data=big)
            for number in range(100):
                await ann.send("message", room="r", data=number)
            for client in (ann, bob):
                for data in (big, *range(100)):
                    assert (await client.receive_until(type="message"))["data"] == data
            switch.kick(bob.connection_id)
            assert (await bob.closed())[0] == 4502
            await ann.send_raw("x" * (1024 * 1024 + 1))
            assert (await ann.closed())[0] == 1009


async def test_over_tls_an_error_does_not_hold_the_connection(certificates: Certificates) -> None:
    """TLS is closed for both sides at once: a client that waits for the server to do so must not be waited for."""
    async with listening(Options(close_timeout=1000), ssl_context=certificates.server) as (switch, server):
        peer = await dial(server, certificates.client)
        await peer.open()
        await peer.send(frame(3, b"no such opcode"))
        assert await peer.close_code() == 1002
        await peer.send(frame(CLOSE, b"\x03\xea"))
        assert await peer.end() == b""
        await peer.aclose()
        with trio.fail_after(GENEROUS):
            while switch.connections():
                await trio.sleep(0.01)


async def test_pages_over_tls(certificates: Certificates) -> None:
    async with listening(ssl_context=certificates.server) as (_switch, server):
        peer = await dial(server, certificates.client)
        await peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await peer.answer()).body == PAGE.body
        await peer.aclose()


async def test_half_a_tls_handshake_has_the_deadline_of_the_handshake(certificates: Certificates) -> None:
    async with listening(Options(handshake_timeout=0.3), ssl_context=certificates.server) as (_switch, server):
        peer = await dial(server)
        await peer.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        await peer.end()
        await peer.aclose()


async def test_a_plain_server_answers_a_tls_client_at_once(certificates: Certificates) -> None:
    async with listening(Options(handshake_timeout=GENEROUS * 10)) as (_switch, server):
        stream = trio.SSLStream(
            await trio.open_tcp_stream("127.0.0.1", server.port or 0), certificates.client, server_hostname="localhost"
        )
        with trio.fail_after(GENEROUS), pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)


async def test_tls_from_the_command_line(certificates: Certificates) -> None:
    arguments = ("--tls-cert", str(certificates.chain), "--tls-key", str(certificates.key))
    async with served(*arguments) as server:
        assert server.url == f"wss://127.0.0.1:{server.port}/ws"
        async with connected(server.url, ssl_context=certificates.client) as client:
            await client.join("r")
            server.process.send_signal(15)
            assert (await client.closed())[0] == 1001
        assert await server.ended() == 0
        assert len(server.lines) == 1


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_what_a_client_does_not_read_waits_in_its_outbox(certificates: Certificates, scheme: str) -> None:
    """And not in megabytes of the kernel's memory, where no bound and no policy reaches it."""
    sent, size = 64, 32 * 1024
    context = certificates.server if scheme == "wss" else None
    async with listening(Options(outbox_bytes=sent * size * 2), ssl_context=context) as (switch, server):
        peer = await dial(server, certificates.client if scheme == "wss" else None)
        await peer.open()
        (stalled,) = switch.connections()
        switch.join(stalled, "r")
        for _ in range(sent):
            await switch.publish("r", "x" * size)
        assert switch.outbox_statistics(stalled).bytes > sent * size / 2
        await peer.aclose()


# --- other ways over a real socket


@pytest.mark.slow
async def test_by_trio_websocket_over_real_sockets() -> None:
    options = Options(max_message_bytes=1000)
    async with listening(options, transport="trio-websocket") as (_switch, server):
        async with (
            connected(server.urls[0]) as ann,
            connected(server.urls[0], subprotocols=["trioswitch.v1.batch"]) as bob,
        ):
            await ann.join("r", user_id="ann")
            await bob.join("r", user_id="bob")
            for number in range(200):
                await ann.send("message", room="r", data=number)
            for number in range(200):
                assert (await bob.receive_until(type="message"))["data"] == number
            await bob.send_raw("x" * 1001)
            assert (await bob.closed())[0] == 1009
            assert (await ann.receive_until(action="user_left"))["user_id"] == "bob"
        peer = await dial(server)
        await peer.send(upgrade(Sec_WebSocket_Version="8"))
        assert (await peer.answer()).status == 426
        await peer.aclose()


async def test_embedded_in_a_program_of_trio_websocket(caplog: pytest.LogCaptureFixture) -> None:
    """Its server ends with what a handler raises: so nothing may come out of ours."""

    async def authenticate(token: str) -> Any:
        if token == "nonsense":
            return token
        raise Refused("this token is not known")

    async with trioswitch.open_switch(authenticate=authenticate) as switch, trio.open_nursery() as nursery:
        embedding = await nursery.start(trio_websocket.serve_websocket, switch.serve_request, "127.0.0.1", 0, None)

        async def peer_with(token: str) -> RawPeer:
            peer = RawPeer(await trio.open_tcp_stream("127.0.0.1", embedding.port))
            await peer.send(upgrade(f"/?token={token}"))
            return peer

        unknown = await peer_with("unknown")
        answer = await unknown.answer()
        assert answer.status == 401
        assert answer.fields["www-authenticate"] == "Bearer"
        assert answer.body == b"this token is not known\n"
        nonsense = await peer_with("nonsense")
        assert (await nonsense.answer()).status == 500
        async with connected(f"ws://127.0.0.1:{embedding.port}") as client:
            assert (await client.ask("join_room", room="r"))["code"] == "unauthorised"
            assert (await client.closed())[0] == 4500
        for peer in (unknown, nonsense):
            await peer.aclose()
        nursery.cancel_scope.cancel()
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert error.getMessage().startswith("a hook failed for 127.0.0.1:")


async def chat_compressed(url: str, messages: int, received: list[str]) -> None:
    """A client of the websockets library, which offers permessage-deflate; runs in asyncio."""
    async with websockets.asyncio.client.connect(url) as websocket:
        assert [extension.name for extension in websocket.protocol.extensions] == ["permessage-deflate"]
        await websocket.send(json.dumps({"type": "join_room", "room": "r", "padding": "x" * 10_000}))
        for _ in range(messages):
            while (message := json.loads(await websocket.recv()))["type"] != "message":
                pass
            received.append(message["data"])


async def test_one_compression_serves_every_receiver() -> None:
    clients, messages, size = 4, 5, 20_000
    received: list[str] = []
    async with listening() as (switch, server):
        with trio.fail_after(GENEROUS):
            async with trio_asyncio.open_loop(), trio.open_nursery() as nursery:
                for _ in range(clients):
                    nursery.start_soon(trio_asyncio.aio_as_trio(chat_compressed), server.urls[0], messages, received)
                while switch.statistics().rooms.get("r", 0) < clients:
                    await trio.sleep(0.01)
                for number in range(messages):
                    await switch.publish("r", f"{number}:" + "x" * size)
        assert sorted(received) == sorted([f"{number}:" + "x" * size for number in range(messages)] * clients)
        statistics = switch.statistics()
        assert statistics.compression.tried == statistics.compression.used == messages
        assert statistics.compression_ratio > 0.9
        assert statistics.bytes_sent < clients * messages * size / 10


# --- more connections than there may be


async def attempt(port: int) -> tuple[RawPeer, int]:
    """Ask for a WebSocket, and return the peer and the status of the answer."""
    peer = RawPeer(await trio.open_tcp_stream("127.0.0.1", port))
    await peer.send(upgrade())
    answer = await peer.answer()
    assert answer.status == 101 or (answer.status, answer.fields["retry-after"]) == (503, "5")
    return peer, answer.status


async def test_connections_are_limited_by_the_files_that_may_be_open() -> None:
    program = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (74, 74))
from trioswitch.cli.main import main
main()
"""
    async with served(command=(sys.executable, "-X", "dev", "-c", program, "serve")) as server:
        peers = [await attempt(server.port) for _ in range(15)]
        assert [status for _peer, status in peers] == [101] * 10 + [503] * 5
        await peers[0][0].aclose()
        with trio.fail_after(GENEROUS):
            while True:
                peer, status = await attempt(server.port)
                peers.append((peer, status))
                if status == 101:
                    break
        for peer, _status in peers:
            await peer.aclose()
        assert await server.end() == 0


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="the limits of another process can be set on Linux only")
async def test_when_files_run_out_all_the_same() -> None:
    """Files that the limit on connections did not foresee: who comes is answered, and it goes on when some are free again."""
    async with served() as server:
        async with connected(server.url) as ann, connected(server.url) as bob:
            await ann.join("r")
            await bob.join("r")
            pid = server.process.pid
            limit = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 6
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
            peers = [await attempt(server.port) for _ in range(15)]
            statuses = [status for _peer, status in peers]
            assert 3 <= statuses.count(101) <= 6
            assert 503 in statuses
            await ann.send("chat_message", room="r", content="still here")
            assert (await bob.receive_until(type="chat_message"))["content"] == "still here"
            for peer, _status in peers:
                await peer.aclose()
            with trio.fail_after(GENEROUS):
                while True:
                    peer, status = await attempt(server.port)
                    await peer.aclose()
                    if status == 101:
                        break
            async with connected(server.url) as late:
                await late.nothing_more()
        assert await server.end() == 0
        assert any("cannot accept" in line for line in server.lines)
