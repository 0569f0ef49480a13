"""Bad input and bad peers: each gets a clear answer, costs no more than itself, and leaves every other connection alone."""

import gc
import json
import logging
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from typing import Any

import attrs
import pytest
import support
import trio
import trio.testing
from raw import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, RawPeer, deflated, frame, good_neighbours, upgrade
from support import App, connected, listening, settled
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair

from trioswitch import (
    CloseCause,
    Connection,
    ConnectRequest,
    Identity,
    Options,
    Overflow,
    Refused,
    RoomPolicy,
    open_switch,
)
from trioswitch.transport.streams import SocketByteStream

LIMIT = 1000
SMALL = Options(max_message_bytes=LIMIT, max_fragments=5)
HEARTBEAT = b'{"type": "heartbeat"}'
DEFLATE = {"Sec_WebSocket_Extensions": "permessage-deflate; client_max_window_bits"}
GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


def padded(size: int) -> bytes:
    """A good message of so many bytes."""
    return HEARTBEAT[:-1] + b" " * (size - len(HEARTBEAT)) + b"}"


@pytest.fixture(params=["native", "socket", "trio-websocket"])
def transport(request: pytest.FixtureRequest) -> str:
    """The native transport on in-memory streams and, because it reads and writes those in another way, on sockets."""
    return request.param


@attrs.define(eq=False)
class SocketApp(App):
    """A switch whose clients are on pairs of connected sockets, which a mock clock waits for as for anything else."""

    _ours: list[socket.socket] = attrs.field(factory=list)

    async def stream(self, pair: Callable[[], Any] = memory_stream_pair) -> trio.abc.Stream:
        if pair is not memory_stream_pair:  # it stands for pressure back, and a socket has buffers
            return await super().stream(pair)
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._ours.append(ours)
        self.nursery.start_soon(self.switch.serve_byte_stream, SocketByteStream(theirs))
        return trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    def close(self) -> None:
        for ours in self._ours:
            ours.close()


@asynccontextmanager
async def running(
    options: Options | None = None, *, transport: str = "native", **hooks: Any
) -> AsyncIterator[App | SocketApp]:
    if transport != "socket":
        async with support.running(options, transport=transport, **hooks) as app:
            yield app
        return
    async with open_switch(options, **hooks) as switch, trio.open_nursery() as nursery:
        app = SocketApp(switch, nursery)
        with closing(app):
            yield app
            nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A peer's fault is not ours: nothing that a peer does may fill the log with tracebacks."""
    yield
    loud = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert loud == []


def expect_logged(caplog: pytest.LogCaptureFixture, words: str) -> None:
    """What is the application's fault, on the other hand, is told once."""
    loud = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(loud) == 1
    assert words in loud[0]
    caplog.clear()


async def peer_in(app: App, pair: Callable[[], Any] = memory_stream_pair, **changes: str | None) -> RawPeer:
    """A peer that is in the room, and has said nothing bad so far."""
    peer = RawPeer(await app.stream(pair))
    await peer.open(**changes)
    await peer.join("r")
    return peer


# --- before the handshake is over


@pytest.mark.parametrize(
    ("request_head", "status", "field"),
    [
        pytest.param(upgrade(Sec_WebSocket_Version="8"), 426, ("sec-websocket-version", "13"), id="version-8"),
        pytest.param(upgrade(Sec_WebSocket_Version="x"), 426, ("sec-websocket-version", "13"), id="version-x"),
        pytest.param(upgrade(Sec_WebSocket_Version=None), 426, ("sec-websocket-version", "13"), id="no-version"),
        pytest.param(upgrade(Sec_WebSocket_Key=None), 400, None, id="no-key"),
        pytest.param(upgrade(Sec_WebSocket_Key="c2hvcnQ="), 400, None, id="short-key"),
        pytest.param(upgrade(Sec_WebSocket_Key="not base64"), 400, None, id="key-not-base64"),
        pytest.param(upgrade(Connection=None), 426, ("upgrade", "websocket"), id="no-connection"),
        pytest.param(upgrade(Upgrade=None), 426, ("upgrade", "websocket"), id="no-upgrade"),
        pytest.param(upgrade(Upgrade="h2c"), 426, ("upgrade", "websocket"), id="another-upgrade"),
        pytest.param(upgrade(method="POST"), 405, ("allow", "GET"), id="post"),
        pytest.param(upgrade(version="HTTP/1.0"), 505, None, id="http-1.0"),
        pytest.param(upgrade("/elsewhere"), 404, None, id="another-path"),
        pytest.param(upgrade("//["), 400, None, id="target-that-is-no-url"),
        pytest.param(upgrade("/\x00"), 404, None, id="target-of-nothing"),
        pytest.param(upgrade(Sec_WebSocket_Protocol="a b;,"), 400, None, id="subprotocols"),
        pytest.param(upgrade(Sec_WebSocket_Extensions="a;;"), 400, None, id="extensions"),
        pytest.param(upgrade(Cookie="a\0b"), 400, None, id="nul"),
        pytest.param(upgrade(Cookie="x" * 20_000), 431, None, id="a-big-field"),
        pytest.param(upgrade(**{f"X_{i}": "x" * 5000 for i in range(8)}), 431, None, id="big-fields"),
        pytest.param(upgrade(**{f"X_{i}": "x" for i in range(200)}), 431, None, id="many-fields"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000, 431, None, id="endless-fields"),
        pytest.param(b"G" + b"E" * 100_000, 431, None, id="endless-line"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), 400, None, id="tls"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, None, id="http-2"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", 400, None, id="ssh"),
        pytest.param(b"\r\n\r\n", 400, None, id="empty-lines"),
        pytest.param(bytes(range(256)) * 4, 400, None, id="bytes"),
        pytest.param(frame(TEXT, HEARTBEAT), 400, None, id="a-frame-without-handshake"),
    ],
)
async def test_what_is_no_upgrade_gets_its_status_at_once(
    clock: MockClock, transport: str, request_head: bytes, status: int, field: tuple[str, str] | None
) -> None:
    async with running(transport=transport) as app, good_neighbours(app) as neighbours:
        peer = RawPeer(await app.stream())
        await peer.send(request_head)
        answer = await peer.answer()
        assert answer.status == status
        assert answer.body.endswith(b"\n"), "a sentence for a person"
        if field is not None:
            assert answer.fields[field[0]] == field[1]
        assert trio.current_time() == 0
        await neighbours.chat()
        await peer.aclose()


