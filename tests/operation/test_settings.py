"""The configuration: a file, the environment and flags; what is wrong with them, in sentences."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest

from trioswitch.cli.main import make_parser
from trioswitch.cli.serve_options import chosen_options, with_settings
from trioswitch.config import HistoryStorage, Options
from trioswitch.settings.describe import schema, show, template
from trioswitch.settings.load import SettingsError, load
from trioswitch.settings.model import SECTIONS, Settings
from trioswitch.settings.units import duration, size

FILE = """\
[server]
port = 9000
drain_timeout = "1m"
allow_origins = ["https://example.com"]

[limits]
batch_bytes = "16KiB"
linger = "50ms"
max_connections = 5

[api]
[[api.keys]]
key = "a key that has enough characters"
rooms = ["chat*"]

[[rooms]]
pattern = "chat*"
history = "stored"
history_age = "7d"

[[rooms]]
pattern = "*"
overflow = "conflate"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "trioswitch.toml"
    path.write_text(FILE)
    return path


def test_a_file(file: Path) -> None:
    settings = load(file, {}).settings
    assert (settings.server.port, settings.server.drain_timeout) == (9000, 60.0)
    limits = settings.limits
    assert (limits.batch_bytes, limits.linger, limits.max_connections) == (16384, 0.05, 5)
    assert [key.rooms for key in settings.api.keys] == [["chat*"]]
    assert [policy.pattern for policy in settings.rooms] == ["chat*", "*"]
    assert (settings.rooms[0].history, settings.rooms[0].history_age) == (HistoryStorage.STORED, 7 * 86400)


def test_the_environment_goes_before_the_file(file: Path) -> None:
    environment = {
        "TRIOSWITCH_SERVER__PORT": "9001",
        "TRIOSWITCH_SERVER__HOST": "127.0.0.1, ::1",
        "TRIOSWITCH_LIMITS__COMPRESSION": "no",
        "TRIOSWITCH_LIMITS__LINGER": "1s",
        "TRIOSWITCH_CONFIG": "elsewhere",
        "TRIOSWITCH_HOME": "of others",
        "OTHER__X": "1",
    }
    loaded = load(file, environment)
    settings = loaded.settings
    assert (settings.server.port, settings.server.host) == (9001, ["127.0.0.1", "::1"])
    assert (settings.limits.compression, settings.limits.linger, settings.limits.batch_bytes) == (False, 1.0, 16384)
    assert loaded.sources["server.port"] == "the variable TRIOSWITCH_SERVER__PORT"
    assert loaded.sources["limits.batch_bytes"] == str(file)
    assert "limits.batch_messages" not in loaded.sources


def chosen(file: Path, *flags: str, environment: dict[str, str] | None = None) -> Any:
    parser = make_parser()
    arguments = ["serve", "--config", str(file), *flags]
    return with_settings(lambda: parser.parse_args(arguments), parser.parse_args(arguments).parser, environment or {})


