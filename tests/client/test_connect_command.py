"""`python -m trioswitch connect` in pipes: exit status, signals, and errors that name the option that avoids them."""

import argparse
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme
from client_support import PATIENCE
from support import listening

from trioswitch import Identity, Options, Refused, RoomPolicy
from trioswitch.client import open_client
from trioswitch.client.terminal import add_connect

CONNECT = (sys.executable, "-X", "dev", "-m", "trioswitch", "connect")
HISTORY = Options(policies=(RoomPolicy(history="memory"),))


@attrs.define
class Connected:
    process: trio.Process

    async def line(self) -> str:
        """The next line of stdout."""
        assert self.process.stdout is not None
        text = b""
        while not text.endswith(b"\n"):
            chunk = await self.process.stdout.receive_some(1)
            assert chunk, text
            text += chunk
        return text.decode().rstrip("\n")

    async def enter(self, text: str) -> None:
        """Write text to stdin, and close it."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(text.encode())
        await self.process.stdin.aclose()

    async def end(self) -> tuple[int, str, str]:
        """Exit status, and the rest of stdout and stderr."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        out = b"".join([chunk async for chunk in self.process.stdout])
        err = b"".join([chunk async for chunk in self.process.stderr])
        assert b"Traceback" not in err, err.decode()
        assert b"Warning" not in err, err.decode()
        return await self.process.wait(), out.decode(), err.decode()


@asynccontextmanager
async def connecting(*arguments: str, stdin: Any = subprocess.PIPE, **options: Any) -> AsyncIterator[Connected]:
    process = await trio.lowlevel.open_process(
        [*CONNECT, *arguments], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )
    try:
        with trio.fail_after(PATIENCE):
            yield Connected(process)
    finally:
        if process.poll() is None:
            process.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                await stream.aclose()
        await process.wait()


async def failure(*arguments: str) -> str:
    """The one line on stderr of a client that cannot connect."""
    async with connecting(*arguments, stdin=subprocess.DEVNULL) as program:
        status, out, err = await program.end()
        assert (status, out, len(err.splitlines())) == (1, "", 1), err
        return err.rstrip("\n")


# --- pipes


async def test_every_line_of_a_pipe_is_acknowledged() -> None:
    async with listening(HISTORY) as (switch, server):
        async with connecting(server.urls[0], "--room", "r", "--user", "ann") as program:
            await program.enter("".join(f"line {n}\n" for n in range(50)))
            status, out, err = await program.end()
            assert (status, err) == (0, "* connected\n")
            assert "\x1b" not in out
        assert switch.connections() == []
        async with open_client(server.urls[0]) as client:
            page = await client.history("r")
        assert [message.body for message in page.messages] == [f"line {n}" for n in range(50)]


async def test_events_in_a_pipe_have_neither_colours_nor_times() -> None:
    async with listening() as (switch, server), connecting(server.urls[0], "--room", "r", "--user", "ann") as program:
        assert await program.line() == "[r] + ann (1 here)"
        await switch.publish("r", 1)
        assert await program.line() == "[r] the server: 1"


async def test_sigint_ends_it_normally() -> None:
    async with listening() as (switch, server), connecting(server.urls[0], "--room", "r", "--user", "ann") as program:
        assert await program.line() == "[r] + ann (1 here)"
        program.process.send_signal(signal.SIGINT)
        assert (await program.end())[0] == 0
        assert switch.connections() == []


async def test_failed_lines_of_a_pipe_are_the_exit_status() -> None:
    async with listening() as (_switch, server), connecting(server.urls[0]) as program:
        await program.enter("text")
        status, _out, err = await program.end()
        assert (status, err) == (1, "* connected\n! join a room first: /join ROOM\n")


async def test_closed_stdout_ends_it_without_an_error() -> None:
    async with listening() as (switch, server), connecting(server.urls[0], "--room", "r", "--user", "ann") as program:
        assert program.process.stdout is not None
        await program.line()
        await program.process.stdout.aclose()
        await switch.publish("r", "x")
        assert await program.process.wait() == 0


async def test_unix_socket(tmp_path: Path) -> None:
    async with listening(uds=tmp_path / "socket") as (_switch, server):
        async with connecting(server.urls[0], "--room", "r", "--user", "ann") as program:
            assert await program.line() == "[r] + ann (1 here)"
            await program.enter("")
            assert (await program.end())[0] == 0


# --- errors


async def test_connection_refused_is_one_sentence() -> None:
    assert await failure("ws://127.0.0.1:1/") == "trioswitch: cannot connect to 127.0.0.1:1: Connection refused"


async def test_unknown_host_is_one_sentence() -> None:
    assert (await failure("ws://nobody.invalid/")).startswith("trioswitch: cannot connect to nobody.invalid: ")


