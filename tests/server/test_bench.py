"""The tools that measure still run: each for about a second, with few connections. No figure is asserted."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from trioswitch.bench import scenarios
from trioswitch.bench.result import Result
from trioswitch.bench.settings import Settings
from trioswitch.bench.show import Show
from trioswitch.bench.target import Target

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BENCH = [sys.executable, "-m", "trioswitch", "bench"]
PNG = b"\x89PNG\r\n"


def run(*command: object, **how: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, **how)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where a server runs, as a user starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "trioswitch", "serve", "--port", str(port), "--log-level", "warning"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        give_up = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < give_up
                time.sleep(0.05)
        yield port
        server.terminate()


def connections(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
        return json.load(answer)["connections"]


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run(*BENCH, *arguments)


def test_fan_out_shows_a_table_and_writes_json_and_a_picture(port: int, tmp_path: Path) -> None:
    results, picture = tmp_path / "results.json", tmp_path / "picture.png"
    done = bench(
        "fanout", f"ws://127.0.0.1:{port}/ws", "--connections", 20, "--rate", 100, "--duration", 1,
        "--json", results, "--plot", picture,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "messages/s delivered" in done.stdout
    assert "p99.9" in done.stdout
    written = json.loads(results.read_text())
    assert written["server"].startswith("trioswitch/")
    assert written["connected"] == written["receivers"] == 20
    assert written["measured"]["sent"] > 0
    assert written["measured"]["received"] == 20 * written["measured"]["sent"]
    assert written["arrived"] == 1.0
    assert written["moments"]
    assert picture.read_bytes().startswith(PNG)


def test_fan_out_over_several_processes_in_msgpack(port: int, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    done = bench(
        "fanout", f"ws://127.0.0.1:{port}/", "--connections", 9, "--rate", 50, "--duration", 0.4,
        "--processes", 3, "--protocol", "msgpack", "--compression", "--size", 2000, "--json", results,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = json.loads(results.read_text())
    assert written["processes"] == 3
    assert written["measured"]["received"] == 9 * written["measured"]["sent"] > 0


def test_echo(port: int, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    done = bench("echo", f"ws://127.0.0.1:{port}/ws", "--connections", 5, "--duration", 0.6, "--json", results)
    assert done.returncode == 0, done.stderr
    measured = json.loads(results.read_text())["measured"]
    assert measured["received"] > 5
    assert measured["p50_ms"] > 0


def test_idle(port: int, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    done = bench("idle", f"ws://127.0.0.1:{port}/ws", "--connections", 30, "--duration", 0.4, "--json", results)
    assert done.returncode == 0, done.stderr
    written = json.loads(results.read_text())
    assert written["open"] == 30
    assert written["handshakes"]["received"] == 30


def test_an_interrupt_shows_what_was_measured_so_far(port: int, tmp_path: Path) -> None:
    url = f"ws://127.0.0.1:{port}/ws"
    with subprocess.Popen(
        [*BENCH, "echo", url, "--connections", "2", "--duration", "60", "--json", str(tmp_path / "results.json")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        give_up = time.monotonic() + 20
        while connections(port) < 2:
            assert time.monotonic() < give_up
            time.sleep(0.1)
        time.sleep(2)  # it rests for half a second, and then measures a minute
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=20)
    assert running.returncode == 0, err
    assert "interrupted" in out
    assert json.loads((tmp_path / "results.json").read_text())["measured"]["received"] > 0


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["echo", "ws://127.0.0.1:1/ws"], 1, "no connection to ws://127.0.0.1:1/ws: Connection refused"),
        (["echo", "http://127.0.0.1/ws"], 2, "is no WebSocket URL"),
        (["echo", "ws://127.0.0.1:1/ws", "--size", "3"], 2, "too few for a time stamp"),
        (["idle", "ws://127.0.0.1:1/ws", "--json", "/nowhere/at/all"], 2, "cannot be written"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_sentence(arguments: list[str], status: int, sentence: str) -> None:
    done = bench(*arguments)
    assert done.returncode == status
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert "--room" not in done.stderr


def test_a_server_that_says_no(port: int) -> None:
    done = bench("echo", f"ws://127.0.0.1:{port}/elsewhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert "it answered 404" in done.stderr


class InterruptingShow(Show):
    """Sends SIGINT to this process when the search begins its n-th try; with 0, when the first try has its first figures."""

    def __init__(self, tries: int) -> None:
        super().__init__()
        self._tries = tries
        self._begun = 0

    def phase(self, name: str, total: float | None) -> None:
        self._begun += name.startswith("trying")
        if self._tries and self._begun == self._tries:
            os.kill(os.getpid(), signal.SIGINT)

    def update(self, done: float, note: str) -> None:
        if not self._tries and self._begun and done > 0:
            self._tries = -1  # once
            os.kill(os.getpid(), signal.SIGINT)


def interrupted_search(port: int, tries: int, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setattr(scenarios, "STEP", 0.4)
    monkeypatch.setattr(scenarios, "LATENCY_LIMIT", 60_000.0)  # every rate holds, however busy the machine is
    monkeypatch.setattr(scenarios, "ARRIVED", 0.0)
    monkeypatch.setattr(scenarios, "SENT", 0.0)
    settings = Settings(
        scenario="fanout", target=Target.parse(f"ws://127.0.0.1:{port}/ws"), connections=10, duration=60.0, size=64, rate=None,
        processes=1, protocol="json", compression=False, room=None, ca=None, pid=None, json=None, plot=None,
    )  # fmt: skip
    return trio.run(scenarios.run, settings, InterruptingShow(tries))


def test_an_interrupted_search_shows_the_highest_rate_that_held(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    result = interrupted_search(port, 3, monkeypatch)
    first, second = result.steps
    assert first.rate < second.rate == result.rate
    assert result.measured is not None
    assert result.measured.received > 0
    assert result.warnings()[0] == (
        "The search for the highest rate was interrupted after 2 tries. "
        f"The figures are of the highest rate that had held: {second.rate:,.0f} messages/s."
    )


def test_an_interrupted_first_try_shows_its_figures(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    result = interrupted_search(port, 0, monkeypatch)
    assert (result.steps, result.rate) == ([], None)
    assert result.measured is not None
    assert result.measured.received > 0
    assert result.warnings()[0].endswith("No rate had held: the figures are of the last one.")


PERMITS_ONE_ROOM = """if True:
    import trio, trioswitch
    async def on_connect(request):
        return trioswitch.Identity(user=None, join="allowed*")
    async def main():
        async with trioswitch.open_switch(on_connect=on_connect) as switch:
            await trioswitch.serve_until_signal(
                switch, port=0, on_listening=lambda server: print(server.urls[0], flush=True))
    trio.run(main)
