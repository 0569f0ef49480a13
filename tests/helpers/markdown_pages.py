"""The parts of a page in Markdown: its sections, tables and examples."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio


def blocks(text: str, language: str) -> list[str]:
    """What stands in fences whose info string is this."""
    return re.findall(rf"^[ ]*```{re.escape(language)}\n(.*?)^[ ]*```$", text, re.MULTILINE | re.DOTALL)


def sections(text: str, level: int) -> dict[str, str]:
    """Heading -> what follows it, down to the next heading of this level or above."""
    parts = re.split(rf"^(#{{1,{level}}}) (.+)$", text, flags=re.MULTILINE)
    return {title: body for marks, title, body in zip(*[iter(parts[1:])] * 3, strict=True) if len(marks) == level}


def rows(text: str) -> list[list[str]]:
    """The cells of all tables, without their heads."""
    lines = [line for line in text.splitlines() if line.lstrip().startswith("|")]
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    rules = {index for index, row in enumerate(cells) if set("".join(row)) <= set("-: ")}
    return [row for index, row in enumerate(cells) if index not in rules and index + 1 not in rules]


def code(cell: str) -> str:
    """What stands between the first backticks of a cell."""
    found = re.search(r"`([^`]*)`", cell)
    assert found, f"nothing in backticks in {cell!r}"
    return found[1]


def examples(text: str) -> Iterator[tuple[str, str, str]]:
    """Each Python block: the heading that it stands under, its source, and the output that follows it."""
    for title, body in sections(text, 2).items():
        for source, output in re.findall(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", body, re.M | re.S):
            yield title, source, output


def execute(source: str, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]) -> None:
    monkeypatch.setattr(trio, "run", run)
    exec(compile(source, "example", "exec"), {"__name__": "__main__"})
