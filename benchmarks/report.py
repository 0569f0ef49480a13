"""From results to what people read: tables of Markdown, put between the marks of a page, and a picture."""

import json
import os
import re
from pathlib import Path
from typing import Any

from scenarios import SCENARIOS, Scenario

PICTURED = ("fan500", "fan5000", "once5000", "echo", "idle", "connects")
BUSY = 0.9
"""Share of a core above which a process is what limits."""
OURS, PEER = "#2f6db3", "#b8c4d0"


def write(results: Path, page: Path, plot: Path) -> None:
    """Rewrite the tables of the page, where there is one, and the picture."""
    known = {name: found for name, found in json.loads(results.read_text()).items() if name in SCENARIOS}
    drawn = _draw(known, plot)
    if not page.exists():
        return
    text = page.read_text(encoding="utf-8")
    for name, measured in known.items():
        text = between_marks(text, name, table(measured, SCENARIOS[name]))
    if drawn:
        link = os.path.relpath(plot, page.parent)
        text = between_marks(text, "picture", f"![The scenarios at a glance]({link})")
    page.write_text(text, encoding="utf-8")


def between_marks(text: str, name: str, new: str) -> str:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->`."""
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    return pattern.sub(lambda marks: f"{marks[1]}\n{new}\n\n{marks[2]}", text)


def table(measured: dict[str, Any], scenario: Scenario) -> str:
    """The table of one scenario, and a line that says what it was measured on."""
    columns = scenario.columns
    lines = ["| | " + " | ".join(column.title for column in columns) + " |", "|---|" + "---:|" * len(columns)]
    for label, row in _in_order(measured, scenario):
        cells = [_cell(row["median"].get(column.name), column.form) for column in columns]
        name = f"**{label}**" if label == "trioswitch" else label
        busy, servers = (row["median"].get(name) or 0.0 for name in ("client_busy", "server_busy"))
        doubt = "\N{DAGGER}" if busy > BUSY and servers < BUSY else ""
        lines.append(f"| {name}{doubt} | " + " | ".join(cells) + " |")
    lines += ["", provenance(measured)]
    if any("\N{DAGGER}" in line for line in lines):
        lines += ["", "\N{DAGGER} The load client had less time to spare than the server, which may do better."]
    for label, error in measured["errors"].items():
        runs = len(measured["rows"].get(label, {"runs": ()})["runs"])
        lines += [
            "",
            f"{label}: {measured['runs'] - runs} of {measured['runs']} runs without a result ({error.splitlines()[-1]})",
        ]
    return "\n".join(lines)


def _in_order(measured: dict[str, Any], scenario: Scenario) -> list[tuple[str, Any]]:
    rows = list(measured["rows"].items())
    if not scenario.ordered:
        return rows
    first = scenario.columns[0].name
    worst = float("inf") if scenario.ascending else float("-inf")

    def rank(row: tuple[str, Any]) -> float:
        value = row[1]["median"].get(first)
        return worst if value is None else value

    return sorted(rows, key=rank, reverse=not scenario.ascending)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def provenance(measured: dict[str, Any]) -> str:
    machine, runs = measured["machine"], measured["runs"]
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    revision = f" ({measured['revision']})" if measured["revision"] else ""
    return (
        f"{measured['measured'][:10]}, median of {runs} {'run' if runs == 1 else 'runs'}: {machine['processor']}, "
        f"{machine['processors']} cores, {machine['memory_gib']} GiB, {machine['system']}, Linux {machine['kernel']}, "
        f"Python {machine['python']}; {versions}{revision}."
    )


def _draw(known: dict[str, Any], plot: Path) -> bool:
    """Returns whether there was anything to draw."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    names = [name for name in PICTURED if name in known and known[name]["rows"]]
    if not names:
        return False
    across = min(2, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(5.5 * across, 3.1 * down + 0.3), dpi=150, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid[len(names) :]:
        axes.remove()
    for axes, name in zip(grid, names, strict=False):
        scenario = SCENARIOS[name]
        first = scenario.columns[0]
        rows = _in_order(known[name], scenario)[::-1]
        values = [row["median"].get(first.name) or 0 for _, row in rows]
        bars = axes.barh(
            [label for label, _ in rows],
            values,
            color=[OURS if label.startswith("trioswitch") else PEER for label, _ in rows],
        )
        axes.bar_label(bars, [first.form.format(value) for value in values], padding=3, fontsize=8)
        better = "less" if scenario.ascending else "more"
        axes.set_title(f"{name}: {first.title} ({better} is better)", loc="left", fontsize=9, fontweight="bold")
        axes.set_xlim(0, max(values, default=1) * 1.25 or 1)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(plot, format="png")
    return True
