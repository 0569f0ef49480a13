"""What applications do by mistake, and what a system does to a server: each is refused or answered, and harms nobody else."""

import grp
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from raw import RawPeer, upgrade
from support import App, connected, listening, running, settled
from trio.testing import MockClock

from trioswitch import (
    Connection,
    ConnectRequest,
    Handlers,
    HistoryStorage,
    Identity,
    JoinRequest,
    Options,
    Page,
    Position,
    PublishRequest,
    Refused,
    RoomPolicy,
    ServeError,
    StoreError,
    open_store,
    open_switch,
    serve,
)
from trioswitch.messages import Message

TRANSPORTS = pytest.mark.parametrize("transport", ["native", "trio-websocket"])

# --- text that UTF-8 cannot carry


@TRANSPORTS
@pytest.mark.parametrize("reason", ["bye \ud83d", "\udc00", "a" * 120 + "\ud83d", "\ud83d\ude00"])
async def test_a_reason_with_a_lone_surrogate_is_shown(clock: MockClock, transport: str, reason: str) -> None:
    async with running(transport=transport) as app:
        client = await app.connect()
        app.switch.kick(client.connection_id, reason)
        code, shown = await client.closed()
        assert code == 4502
        wanted = reason.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()[:123]
        assert shown == wanted.decode(errors="ignore")


@TRANSPORTS
async def test_a_refusal_with_a_lone_surrogate_is_shown(clock: MockClock, transport: str) -> None:
    async def on_join(connection: Connection, request: JoinRequest) -> None:
        raise Refused("no \ud83d", code="no \ud83d")

    async with running(transport=transport, on_join=on_join) as app:
        answer = await (await app.connect()).ask("join_room", room="r")
        assert (answer["type"], answer["code"], answer["message"]) == ("error", "no \ufffd", "no \ufffd")


# --- Refused in a nursery


async def refuse_in_a_nursery(depth: int = 1) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        if depth:
            await refuse_in_a_nursery(depth - 1)
        raise Refused("not this one", code="mine")


async def fail_twice() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        raise Refused("not this one", code="mine")


async def on_connect(request: ConnectRequest) -> Identity:
    await (refuse_in_a_nursery() if request.query["how"] == "alone" else fail_twice())
    return Identity(user="ann")


async def authenticate(token: str) -> Identity:
    await (refuse_in_a_nursery() if token == "alone" else fail_twice())
    return Identity(user="ann")


@TRANSPORTS
@pytest.mark.parametrize("hook", ["on_connect", "authenticate"])
@pytest.mark.parametrize(("how", "status"), [("alone", (401, 403)), ("twice", (500,))])
async def test_refused_at_the_door(
    clock: MockClock, transport: str, hook: str, how: str, status: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    hooks: dict[str, Any] = {hook: on_connect if hook == "on_connect" else authenticate}
    async with running(transport=transport, **hooks) as app:
        peer = RawPeer(await app.stream())
        await peer.send(upgrade(f"/?how={how}&token={how}"))
        answer = await peer.answer()
        assert answer.status in status
        assert (answer.body == b"not this one\n") == (how == "alone")
        await peer.aclose()
    assert ("ZeroDivisionError" in caplog.text and "Refused" in caplog.text) == (how == "twice"), "logged whole"


@TRANSPORTS
@pytest.mark.parametrize(("how", "code"), [(refuse_in_a_nursery, "mine"), (fail_twice, "internal")])
async def test_refused_by_a_handler_or_a_hook(clock: MockClock, transport: str, how: Any, code: str) -> None:
    handlers, refuse = Handlers(), set[str]()

    @handlers.on("mine")
    async def mine(connection: Connection, fields: dict[str, Any]) -> None:
        await how()

    async def on_join(connection: Connection, request: JoinRequest) -> None:
        if "join" in refuse:
            await how()

    async def on_publish(connection: Connection, request: PublishRequest) -> None:
        await how()

    async with running(transport=transport, handlers=handlers, on_join=on_join, on_publish=on_publish) as app:
        client = await app.connect()
        await client.join("r")
        refuse.add("join")
        for type, fields in (
            ("mine", {}),
            ("join_room", {"room": "s"}),
            ("chat_message", {"room": "r", "content": "x"}),
        ):
            assert (await client.ask(type, **fields))["code"] == code


# --- pages


async def get(port: int, path: str) -> bytes:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: {'c' * 9000}\r\n\r\n".encode()
        )
        data = b""
        while chunk := await stream.receive_some():
            data += chunk
    return data