"""


def test_a_server_that_permits_certain_rooms_only() -> None:
    with subprocess.Popen([sys.executable, "-c", PERMITS_ONE_ROOM], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            refused = bench("echo", url, "--connections", "2", "--duration", "0.3")
            assert (refused.returncode, refused.stdout) == (1, "")
            assert "it did not let a client join the room 'bench-" in refused.stderr
            assert "you may not join" in refused.stderr
            assert "--room names a room that clients may join, --token authenticates them" in refused.stderr
            done = bench("echo", url, "--connections", "2", "--duration", "0.3", "--room", "allowed {of us}")
            assert done.returncode == 0, done.stderr
        finally:
            server.terminate()


def test_without_the_extra_there_is_a_sentence() -> None:
    """The command line itself needs none of it."""
    program = """if True:
        import sys
        import importlib.util as util
        find_spec = util.find_spec
        util.find_spec = lambda name, *rest: None if name in ("numpy", "rich") else find_spec(name, *rest)
        from trioswitch.cli.main import main
        assert not {"numpy", "rich", "matplotlib"} & set(sys.modules)
        main(["bench", "echo", "ws://127.0.0.1:1/ws"])
    """
    done = run(sys.executable, "-c", program)
    assert (done.returncode, done.stderr) == (
        1,
        "trioswitch: bench needs numpy and rich: pip install trioswitch[bench]\n",
    )


def test_the_comparison_runs_and_rewrites_the_page(tmp_path: Path) -> None:
    assert shutil.which("gcc") or shutil.which("cc"), "the load client is written in C: install gcc"
    page, results, picture = tmp_path / "page.md", tmp_path / "results.json", tmp_path / "picture.png"
    page.write_text("before\n<!-- fan500 -->\nold\n<!-- /fan500 -->\nafter\n")
    done = run(
        sys.executable, BENCHMARKS / "compare.py", tmp_path, "fan500", "rooms", "deflate",
        "--quick", "--runs", 1, "--servers", "trioswitch", "--output", results, "--page", page, "--plot", picture,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    known = json.loads(results.read_text())
    assert known["fan500"]["rows"]["trioswitch"]["median"]["messages_per_s"] > 0
    assert len(known["rooms"]["rows"]) == 2
    compressed = known["deflate"]["rows"]["on"]["median"]
    assert compressed["compressions"] == compressed["sent"] > 0
    assert picture.read_bytes().startswith(PNG)
    text = page.read_text()
    assert "old" not in text
    assert "| **trioswitch**" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")


def test_the_page_has_a_place_for_each_table() -> None:
    listed = run(sys.executable, BENCHMARKS / "compare.py", "--help")
    scenarios = [
        line.split()[0] for line in listed.stdout.partition("scenarios:")[2].splitlines() if line.startswith("  ")
    ]
    page = (BENCHMARKS.parent / "docs" / "performance.md").read_text()
    assert len(scenarios) > 10
    for name in scenarios:
        assert f"<!-- {name} -->" in page
        assert f"<!-- /{name} -->" in page


def test_two_revisions_are_compared(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    python = checkout / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (checkout / "trioswitch").symlink_to(BENCHMARKS.parent / "trioswitch")
    done = run(sys.executable, BENCHMARKS / "compare_revisions.py", checkout, checkout, "--quick", "--runs", 1)
    assert done.returncode == 0, done.stderr
    each, _, medians = done.stdout.partition("\nmedian of the ratios")
    for scenario in ("fan500", "echo", "idle", "keyed", "durable"):
        assert re.search(
            rf"^{scenario} +1/1 +base +[1-9][0-9.,]* +new +[1-9][0-9.,]* .* ratio [0-9.]+$", each, re.MULTILINE
        )
        assert re.search(rf"^  {scenario} +[0-9.]+ ", medians, re.MULTILINE)
    refused = run(sys.executable, BENCHMARKS / "compare_revisions.py", checkout, tmp_path)
    assert refused.returncode == 2
    assert f"{tmp_path} is not a checkout of trioswitch" in refused.stderr
    compare = (sys.executable, BENCHMARKS / "compare_revisions.py", checkout, checkout)
    refused = run(*compare, "--instructions", "--scenarios", "idle")
    assert refused.returncode == 2
    assert "--instructions cannot be used with the scenario idle" in refused.stderr


def test_micro_benchmarks(tmp_path: Path) -> None:
    done = run(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable", BENCHMARKS / "micro"
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_the_benchmarks_of_what_is_durable(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- acks -->\n<!-- /acks -->\n<!-- crowd -->\n<!-- /crowd -->\n")
    done = run(sys.executable, BENCHMARKS / "durable.py", "--quick", "--page", page)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert all(line["acks_per_s"] > 10 for line in lines if "acks_per_s" in line)
    assert {line["history"] for line in lines if "history" in line} == {"memory", "stored"}
    assert "| memory | 100 | 20 |" in page.read_text()
