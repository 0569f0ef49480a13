"""`trioswitch trace`: shows what becomes of each message at each receiver, at a server that runs."""

import argparse
import os
import secrets
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import trio

from .._util.http_client import check_http_url, import_httpx
from .serving import say, say_problems

__all__ = ["add_trace"]

OK, FAILED, USAGE = 0, 1, 2
INTERVAL: Final = 0.5
"""Seconds between two requests."""
TIMEOUT: Final = 15.0
"""Seconds for one."""
KEY: Final = "TRIOSWITCH_API_KEY"


def add_trace(commands: Any) -> None:
    """Add the command `trace` to those of the command line."""
    trace = commands.add_parser(
        "trace",
        help="why did a message not arrive?",
        description=(
            "Show what becomes of each message to a user, or in a room, at each receiver on all nodes: written, queued and how "
            f"long, dropped and why, told as a gap. Ends with Ctrl-C. The API key comes from the environment: {KEY}."
        ),
    )
    add = trace.add_argument
    who = trace.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", metavar="NAME")
    who.add_argument("--room", metavar="NAME")
    add("--url", default="http://127.0.0.1:8765", help="of the server, or of its --admin-port; default: %(default)s")
    trace.set_defaults(run=_run, parser=trace)


def _run(chosen: argparse.Namespace) -> int:
    try:
        url = check_http_url("--url", chosen.url).rstrip("/") + "/api/trace"
        httpx = import_httpx()
        if not os.environ.get(KEY):
            raise ValueError(f"the API needs a key: set {KEY}")
    except ImportError as error:
        say(f"trioswitch: error: {error}")
        return USAGE
    except ValueError as error:
        say_problems(error)
        return USAGE
    asked = {"user": chosen.user} if chosen.room is None else {"channel": chosen.room}
    try:
        return trio.run(partial(_follow, httpx, url, {**asked, "trace": f"cli {secrets.token_hex(8)}"}))
    except KeyboardInterrupt:
        return OK
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


async def _follow(httpx: Any, url: str, request: Mapping[str, str]) -> int:
    followed = None
    async with httpx.AsyncClient(headers={"X-API-Key": os.environ[KEY]}, timeout=TIMEOUT) as client:
        while True:
            try:
                answer = (await client.post(url, json=request)).json()
            except (httpx.HTTPError, ValueError) as error:
                say(f"trioswitch: {url} cannot be asked: {str(error) or type(error).__name__}")
                return FAILED
            if not isinstance(answer, dict) or not answer.keys() & {"error", "result"}:
                say(f"trioswitch: {url} is not the API of trioswitch: set --url")
                return FAILED
            if "error" in answer:
                say(f"trioswitch: the server refuses: {answer['error']['message']}")
                return FAILED
            found = answer["result"]
            if found["connections"] != followed:
                followed = found["connections"]
                print(f"-- {followed} connections are followed", flush=True)
            for event in found["events"]:
                print(_line(event), flush=True)
            if found["missed"]:
                print(f"-- {found['missed']} more events were too many to be shown", flush=True)
            await trio.sleep(INTERVAL)


def _line(event: Mapping[str, Any]) -> str:
    who = f"{event['user']} ({event['connection']})"
    where = f" {event['room']}:" if "room" in event else ":"
    return f"{event['at'][11:-1]} {_plain(who)}{_plain(where)} {_plain(_became(event))}"


def _became(event: Mapping[str, Any]) -> str:
    what = event["what"]
    if what == "gap":
        between = f", {event['from']} to {event['to']}" if "from" in event else ""
        return f"told of a gap: {event.get('dropped', 'some')} messages{between}"
    if "message" not in event:
        return str(what)
    message = event["message"]
    shown = [message["type"]]
    shown += [f"{name} {message[name]}" for name in ("offset", "seq", "key", "from") if name in message]
    shown += [f"{message['bytes']} bytes"] if "bytes" in message else []
    if what == "written":
        what = f"written after {event['waited'] * 1000:.1f} ms"
    elif what == "dropped":
        policy = f", as the policy {event['policy']} says" if "policy" in event else ""
        what = f"DROPPED: {event['cause']}{policy}"
    return f"{', '.join(shown)}: {what}"


def _plain(text: str) -> str:
    """Names can hold control characters, which are not for terminals."""
    return "".join([each if each.isprintable() else "�" for each in text])
