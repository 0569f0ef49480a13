"""`python -m trioswitch connect` on a terminal: the prompt, what is above it, and how it ends."""

import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from pty_support import CTRL_C, CTRL_D, CTRL_Z, LEFT, UP, Terminal, in_terminal
from support import listening

import trioswitch
from trioswitch import Options
from trioswitch.client import open_client

CONNECT = ("-X", "dev", "-m", "trioswitch", "connect")
WITHOUT_PROMPT_TOOLKIT = (
    "import sys; sys.modules['prompt_toolkit'] = None; from trioswitch.cli.main import main; main()"
)
JOB_CONTROL = """\
import os, signal, subprocess, sys

signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = subprocess.Popen([sys.executable, *sys.argv[1:]], process_group=0, restore_signals=True,
                       preexec_fn=lambda: signal.signal(signal.SIGTTOU, signal.SIG_DFL))
os.tcsetpgrp(0, job.pid)
_, status = os.waitpid(job.pid, os.WUNTRACED)
assert os.WIFSTOPPED(status), status
os.tcsetpgrp(0, os.getpgrp())
print("suspended", flush=True)
assert input() == "fg"
os.tcsetpgrp(0, job.pid)
os.killpg(job.pid, signal.SIGCONT)
sys.exit(job.wait())
"""
"""The job control of a shell, for one job: it says when the job is suspended, and continues it when `fg` is entered."""
TIME = re.compile(r"^\d\d:\d\d ")


def shown(lines: list[str]) -> list[str]:
    """Lines without their times, the prompt, and what is said at the beginning."""
    lines = [TIME.sub("", line) for line in lines]
    return [line for line in lines if not re.search(r"^\* (connected|/help)|\+ ann \(1 here\)|^\w*> ?", line)]


@asynccontextmanager
async def prompt(
    options: Options | None = None, **environment: str
) -> AsyncIterator[tuple[trioswitch.Switch, trioswitch.Server, Terminal]]:
    """A server, and a client in a terminal, which is ann in the room `r`."""
    async with listening(options) as (switch, server):
        arguments = (server.urls[0], "--room", "r", "--user", "ann")
        async with in_terminal(*CONNECT, *arguments, **environment) as terminal:
            await terminal.last_line("r>")
            yield switch, server, terminal


async def enter(terminal: Terminal, text: str, line: str) -> None:
    """Type a line, press Enter, and wait until a line is shown above the empty prompt."""
    terminal.type(text + "\r")
    await terminal.wait(lambda lines: shown(lines)[-1:] == [line] and lines[-1] == "r>")


# --- the prompt


async def test_events_appear_above_the_half_typed_line() -> None:
    async with prompt() as (_switch, server, terminal), open_client(server.urls[0], user_id="bob") as bob:
        terminal.type("hel")
        await terminal.last_line("r> hel")
        async with bob.room("r") as room:
            for number in range(30):
                await room.chat(f"line {number}")
            await terminal.wait(lambda lines: "line 29" in lines[-2] and lines[-1] == "r> hel")
        assert [line for line in shown(terminal.lines) if "line" in line] == [
            f"[r] bob: line {number}" for number in range(30 - len([x for x in terminal.lines if "line" in x]), 30)
        ]
        terminal.type("lo\r")
        await terminal.wait(lambda lines: "[r] ann: hello" in shown(lines) and lines[-1] == "r>")  # and bob's leave
        assert sum("hello" in line for line in terminal.lines) == 1


async def test_lines_can_be_edited_and_recalled() -> None:
    async with prompt() as (_switch, _server, terminal):
        await enter(terminal, "helo" + LEFT + "l", "[r] ann: hello")
        terminal.type(UP)
        await terminal.last_line("r> hello")
        await enter(terminal, " again", "[r] ann: hello again")


async def test_pasted_lines_are_separate_messages() -> None:
    async with prompt() as (_switch, _server, terminal):
        terminal.type("\x1b[200~one\ntwo\x1b[201~")
        await terminal.wait(lambda lines: "two" in lines[-1])
        terminal.type("\r")
        await terminal.wait(lambda lines: shown(lines) == ["[r] ann: one", "[r] ann: two"])


async def test_commands_change_the_prompt_and_are_answered_above_it() -> None:
    async with prompt() as (_switch, _server, terminal):
        await enter(terminal, "/who", "[r] here: ann")
        terminal.type("/join b\r")
        await terminal.last_line("b>")
        terminal.type("/msg zoe hello\r")
        await terminal.wait(lambda lines: shown(lines)[-1] == "* zoe is offline; kept in the inbox: hello")
        terminal.type("/nope\r")
        await terminal.wait(lambda lines: "! /nope is not a command" in " ".join(lines))


async def test_lost_connections_are_shown_in_the_prompt() -> None:
    async with prompt() as (switch, _server, terminal):
        terminal.type("draft")
        await switch.drain(5)
        await terminal.last_line("r (disconnected)> draft")


async def test_a_resized_terminal_keeps_the_line() -> None:
    async with prompt() as (switch, _server, terminal):
        terminal.type("x" * 50)
        await terminal.last_line("r> " + "x" * 50)
        terminal.resize(40)
        await terminal.wait(lambda lines: lines[-2:] == ["r> " + "x" * 37, "x" * 13])
        await switch.publish("r", 1)
        await terminal.wait(lambda lines: shown(lines[-3:-2]) == ["[r] the server: 1"])
        await terminal.wait(lambda lines: lines[-2:] == ["r> " + "x" * 37, "x" * 13])


