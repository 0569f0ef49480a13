"""The documents: what they show runs, what they list is what the code has, and what they point to is there."""

import ast
import importlib
import json
import re
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
import trio
from markdown_pages import blocks, code, examples, execute, rows, sections
from trio.testing import MockClock

import trioswitch
from trioswitch import CloseCause, HistoryStorage, Options, Overflow, RoomPolicy, errors
from trioswitch.cli.main import make_parser
from trioswitch.wire import commands, messages
from trioswitch.wire.protocols import JSON, JSON_CODEC, PROTOCOLS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(trioswitch.__file__).parent
DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROTOCOL, OPTIONS, ARCHITECTURE = [
    (ROOT / "docs" / f"{name}.md").read_text() for name in ("protocol", "options", "architecture")
]
README = (ROOT / "README.md").read_text()
DEADLINE = 20.0
"""Seconds that an example may take; on a mock clock, where they pass at once, a hundred times that."""

COMMANDS = commands.COMMANDS


def event_types() -> Iterator[tuple[str, type[messages.Event]]]:
    for event in vars(messages).values():
        if isinstance(event, type) and issubclass(event, messages.Event):
            if attrs.has(event):
                yield attrs.fields(event).type.default, event
            elif issubclass(event, msgspec.Struct):
                yield event.__struct_config__.tag, event


EVENTS = dict(event_types())


