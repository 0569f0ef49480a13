"""`trioswitch token`: makes a token for development."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import jwt

from ..settings.units import duration
from .serve_options import load_settings
from .serving import say_problems

__all__ = ["add_token"]

OK, USAGE = 0, 2


def add_token(commands: Any) -> None:
    """Add the command `token` to those of the command line."""
    token = commands.add_parser(
        "token",
        help="make a token, for development",
        description="Print a token for a client, signed with the first secret in [auth] of the configuration.",
    )
    add = token.add_argument
    add("--config", metavar="FILE", type=Path, help="the configuration; default: as TRIOSWITCH_CONFIG says")
    add("--user", default="", metavar="NAME", help="who the client is; without it, a guest")
    add("--room", metavar="ROOM", help="a token to join this room with, rather than one to connect with")
    add("--expires", default="1h", metavar="DURATION", help="how long it is valid; 0: for ever. Default: 1h")
    add("--claims", default="{}", metavar="JSON", help="more claims, such as '{\"caps\": [...]}'")
    token.set_defaults(run=_run, parser=token)


def _run(chosen: argparse.Namespace) -> int:
    try:
        auth = load_settings(chosen.config, os.environ).settings.auth
        seconds = duration(chosen.expires)
        claims = json.loads(chosen.claims)
        if not isinstance(claims, dict):
            raise ValueError("--claims must be a JSON object")
        if not auth.secrets:
            raise ValueError("there is no secret to sign it with: set `secrets` in [auth], or TRIOSWITCH_AUTH__SECRETS")
    except ValueError as error:  # SettingsError is one
        say_problems(error)
        return USAGE
    now = int(time.time())
    known: dict[str, Any] = {"sub": chosen.user, "iat": now}
    if seconds:
        known["exp"] = now + int(seconds)
    more = {"channel": chosen.room, "aud": auth.audience, "iss": auth.issuer}
    known |= {name: value for name, value in more.items() if value is not None}
    print(jwt.encode({**known, **claims}, auth.secrets[0], algorithm="HS256"))
    return OK