# --- colours and times


async def test_lines_have_times_and_colours() -> None:
    async with prompt() as (_switch, _server, terminal):
        await enter(terminal, "hello", "[r] ann: hello")
        assert all(TIME.match(line) for line in terminal.lines[:-1])
        assert terminal.colours("[r] ann:") == {"cyan", "default"}


async def test_no_color_is_respected() -> None:
    async with prompt(NO_COLOR="1") as (_switch, _server, terminal):
        await enter(terminal, "hello", "[r] ann: hello")
        assert all(TIME.match(line) for line in terminal.lines[:-1])
        assert not re.search(rb"\x1b\[\d*[1-9]m", terminal.output)


# --- the end


@pytest.mark.parametrize("key", [CTRL_C, CTRL_D, "/quit\r"], ids=["Ctrl-C", "Ctrl-D", "/quit"])
async def test_keys_that_end_it_restore_the_terminal(key: str) -> None:
    async with listening() as (switch, server):
        async with in_terminal(*CONNECT, server.urls[0], "--room", "r", "--user", "ann") as terminal:
            before = terminal.settings
            await terminal.last_line("r>")
            assert terminal.settings != before
            terminal.type(key)
            assert await terminal.end() == 0
            assert terminal.settings == before
            assert not [line for line in terminal.lines if line.startswith("r>")]
        assert switch.connections() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_that_end_it_restore_the_terminal(number: signal.Signals) -> None:
    async with prompt() as (_switch, _server, terminal):
        terminal.type("draft")
        await terminal.last_line("r> draft")
        terminal.process.send_signal(number)
        assert await terminal.end() == 0
        assert "draft" not in " ".join(terminal.lines)


async def test_ctrl_c_ends_it_while_a_line_waits_for_the_connection() -> None:
    async with prompt() as (switch, _server, terminal):
        await switch.drain(5)
        await terminal.last_line("r (disconnected)>")
        terminal.type("pending\r")
        terminal.type("draft")
        await terminal.last_line("r (disconnected)> draft")
        terminal.type(CTRL_C)
        assert await terminal.end() == 0


async def test_a_rejected_client_ends_with_one_sentence() -> None:
    async with prompt() as (switch, _server, terminal):
        terminal.type("draft")
        await terminal.last_line("r> draft")
        switch.kick(switch.connections()[0], "enough")
        assert await terminal.end() == 1
        assert terminal.lines[-1] == "trioswitch: the server rejected this client (4502): enough"


async def test_a_failed_connection_restores_the_terminal() -> None:
    async with in_terminal(*CONNECT, "ws://127.0.0.1:1/") as terminal:
        before = terminal.settings
        assert await terminal.end() == 1
        assert terminal.settings == before
        assert terminal.lines == ["trioswitch: cannot connect to 127.0.0.1:1: Connection refused"]


async def test_a_closed_terminal_ends_it() -> None:
    async with prompt() as (switch, _server, terminal):
        terminal.hang_up()
        with trio.fail_after(20):
            assert await terminal.process.wait() in (0, -signal.SIGHUP)
            while switch.connections():
                await trio.sleep(0.01)


async def test_ctrl_z_suspends_it_and_fg_continues() -> None:
    """A shell with job control starts it: without one, the kernel ignores the request to suspend."""
    async with listening() as (_switch, server):
        program = (*CONNECT, server.urls[0], "--room", "r", "--user", "ann")
        async with in_terminal("-c", JOB_CONTROL, *program) as terminal:
            before = terminal.settings
            await terminal.last_line("r>")
            terminal.type("dra")
            await terminal.last_line("r> dra")
            terminal.type(CTRL_Z)
            await terminal.wait(lambda lines: "suspended" in " ".join(lines))
            assert terminal.settings == before
            terminal.type("fg\n")
            await terminal.last_line("r> dra")
            terminal.type("ft")
            await terminal.last_line("r> draft")
            terminal.type(CTRL_C)
            assert await terminal.end() == 0


# --- terminals without a prompt


async def test_without_prompt_toolkit_lines_are_plain_and_not_repeated() -> None:
    async with listening() as (_switch, server), open_client(server.urls[0], user_id="bob") as bob:
        arguments = ("-c", WITHOUT_PROMPT_TOOLKIT, "connect", server.urls[0], "--room", "r", "--user", "ann")
        async with bob.room("r") as room, in_terminal(*arguments) as terminal:
            await terminal.wait(lambda lines: "+ ann (2 here)" in " ".join(lines))
            assert "line editing needs prompt_toolkit: pip install 'trioswitch[terminal]'" in " ".join(terminal.lines)
            terminal.type("hello\n")
            with trio.fail_after(20):
                while getattr(await anext(room), "body", None) != "hello":
                    pass
            await room.chat("hi")
            await terminal.wait(lambda lines: TIME.sub("", lines[-1]) == "[r] bob: hi")
            assert sum("hello" in line for line in terminal.lines) == 1
            terminal.type(CTRL_D)
            assert await terminal.end() == 0


async def test_simple_terminals_get_plain_lines_without_a_hint() -> None:
    async with listening() as (_switch, server):
        async with in_terminal(*CONNECT, server.urls[0], "--room", "r", "--user", "ann", TERM="dumb") as terminal:
            await terminal.wait(lambda lines: "+ ann (1 here)" in " ".join(lines))
            assert b"\x1b" not in terminal.output
            assert "prompt_toolkit" not in " ".join(terminal.lines)
            terminal.type(CTRL_C)
            assert await terminal.end() == 0
