"""Compares two revisions of trioswitch: the servers of two checkouts, measured in turn by the same load client.

    .venv/bin/python benchmarks/compare_revisions.py BASE_DIR NEW_DIR [--scenarios fan500,echo] [--runs 7]

Each checkout needs its own virtual environment (`sh .ci/setup`). The load client always comes from the checkout of this file.
A run starts `python -m trioswitch serve` of one checkout on one core and the load client on another, and ends the server again.
The runs alternate (base, new, base, new ...), so that whatever else slows the machine down for a while slows both.

    fan500    deliveries/s: one publisher, 500 receivers in one room, at the highest rate with a p99 of 100 ms at most
    echo      messages/s: 100 connections, each with one message in flight in a room of its own
    idle      KB of memory per connection: 4,000 connections that have joined one room
    keyed     publishes/s: 100 publishers with idempotency keys, each of which waits for its acknowledgement
    durable   stored publishes/s: 200 publishers in 20 rooms, each of which waits for its acknowledgement

The ratio of two runs is above 1 when the new revision is better, in every scenario: new/base, and base/new for memory.

Timing is noisy on a machine that does something else at the same time. `--instructions` counts the server's instructions with
valgrind's callgrind instead, for each message: slow, but nearly the same in every run. One or two runs are enough.
It counts the server alone, as a user starts it.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs
from load_client import build_load_client, run_load_client
from processes import Failed, cores, free_port, running

CHAT = '{"type":"chat_message","room":"%s","content":"ts=%%TS%% %%PAD%%"}'
JOIN = '{"type":"join_room","room":"%s"}'
FANOUT, ECHO = "bench", "echo-%I%"
STORED, KEYED = "stored-%G%", "keyed-%I%"
PUBLISH = '{"type":"message","room":"%s","data":"%%PAD%%","exclude_self":true,"id":"ts=%%TS%%"%s}'
"""The acknowledgement repeats the `id`, so the load client finds its time stamp there, and nowhere else."""
CALLGRIND_START, CALLGRIND_STOP = 180.0, 180.0
"""Seconds that a server under callgrind may take to start and to end."""
SECONDS, QUICK_SECONDS = 6, 1
"""How long the load lasts whose instructions are counted."""


@attrs.frozen
class Scenario:
    """Arguments of `wsload` and of the server, and which figure counts."""

    load: str
    quick: str
    """The same with few connections and for a short time."""
    counted: str
    """The same for `--instructions`: a message is sent when the last one is back, so all take the same path. Empty: none."""
    join: str
    message: str
    unit: str
    figure: str = "messages_per_s"
    scale: float = 1.0
    less_is_better: bool = False
    stored: bool = False

    def server_options(self, folder: Path) -> list[str]:
        if not self.stored:
            return []
        return ["--room", "*:history=stored,announce=no", "--store", f"sqlite:{folder / 'messages.db'}"]

    def ratio(self, base: float, new: float) -> float:
        return base / new if self.less_is_better else new / base


SCENARIOS = {
    "fan500": Scenario(
        "-m ramp -n 500 -r 8000 -T 0.5 -E 1 -w 1.5", "-m ramp -n 20 -r 500 -T 0.2 -N 3 -w 0.2", "-m echo -n 200 -A 1 -w 2",
        JOIN % FANOUT, CHAT % FANOUT, "deliveries/s",
    ),
    "echo": Scenario(
        "-m echo -n 100 -d 3", "-m echo -n 10 -d 0.5 -w 0.2", "-m echo -n 20 -w 2",
        JOIN % ECHO, CHAT % ECHO, "messages/s",
    ),
    "idle": Scenario(
        "-m idle -n 4000 -d 1 -w 1", "-m idle -n 100 -d 0.5 -w 0.3", "",
        JOIN % FANOUT, CHAT % FANOUT, "KB per connection", "bytes_per_connection", 1e-3, less_is_better=True,
    ),
    "keyed": Scenario(
        "-m echo -n 100 -d 3", "-m echo -n 10 -d 0.5 -w 0.2", "-m echo -n 20 -w 2",
        JOIN % KEYED, PUBLISH % (KEYED, ',"idempotency_key":"%TS%"'), "publishes/s",
    ),
    "durable": Scenario(
        "-m echo -n 200 -G 20 -d 3", "-m echo -n 20 -G 4 -d 0.5 -w 0.2", "-m echo -n 20 -G 2 -w 2",
        JOIN % STORED, PUBLISH % (STORED, ""), "stored publishes/s", stored=True,
    ),
}  # fmt: skip


@attrs.frozen
class Checkout:
    """A revision of the project, in a folder with a virtual environment."""

    label: str
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / ".venv" / "bin" / "python"


def main() -> int:
    """Returns the exit status: 1 when a run had no result, 2 for arguments that cannot be used."""
    chosen = _arguments()
    base, new = Checkout("base", chosen.base), Checkout("new", chosen.new)
    medians = {}
    with tempfile.TemporaryDirectory(prefix="trioswitch-revisions-") as name:
        load_client = build_load_client(Path(name))
        for scenario in chosen.scenarios:
            measurement = _Measurement(scenario, load_client, quick=chosen.quick, instructions=chosen.instructions)
            try:
                medians[scenario] = measurement.compare(base, new, chosen.runs)
            except Failed as failure:
                print(f"{scenario}: {failure}", file=sys.stderr)
                return 1
    print("\nmedian of the ratios (above 1: the new revision is better)")
    for scenario, (median, ratios) in medians.items():
        print(f"  {scenario:<9}{median:.3f}   lowest {min(ratios):.3f}, highest {max(ratios):.3f}, {len(ratios)} runs")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare_revisions.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("base", type=_checkout, metavar="BASE_DIR", help="checkout of the revision to compare with")
    add("new", type=_checkout, metavar="NEW_DIR", help="checkout of the new revision")
    add("--scenarios", type=_scenarios, metavar="A,B", help=f"some of {','.join(SCENARIOS)}; default: all")
    add("--runs", type=_runs, default=7, metavar="N", help="runs of each revision (default: %(default)s)")
    add(
        "--quick",
        action="store_true",
        help="few connections and short runs: shows that it works, the figures mean nothing",
    )
    add("--instructions", action="store_true", help="count instructions with callgrind instead of measuring time")
    chosen = parser.parse_args()
    if chosen.scenarios is None:
        chosen.scenarios = [name for name, known in SCENARIOS.items() if known.counted or not chosen.instructions]
    if chosen.instructions:
        if without := [name for name in chosen.scenarios if not SCENARIOS[name].counted]:
            parser.error(f"--instructions cannot be used with the scenario {without[0]}")
        if shutil.which("valgrind") is None:
            parser.error("--instructions needs valgrind, which is not installed")
    return chosen


def _checkout(text: str) -> Path:
    folder = Path(text).resolve()
    if not (folder / "trioswitch" / "__main__.py").exists():
        raise argparse.ArgumentTypeError(f"{text} is not a checkout of trioswitch")
    if not (folder / ".venv" / "bin" / "python").exists():
        raise argparse.ArgumentTypeError(f"{text} has no virtual environment: run `sh .ci/setup` in it")
    return folder


def _scenarios(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in SCENARIOS:
            raise argparse.ArgumentTypeError(f"{name!r} is not a scenario (one of {', '.join(SCENARIOS)})")
    return names


def _runs(text: str) -> int:
    runs = int(text)
    if runs < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a valid number of runs (1 or more)")
    return runs


class _Measurement:
    """Runs of one scenario."""

    def __init__(self, name: str, load_client: Path, *, quick: bool, instructions: bool) -> None:
        self._name = name
        self._scenario = SCENARIOS[name]
        self._load_client = load_client
        self._quick = quick
        self._instructions = instructions

    def compare(self, base: Checkout, new: Checkout, runs: int) -> tuple[float, Sequence[float]]:
        """The median of the ratios, and the ratios. Raises Failed."""
        scenario = self._scenario
        unit = "instructions per message" if self._instructions else scenario.unit
        ratios = []
        for number in range(1, runs + 1):
            before, after = self._run(base), self._run(new)
            ratios.append(before / after if self._instructions else scenario.ratio(before, after))
            print(
                f"{self._name:<9}{number}/{runs}   base {before:>11,.1f}   new {after:>11,.1f} {unit}   ratio {ratios[-1]:.3f}",
                flush=True,
            )
        return statistics.median(ratios), ratios

    def _run(self, checkout: Checkout) -> float:
        """One figure. Raises Failed."""
        with tempfile.TemporaryDirectory(prefix="trioswitch-revision-") as name:
            figure = self._counted(checkout, Path(name)) if self._instructions else self._timed(checkout, Path(name))
        if figure <= 0:
            raise Failed(f"{checkout.label} has no result: {figure:g} {self._scenario.unit}")
        return figure

    def _timed(self, checkout: Checkout, folder: Path) -> float:
        scenario, port = self._scenario, free_port()
        server_core, _ = cores()
        command = [*server_core, *self._serve(checkout, port, folder)]
        with running(command, port, folder / "server.log", cwd=checkout.folder) as server:
            load = self._load(port, scenario.quick if self._quick else scenario.load)
            result = run_load_client(load, server.pid, watch_memory=scenario.figure == "bytes_per_connection")
        if result["dead"]:
            raise Failed(f"{checkout.label} lost {result['dead']} of {result['conns'] + result['dead']} connections")
        return result[scenario.figure] * scenario.scale

    def _serve(self, checkout: Checkout, port: int, folder: Path) -> list[str]:
        options = ["--port", str(port), "--log-level", "warning", *self._scenario.server_options(folder)]
        return [str(checkout.python), "-m", "trioswitch", "serve", *options]

    def _load(self, port: int, arguments: str) -> list[str]:
        _, client_core = cores()
        scenario = self._scenario
        texts = ["-j", scenario.join, "-t", scenario.message]
        return [
            *client_core,
            str(self._load_client),
            "-p",
            str(port),
            "-P",
            "/ws",
            "-s",
            "60",
            *texts,
            *arguments.split(),
        ]

    # --- counting instructions

    def _counted(self, checkout: Checkout, folder: Path) -> float:
        """Instructions that the server executes for each message, from the rest after the connects to the end of the load."""
        port, log, server_core = free_port(), folder / "server.log", cores()[0]
        callgrind = [
            "valgrind",
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--callgrind-out-file={folder / 'callgrind.out'}",
        ]
        command = [*server_core, *callgrind, *self._serve(checkout, port, folder)]
        with running(
            command, port, log, environment={"PYTHONHASHSEED": "0"}, cwd=checkout.folder,
            start=CALLGRIND_START, stop=CALLGRIND_STOP,
        ) as server:  # fmt: skip
            counting = {"@connected": "on", "@end 0": "off"}

            def switch(mark: str) -> None:
                if mark in counting:
                    command = ["callgrind_control", "-i", counting[mark], str(server.pid)]
                    subprocess.run(command, check=True, capture_output=True)

            seconds = QUICK_SECONDS if self._quick else SECONDS
            load = self._load(port, f"{self._scenario.counted} -d {seconds}")
            result = run_load_client(load, server.pid, watch_memory=False, on_mark=switch)
        found = re.search(r"Collected : (\d+)", log.read_text(errors="replace"))
        if found is None or not result["messages_per_s"]:
            raise Failed(f"{checkout.label}: no message arrived, or callgrind has counted nothing")
        return int(found[1]) / (result["messages_per_s"] * seconds)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("compare_revisions.py: interrupted")