async def test_untrusted_certificate_names_ca(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with listening(host="localhost", ssl_context=context) as (_switch, server):
        text = await failure(f"wss://localhost:{server.port}/ws")
        assert text.startswith(
            f"trioswitch: cannot connect to localhost:{server.port}: its certificate is not trusted: "
        )
        assert text.endswith(" (--ca FILE names the certificates to trust)")
        text = await failure(f"wss://localhost:{server.port}/ws", "--ca", str(tmp_path / "none.pem"))
        assert text.endswith("none.pem': No such file or directory")
        text = await failure(f"ws://localhost:{server.port}/ws")
        assert "TLS" in text
        assert text.endswith("use wss://")
        async with connecting(f"wss://localhost:{server.port}/ws", "--ca", str(tmp_path / "ca.pem")) as program:
            await program.enter("")
            assert (await program.end())[0] == 0


async def test_tls_to_a_plain_port_names_ws() -> None:
    async with listening(host="localhost") as (_switch, server):
        text = await failure(f"wss://localhost:{server.port}/ws")
        assert text == f"trioswitch: cannot connect to localhost:{server.port}: it does not use TLS: use ws://"


async def test_missing_and_wrong_tokens_name_token() -> None:
    async def authenticate(token: str) -> Identity:
        if token != "t":
            raise Refused("no such token")
        return Identity(user="ann")

    async with listening(hooks={"authenticate": authenticate}) as (_switch, server):
        async with connecting(server.urls[0]) as program:
            await program.enter("/join r")
            status, _out, err = await program.end()
            assert (status, err.splitlines()[1:]) == (
                1,
                ["trioswitch: the server rejected this client (4500): unauthorised (--token TOKEN authenticates)"],
            )
        assert await failure(server.urls[0], "--token", "x") == (
            "trioswitch: the server rejected this client (4500): no such token"
            " (--token has a token that the server does not accept)"
        )
        async with connecting(server.urls[0], "--token", "t") as program:
            await program.enter("/join r")
            assert (await program.end())[0] == 0


async def test_token_that_is_missing_for_too_long_names_token() -> None:
    async def authenticate(token: str) -> Identity:
        raise AssertionError

    async with listening(Options(handshake_timeout=0.2), hooks={"authenticate": authenticate}) as (_switch, server):
        async with connecting(server.urls[0]) as program:
            status, _out, err = await program.end()
            assert status == 1
            assert err.splitlines()[-1].endswith(" (--token TOKEN authenticates)")


def test_arguments_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_connect(parser.add_subparsers())
    chosen = parser.parse_args(["connect", "ws://h/ws", "--room", "a", "--room", "b", "--history", "3"])
    assert (chosen.room, chosen.history, chosen.user, chosen.token) == (["a", "b"], 3, None, None)
    for arguments in (["http://h/"], ["ws://h/", "--history", "-1"]):
        with pytest.raises(SystemExit):
            parser.parse_args(["connect", *arguments])
    error = capsys.readouterr().err
    assert "'http://h/' is not a valid WebSocket URL, such as ws://host:8765/ws" in error
    assert "'-1' is not a valid count" in error


# --- Ctrl-C during start-up

INTERRUPTED = """\
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
"""


@pytest.mark.parametrize("module", ["trioswitch.messages", "trio", "trioswitch.cli.main", "trioswitch.bench.cli"])
async def test_ctrl_c_during_the_imports_ends_it_by_the_signal(module: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED.format(module=module))
    async with connecting("ws://127.0.0.1:1/", env={"PYTHONPATH": str(tmp_path)}) as program:
        assert await program.end() == (-signal.SIGINT, "", "")


@pytest.mark.parametrize(
    ("program", "by_signal"),
    [(["-m", "trioswitch"], True), (["-mtrioswitch"], True), (["-c", "import trioswitch"], False)],
)
async def test_only_the_command_line_changes_what_ctrl_c_does(
    program: list[str], by_signal: bool, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED.format(module="trioswitch.assembly"))
    done = await trio.run_process(
        [sys.executable, *program],
        env={"PYTHONPATH": str(tmp_path)},
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == -signal.SIGINT
    assert (b"KeyboardInterrupt" in done.stderr) != by_signal


async def test_console_script_is_the_command_line_too(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED.format(module="trioswitch.assembly"))
    script = tmp_path / "trioswitch"
    script.write_text("from trioswitch.cli.main import main\nmain()\n")
    done = await trio.run_process(
        [sys.executable, str(script)],
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"},
        capture_stderr=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_ctrl_c_raises_keyboard_interrupt_in_programs_that_import_trioswitch() -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