async def test_pipelined_garbage_after_a_good_handshake_is_a_protocol_error(clock: MockClock) -> None:
    async with running() as app, good_neighbours(app):
        peer = RawPeer(await app.stream())
        await peer.send(upgrade() + upgrade())
        assert (await peer.answer()).status == 101
        assert await peer.close_code() == 1002
        await peer.aclose()
        await settled()


@pytest.mark.parametrize("sent", [b"", b"G", upgrade()[:-3]], ids=["nothing", "a-letter", "all-but-the-end"])
async def test_a_half_sent_handshake_has_a_deadline(clock: MockClock, transport: str, sent: bytes) -> None:
    async with running(Options(handshake_timeout=7.0), transport=transport) as app, good_neighbours(app) as neighbours:
        peer = RawPeer(await app.stream())
        await peer.send(sent)
        await neighbours.chat()
        assert (await peer.answer()).status == 408
        assert trio.current_time() == 7.0
        await peer.aclose()


async def test_a_byte_a_second_does_not_stretch_the_deadline(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app, good_neighbours(app):
        peer = RawPeer(await app.stream())
        with trio.move_on_after(10.5):
            for byte in upgrade():
                await peer.send(bytes((byte,)))
                await trio.sleep(1)
        assert (await peer.answer()).status == 408
        await peer.aclose()


@pytest.mark.parametrize("sent", [b"", b"GET /ws HT", upgrade()[:-2], upgrade()], ids=["0", "10", "all-but-2", "all"])
async def test_who_vanishes_during_the_handshake_leaves_nothing(clock: MockClock, transport: str, sent: bytes) -> None:
    async with running(transport=transport) as app, good_neighbours(app):
        before = len(app.nursery.child_tasks)
        peer = RawPeer(await app.stream())
        await peer.send(sent)
        await peer.aclose()
        await settled()
        assert len(app.nursery.child_tasks) == before


async def test_who_never_reads_the_answer_to_its_handshake(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app, good_neighbours(app):
        before = len(app.nursery.child_tasks)
        peers = [RawPeer(await app.stream(lockstep_stream_pair)) for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for peer, head in zip(
                peers, (upgrade(), upgrade(Sec_WebSocket_Key=None), b"GET / HTTP/1.1\r\n\r\n"), strict=True
            ):
                nursery.start_soon(peer.send, head)
        await trio.sleep(12)
        assert len(app.nursery.child_tasks) == before
        for peer in peers:
            await peer.aclose()


async def test_a_request_that_only_trio_websocket_refuses(clock: MockClock) -> None:
    """It answers by itself, and would wait for a better request forever."""
    async with running(transport="trio-websocket") as app, good_neighbours(app):
        before = len(app.nursery.child_tasks)
        peer = RawPeer(await app.stream())
        await peer.send(upgrade().replace(b"Host: test", b"Host: test\r\nHost: other"))
        assert (await peer.answer()).status == 400
        await trio.sleep(10.1)
        assert len(app.nursery.child_tasks) == before
        await peer.aclose()


async def refuse_token(token: str) -> Identity:
    raise Refused("this token is not known")


@pytest.mark.parametrize(
    ("options", "hooks", "status", "field"),
    [
        (Options(max_connections=2), {}, 503, ("retry-after", "5")),
        (Options(), {"authenticate": refuse_token}, 401, ("www-authenticate", "Bearer")),
    ],
)
async def test_who_is_not_let_in_is_told_what_to_do(
    clock: MockClock,
    transport: str,
    options: Options,
    hooks: dict[str, Any],
    status: int,
    field: tuple[str, str],
) -> None:
    async with running(options, transport=transport, **hooks) as app:
        clients = [await app.connect() for _ in range(2)]
        peer = RawPeer(await app.stream())
        await peer.send(upgrade("/ws?token=t"))
        answer = await peer.answer()
        assert answer.status == status
        assert answer.fields[field[0]] == field[1]
        assert app.switch.statistics().refused == 1
        assert app.switch.statistics().active_connections == len(clients)
        if status == 503:  # and when somebody leaves, there is room again
            await clients[0].websocket.aclose()
            await settled()
            await app.connect()
        await peer.aclose()


async def test_an_on_connect_that_fails_is_told_as_an_error_of_the_server(
    clock: MockClock, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def on_connect(request: ConnectRequest) -> None:
        if "bad" in request.query:
            raise RuntimeError("a bug in the application")

    async with running(transport=transport, on_connect=on_connect) as app, good_neighbours(app):
        peer = RawPeer(await app.stream())
        await peer.send(upgrade("/ws?bad=1"))
        assert (await peer.answer()).status == 500
        await peer.aclose()
        expect_logged(caplog, "a hook failed")


@pytest.mark.parametrize("host", [None, "a\r\nHost: b"], ids=["none", "two"])
async def test_a_request_needs_one_host(clock: MockClock, transport: str, host: str | None) -> None:
    async with running(transport=transport) as app, good_neighbours(app):
        peer = RawPeer(await app.stream())
        await peer.send(upgrade(Host=host))
        assert (await peer.answer()).status == 400
        await peer.aclose()


@pytest.mark.parametrize(("word", "code"), [("unauthorised", 4500), ("forbidden", 4501), ("app_specific", 4501)])
async def test_a_browser_is_refused_with_a_close_code(clock: MockClock, transport: str, word: str, code: int) -> None:
    """It is not shown the HTTP status of a refused handshake, and would come back forever."""

    async def on_connect(request: ConnectRequest) -> None:
        if "bad" in request.query:
            raise Refused("not you", code=word)

    async with running(transport=transport, on_connect=on_connect) as app, good_neighbours(app):
        peer = RawPeer(await app.stream())
        await peer.send(upgrade("/ws?bad=1", Origin="http://test"))
        assert (await peer.answer()).status == 101
        assert await peer.close_code() == code
        await peer.aclose()
        await settled()
        assert app.switch.statistics().refused == 1


async def test_an_on_connect_that_returns_nonsense_ends_that_connection_only(
    clock: MockClock, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def on_connect(request: ConnectRequest) -> Any:
        return "ann" if "bad" in request.query else None

    async with running(transport=transport, on_connect=on_connect) as app, good_neighbours(app):
        peer = RawPeer(await app.stream())
        await peer.send(upgrade("/ws?bad=1"))
        assert (await peer.answer()).status == 500
        await peer.aclose()
        expect_logged(caplog, "a hook failed")


async def test_an_on_connect_that_hangs_has_the_deadline_of_the_handshake(clock: MockClock, transport: str) -> None:
    async def on_connect(request: ConnectRequest) -> None:
        if "bad" in request.query:
            await trio.sleep_forever()

    async with running(transport=transport, on_connect=on_connect) as app, good_neighbours(app):
        peer = RawPeer(await app.stream())
        await peer.send(upgrade("/ws?bad=1"))
        assert (await peer.answer()).status == 408
        assert trio.current_time() == 10.0
        await peer.aclose()


# --- frames

FRAMES = {
    "unmasked": (frame(TEXT, HEARTBEAT, masked=False), CloseCause.PROTOCOL_ERROR),
    "continues nothing": (frame(CONTINUATION, b"x"), CloseCause.PROTOCOL_ERROR),
    "begins before the end": (frame(TEXT, b"x", fin=False) + frame(TEXT, HEARTBEAT), CloseCause.PROTOCOL_ERROR),
    "reserved bit": (frame(TEXT, HEARTBEAT, rsv1=True), CloseCause.PROTOCOL_ERROR),
    "reserved opcode": (frame(3, b"x"), CloseCause.PROTOCOL_ERROR),
    "big ping": (frame(PING, b"x" * 126), CloseCause.PROTOCOL_ERROR),
    "fragmented ping": (frame(PING, b"x", fin=False), CloseCause.PROTOCOL_ERROR),
    "half a close code": (frame(CLOSE, b"\x03"), CloseCause.PROTOCOL_ERROR),
    "close code 1005": (frame(CLOSE, b"\x03\xed"), CloseCause.PROTOCOL_ERROR),
    "close reason not UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), CloseCause.BAD_DATA),
    "http again": (b"GET / HTTP/1.1\r\n\r\n", CloseCause.PROTOCOL_ERROR),
    "text not UTF-8": (frame(TEXT, b'{"type": "\xff"}'), CloseCause.BAD_DATA),
    "bytes as text": (frame(TEXT, b"\xff\xfe"), CloseCause.BAD_DATA),
    "too big": (frame(TEXT, padded(LIMIT + 1)), CloseCause.TOO_BIG),
    "too big in fragments": (
        frame(TEXT, b"x" * 600, fin=False) + frame(CONTINUATION, b"x" * 600, fin=False),
        CloseCause.TOO_BIG,
    ),
}
NATIVE_FRAMES = {
    "claims to be huge": (frame(TEXT, b"x", size=2**62), CloseCause.TOO_BIG),
    "claims more than there is": (frame(TEXT, b"x", size=2**63), CloseCause.TOO_BIG),
    "a fragment claims to be huge": (
        frame(TEXT, b"x", fin=False) + frame(CONTINUATION, size=LIMIT),
        CloseCause.TOO_BIG,
    ),
    "endless fragments": (frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 1000, CloseCause.TOO_BIG),
    "endless compressed fragments": (
        frame(TEXT, fin=False, rsv1=True) + frame(CONTINUATION, fin=False) * 1000,
        CloseCause.TOO_BIG,
    ),
    "compression bomb": (frame(TEXT, deflated(b"x" * 500_000), rsv1=True), CloseCause.TOO_BIG),
    "a byte too big when inflated": (frame(TEXT, deflated(padded(LIMIT + 1)), rsv1=True), CloseCause.TOO_BIG),
    "compressed garbage": (frame(TEXT, b"\xff" * 50, rsv1=True), CloseCause.PROTOCOL_ERROR),
}
"""What trio-websocket does not know, or does not look at before it is there."""


@pytest.mark.parametrize("channel", ["native", "socket"])
@pytest.mark.parametrize("name", [*FRAMES, *NATIVE_FRAMES])
async def test_what_breaks_the_websocket_protocol_ends_the_connection(
    clock: MockClock, channel: str, name: str
) -> None:
    data, cause = (FRAMES | NATIVE_FRAMES)[name]
    async with running(SMALL, transport=channel) as app, good_neighbours(app) as neighbours:
        peer = await peer_in(app, **DEFLATE if "compressed" in name or "inflated" in name or "bomb" in name else {})  # type: ignore[arg-type]
        await peer.send(data)
        assert await peer.close_code() == cause.code
        await neighbours.chat()
        await peer.aclose()
        await settled()
        assert app.switch.statistics().closes == {cause.name.lower(): 1}


@pytest.mark.parametrize("name", FRAMES)
async def test_by_trio_websocket_it_ends_too(clock: MockClock, name: str) -> None:
    """That library closes the stream without a close frame, but for a message that is too big."""
    data, cause = FRAMES[name]
    async with running(SMALL, transport="trio-websocket") as app, good_neighbours(app) as neighbours:
        peer = await peer_in(app)
        await peer.send(data)
        assert await peer.close_code() == (1009 if cause is CloseCause.TOO_BIG else 1006)
        await neighbours.chat()
        await peer.aclose()
        await settled()
        assert app.switch.statistics().closes == {cause.name.lower(): 1}


@pytest.mark.parametrize("under_way", ["the welcome", "a pong"])
async def test_the_close_frame_waits_for_the_write_that_is_under_way(clock: MockClock, under_way: str) -> None:
    """Two tasks that write to one stream would mix their frames."""
    async with running() as app, good_neighbours(app):
        peer = RawPeer(await app.stream(lockstep_stream_pair))
        await peer.send(upgrade())
        assert (await peer.answer()).status == 101
        if under_way == "a pong":
            await peer.receive()
            await peer.send(frame(PING, b"?"))
        await settled()
        await peer.send(frame(3, b"no such opcode"))
        await settled()
        assert await peer.close_code() == 1002
        await peer.aclose()
        await settled()


async def test_a_peer_that_goes_on_after_its_error_is_not_listened_to(clock: MockClock) -> None:
    async with running(SMALL) as app, good_neighbours(app) as neighbours:
        peer = await peer_in(app)
        line = frame(TEXT, b'{"type": "chat_message", "room": "r", "content": "after"}')
        await peer.send(frame(TEXT, b"x" * (LIMIT + 1)) + line * 100)
        for _ in range(4):  # until the close timeout: it is read, so that it sees why it is closed
            await peer.send(line * 1000)
            await trio.sleep(1)
        await neighbours.chat()  # asserts the content
        assert await peer.close_code() == 1009
        await peer.aclose()
        await settled()
        assert app.switch.statistics().closes == {"too_big": 1}


@pytest.mark.parametrize(
    "data",
    [
        frame(TEXT, padded(LIMIT)),
        frame(BINARY, padded(LIMIT)),
        frame(TEXT, padded(LIMIT)[:600], fin=False) + frame(CONTINUATION, padded(LIMIT)[600:]),
        frame(TEXT, padded(LIMIT)[:1], fin=False)
        + frame(CONTINUATION, fin=False) * 3
        + frame(PING, b"between")
        + frame(CONTINUATION, padded(LIMIT)[1:]),
        frame(TEXT, deflated(padded(LIMIT)), rsv1=True),
        frame(TEXT, deflated(padded(LIMIT))[:20], rsv1=True, fin=False)
        + frame(CONTINUATION, deflated(padded(LIMIT))[20:]),
    ],
    ids=["text", "binary", "two fragments", "as many fragments as may be", "compressed", "compressed fragments"],
)
async def test_a_message_of_exactly_the_limit_is_read(clock: MockClock, data: bytes) -> None:
    async with running(SMALL) as app:
        peer = RawPeer(await app.stream())
        await peer.open(**DEFLATE)
        await peer.send(data)
        assert json.loads(await peer.receive_until(b"heartbeat"))["type"] == "heartbeat_ack"
        await peer.aclose()


async def test_a_message_of_exactly_the_limit_by_trio_websocket(clock: MockClock) -> None:
    async with running(SMALL, transport="trio-websocket") as app:
        peer = RawPeer(await app.stream())
        await peer.open()
        await peer.send(frame(TEXT, padded(LIMIT)[:600], fin=False) + frame(CONTINUATION, padded(LIMIT)[600:]))
        assert json.loads(await peer.receive_until(b"heartbeat"))["type"] == "heartbeat_ack"
        await peer.aclose()


async def test_a_compression_bomb_is_not_inflated(clock: MockClock) -> None:
    """60 KB that would be 60 MB cost about what the limit on messages allows."""
    limit = 256 * 1024
    bomb = frame(TEXT, deflated(bytes(60_000_000)), rsv1=True)
    assert len(bomb) < limit
    async with running(Options(max_message_bytes=limit)) as app:
        peer = RawPeer(await app.stream())
        await peer.open(**DEFLATE)
        tracemalloc.start()
        try:
            await peer.send(bomb)
            assert await peer.close_code() == 1009
            _now, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 * limit
        await peer.aclose()


async def test_a_flood_of_pings_that_nobody_reads_the_answers_to(clock: MockClock) -> None:
    async with running() as app, good_neighbours(app) as neighbours:
        peer = await peer_in(app, lockstep_stream_pair)
        for _ in range(50):
            await peer.send(frame(PING, b"x" * 125) * 100)
        await neighbours.chat()
        assert app.switch.statistics().pending_bytes < 10_000
        await peer.aclose()
        await settled()


async def test_a_flood_of_pings_is_answered_in_part(clock: MockClock, transport: str) -> None:
    """The newest at least: a peer waits for that one."""
    async with running(transport=transport) as app, good_neighbours(app):
        peer = await peer_in(app)
        for number in range(100):
            await peer.send(frame(PING, b"%d" % number))
        await peer.send(frame(PING, b"last"))
        while (await peer.receive()) != (PONG, b"last"):
            pass
        await peer.aclose()
        await settled()


# --- messages


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"hello", "malformed"),
        (b"", "malformed"),
        (b"null", "malformed"),
        (b"[1, 2]", "malformed"),
        (b'{"type": "heartbeat"', "malformed"),
        (HEARTBEAT + HEARTBEAT, "malformed"),
        (b"[" * 900, "malformed"),
        (b'{"a":' * 180, "malformed"),
        (b'{"type": "heartbeat", "n": NaN}', "malformed"),
        (b"{}", "invalid"),
        (b'{"type": null}', "invalid"),
        (b'{"type": ["heartbeat"]}', "invalid"),
        (b'{"type": "heartbeat", "id": true}', "invalid"),
        (b'{"type": "heartbeat", "id": {"a": 1}}', "invalid"),
        (b'{"type": "join_room"}', "invalid"),
        (b'{"type": "join_room", "room": 5}', "invalid"),
        (b'{"type": "join_room", "room": ""}', "invalid"),
        (b'{"type": "join_room", "room": "%b"}' % (b"x" * 256), "invalid"),
        (b'{"type": "message", "room": "r", "data": 1, "priority": true}', "invalid"),
        (b'{"type": "message", "room": "r", "data": 1, "expires": -1}', "invalid"),
        (b'{"type": "no such type"}', "unknown_type"),
    ],
)
async def test_a_bad_message_is_answered_and_the_connection_lives(
    clock: MockClock, transport: str, payload: bytes, code: str
) -> None:
    async with running(SMALL, transport=transport) as app, good_neighbours(app) as neighbours:
        peer = await peer_in(app)
        await peer.send(frame(TEXT, payload))
        error = json.loads(await peer.receive_until(b'"error"'))
        assert error["code"] == code
        assert error["message"]
        await peer.send(frame(TEXT, HEARTBEAT))
        await peer.receive_until(b"heartbeat_ack")
        await neighbours.chat()
        await peer.send(frame(CLOSE, b"\x03\xe8"))
        assert await peer.close_code() == 1000
        await peer.aclose()
        await settled()


@pytest.mark.parametrize("payload", [b"{}", b'{"type": "nothing"}', HEARTBEAT], ids=["invalid", "unknown", "good"])
async def test_a_burst_of_messages_that_get_an_answer_each_is_pushed_back_on(
    clock: MockClock, transport: str, payload: bytes
) -> None:
    """Answers wait for a peer that is behind with reading: it is not read on, and not closed either."""
    count = 3000
    async with running(Options(outbox_messages=100), transport=transport) as app, good_neighbours(app):
        peer = await peer_in(app)
        await peer.send(frame(TEXT, payload) * count)
        for _ in range(count):
            opcode, _payload = await peer.receive()
            assert opcode == TEXT
        assert app.switch.statistics().drops == {}
        await peer.aclose()
        await settled()


async def test_whoever_floods_and_never_reads_holds_no_more_than_its_outbox(clock: MockClock, transport: str) -> None:
    options = Options(outbox_messages=50, max_errors=1_000_000)
    async with running(options, transport=transport) as app, good_neighbours(app) as neighbours:
        peer = await peer_in(app, lockstep_stream_pair)
        with trio.move_on_after(5):
            while True:
                await peer.stream.send_all(frame(TEXT, b"not json") * 100)
                await trio.sleep(0.01)
        await neighbours.chat()
        assert app.switch.statistics().pending_messages <= 60
        await peer.aclose()
        await settled()


# --- peers that do not read, do not write, or are gone


@pytest.mark.parametrize("overflow", list(Overflow))
async def test_a_peer_that_never_reads_is_closed_and_holds_up_nobody(
    clock: MockClock, transport: str, overflow: Overflow
) -> None:
    options = Options(outbox_messages=10, policies=(RoomPolicy(overflow=overflow, block_timeout=0.5),))
    async with running(options, transport=transport) as app, good_neighbours(app) as neighbours:
        peer = await peer_in(app, lockstep_stream_pair)
        for _ in range(30):
            await neighbours.chat()
        assert app.switch.statistics().pending_messages <= 11
        await trio.sleep(60)
        cause = "slow_consumer" if overflow is Overflow.DISCONNECT else "heartbeat_missed"
        assert app.switch.statistics().closes == {cause: 1}
        await peer.aclose()


async def test_a_peer_that_sends_a_byte_a_second_is_heard(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app, good_neighbours(app) as neighbours:
        peer = await peer_in(app)
        for byte in frame(TEXT, padded(34)):
            await peer.send(bytes((byte,)))
            await trio.sleep(1)
        assert trio.current_time() > 38
        await peer.receive_until(b"heartbeat_ack")
        await neighbours.chat()
        await peer.aclose()
        await settled()


async def test_a_peer_that_falls_silent_is_found_by_ping(clock: MockClock, transport: str) -> None:
    options = Options(ping_interval=10, ping_timeout=4, close_timeout=3)
    async with running(options, transport=transport) as app, good_neighbours(app) as neighbours:
        peer = await peer_in(app)
        for _ in range(20):
            await trio.sleep(1)
            await neighbours.chat()
        assert app.switch.statistics().closes == {"heartbeat_missed": 1}
        assert await peer.close_code() == 4001
        await peer.aclose()


@pytest.mark.parametrize(
    "last_words",
    [b"", frame(TEXT, b"abc", size=100), frame(TEXT, b"abc", fin=False), b"\x81"],
    ids=["none", "half-a-frame", "half-a-message", "half-a-head"],
)
async def test_a_peer_that_vanishes(clock: MockClock, transport: str, last_words: bytes) -> None:
    async with running(transport=transport) as app, good_neighbours(app):
        peer = await peer_in(app)
        await peer.send(last_words)
        await peer.aclose()
        await settled()
        assert app.switch.statistics().closes == {"vanished": 1}


async def test_a_peer_that_vanishes_while_it_is_written_to(clock: MockClock, transport: str) -> None:
    """What did not get out is counted, and its room goes on."""
    async with running(Options(outbox_messages=10), transport=transport) as app, good_neighbours(app) as neighbours:
        peer = await peer_in(app, lockstep_stream_pair)
        for _ in range(5):
            await neighbours.chat()
        await settled()
        waiting = app.switch.statistics().pending_messages
        assert waiting >= 4
        await peer.aclose()
        await settled()
        statistics = app.switch.statistics()
        assert statistics.closes == {"vanished": 1}
        assert statistics.pending_messages == statistics.pending_bytes == 0
        under_way = sum(statistics.drops.values()) - waiting
        assert under_way in (0, 1), "the message in a write that has begun does not wait any more"


async def test_a_peer_that_vanishes_while_its_outbox_is_flushed_for_its_close(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app, good_neighbours(app) as neighbours:
        peer = await peer_in(app, lockstep_stream_pair)
        (stalled,) = set(app.switch.connections()) - {neighbours.ann.connection_id, neighbours.bob.connection_id}
        await neighbours.chat()
        app.switch.kick(stalled)
        await settled()
        await peer.aclose()
        await settled()
        assert trio.current_time() == 0
        assert app.switch.statistics().closes == {"kicked": 1}


# --- the closing handshake


async def kicked_peer(app: App) -> tuple[RawPeer, str]:
    """A peer in the room, and the id of its connection."""
    known = set(app.switch.connections())
    peer = await peer_in(app)
    (id,) = set(app.switch.connections()) - known
    return peer, id


async def test_a_peer_that_does_not_answer_a_close_is_cut_off(clock: MockClock, transport: str) -> None:
    async with running(Options(close_timeout=3), transport=transport) as app, good_neighbours(app) as neighbours:
        peer, id = await kicked_peer(app)
        app.switch.kick(id, "enough")
        assert await peer.close_code() == 4502
        await neighbours.chat()
        await peer.end()
        assert trio.current_time() == 3
        await peer.aclose()
        await settled()
        assert app.switch.statistics().closes == {"kicked": 1}


@pytest.mark.parametrize(
    "data",
    [frame(3, b"x"), frame(TEXT, HEARTBEAT, masked=False), b"GET / HTTP/1.1\r\n\r\n", frame(CLOSE, b"\x03")],
    ids=["opcode", "unmasked", "http", "close"],
)
async def test_a_peer_that_answers_a_close_with_garbage(clock: MockClock, transport: str, data: bytes) -> None:
    async with running(transport=transport) as app, good_neighbours(app):
        peer, id = await kicked_peer(app)
        app.switch.kick(id)
        assert await peer.close_code() == 4502
        await peer.send(data)
        await peer.end()
        await peer.aclose()
        await settled()
        assert app.switch.statistics().closes == {"kicked": 1}


async def test_both_sides_close_at_once(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app, good_neighbours(app):
        peer, id = await kicked_peer(app)
        await peer.send(frame(CLOSE, b"\x03\xe8"))
        app.switch.kick(id)
        app.switch.kick(id)
        codes = (
            (1000, 4502) if transport != "trio-websocket" else (1000, 4502, 1006)
        )  # that library may close before it answers
        assert await peer.close_code() in codes
        await peer.end()
        assert trio.current_time() == 0
        await peer.aclose()
        await settled()
        assert app.switch.statistics().closes == {"kicked": 1}


async def test_who_closes_cleanly_is_answered_with_its_code(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app, good_neighbours(app):
        peer = await peer_in(app)
        await peer.send(frame(CLOSE, b"\x0f\xa1bye") + frame(TEXT, HEARTBEAT))
        assert await peer.close_code() == 4001
        assert await peer.end() == b""
        assert trio.current_time() == 0
        await peer.aclose()
        await settled()
        assert app.switch.statistics().closes == {"client_left": 1}


async def test_who_closes_and_never_reads_the_answer(clock: MockClock, transport: str) -> None:
    async with running(Options(close_timeout=3), transport=transport) as app, good_neighbours(app) as neighbours:
        before = len(app.nursery.child_tasks)
        peer = await peer_in(app, lockstep_stream_pair)
        await neighbours.chat()
        await peer.send(frame(CLOSE, b"\x03\xe8"))
        await trio.sleep(
            3.1 if transport != "trio-websocket" else 60
        )  # trio-websocket tells of it when its answer is written
        assert len(app.nursery.child_tasks) == before
        await peer.aclose()


async def test_what_ended_is_forgotten(clock: MockClock, transport: str) -> None:
    """Who comes and goes all the time costs no memory after it has gone."""
    async with running(transport=transport) as app, good_neighbours(app):
        for _ in range(20):
            peer = await peer_in(app)
            await peer.aclose()
            await settled()
        del peer
        gc.collect()
        assert sum(isinstance(thing, Connection) for thing in gc.get_objects()) <= 3  # the last may linger in a local


# --- the application's handlers


@pytest.mark.parametrize("error", [ValueError("x"), ExceptionGroup("x", [KeyError(1)]), trio.ClosedResourceError()])
async def test_a_handler_that_raises(
    clock: MockClock, transport: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(transport=transport) as app, good_neighbours(app) as neighbours:

        @app.switch.handlers.on("fail")
        async def fail(connection: Connection, message: dict[str, Any]) -> None:
            raise error

        client = await app.connect()
        answer = await client.ask("fail")
        assert (answer["type"], answer["code"]) == ("error", "internal")
        assert str(error) not in answer["message"] or not str(error), (
            "what went wrong inside is not the client's business"
        )
        expect_logged(caplog, "'fail' failed")
        await client.nothing_more()
        await neighbours.chat()
        await client.websocket.aclose()
        await settled()


async def test_a_handler_whose_answer_cannot_be_sent(clock: MockClock, transport: str) -> None:
    async with running(transport=transport) as app, good_neighbours(app):

        @app.switch.handlers.on("object")
        async def answer_with_an_object(connection: Connection, message: dict[str, Any]) -> object:
            return object()

        client = await app.connect()
        answer = await client.ask("object")
        assert (answer["type"], answer["code"]) == ("error", "unencodable")
        await client.nothing_more()
        await client.websocket.aclose()
        await settled()


ENDS: dict[str, tuple[Callable[[RawPeer], Any], str]] = {
    "closes": (lambda peer: peer.send(frame(CLOSE, b"\x03\xe8")), "client_left"),
    "vanishes": (lambda peer: peer.aclose(), "vanished"),
    "breaks the protocol": (lambda peer: peer.send(frame(TEXT, b"x" * (LIMIT + 1))), "too_big"),
}


@pytest.mark.parametrize("end", ENDS)
async def test_a_handler_that_hangs_goes_with_its_connection(clock: MockClock, transport: str, end: str) -> None:
    ended = trio.Event()
    async with running(SMALL, transport=transport) as app, good_neighbours(app) as neighbours:

        @app.switch.handlers.on("hang")
        async def hang(connection: Connection, message: dict[str, Any]) -> None:
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

        act, cause = ENDS[end]
        peer = await peer_in(app)
        await peer.say('{"type": "hang"}')
        await settled()
        await neighbours.chat()
        await act(peer)
        with trio.fail_after(1):
            await ended.wait()
        await peer.aclose()
        await settled()
        assert app.switch.statistics().closes == {cause: 1}


async def test_a_handler_that_hangs_is_ended_by_a_kick(clock: MockClock, transport: str) -> None:
    """With its queue full, so that nobody reads from the peer either."""
    ended = trio.Event()
    options = Options(handler_queue=1, close_timeout=3)
    async with running(options, transport=transport) as app, good_neighbours(app):

        @app.switch.handlers.on("hang")
        async def hang(connection: Connection, message: dict[str, Any]) -> None:
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

        peer, id = await kicked_peer(app)
        for _ in range(4):
            await peer.say('{"type": "hang"}')
        await settled()
        app.switch.kick(id)
        with trio.fail_after(3.1):
            await ended.wait()
        await peer.aclose()
        await settled()
        assert app.switch.statistics().closes == {"kicked": 1}


@pytest.mark.parametrize("goes", [True, False], ids=["goes", "stays"])
async def test_a_peer_that_goes_while_its_handlers_are_full(clock: MockClock, transport: str, goes: bool) -> None:
    """Nobody reads from it then: the next pings find out, while one that is there is left alone."""
    options = Options(handler_queue=1)
    async with running(options, transport=transport) as app, good_neighbours(app) as neighbours:

        @app.switch.handlers.on("hang")
        async def hang(connection: Connection, message: dict[str, Any]) -> None:
            await trio.sleep_forever()

        peer, id = await kicked_peer(app)
        await peer.say('{"type": "leave_room", "room": "r"}')  # so that only pings are written to it
        for _ in range(5):
            await peer.say('{"type": "hang"}')
        await settled()
        if goes:
            await peer.aclose()
        with trio.move_on_after(100):
            while True:
                await trio.sleep(1)
                await neighbours.chat()
        assert (id in app.switch.connections()) is not goes
        if not goes:
            await peer.aclose()
            await trio.sleep(60)


async def test_on_disconnect_may_hang_or_fail(
    clock: MockClock, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[CloseCause] = []

    async def on_disconnect(connection: Connection, cause: CloseCause) -> None:
        seen.append(cause)
        if "hang" in connection.request.query:
            await trio.sleep_forever()
        if "fail" in connection.request.query:
            raise ValueError("a bug in the application")

    options = Options(hook_timeout=2)
    async with running(options, transport=transport, on_disconnect=on_disconnect) as app, good_neighbours(app):
        before = len(app.nursery.child_tasks)
        for query, words in (("fail", "on_disconnect failed"), ("hang", "took too long")):
            client = await app.connect(path=f"/ws?{query}=1")
            await client.websocket.aclose()
            await trio.sleep(2.1)
            expect_logged(caplog, words)
        assert len(app.nursery.child_tasks) == before
        assert seen == [CloseCause.CLIENT_LEFT, CloseCause.CLIENT_LEFT]


# --- where the kernel matters


async def test_on_real_sockets_nobody_holds_up_the_others() -> None:
    """One that never reads, one that resets, one that half-closes, one that says nothing, one that is garbage."""
    options = Options(outbox_messages=100, outbox_bytes=200_000)
    async with listening(options) as (switch, server):
        assert server.port is not None
        async with connected(server.urls[0]) as ann, connected(server.urls[0]) as bob:
            await ann.join("r")
            await bob.join("r")
            peers = []
            for _ in range(4):
                stream = await trio.open_tcp_stream("127.0.0.1", server.port)
                peers.append(RawPeer(stream))
            stalled, resetting, half_closing, garbage = peers
            for peer in (stalled, resetting, half_closing):
                await peer.open()
                await peer.join("r")
            await garbage.send(bytes(range(256)) * 100)
            assert (await garbage.answer()).status == 400
            resetting.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # type: ignore[attr-defined]
            await resetting.aclose()
            await half_closing.stream.send_eof()  # type: ignore[attr-defined]
            assert await half_closing.end() is not None
            for number in range(300):  # 30 MB: no buffer of the kernel holds that
                await ann.send("message", room="r", data=f"{number}:" + "x" * 100_000)
                for client in (ann, bob):
                    message = await client.receive_until(type="message")
                    assert message["data"].startswith(f"{number}:")
            statistics = switch.statistics()
            assert statistics.pending_bytes <= 2 * options.outbox_bytes
            assert statistics.drops["overflow"] > 100
            assert statistics.closes["vanished"] == 2
            assert len(switch.connections()) == 3
            (stalled_id,) = set(switch.connections()) - {ann.connection_id, bob.connection_id}
            switch.kick(stalled_id)
            for peer in peers:
                await peer.aclose()
