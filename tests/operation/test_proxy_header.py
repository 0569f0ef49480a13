"""The PROXY protocol: a trusted proxy says who the client is, in the first bytes, and nobody else can."""

import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trustme
from hypothesis import given
from hypothesis import strategies as st
from servers import run

from trioswitch import ConnectRequest, Identity, Options, open_switch, serve
from trioswitch.transport.proxy_header import header_length, parse_header

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def _v2(family: int, body: bytes, *, command: int = 0x21) -> bytes:
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(body)) + body


def _ipv6(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, address)


V1 = b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n"
V2 = _v2(0x11, b"\xc0\x00\x02\x07\x0a\x00\x00\x01" + struct.pack("!HH", 56324, 443))
GOOD = [
    (V1, "192.0.2.7:56324"),
    (V2, "192.0.2.7:56324"),
    (b"PROXY TCP6 2001:db8::7 2001:db8::1 5 443\r\n", "[2001:db8::7]:5"),
    (_v2(0x21, _ipv6("2001:db8::7") + _ipv6("::1") + struct.pack("!HH", 5, 443)), "[2001:db8::7]:5"),
    (_v2(0x11, V2[16:] + b"\x04\x00\x02hi"), "192.0.2.7:56324"),  # with an extension
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
    (_v2(0x00, b"", command=0x20), None),  # a health check
]
BAD = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 56324\r\n",
    b"PROXY TCP4 2001:db8::7 ::1 1 2\r\n",
    b"PROXY TCP6 192.0.2.7 10.0.0.1 1 2\r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 99999 443\r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 -1 443\r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 \xb2 443\r\n",
    b"PROXY TCP5 192.0.2.7 10.0.0.1 1 2\r\n",
    b"PROXY " + b"x" * 200,
    SIGNATURE + b"\x11\x11\x00\x0c" + V2[16:],
    SIGNATURE + b"\x22\x11\x00\x0c" + V2[16:],
    SIGNATURE + b"\x21\x11\xff\xff",
    _v2(0x11, V2[16:24]),
    _v2(0x12, V2[16:]),  # UDP
    _v2(0x31, b"/socket" + bytes(209)),
]


@pytest.mark.parametrize(("header", "client"), GOOD)
def test_both_versions_are_read(header: bytes, client: str | None) -> None:
    for end in range(len(header)):
        assert header_length(header[:end]) in (None, len(header))
    assert header_length(header + b"GET / HTTP/1.1\r\n") == len(header)
    assert parse_header(header) == client


@pytest.mark.parametrize("data", BAD)
def test_what_is_no_header_is_refused(data: bytes) -> None:
    def read() -> None:
        assert header_length(data) is not None
        parse_header(data)

    with pytest.raises(ValueError, match=r"."):
        read()


@given(st.one_of(st.binary(max_size=60), st.binary(max_size=60).map(lambda data: SIGNATURE + b"\x21" + data)))
def test_garbage_raises_nothing_but_value_error(data: bytes) -> None:
    try:
        length = header_length(data)
        if length is not None and len(data) >= length:
            parse_header(data[:length])
    except ValueError:
        pass


UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@asynccontextmanager
async def _server(
    trusted: tuple[str, ...] = ("127.0.0.1",), **how: Any
) -> AsyncIterator[tuple[int, list[tuple[str, str | None]], Any]]:
    """A port, who has come, and the switch."""
    seen: list[tuple[str, str | None]] = []

    async def on_connect(request: ConnectRequest) -> Identity:
        seen.append((request.remote, request.address))
        return Identity(user="ada")

    options = Options(trusted_proxies=trusted, handshake_timeout=0.5)
    async with open_switch(options, on_connect=on_connect) as switch, trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, switch, port=0, proxy_protocol=True, **how))
        yield server.port, seen, switch
        nursery.cancel_scope.cancel()


async def _answer(stream: trio.abc.Stream) -> bytes:
    with trio.fail_after(10):
        return bytes(await stream.receive_some())


async def _ending(stream: trio.abc.Stream) -> bytes:
    try:
        return await _answer(stream)
    except trio.BrokenResourceError:  # what was sent is not read
        return b""


@pytest.mark.parametrize("header", [V1, V2])
async def test_the_client_of_a_trusted_proxy_has_its_own_address(header: bytes) -> None:
    async with _server() as (port, seen, _switch):
        for pieces in ([header + UPGRADE], [header, UPGRADE], [bytes([byte]) for byte in header + UPGRADE]):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                for piece in pieces:
                    await stream.send_all(piece)
                    await trio.sleep(0.001)
                assert (await _answer(stream)).startswith(b"HTTP/1.1 101")
        assert seen == [("192.0.2.7:56324", "192.0.2.7")] * 3


async def test_the_header_comes_before_tls() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    async with _server(ssl_context=context) as (port, seen, _switch):
        ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(ours)
        plain = await trio.open_tcp_stream("127.0.0.1", port)
        await plain.send_all(V2)
        async with trio.SSLStream(plain, ours, server_hostname="localhost", https_compatible=True) as stream:
            await stream.send_all(UPGRADE)
            assert (await _answer(stream)).startswith(b"HTTP/1.1 101")
        assert seen == [("192.0.2.7:56324", "192.0.2.7")]


async def test_a_health_check_of_the_proxy_is_served_as_itself() -> None:
    async with _server() as (port, seen, _switch), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(_v2(0x00, b"", command=0x20) + UPGRADE)
        assert (await _answer(stream)).startswith(b"HTTP/1.1 101")
        assert seen[0][1] == "127.0.0.1"


@pytest.mark.parametrize("sent", [UPGRADE, b"PROXY TCP4 nowhere", b"", *BAD])
async def test_a_trusted_proxy_that_does_not_say_so_is_not_served(sent: bytes) -> None:
    async with _server() as (port, seen, switch):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(sent)
            assert await _ending(stream) == b""
        assert seen == []
        assert switch.statistics().refusals == {"other": 1}


async def test_nobody_else_can_say_so() -> None:
    async with _server(trusted=("192.0.2.1",)) as (port, seen, _switch):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(V1 + UPGRADE)
            assert (await _answer(stream)).startswith(b"HTTP/1.1 400")
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(UPGRADE)
            assert (await _answer(stream)).startswith(b"HTTP/1.1 101")
        assert [address for _remote, address in seen] == ["127.0.0.1"]


@pytest.mark.slow
async def test_the_command_line_has_it_and_the_port_for_operators_has_not() -> None:
    flags = ("--proxy-protocol", "--trusted-proxy", "127.0.0.1", "--admin-port", "0", "--port", "0")
    pattern = r"health at http://127\.0\.0\.1:(\d+)/[\s\S]*listens on ws://127\.0\.0\.1:\d+/ws"
    async with run("-m", "trioswitch", "serve", *flags, is_up=pattern) as server:
        port = int(server.said.split("listens on ws://127.0.0.1:")[1].split("/")[0])
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(V2 + UPGRADE)
            assert (await _answer(stream)).startswith(b"HTTP/1.1 101")
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(UPGRADE)
            assert await _ending(stream) == b""
        async with await trio.open_tcp_stream("127.0.0.1", int(server.found)) as stream:
            await stream.send_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await _answer(stream)).startswith(b"HTTP/1.1 200")
        await server.wait_said("did not say who its client is")