def test_flags_go_before_both(file: Path) -> None:
    environment = {"TRIOSWITCH_SERVER__PORT": "9001", "TRIOSWITCH_ENGINES__STORE": "sqlite:a.db"}
    found = chosen(file, environment=environment)
    assert (found.port, found.store, found.drain_timeout) == (9001, "sqlite:a.db", 60.0)
    options = chosen_options(found)
    assert (options.batch_bytes, options.linger, options.allow_origins) == (16384, 0.05, ("https://example.com",))
    assert len(options.policies) == 2
    flags = ("--port", "1", "--linger", "250ms", "--batch-bytes", "1MiB", "--room", "x:announce=no")
    found = chosen(file, *flags, "--allow-origin", "https://a.example", environment=environment)
    options = chosen_options(found)
    assert (found.port, options.linger, options.batch_bytes) == (1, 0.25, 2**20)
    assert [policy.pattern for policy in options.policies] == ["x"]
    assert options.allow_origins == ("https://a.example",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[server]\nprot = 1", "line 2: [server] prot: there is no such key; did you mean port?"),
        ("[servr]\nport = 1", "line 1: servr: there is no such key; did you mean server?"),
        ("\n\n[limits]\n# x\nlinger = true", 'line 5: [limits] linger: must be a duration, such as 10, "250ms"'),
        ("[limits]\nbatch_bytes = '1KX'", "line 2: [limits] batch_bytes: must be a number of bytes, such as 65536"),
        ("[limits]\nbatch_messages = 0", "line 2: [limits] batch_messages: must be >= 1: 0"),
        ("[limits]\nbatch_messages = '5'", "line 2: [limits] batch_messages: must be a whole number, not '5'"),
        ("[server]\nport = 70000", "line 2: [server] port: must be <= 65535: 70000"),
        ("[server]\nhost = 'a'", 'line 2: [server] host: must be a list of texts, such as ["a", "b"], not \'a\''),
        ("[log]\nlevel = 'loud'", "line 2: [log] level: must be one of 'debug', 'info', 'warning', 'error', not 'loud'"),
        ("[limits]\ndirect_overflow = 'block'", "line 2: [limits] direct_overflow: must be in"),
        ("[server]\ninsecure = 1", "line 2: [server] insecure: must be true or false, not 1"),
        ("server.port = 'x'", "line 1: [server] port: must be a whole number, not 'x'"),
        ("rooms = 5", "line 1: rooms:"),
        ("[[rooms]]\npattern = 'a'\n[[rooms]]\nhistory = 'disk'", "line 4: [rooms] (number 2) history: 'disk' is not one of"),
        ("[[api.keys]]\nkey = 'a'\nscope = 1", "line 3: [api.keys] (number 1) scope: there is no such key; there are key,"),
        ("[server", "it is not TOML: Expected ']'"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        load(path, {})
    assert str(error.value).startswith(f"{path}"), str(error.value)
    assert problem in str(error.value)


def test_all_problems_are_told_at_once(file: Path) -> None:
    file.write_text("[server]\nport = 'x'\nuds = 1\n[log]\nlevel = 'loud'\n")
    with pytest.raises(SettingsError) as error:
        load(file, {})
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        (
            "TRIOSWITCH_SERVER__PRT",
            "1",
            "the variable TRIOSWITCH_SERVER__PRT stands for no key; did you mean server.port?",
        ),
        ("TRIOSWITCH_SERVER__PORT", "x", "the variable TRIOSWITCH_SERVER__PORT: must be a whole number, not 'x'"),
        ("TRIOSWITCH_SERVER__PORT", "99999", "the variable TRIOSWITCH_SERVER__PORT: [server] port: must be <= 65535"),
        (
            "TRIOSWITCH_SERVER__INSECURE",
            "x",
            "the variable TRIOSWITCH_SERVER__INSECURE: must be true or false, not 'x'",
        ),
        (
            "TRIOSWITCH_LIMITS__LINGER",
            "1y",
            "the variable TRIOSWITCH_LIMITS__LINGER: [limits] linger: must be a duration",
        ),
        ("TRIOSWITCH_API__KEYS", "x", "the variable TRIOSWITCH_API__KEYS: can be set in a file only"),
    ],
)
def test_what_is_wrong_in_the_environment(name: str, value: str, problem: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(None, {name: value})
    assert problem in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read"):
        load(tmp_path / "none", {})
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load(tmp_path / "binary", {})


def test_the_file_that_init_prints_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(template())
    assert load(path, {}).settings == Settings()
    # And each of its lines is a key with its default.
    lines = [line.removeprefix("# ") for line in template().splitlines()]
    uncommented = [line for line in lines if " = " in line and line.partition(" = ")[0].isidentifier()]
    known = {field.name for section in SECTIONS.values() for field in attrs.fields(section)}
    assert known - {"keys"} <= {line.partition(" = ")[0] for line in uncommented}


def test_what_is_shown_can_be_read_again_and_hides_secrets(file: Path) -> None:
    environment = {"TRIOSWITCH_AUTH__SECRETS": "one,two", "TRIOSWITCH_API__KEY": "very secret"}
    loaded = load(file, environment)
    text = show(loaded.settings, loaded.sources, {"port": 5})
    for secret in ("very secret", "two", "enough characters"):
        assert secret not in text
    assert "port = 5" in text
    assert "# --port" in text
    assert f"# {file}" in text
    shown = tomllib.loads(text)
    assert shown["limits"]["linger"] == 0.05
    assert [room["pattern"] for room in shown["rooms"]] == ["chat*", "*"]
    again = file.with_name("again.toml")
    again.write_text(text)
    assert load(again, {}).settings.limits == loaded.settings.limits


def test_the_schema_has_every_key() -> None:
    properties = schema()["properties"]
    for name, section in SECTIONS.items():
        assert set(properties[name]["properties"]) == {field.name for field in attrs.fields(section)}
        assert all(each["description"] for each in properties[name]["properties"].values()), name
    assert properties["limits"]["properties"]["batch_bytes"]["type"] == ["integer", "string"]
    assert all(each["description"] for each in properties["rooms"]["items"]["properties"].values())
    json.dumps(schema())


def test_every_option_of_the_library_is_a_key() -> None:
    keys = {field.name for section in SECTIONS.values() for field in attrs.fields(section)}
    assert {field.name for field in attrs.fields(Options)} - keys == {"policies"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10", 10),
        (10, 10),
        (0.5, 0.5),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("5m", 300),
        ("1h", 3600),
        ("7d", 604800),
        ("1 m", 60),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [("5", 5), (5, 5), ("64KiB", 65536), ("1MB", 10**6), ("1.5 KiB", 1536), ("2GiB", 2**31), ("7B", 7)],
)
def test_sizes(text: object, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize("text", ["", "x", "1y", "-1s", "1 2", True, None, [], float("inf"), float("nan"), "1e3"])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        duration(text)


@pytest.mark.parametrize("text", ["", "x", "1kb", "0.3B", "-1", True, None, 0.5])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="must be a number of bytes"):
        size(text)


# --- the command


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "trioswitch", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_command_config(file: Path) -> None:
    code, out, _ = run("config", "show", "--port", "7", TRIOSWITCH_CONFIG=str(file))
    assert code == 0
    assert tomllib.loads(out)["server"]["port"] == 7
    assert run("config", "check", str(file))[:2] == (0, "The configuration is valid.\n")
    assert run("config", "init")[1] == template()
    assert json.loads(run("config", "schema")[1]) == schema()
    file.write_text("[server]\nprot = 1\n")
    for arguments in (
        ("config", "check", str(file)),
        ("serve", "--config", str(file)),
        ("config", "show", "--config", str(file)),
    ):
        sentence = f"trioswitch: error: {file}, line 2: [server] prot: there is no such key; did you mean port?\n"
        assert run(*arguments) == (2, "", sentence)


@pytest.mark.slow
def test_help_is_short_and_help_all_is_not() -> None:
    code, short, _ = run("serve", "--help")
    assert code == 0
    assert short.count("\n  --") <= 13
    assert "--outbox-bytes" not in short
    assert "--outbox-bytes" in run("serve", "--help-all")[1]


@pytest.mark.slow
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "server.example"])
def test_a_server_for_everybody_has_to_be_asked_for(host: str) -> None:
    code, _, sentence = run("serve", "--host", host, "--port", "0")
    assert code == 2
    assert f"argument --host: other machines reach {host}, and nothing says who may connect" in sentence
