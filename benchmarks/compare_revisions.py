"""Compares two revisions of trioswitch, run in turn: A B A B ...

    .venv/bin/python benchmarks/compare_revisions.py BASE NEW [--runs 7] [fan500 echo idle stored]

BASE and NEW are checkouts, each with its own `.venv` (`sh .ci/setup`). Both are measured by the load client of this checkout.
Prints each run, and the median of the ratios of the pairs: above 1.00, NEW is better. Idle memory counts as base/new.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import attrs
from measure import Failed, run
from scenarios import Row
from servers import TRIOSWITCH, build_load_client

LOADS = {
    "fan500": ("fan", "-m ramp -n 500 -r 1000 -w 1.5", (), "messages_per_s"),
    "echo": ("echo", "-m echo -n 100 -d 4", (), "messages_per_s"),
    "idle": ("fan", "-m idle -n 4000 -d 1 -w 1", (), "bytes_per_connection"),
    "stored": (
        "echo",
        "-m echo -n 200 -d 4",
        ("--store", "sqlite:{dir}/messages.db", "--room", "*:history=stored"),
        "messages_per_s",
    ),
}
"""Mode, arguments of `wsload`, options of the server, and the figure that is compared. `stored` delivers after the commit."""
LESS_IS_BETTER = {"idle"}


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare two revisions of trioswitch, run in turn.")
    parser.add_argument("base", type=Path, help="checkout of the revision to compare with")
    parser.add_argument("new", type=Path, help="checkout of the revision in question")
    parser.add_argument("scenarios", nargs="*", default=list(LOADS), metavar="SCENARIO", help=", ".join(LOADS))
    parser.add_argument("--runs", type=int, default=7, help="pairs of runs (default: %(default)s)")
    chosen = parser.parse_args()
    if unknown := set(chosen.scenarios) - LOADS.keys():
        parser.error(f"unknown scenario {min(unknown)!r}: choose from {', '.join(LOADS)}")
    tools = Path(tempfile.mkdtemp(prefix="trioswitch-compare-"))
    try:
        client = build_load_client(tools)
        for scenario in chosen.scenarios:
            _compare(scenario, chosen.base, chosen.new, chosen.runs, client, tools)
    finally:
        shutil.rmtree(tools, ignore_errors=True)
    return 0


def _compare(scenario: str, base: Path, new: Path, runs: int, client: Path, tools: Path) -> None:
    ratios = []
    for number in range(1, runs + 1):
        before, after = (_measure(scenario, checkout, client, tools) for checkout in (base, new))
        ratio = before / after if scenario in LESS_IS_BETTER else after / before
        ratios.append(ratio)
        print(f"{scenario} {number}/{runs}: base {before:,.0f}, new {after:,.0f}, ratio {ratio:.3f}", flush=True)
    print(f"{scenario}: median ratio {statistics.median(ratios):.3f}", flush=True)


def _measure(scenario: str, checkout: Path, client: Path, tools: Path) -> float:
    """Raises Failed."""
    mode, load, options, figure = LOADS[scenario]
    python = (checkout / ".venv" / "bin" / "python").absolute()
    server = attrs.evolve(
        TRIOSWITCH, command=f"{python} -m trioswitch serve --port {{port}} --log-level warning", name=str(checkout)
    )
    row = Row(checkout.name, server, tuple(load.split()), mode=mode, server_options=options)
    folder = Path(tempfile.mkdtemp(prefix="trioswitch-compare-"))
    try:
        figures: dict[str, Any] = run(row, tools, client, folder, watch_memory=scenario == "idle")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return float(figures[figure])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failure:
        sys.exit(f"compare_revisions: {failure}")
    except KeyboardInterrupt:
        sys.exit("compare_revisions: interrupted")
