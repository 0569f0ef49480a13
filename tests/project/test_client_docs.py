"""`docs/client.md`: its examples run, and its tables are what the code has."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from markdown_pages import code, examples, execute, rows, sections

from trioswitch.client import ClientOptions, errors

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "client.md").read_text()


@pytest.mark.parametrize(
    ("source", "output"), [pytest.param(source, output, id=title) for title, source, output in examples(PAGE)]
)
def test_examples_print_what_they_say(
    source: str, output: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real_run = trio.run

    async def within(main: Callable[[], Any]) -> None:
        with trio.fail_after(20):
            await main()

    execute(source, monkeypatch, lambda main: real_run(within, main))
    assert capsys.readouterr().out == output


def test_every_option_is_listed_with_its_default() -> None:
    listed = [row for row in rows(sections(PAGE, 2)["Parameters"]) if len(row) == 3]
    documented = {code(name): (ast.literal_eval(code(default)), meaning) for name, default, meaning in listed}
    assert documented == {field.name: (field.default, field.metadata["help"]) for field in attrs.fields(ClientOptions)}


def test_every_error_is_listed() -> None:
    documented = {code(row[0]) for row in rows(sections(PAGE, 2)["Errors"])}
    assert documented == set(errors.__all__) - {"ClientError"}
