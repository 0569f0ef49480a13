"""`python -m trioswitch serve`: what it says, how it ends, and that it never shows a traceback."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from cryptography.hazmat.primitives import serialization
from raw import CLOSE, RawPeer, frame, upgrade
from served import GENEROUS, SERVE, served
from support import Client, connected

from trioswitch import __version__
from trioswitch.cli.main import main


async def refused(port: int) -> None:
    """Wait until nobody listens there: the drain has begun."""
    with trio.fail_after(GENEROUS):
        while True:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                return
            await stream.aclose()
            await trio.sleep(0.01)


async def raw_peer(port: int, receive_buffer: int | None = None) -> RawPeer:
    sock = trio.socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await sock.connect(("127.0.0.1", port))
    peer = RawPeer(trio.SocketStream(sock))
    await peer.open()
    await peer.join("r")
    return peer


# --- the beginning, and an orderly end


async def test_it_says_where_it_listens_and_ends_at_a_signal() -> None:
    async with served() as server:
        assert re.fullmatch(
            r"trioswitch \S+ listens on ws://127\.0\.0\.1:[1-9]\d*/ws; its page is http://127\.0\.0\.1:[1-9]\d*/",
            server.lines[0],
        )
        async with connected(server.url) as client:
            await client.join("r")
        assert await server.end(signal.SIGTERM) == 0
        assert len(server.lines) == 1, "nothing else is to be said"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("transport", ["native", "trio-websocket"])
async def test_a_signal_closes_every_connection_with_1001(number: int, transport: str) -> None:
    async with (
        served("--transport", transport) as server,
        connected(server.url) as ann,
        connected(server.url, subprotocols=["trioswitch.v1.msgpack"]) as bob,
    ):
        await ann.join("r")
        await bob.join("r")
        server.process.send_signal(number)
        for client in (ann, bob):
            farewell = await client.receive_until(type="reconnect")
            assert farewell["after"] > 0
            assert await client.closed() == (1001, "the server is going away")
        assert await server.ended() == 0


async def test_a_drain_writes_what_waits() -> None:
    """A client that is behind with reading gets everything that it was promised before it is closed."""
    count, size = 200, 50_000
    async with served("--outbox-bytes", str(2 * count * size), "--drain-timeout", "60") as server:
        slow = await raw_peer(server.port, receive_buffer=4096)
        async with connected(server.url) as ann:
            await ann.join("r")
            await slow.receive_until(b'"user_joined"')
            for _ in range(count):
                receipt = await ann.ask("message", room="r", data="x" * size, exclude_self=True)
                assert receipt["delivered"] + receipt["queued"] == 1
            assert receipt["queued"] == 1, "the kernel took it all: nothing is tested"
            server.process.send_signal(signal.SIGTERM)
            await refused(server.port)
            got = 0
            while got < count:
                got += b'"type":"message"' in (await slow.receive())[1]
            await slow.receive_until(b'"reconnect"')
            opcode, payload = await slow.receive()
            assert (opcode, payload[:2]) == (CLOSE, b"\x03\xe9")
            await slow.send(frame(CLOSE, payload))
            assert (await ann.closed())[0] == 1001
        assert await server.ended() == 0
        assert len(server.lines) == 1
        await slow.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["native", "trio-websocket"])
async def test_a_client_that_never_reads_cannot_stretch_the_drain(transport: str) -> None:
    options = ("--transport", transport, "--drain-timeout", "2", "--outbox-bytes", "100000000")
    async with served(*options) as server:
        stalled = await raw_peer(server.port, receive_buffer=4096)
        async with connected(server.url) as ann:
            await ann.join("r")
            for _ in range(200):
                receipt = await ann.ask("message", room="r", data="x" * 50_000, exclude_self=True)
            assert receipt["queued"] == 1
            started = trio.current_time()
            server.process.send_signal(signal.SIGTERM)
            assert (await ann.closed())[0] == 1001
        assert await server.ended() == 0
        assert trio.current_time() - started < 2 + GENEROUS / 3
        assert len(server.lines) == 2
        assert server.lines[1].endswith("1 connections were cut at the drain timeout")
        await stalled.aclose()


async def test_a_second_signal_ends_at_once() -> None:
    async with served("--drain-timeout", "1000") as server:
        peer = await raw_peer(server.port)
        server.process.send_signal(signal.SIGTERM)
        await peer.receive_until(b'"reconnect"')  # the drain has begun, and this peer will not answer
        started = trio.current_time()
        assert await server.end(signal.SIGINT) == 1
        assert trio.current_time() - started < 4, "not even the close timeout is waited for"
        assert server.lines[1:] == ["trioswitch: stopped at the second signal, before everything was written"]
        await peer.aclose()


async def test_who_has_not_finished_its_handshake_does_not_hold_up_the_drain() -> None:
    async with served("--drain-timeout", "1000", "--handshake-timeout", "1000") as server:
        peers = [RawPeer(await trio.open_tcp_stream("127.0.0.1", server.port)) for _ in range(2)]
        await peers[0].send(upgrade()[:-2])
        await peers[1].send(b"GET /")
        async with connected(server.url):  # it was accepted after them
            assert await server.end() == 0
        for peer in peers:
            assert await peer.end() == b""
            await peer.aclose()


async def test_a_drain_timeout_of_nothing_is_no_error() -> None:
    async with served("--drain-timeout", "0") as server:
        peer = await raw_peer(server.port)
        assert await server.end() == 0
        await peer.end()
        await peer.aclose()


@pytest.mark.parametrize("transport", ["native", "trio-websocket"])
async def test_an_interrupt_during_heavy_fan_out_ends_in_order(transport: str) -> None:
    """Every client publishes as fast as it may, all get everything; then one signal."""
    async with served("--transport", transport) as server, trio.open_nursery() as nursery:
        enough = trio.Event()
        codes: list[int] = []
        received = 0

        async def flood(client: Client) -> None:
            try:
                while True:
                    await client.websocket.send_message('{"type": "message", "room": "r", "data": "x"}')
            except Exception:  # closed, in whatever way: the reader below is told why
                return

        async def read(client: Client) -> None:
            nonlocal received
            nursery.start_soon(flood, client)
            while (message := await client.receive())["type"] != "reconnect":
                received += message["type"] == "message"
                if received > 2000:
                    enough.set()
            codes.append((await client.closed())[0])

        async def be_client(task_status: trio.TaskStatus[Client]) -> None:
            async with connected(server.url) as client:
                await client.join("r")
                task_status.started(client)
                await read(client)

        for _ in range(6):
            await nursery.start(be_client)
        with trio.fail_after(GENEROUS):
            await enough.wait()
        server.process.send_signal(signal.SIGINT)
        assert await server.ended() == 0
        with trio.fail_after(GENEROUS):
            while len(codes) < 6:
                await trio.sleep(0.01)
        assert codes == [1001] * 6
        assert len(server.lines) == 1
        nursery.cancel_scope.cancel()


# --- what goes wrong


@contextmanager
def listening_socket() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def run(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SERVE, *arguments], stderr=subprocess.PIPE, text=True, timeout=GENEROUS, check=False, **how)


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    (line,) = done.stderr.splitlines()
    assert line.startswith("trioswitch: ")
    return line


def test_a_port_that_is_taken() -> None:
    with listening_socket() as port:
        done = run("--port", str(port))
    assert done.returncode == 1
    assert one_sentence(done) == f"trioswitch: cannot listen on 127.0.0.1 port {port}: Address already in use"


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1", "a b"])
def test_an_address_that_is_not_ours(host: str) -> None:
    done = run("--host", host, "--port", "0", "--insecure")
    assert done.returncode == 1
    assert host in one_sentence(done)


@pytest.mark.parametrize("name", ["no/such/directory/s", "x" * 200, "file", "directory"])
def test_a_unix_socket_that_cannot_be_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "directory").mkdir()
    done = run("--uds", str(tmp_path / name))
    assert done.returncode == 1
    assert name in one_sentence(done)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("RuntimeError('it broke')", "the server failed: it broke"),
        ("RuntimeError", "the server failed: RuntimeError"),
        ("KeyboardInterrupt", "interrupted before the server was up"),
        ("BaseExceptionGroup('x', [KeyboardInterrupt(), ValueError('y')])", "interrupted before the server was up"),
    ],
)
def test_whatever_else_goes_wrong(error: str, sentence: str) -> None:
    program = f"""
