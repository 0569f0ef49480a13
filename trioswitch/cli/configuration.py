"""`trioswitch config`: look at the configuration, check it, begin a file."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from ..settings.describe import schema, show, template
from ..settings.load import SettingsError
from .serve_options import Formatter, add_serve_options, load_settings, with_settings
from .serving import say_problems

__all__ = ["add_config"]

OK, USAGE = 0, 2


def add_config(commands: Any) -> None:
    """Add the command `config` to those of the command line."""
    config = commands.add_parser("config", help="show, check or begin a configuration")
    actions = config.add_subparsers(required=True, metavar="ACTION")
    for name, run, text in (
        ("show", _show, "print the values in effect, and where each comes from; takes the options of serve"),
        ("check", _check, "say what is wrong in a file and in the environment"),
        ("init", _init, "print a file with every key, its meaning and its default"),
        ("schema", _schema, "print a JSON schema of the file, for editors"),
    ):
        action = actions.add_parser(name, help=text, description=text, formatter_class=Formatter)
        action.set_defaults(run=run, parser=action)
        if name == "show":
            add_serve_options(action)
        elif name == "check":
            action.add_argument(
                "config", nargs="?", type=Path, metavar="FILE", help="default: as TRIOSWITCH_CONFIG says"
            )


def _show(chosen: argparse.Namespace) -> int:
    arguments = sys.argv[sys.argv.index("show") + 1 :]
    try:
        chosen = with_settings(lambda: chosen.parser.parse_args(arguments), chosen.parser, os.environ)
    except SettingsError as error:
        say_problems(error)
        return USAGE
    given = {action.dest for action in chosen.parser._actions if _was_given(action, arguments)}
    print(
        show(chosen.settings, chosen.sources, {name: getattr(chosen, name) for name in given if hasattr(chosen, name)})
    )
    return OK


def _was_given(action: argparse.Action, arguments: list[str]) -> bool:
    return any(argument.partition("=")[0] in action.option_strings for argument in arguments)


def _check(chosen: argparse.Namespace) -> int:
    try:
        load_settings(chosen.config, os.environ)
    except SettingsError as error:
        say_problems(error)
        return USAGE
    print("The configuration is valid.")
    return OK


def _init(_chosen: argparse.Namespace) -> int:
    print(template(), end="")
    return OK


def _schema(_chosen: argparse.Namespace) -> int:
    print(json.dumps(schema(), indent=2))
    return OK