def slugs(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    seen: dict[str, int] = {}
    found = set()
    for title in re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found


@pytest.mark.parametrize(
    ("source", "output"),
    [
        pytest.param(source, output, id=f"{name}: {title}")
        for name in ("embedding", "histories", "handlers", "access", "pages", "testing", "install", "outside-trio")
        for title, source, output in examples((ROOT / "docs" / f"{name}.md").read_text())
    ],
)
def test_examples_print_what_they_say(
    source: str, output: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real_run = trio.run

    async def within(seconds: float, main: Callable[[], Any]) -> None:
        with trio.fail_after(seconds):
            await main()

    def run(main: Callable[[], Any], **how: Any) -> None:
        real_run(within, DEADLINE * (100 if "clock" in how else 1), main, **how)

    execute(source, monkeypatch, run)
    assert output, "an example is followed by what it prints"
    assert capsys.readouterr().out == output


def test_the_readmes_example_runs_until_it_is_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ((_, source, _),) = examples(README)
    real_run = trio.run

    async def for_three_seconds(main: Callable[[], Any]) -> None:
        with trio.move_on_after(2.5):
            await main()

    def run(main: Callable[[], Any]) -> None:
        real_run(for_three_seconds, main, clock=MockClock(autojump_threshold=0))

    monkeypatch.setattr(trioswitch, "serve_until_signal", partial(trioswitch.serve_until_signal, port=0))
    execute(source, monkeypatch, run)
    assert capsys.readouterr().out == "0 0 0\n" * 3


# --- the protocol


@pytest.mark.parametrize("text", blocks(PROTOCOL, "json command"))
def test_examples_of_commands_can_be_decoded(text: str) -> None:
    fields = json.loads(text)
    command = JSON.decode(text.encode())
    if fields["type"] in COMMANDS:
        known = set(COMMANDS[fields["type"]].__struct_fields__)
        assert fields.keys() - {"type"} <= known
        decoded = {name: plain(getattr(command, name)) for name in fields.keys() - {"type"}}
        assert decoded | {"type": fields["type"]} == fields
    else:
        assert isinstance(command, commands.Custom)


def plain(value: Any) -> Any:
    """As it was in JSON."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, msgspec.Raw):
        return json.loads(bytes(value))
    return attrs.asdict(value) if attrs.has(type(value)) else value


def event_of(fields: dict[str, Any]) -> messages.Event:
    """The event with these fields. Raises for a value of the wrong type."""
    kind = EVENTS[fields["type"]]
    if issubclass(kind, msgspec.Struct):
        return msgspec.convert(fields, kind)
    nested: dict[str, Callable[[Any], Any]] = {
        "messages": lambda listed: [event_of(one) for one in listed],
        "rooms": lambda rooms: {name: messages.Resumed(**one) for name, one in rooms.items()},
    }
    msgspec.convert({name: value for name, value in fields.items() if name not in nested}, kind)
    given = {name: nested.get(name, lambda value: value)(value) for name, value in fields.items() if name != "type"}
    return kind(**given)


def encoded(fields: dict[str, Any]) -> bytes:
    """What the server would send for an event with these fields."""
    return JSON_CODEC.encode(event_of(fields))


@pytest.mark.parametrize("text", blocks(PROTOCOL, "json event"))
def test_examples_of_events_are_what_the_server_would_send(text: str) -> None:
    fields = json.loads(text)
    if fields["type"] == "batch":
        sent = JSON_CODEC.batch([encoded(message) for message in fields["messages"]], fields["timestamp"])
    else:
        sent = encoded(fields)
    assert json.dumps(json.loads(sent)) == json.dumps(fields), "the same fields, in the order in which they are sent"


def test_every_json_example_is_checked() -> None:
    checked = [text for kind in ("command", "event") for text in blocks(PROTOCOL, f"json {kind}")]
    assert len(checked) == len(re.findall(r"^```json", PROTOCOL, re.MULTILINE)) > 25
    for path in DOCS:
        if path.name != "protocol.md":
            assert "```json" not in path.read_text(), f"{path.name}: JSON belongs into protocol.md"


def test_every_message_of_the_protocol_has_its_section_and_an_example() -> None:
    of_commands = sections(sections(PROTOCOL, 2)["Commands: client to server"], 3)
    of_events = sections(sections(PROTOCOL, 2)["Events: server to client"], 3)
    assert {code(title) for title in of_commands if "`" in title} == set(COMMANDS)
    assert {code(title) for title in of_events} == set(EVENTS) | {"batch"}
    for kind, known in (("command", COMMANDS), ("event", EVENTS)):
        assert set(known) <= {json.loads(text)["type"] for text in blocks(PROTOCOL, f"json {kind}")}


def default_of(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return "none" if default in (None, msgspec.UNSET) else f"`{json.dumps(default)}`"


@pytest.mark.parametrize("name", COMMANDS)
def test_tables_of_commands_are_complete(name: str) -> None:
    section = sections(sections(PROTOCOL, 2)["Commands: client to server"], 3)[f"`{name}`"]
    documented = {code(row[0]): row[2] for row in rows(section)}
    fields = [field for field in msgspec.structs.fields(COMMANDS[name]) if field.name != "id"]
    assert documented == {field.name: default_of(field) for field in fields}


@pytest.mark.parametrize("name", EVENTS)
def test_tables_of_events_are_complete(name: str) -> None:
    section = sections(sections(PROTOCOL, 2)["Events: server to client"], 3)[f"`{name}`"]
    documented = {code(row[0]): "optional" in row[1] for row in rows(section)}
    assert documented == {field: default is msgspec.UNSET for field, default in fields_of(EVENTS[name])}


def fields_of(event: type[messages.Event]) -> Iterator[tuple[str, Any]]:
    """The wire name and the default of each field."""
    if issubclass(event, msgspec.Struct):
        yield from ((field.encode_name, field.default) for field in msgspec.structs.fields(event))
    else:
        yield from ((field.name, field.default) for field in attrs.fields(event) if field.name != "type")  # type: ignore[arg-type]


def test_the_table_of_positions_is_complete() -> None:
    documented = {code(row[0]) for row in rows(sections(PROTOCOL, 2)["History and positions"].split("### ")[0])}
    assert documented == {field.name for field in attrs.fields(messages.Position)}


def test_what_became_of_a_room_is_listed() -> None:
    (row,) = [row for row in rows(PROTOCOL) if row[0] == "`rooms`" and "`resume`" in row[2]]
    assert set(re.findall(r"`(\w+)`", row[2])) - {"resume"} == {field.name for field in attrs.fields(messages.Resumed)}


def test_every_subprotocol_is_listed() -> None:
    assert {code(row[0]) for row in rows(sections(PROTOCOL, 3)["Subprotocols"])} == set(PROTOCOLS)


def nodes() -> Iterator[ast.AST]:
    """The server's code; the client has errors of its own."""
    for path in PACKAGE.rglob("*.py"):
        if "client" not in path.relative_to(PACKAGE).parts:
            yield from ast.walk(ast.parse(path.read_text()))


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call, with the name of what is called."""
    for node in nodes():
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func).rpartition(".")[2], node


def constants(node: ast.expr) -> set[Any]:
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}


def test_every_error_code_is_listed() -> None:
    used = {"forbidden"}  # the default of Refused
    for name, call in calls():
        if name in ("BadInput", "reply_error") and call.args:
            used |= constants(call.args[0])
        if name in ("Refused", "BadInput", "Error"):
            used |= {value for word in call.keywords if word.arg == "code" for value in constants(word.value)}
    used |= {error.code for error in vars(errors).values() if isinstance(getattr(error, "code", None), str)}
    assert {code(row[0]) for row in rows(sections(PROTOCOL, 2)["Error codes"])} == used


def test_every_close_code_is_listed() -> None:
    documented = [(int(row[0]), code(row[1])) for row in rows(sections(PROTOCOL, 2)["Close codes"])]
    assert sorted(documented) == sorted((cause.code, cause.name.lower()) for cause in CloseCause)


def test_every_status_of_a_refused_handshake_is_listed() -> None:
    documented = {int(row[0]) for row in rows(sections(PROTOCOL, 3)["Refused handshakes"])}
    used = {403}  # for a code of Refused that is not in the table
    for name, call in calls():
        if name in ("Rejected", "response") and call.args:
            used |= {value for value in constants(call.args[0]) if isinstance(value, int)}
    for node in nodes():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_STATUS":
            used |= {value for value in constants(node.value) if isinstance(value, int)}
    assert used <= documented
    assert documented - used == {405, 505}, "those that the codec chooses"


# --- the options


def value_of(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def option_rows() -> dict[str, Any]:
    titles = ("Rooms and outboxes", "History, sessions and inboxes", "Clients", "Compression", "Time", "Clusters")
    return {code(row[0]): value_of(code(row[1])) for title in titles for row in rows(sections(OPTIONS, 2)[title])}


def defaults(of: type) -> dict[str, Any]:
    values = {field.name: field.default for field in attrs.fields(of)}
    return {
        name: value.value if isinstance(value, Overflow | HistoryStorage) else value for name, value in values.items()
    }


def test_every_option_is_listed_with_its_default() -> None:
    assert option_rows() == defaults(Options)


def test_every_field_of_a_policy_is_listed_with_its_default() -> None:
    documented = {code(row[0]): value_of(code(row[1])) for row in rows(sections(OPTIONS, 2)["Policies of rooms"])}
    assert documented == defaults(RoomPolicy)


def test_every_overflow_policy_is_explained() -> None:
    documented = [code(row[0]) for row in rows(sections(OPTIONS, 2)["Overflow policies"])]
    assert sorted(documented) == sorted(policy.value for policy in Overflow)


def test_every_flag_is_listed_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    defaults = vars(make_parser().parse_args(["serve"]))
    with pytest.raises(SystemExit):
        make_parser().parse_args(["serve", "--help-all"])
    names = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", capsys.readouterr().out, re.MULTILINE)) - {
        "--help",
        "--help-all",
    }
    flags = {name: defaults[name[2:].replace("-", "_")] for name in names}
    own = {code(row[0]): row[1].strip("`") for row in rows(sections(OPTIONS, 2)["The command line"])}
    of_options = {f"--{name.replace('_', '-')}" for name in option_rows()} - {
        "--policies",
        "--allow-origins",
        "--trusted-proxies",
    }
    assert set(flags) == set(own) | of_options
    assert own == {flag: "" if flags[flag] in (None, []) else str(flags[flag]) for flag in own}


def test_every_fixed_value_is_right() -> None:
    for module, name, value, _ in rows(sections(OPTIONS, 2)["Fixed values"]):
        assert getattr(importlib.import_module(code(module)), code(name)) == value_of(code(value)), code(name)


# --- what they point to


def commands_in(path: Path) -> list[str]:
    return [line.strip() for block in blocks(path.read_text(), "sh") for line in block.splitlines()]


@pytest.mark.parametrize("line", sorted({line for path in DOCS for line in commands_in(path)}))
def test_commands_exist(line: str) -> None:
    for command in line.split("&&"):
        program, *arguments = shlex.split(command)
        if program.endswith("python") and arguments[:2] == ["-m", "trioswitch"]:
            make_parser().parse_args(arguments[2:])
        else:
            assert program in ("sh", ".venv/bin/python")
            assert (ROOT / arguments[0]).is_file()


def test_the_readme_begins_with_two_commands() -> None:
    beginning = README.split("\n## ")[0]
    assert [line.strip() for block in blocks(beginning, "sh") for line in block.splitlines()] == [
        "sh .ci/setup && .venv/bin/python -m trioswitch serve",
        "sh tests/run",
    ]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        there = path if not name else (path.parent / name).resolve()
        assert there.exists(), target
        if anchor:
            assert anchor in slugs(there.read_text()), target


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(path: Path) -> None:
    for name in re.findall(r"`((?:tests|docs|examples|\.ci)/[\w./-]+)`", path.read_text()):
        assert (ROOT / name).exists(), name


def test_decisions_are_numbered_and_have_their_parts() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for number, page in enumerate(pages, 1):
        text = page.read_text()
        assert text.startswith(f"# {number}. "), page.name
        assert list(sections(text, 2)) == ["Context", "Decision", "Why", "Consequences"], page.name


def packages() -> set[str]:
    """The packages, as `rooms/`, and the top-level modules of the project."""
    inside = {path.name + "/" for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    return inside | {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}


def named_in(text: str) -> set[str]:
    return {name for row in rows(text) for name in re.findall(r"`([^`]+)`", row[0])}


def test_architecture_has_every_package_and_top_level_module() -> None:
    assert named_in(sections(ARCHITECTURE, 2)["Packages"]) == packages()


def test_the_readmes_map_names_packages() -> None:
    names = named_in(sections(README, 2)["Where things are"])
    assert len(names) > 12
    assert names <= packages()


def test_the_changelog_begins_with_this_version() -> None:
    first = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == trioswitch.__version__


def test_lines_are_not_too_long_to_read_in_a_terminal() -> None:
    for path in DOCS:
        prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        prose = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", prose, flags=re.DOTALL)  # written by a program
        long = [line for line in prose.splitlines() if len(line) > 140 and not line.lstrip().startswith("|")]
        assert not long, (path.name, long)


MODULES = (
    "api",
    "auth",
    "backend",
    "brokers",
    "client",
    "console",
    "messages",
    "monitoring",
    "stores",
    "testing",
    "web",
)
PUBLIC = {f"trioswitch{name}" for name in ("", *map(".{}".format, MODULES))}
"""The modules that applications import. Each has a page of the API reference."""


def imported(source: str) -> set[str]:
    """The modules of this project that a program imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return {name for name in found if name.partition(".")[0] == "trioswitch"}


def test_docs_and_examples_import_public_modules_only() -> None:
    programs = {f"{path}: {n}": source for path in DOCS for n, source in enumerate(blocks(path.read_text(), "python"))}
    programs |= {str(path): path.read_text() for path in (ROOT / "examples").rglob("*.py")}
    found = {name: imported(source) for name, source in programs.items()}
    assert sum(map(bool, found.values())) > 20
    assert {name: modules - PUBLIC for name, modules in found.items() if modules - PUBLIC} == {}


def test_every_public_module_has_its_page_of_the_reference() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "api").glob("*.md")}
    assert pages == {name.rpartition(".")[2] for name in PUBLIC}