import trioswitch.cli.main as cli
import trioswitch.cli.serving as serving
async def serve(*args, **options):
    raise {error}
serving.serve = serve
cli.main(["serve", "--port", "0"])
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program], stderr=subprocess.PIPE, text=True, timeout=GENEROUS, check=False
    )
    assert done.returncode == 1
    assert one_sentence(done) == f"trioswitch: {sentence}"


def test_for_whom_wants_to_know_there_is_a_traceback() -> None:
    program = """
import trioswitch.cli.main as cli
import trioswitch.cli.serving as serving
async def serve(*args, **options):
    raise RuntimeError("it broke")
serving.serve = serve
cli.main(["serve", "--port", "0", "--log-level", "debug"])
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program], stderr=subprocess.PIPE, text=True, timeout=GENEROUS, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "trioswitch: the server failed: it broke"


@pytest.mark.parametrize("stderr", ["/dev/full", "closed", "nobody reads"])
async def test_without_a_stderr_it_serves_all_the_same(tmp_path: Path, stderr: str) -> None:
    path = tmp_path / "s"
    command = [*SERVE, "--uds", str(path), "--max-connections", "1"]
    if stderr == "closed":
        command = ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    reading, writing = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.DEVNULL, stderr=full if stderr == "/dev/full" else writing
    )
    os.close(full)
    os.close(writing)
    try:
        with trio.fail_after(GENEROUS):
            while True:
                try:
                    peer = RawPeer(await trio.open_unix_socket(str(path)))
                    break
                except OSError:
                    assert process.poll() is None
                    await trio.sleep(0.02)
            await peer.open()
            for _ in range(3):  # each is worth a line in the log
                other = RawPeer(await trio.open_unix_socket(str(path)))
                await other.send(upgrade())
                assert (await other.answer()).status == 503
                await other.aclose()
            process.send_signal(signal.SIGTERM)
            assert await peer.close_code() == 1001
            await peer.aclose()
            assert await process.wait() == 0
    finally:
        process.kill()
        await process.wait()


# --- usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["sevre"], "sevre"),
        (["serve", "--nonsense"], "--nonsense"),
        (["serve", "extra"], "extra"),
        (["serve", "--port", "x"], "--port"),
        (["serve", "--port", "-1"], "-1 is not a valid port"),
        (["serve", "--port", "65536"], "65536 is not a valid port"),
        (["serve", "--drain-timeout", "-1"], "--drain-timeout"),
        (["serve", "--drain-timeout", "nan"], "--drain-timeout"),
        (["serve", "--drain-timeout", "soon"], "--drain-timeout"),
        (["serve", "--transport", "pigeon"], "pigeon"),
        (["serve", "--log-level", "loud"], "loud"),
        (["serve", "--tls-key", "k.pem"], "--tls-key: needs --tls-cert"),
        (["serve", "--proxy-protocol"], "--proxy-protocol: needs --trusted-proxy"),
        (["serve", "--tls-cert", "no-such-file.pem"], "no-such-file.pem"),
        (["serve", "--tls-cert", "/"], "--tls-cert"),
        (["serve", "--batch-messages", "0"], "--batch-messages"),
        (["serve", "--batch-messages", "65536"], "--batch-messages"),
        (["serve", "--batch-messages", "1.5"], "--batch-messages"),
        (["serve", "--batch-bytes", "0"], "--batch-bytes"),
        (["serve", "--linger", "-0.1"], "--linger"),
        (["serve", "--linger", "nan"], "--linger"),
        (["serve", "--outbox-messages", "0"], "--outbox-messages"),
        (["serve", "--direct-overflow", "block"], "--direct-overflow"),
        (["serve", "--direct-overflow", "never"], "--direct-overflow"),
        (["serve", "--max-message-bytes", "124"], "--max-message-bytes"),
        (["serve", "--max-connections", "0"], "--max-connections"),
        (["serve", "--max-connections", "-5"], "--max-connections"),
        (["serve", "--max-errors", "-1"], "--max-errors"),
        (["serve", "--compression-level", "10"], "--compression-level"),
        (["serve", "--compression", "no"], "no"),
        (["serve", "--ping-interval", "0"], "--ping-interval"),
        (["serve", "--ping-timeout", "0"], "--ping-timeout"),
        (["serve", "--handshake-timeout", "0"], "--handshake-timeout"),
        (["serve", "--close-timeout", "-1"], "--close-timeout"),
        (["serve", "--room", "x"], "'x' is not PATTERN:KEY=VALUE"),
        (["serve", "--room", "x:"], "PATTERN:KEY=VALUE"),
        (["serve", "--room", ":overflow=block"], "PATTERN:KEY=VALUE"),
        (
            ["serve", "--room", "x:colour=red"],
            "unknown key 'colour' in 'x:colour=red': there are overflow, block-timeout",
        ),
        (["serve", "--room", "x:announce=no,announce=yes"], "announce stands twice"),
        (["serve", "--romm", "x"], "unrecognized arguments: --romm x (trioswitch serve --help tells more)"),
        (["connect", "ws://x", "--romm", "x"], "unrecognized arguments: --romm x"),
        (["serve", "--linger", "-1"], "--linger: must be >= 0: -1.0 (trioswitch serve --help tells more)"),
        (["serve", "--room", "x:overflow=never"], "never"),
        (["serve", "--room", "x:announce=perhaps"], "perhaps"),
        (
            ["serve", "--room", "x:overflow=never"],
            "overflow in 'x:overflow=never': 'never' is not one of block, drop_oldest",
        ),
        (["serve", "--room", "x:block-timeout=0"], "block-timeout in 'x:block-timeout=0': must be > 0: 0.0"),
        (["serve", "--room", "x:block-timeout=nan"], "block-timeout in"),
        (
            ["serve", "--room", "x:block-timeout=soon"],
            "block-timeout in 'x:block-timeout=soon': 'soon' is not a number",
        ),
        (["serve", "--room", "x:announce-limit=-1"], "announce-limit in"),
        (
            ["serve", "--room", "x:history-size=many"],
            "history-size in 'x:history-size=many': 'many' is not a whole number",
        ),
    ],
)
def test_a_usage_error_names_what_is_wrong(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    captured = capsys.readouterr()
    [sentence] = captured.err.splitlines()
    assert sentence.startswith("trioswitch: error: ")
    assert words in sentence
    assert captured.out == ""


def test_a_usage_error_in_a_process_of_its_own() -> None:
    done = run("--linger", "-1")
    assert done.returncode == 2
    [sentence] = done.stderr.splitlines()
    assert sentence.startswith("trioswitch: error: argument --linger: must be >= 0: -1.0")
    assert "Traceback" not in done.stderr


def test_a_certificate_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = trustme.CA()
    ours, other = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    garbage, chain, key = tmp_path / "garbage.pem", tmp_path / "chain.pem", tmp_path / "key.pem"
    garbage.write_text("no certificate")
    ours.cert_chain_pems[0].write_to_path(str(chain))
    other.private_key_pem.write_to_path(str(key))
    for arguments, why in (
        ([str(garbage)], f"--tls-cert: there is no certificate (PEM) in '{garbage}'"),
        ([str(key), "--tls-key", str(chain)], f"--tls-cert: there is no certificate (PEM) in '{key}'"),
        ([str(chain)], f"--tls-cert: there is no private key (PEM) in '{chain}': name its file with --tls-key"),
        ([str(chain), "--tls-key", str(garbage)], f"--tls-key: there is no private key (PEM) in '{garbage}'"),
        ([str(chain), "--tls-key", "no.pem"], "--tls-key: cannot read 'no.pem': No such file or directory"),
        ([str(chain), "--tls-key", str(key)], f"--tls-key: the private key in '{key}' is that of another certificate"),
    ):
        with pytest.raises(SystemExit) as exit:
            main(["serve", "--tls-cert", *arguments])
        assert exit.value.code == 2
        assert f"argument {why}" in capsys.readouterr().err


def test_a_key_with_a_password_is_not_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certificate = trustme.CA().issue_cert("localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(str(chain))
    private = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(SystemExit) as exit:
        main(["serve", "--tls-cert", str(chain), "--tls-key", str(key)])
    assert exit.value.code == 2
    assert "argument --tls-key: the private key is encrypted" in capsys.readouterr().err.splitlines()[-1]


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--version"], __version__),
        (["--help"], "serve"),
        (["serve", "--help-all"], "--outbox-bytes"),
    ):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 0
        captured = capsys.readouterr()
        assert words in captured.out
        assert captured.err == ""


async def test_what_is_set_on_the_command_line_holds() -> None:
    async with served("--max-message-bytes", "200", "--ping-interval", "3", "--room", "quiet:announce=no") as server:
        async with connected(server.url) as client:
            await client.join("quiet")
            await client.nothing_more()
            await client.send_raw("x" * 201)
            assert (await client.closed())[0] == 1009
        assert await server.end() == 0
