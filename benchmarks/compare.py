"""Measures trioswitch beside its peers: server on one core, load client on another, each in turn.

    sh benchmarks/run DIR [SCENARIO ...]        installs the peers into DIR, then runs this

Each scenario is run three times, servers interleaved (A B C, A B C, A B C), and the medians are kept: absolute figures move
from run to run, ratios within one hold. Results go into a file of JSON, and from there into the tables of a page and a plot;
scenarios that were not run keep what they had. TRIOSWITCH is the command that starts trioswitch, if it is another one than
`python -m trioswitch serve`.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import report
from load_client import build_load_client
from measure import run
from processes import Failed
from scenarios import SCENARIOS, Row, Scenario
from servers import HERE, SERVERS

from trioswitch.bench.host import machine

DOCS = HERE.parent / "docs"


def main() -> int:
    """Returns the exit status: 1 when a run failed that had been asked for by name."""
    chosen = _arguments()
    if chosen.report:
        report.write(chosen.output, chosen.page, chosen.plot)
        return 0
    peers = chosen.dir.resolve()
    load_client = build_load_client(peers)
    names = _installed(chosen.servers, peers)
    failed = False
    for scenario in (SCENARIOS[name] for name in chosen.scenarios or SCENARIOS):
        results, errors = _measure(scenario, names, peers, load_client, chosen)
        failed = failed or bool(errors)
        _store(chosen.output, scenario, results, errors, peers, chosen.runs)
        report.write(chosen.output, chosen.page, chosen.plot)
        print(report.table(json.loads(chosen.output.read_text())[scenario.name], scenario), flush=True)
    return 1 if failed and chosen.servers else 0


def _arguments() -> argparse.Namespace:
    scenarios = "\n".join(f"  {scenario.name:<11}{scenario.title}" for scenario in SCENARIOS.values())
    parser = argparse.ArgumentParser(
        prog="compare", description=__doc__, epilog=f"scenarios:\n{scenarios}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("dir", type=Path, metavar="DIR", help="where the peers are installed, and the load client is built")
    add("scenarios", nargs="*", type=_scenario, metavar="SCENARIO", help="default: all of them")
    add("--servers", type=_names, metavar="A,B", help=f"of {', '.join(SERVERS)}; default: all that are installed")
    add("--runs", type=int, default=3, metavar="N", help="runs of each server, of which the medians are kept")
    add("--quick", action="store_true", help="few connections and short runs: shows that it works, and nothing else")
    add("--output", type=Path, default=DOCS / "performance.json", metavar="FILE", help="the results")
    add("--page", type=Path, default=DOCS / "performance.md", metavar="FILE", help="the page with the tables")
    add("--plot", type=Path, default=DOCS / "performance.png", metavar="FILE", help="the picture")
    add("--report", action="store_true", help="measure nothing: write the page and the plot from the results again")
    return parser.parse_args()


def _scenario(name: str) -> str:
    if name not in SCENARIOS:
        raise argparse.ArgumentTypeError(f"there is no scenario {name!r}")
    return name


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in SERVERS:
            raise argparse.ArgumentTypeError(f"there is no server {name!r}")
    return names


def _installed(names: list[str] | None, peers: Path) -> list[str]:
    """The servers that can be measured; says which cannot."""
    found = []
    for name in names or SERVERS:
        if SERVERS[name].version(peers) is None:
            print(f"compare: {name} is not installed and is left out", file=sys.stderr)
        else:
            found.append(name)
    return found


def _measure(
    scenario: Scenario, names: list[str], peers: Path, load_client: Path, chosen: argparse.Namespace
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """The figures of every run, and why rows have none, by row."""
    rows = scenario.rows(names, chosen.quick)
    results: dict[str, list[dict[str, Any]]] = {row.label: [] for row in rows}
    errors: dict[str, str] = {}
    for number in range(chosen.runs):
        for row in rows:
            try:
                figures = _once(row, peers, load_client, scenario)
            except Failed as failure:
                errors[row.label] = str(failure)
                print(f"{scenario.name} {number + 1}/{chosen.runs} {row.label}: {failure}", file=sys.stderr, flush=True)
                continue
            results[row.label].append(figures)
            shown = "  ".join(
                f"{column.title} {column.form.format(figures[column.name])}"
                for column in scenario.columns
                if figures.get(column.name) is not None
            )
            print(f"{scenario.name} {number + 1}/{chosen.runs} {row.label:<16} {shown}", file=sys.stderr, flush=True)
    return results, errors


def _once(row: Row, peers: Path, load_client: Path, scenario: Scenario) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="trioswitch-benchmark-"))
    try:
        return run(row, peers, load_client, folder, watch_memory=scenario.watch_memory)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _store(
    output: Path,
    scenario: Scenario,
    results: dict[str, list[dict[str, Any]]],
    errors: dict[str, str],
    peers: Path,
    runs: int,
) -> None:
    """Put the medians of one scenario into the file, with what they were measured on."""
    known = json.loads(output.read_text()) if output.exists() else {}
    known[scenario.name] = {
        "title": scenario.title,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": runs,
        "machine": machine(),
        "revision": _revision(),
        "versions": {
            server.origin[1]: server.version(peers)
            for name, server in SERVERS.items()
            if name in results or name == "trioswitch"
        },
        "rows": {
            label: {"median": _medians(figures), "runs": figures} for label, figures in results.items() if figures
        },
        "errors": errors,
    }
    output.write_text(json.dumps(known, indent=1) + "\n")


def _medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Of each figure by itself."""
    names = [name for name, value in runs[0].items() if isinstance(value, int | float)]
    return {name: statistics.median(run[name] for run in runs if run.get(name) is not None) for name in names}


def _revision() -> str | None:
    """What was measured, where it is a git checkout."""
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("compare: interrupted; the scenarios that were over by then are written")