async def test_a_page_function_that_fails_is_answered_with_500(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> Page:
        raise ZeroDivisionError

    def returns_text() -> Any:
        return "hello"

    pages = {"/fails": fails, "/text": returns_text, "/works": lambda: Page(b"works")}
    async with listening(pages=pages) as (_switch, server):
        assert server.port is not None
        for path in ("/fails", "/text"):
            assert (await get(server.port, path)).startswith(b"HTTP/1.1 500 ")
        assert b"200 OK" in await get(server.port, "/works"), (
            "and a head of 9 KB is no longer than that of a WebSocket may be"
        )
    assert "ZeroDivisionError" in caplog.text
    assert "the function must return a Page, not 'hello'" in caplog.text


@pytest.mark.parametrize(
    "values",
    [
        {"body": "text"},
        {"status": 99},
        {"status": 100},
        {"status": 600},
        {"status": "200"},
        {"status": True},
        {"content_type": None},
        {"content_type": "text/html\r\nX: y"},
        {"headers": ("X", "y")},
        {"headers": (("X", "y", "z"),)},
        {"headers": (("X Y", "z"),)},
        {"headers": (("X", 5),)},
        {"headers": (("X", "y\r\nZ: 1"),)},
        {"headers": (("X", "\u20ac"),)},
        {"headers": (("Content-Length", "5"),)},
        {"headers": (("transfer-encoding", "chunked"),)},
    ],
)
def test_a_page_that_cannot_be_sent_is_refused_when_it_is_made(values: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=r"(body|page|header|Content)"):
        Page(**{"body": b"", **values})


@pytest.mark.parametrize("status", [200, 204, 301, 404, 418, 503])
async def test_every_final_status_can_be_sent(status: int) -> None:
    async with listening(pages={"/x": Page(b"", status=status)}) as (_switch, server):
        assert server.port is not None
        assert (await get(server.port, "/x")).startswith(f"HTTP/1.1 {status} ".encode())


@TRANSPORTS
@pytest.mark.parametrize(("size", "status"), [(15_000, 101), (17_000, 431)])
async def test_the_limit_of_a_head_is_one_for_upgrades(
    clock: MockClock, transport: str, size: int, status: int
) -> None:
    async with running(transport=transport) as app:
        peer = RawPeer(await app.stream())
        await peer.send(upgrade("/ws", Cookie="c" * size))
        assert (await peer.answer()).status == status
        await peer.aclose()


async def test_the_limit_of_a_head_is_an_option(clock: MockClock) -> None:
    async with running(Options(max_head_bytes=1000)) as app:
        peer = RawPeer(await app.stream())
        await peer.send(upgrade("/ws", Cookie="c" * 1000))
        assert (await peer.answer()).status == 431
        await peer.aclose()


@TRANSPORTS
async def test_a_hook_sees_all_cookies(clock: MockClock, transport: str) -> None:
    seen: list[str] = []

    async def on_connect(request: ConnectRequest) -> None:
        seen.append(request.headers["cookie"])

    async with running(transport=transport, on_connect=on_connect) as app:
        await app.connect(headers=[(b"Cookie", b"a=1"), (b"Cookie", b"b=2")])
    assert seen == ["a=1; b=2"]


# --- addresses and sockets


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def reachable(host: str, port: int) -> bool:
    try:
        await (await trio.open_tcp_stream(host, port)).aclose()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(
    ("hosts", "v4", "v6"),
    [
        ("::", True, True),
        (["::"], True, True),
        ("0.0.0.0", True, False),
        ("::1", False, True),
        (["127.0.0.1", "::1"], True, True),
        (["::", "0.0.0.0"], True, True),
    ],
)
async def test_hosts(hosts: Any, v4: bool, v6: bool) -> None:
    async with listening(host=hosts) as (_switch, server):
        assert server.port is not None
        assert (await reachable("127.0.0.1", server.port), await reachable("::1", server.port)) == (v4, v6)


@pytest.mark.parametrize("host", ["256.0.0.1", "no such host", "", [], "\ud83d", "x" * 70])
async def test_a_host_that_is_none_is_refused_with_a_sentence(host: Any) -> None:
    async with open_switch() as switch:
        if host == "":
            return
        with pytest.raises(ServeError, match=r"listen"):
            await serve(switch, host=host, port=0)


async def test_permissions_of_the_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    group = grp.getgrgid(os.getgid()).gr_name
    async with listening(uds=path, uds_mode=0o620, uds_group=group):
        assert path.stat().st_mode & 0o777 == 0o620
        assert path.stat().st_gid == os.getgid()
    assert not path.exists()


async def test_a_group_that_does_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with open_switch() as switch:
        with pytest.raises(ServeError, match="there is no group 'nobody at all'"):
            await serve(switch, uds=path, uds_group="nobody at all")
    assert not path.exists(), "nobody connects to a socket with the wrong permissions"


async def test_the_path_of_the_websocket() -> None:
    async with listening(Options(path="/live")) as (_switch, server):
        assert server.port is not None
        assert server.urls[0].endswith("/live")
        async with connected(server.urls[0]) as client:
            await client.join("r")
        assert b" 426 " in await get(server.port, "/live")
        assert b" 404 " in await get(server.port, "/ws")


@pytest.mark.parametrize("path", ["live", "/a b", "/a?b", "/a#b", "", "/é", None, 5])
def test_what_is_not_a_path_is_refused(path: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="path"):
        Options(path=path)


# --- a store whose file goes


STORED = Options(policies=(RoomPolicy(pattern="r", history=HistoryStorage.STORED),))


@pytest.mark.parametrize("replaced", [True, False])
@pytest.mark.parametrize("busy", [True, False])
async def test_a_store_whose_file_goes_promises_nothing_more(
    clock: MockClock, tmp_path: Path, replaced: bool, busy: bool
) -> None:
    path = tmp_path / "store.db"
    clock.autojump_threshold = float("inf")
    async with open_store(f"sqlite:{path}") as store, running(STORED, store=store) as app:
        assert (await app.switch.publish("r", 1)).offset == 1
        path.unlink()
        if replaced:
            path.write_bytes(b"")
        if busy:
            with pytest.raises(StoreError, match=r"was (replaced|deleted) while the server ran"):
                await app.switch.publish("r", 2)
            with pytest.raises(StoreError):
                await app.switch.send_to_user("ann", 1)
        else:
            clock.jump(61)
            with trio.move_on_after(1e6):
                while app.switch.store_error is None:
                    await trio.lowlevel.checkpoint()
        assert "while the server ran" in (app.switch.store_error or "")


# --- a log that is not read


FLOOD = """
import logging, time
from trioswitch._util.logs import NonBlockingHandler
handler = NonBlockingHandler()
logging.basicConfig(handlers=[handler], level="INFO", format="%(message)s")
for number in range(100):
    for kind in range(300):
        logging.getLogger(f"kind{kind}").info("x" * 200 + " %d", number)
start = time.monotonic()
handler.close()
print(time.monotonic() - start < 5, flush=True)
"""


def test_a_log_that_is_not_read_stops_nothing() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FLOOD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "True\n"
        assert program.wait(20) == 0
        assert program.stderr is not None


def test_dropped_log_lines_are_counted() -> None:
    """The pipe takes 64 KiB and the queue 1,000 lines. When somebody reads again, every line is there or in the count."""
    wait = 'print("full", flush=True)\ninput()\nlogging.getLogger("last").info("last")\ntime.sleep(0.5)\n'
    source = FLOOD.replace("start = time.monotonic()\n", wait + "start = time.monotonic()\n")
    with subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "full\n"
        # `communicate` reads stderr to its end, and answers `input` meanwhile
        _output, said = program.communicate("go\n", timeout=30)
    lines = said.splitlines()
    (dropped,) = [int(line.split()[0]) for line in lines if line.endswith("faster than they were read")]
    written = sum(line.startswith("xxx") for line in lines)
    summed = sum(int(line.split()[0]) for line in lines if " more of: " in line)
    assert dropped > 1000
    assert written >= 1000
    assert written + summed + dropped <= 30_000 + 300


REPEATED = """
import logging, time
from trioswitch._util.logs import NonBlockingHandler
handler = NonBlockingHandler()
logging.basicConfig(handlers=[handler], level="INFO", format="%(levelname)s %(message)s")
for number in range(500):
    logging.warning("refused %s", number)
logging.error("another")
handler.close()
"""


def test_lines_of_one_kind_are_summed_up() -> None:
    done = subprocess.run([sys.executable, "-c", REPEATED], capture_output=True, text=True, timeout=20, check=True)
    lines = done.stderr.splitlines()
    assert lines[:10] == [f"WARNING refused {number}" for number in range(10)]
    assert sorted(lines[10:]) == ["ERROR another", "WARNING 490 more of: refused %s"]


async def test_a_server_whose_log_is_not_read_serves_on() -> None:
    """700 refused clients filled the pipe, and nothing was served any more."""
    command = [sys.executable, "-m", "trioswitch", "serve", "--port", "0", "--max-connections", "1"]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        said = b""
        with trio.fail_after(30):
            while b"\n" not in said:
                said += await process.stderr.receive_some()
            port = int(said.split(b"/ws")[0].rpartition(b":")[2])
            async with connected(f"ws://127.0.0.1:{port}/ws") as client:
                for _ in range(1500):
                    peer = RawPeer(await trio.open_tcp_stream("127.0.0.1", port))
                    await peer.send(upgrade("/ws"))
                    assert (await peer.answer()).status == 503
                    await peer.aclose()
                await client.join("r")
            assert b"200 OK" in await get(port, "/health")
            process.terminate()
            assert await process.wait() == 0
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        await process.stderr.aclose()


# --- arguments


@attrs.define
class Call:
    """A call of the switch with a wrong argument, and what the error names."""

    name: str
    run: Any


ANN = "ann"
CALLS = [
    Call("room", lambda switch: switch.publish(5, 1)),
    Call("room", lambda switch: switch.publish("", 1)),
    Call("room", lambda switch: switch.publish("r" * 256, 1)),
    Call("room", lambda switch: switch.publish("\ud83d", 1)),
    Call("priority", lambda switch: switch.publish("r", 1, priority=11)),
    Call("priority", lambda switch: switch.publish("r", 1, priority=True)),
    Call("max_delay", lambda switch: switch.publish("r", 1, max_delay=-1)),
    Call("max_delay", lambda switch: switch.publish("r", 1, max_delay="1")),
    Call("expires", lambda switch: switch.publish("r", 1, expires=float("nan"))),
    Call("expires", lambda switch: switch.publish("r", 1, expires=None if False else "soon")),  # type: ignore[redundant-expr]
    Call("key", lambda switch: switch.publish("r", 1, key=5)),
    Call("idempotency_key", lambda switch: switch.publish("r", 1, idempotency_key=5)),
    Call("idempotency_key", lambda switch: switch.publish("r", 1, idempotency_key="")),
    Call("exclude", lambda switch: switch.publish("r", 1, exclude=5)),
    Call("exclude", lambda switch: switch.publish("r", 1, exclude="connection")),
    Call("exclude", lambda switch: switch.publish("r", 1, exclude=[5])),
    Call("user", lambda switch: switch.send_to_user(42, 1)),
    Call("group", lambda switch: switch.send_to_group(42, 1)),
    Call("group", lambda switch: switch.add_to_group(42, ANN)),
    Call("user", lambda switch: switch.add_to_group("g", 42)),
    Call("user", lambda switch: switch.remove_from_group("g", None)),
    Call("room", lambda switch: switch.history(5)),
    Call("limit", lambda switch: switch.history("r", limit=0)),
    Call("limit", lambda switch: switch.history("r", limit="5")),
    Call("since", lambda switch: switch.history("r", since=5)),
    Call("room", lambda switch: switch.users_in(5)),
    Call("room", lambda switch: switch.room_statistics(5)),
    Call("user", lambda switch: switch.connections(5)),
    Call("connections", lambda switch: switch.broadcast(1, connections="connection")),
    Call("connections", lambda switch: switch.broadcast(1, connections=[5])),
    Call("connection", lambda switch: switch.kick(5)),
    Call("connection", lambda switch: switch.send(None, 1)),
    Call("reason", lambda switch: switch.kick("id", 5)),
    Call("room", lambda switch: switch.publish("r", Message(data=1, room=5))),  # type: ignore[arg-type]
    Call("user_id", lambda switch: switch.publish("r", Message(data=1, user_id=5))),  # type: ignore[arg-type]
    Call("timeout", lambda switch: switch.drain("5")),
]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: RoomPolicy(pattern=5), "pattern"),  # type: ignore[arg-type]
        (lambda: RoomPolicy(pattern=""), "pattern"),
        (lambda: RoomPolicy(pattern="\ud83d"), "pattern"),
        (lambda: Position(5, 1), "epoch"),  # type: ignore[arg-type]
        (lambda: Position("e", -1), "offset"),
        (lambda: Position("e", "1"), "offset"),  # type: ignore[arg-type]
        (lambda: Refused(5), "message"),  # type: ignore[arg-type]
        (lambda: Refused("x", code=5), "code"),  # type: ignore[arg-type]
        (lambda: Identity(user=42), "user"),  # type: ignore[arg-type]
        (lambda: Identity(user="u", join=("r", 5)), "join"),  # type: ignore[arg-type]
        (lambda: Identity(user="u", publish=("",)), "publish"),
        (lambda: Identity(user="u", may_choose_name="yes"), "may_choose_name"),  # type: ignore[arg-type]
    ],
)
def test_wrong_fields_are_named(make: Any, named: str) -> None:
    with pytest.raises((TypeError, ValueError), match=named):
        make()


def test_a_single_pattern_is_one_pattern() -> None:
    """`join=("news.*")` is a str: its letters are no patterns, of which `*` would be one."""
    identity = Identity(user="eve", join="news.*", publish="news.*")
    assert identity.may_join("news.1")
    assert not identity.may_join("admin")
    assert not identity.may_publish("admin", as_member=True)


@TRANSPORTS
async def test_a_proxy_that_repeats_connection(clock: MockClock, transport: str) -> None:
    """Some reverse proxies send two `Connection` fields: together they are a list."""
    async with running(transport=transport) as app:
        peer = RawPeer(await app.stream())
        await peer.send(
            upgrade("/ws", Connection="keep-alive").replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\n\r\n")
        )
        assert (await peer.answer()).status == 101
        await peer.aclose()


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
async def test_wrong_arguments_are_named(clock: MockClock, call: Call) -> None:
    async with running() as app:
        with pytest.raises((TypeError, ValueError), match=call.name):
            await answer(app, call)
        await settled()


async def answer(app: App, call: Call) -> None:
    result = call.run(app.switch)
    if hasattr(result, "__await__"):
        await result
