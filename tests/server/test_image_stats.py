"""The example `image_stats` as a user runs it, and `bench speed` with a few images."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import speed
import trio
from speed_report import Mode, Report
from support import PATIENCE, connected

from trioswitch._util.process import keep_freed_memory

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "image_stats"
MSGPACK = ["trioswitch.v1.msgpack"]


# --- the example


class Example:
    """The server, in a process of its own."""

    def __init__(self, process: trio.Process, url: str) -> None:
        self.process = process
        self.url = url
        self.log = ""

    async def logged(self, words: str) -> str:
        """Read its log up to a line with these words, and return that line."""
        assert self.process.stderr is not None
        with trio.fail_after(PATIENCE):
            while True:
                line, found, rest = self.log.partition("\n")
                if not found:
                    self.log += (await self.process.stderr.receive_some()).decode()
                    continue
                self.log = rest
                if words in line:
                    return line


@asynccontextmanager
async def example() -> AsyncIterator[Example]:
    process = await trio.lowlevel.open_process(
        [sys.executable, str(EXAMPLE / "image_stats.py"), "--port", "0", "--processes", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        with trio.fail_after(PATIENCE):
            first = (await process.stdout.receive_some()).decode()
        found = re.search(r"ws://\S+", first)
        assert found, first
        yield Example(process, found[0])
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE):
            await process.wait()
            await process.stdout.aclose()
            await process.stderr.aclose()


def images() -> list[Any]:
    """Pixels of several kinds: random, one colour, an even and an odd number, the median between two values."""
    random = np.random.default_rng(4).integers(0, 256, (600, 800), np.uint8)
    return [random, np.full((600, 800), 7, np.uint8), np.array([0, 255], np.uint8), np.array([1, 2, 9], np.uint8)]


async def test_the_example_answers_slow_and_fast_and_ends_in_order() -> None:
    async with example() as server:
        async with connected(server.url, subprotocols=MSGPACK) as client:
            for image in images():
                answer = await client.ask("image", image=image.tobytes())
                assert answer["data"]["max"] == image.max()
                assert answer["data"]["min"] == image.min()
                assert answer["data"]["mean"] == pytest.approx(image.mean())
                assert answer["data"]["median"] == np.median(image)
            image = np.full(480_000, 9, np.uint8)
            answer = await client.ask("image", mode="fast", image=image.tobytes())
            assert answer["data"] == {"received": 480_000}
            assert "'max': 9, 'min': 9, 'mean': 9.0, 'median': 9.0" in await server.logged("an image of")
            for wrong in ({"image": b""}, {"image": "text"}, {}, {"image": b"1", "mode": "soon"}):
                assert (await client.ask("image", **wrong))["code"] == "invalid"
        async with connected(server.url) as client:
            assert "trioswitch.v1.msgpack" in (await client.ask("image", image="text"))["message"]
        server.process.send_signal(signal.SIGINT)
        with trio.fail_after(PATIENCE):
            assert await server.process.wait() == 0


async def test_the_client_of_the_example() -> None:
    async with example() as server:
        with trio.fail_after(PATIENCE):
            client = [sys.executable, str(EXAMPLE / "client.py"), "--url", server.url, "--images", "2"]
            slow = await trio.run_process([*client, "slow"], capture_stdout=True)
            fast = await trio.run_process([*client, "fast"], capture_stdout=True)
    assert len(re.findall(r"^ *[0-9.]+ ms  \{'max': 255, 'min': 0, 'mean': 127", slow.stdout.decode(), re.M)) == 2
    assert len(re.findall(r"^ *[0-9.]+ ms  \{'received': 480000\}$", fast.stdout.decode(), re.M)) == 2


# --- the benchmark of images


def bench(*arguments: str) -> int:
    return speed.main(arguments)


def test_speed_measures_every_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to_json, to_plot = tmp_path / "speed.json", tmp_path / "speed.png"
    options = ["--images", "6", "--parallel", "3", "--processes", "1", "--seed-images", "4"]
    assert bench(*options, "--json", str(to_json), "--plot", str(to_plot)) == 0
    table = capsys.readouterr().out
    for words in ("serial slow", "serial fast", "parallel slow", "parallel fast", "extrapolated", "target"):
        assert words in table
    assert to_plot.read_bytes().startswith(b"\x89PNG")
    report = json.loads(to_json.read_text())
    assert [(mode["server"], mode["clients"], mode["way"], mode["answer"]) for mode in report["modes"]] == [
        ("trioswitch", "trioswitch", "serial", "slow"),
        ("trioswitch", "trioswitch", "serial", "fast"),
        ("trioswitch", "trioswitch", "parallel", "slow"),
        ("trioswitch", "trioswitch", "parallel", "fast"),
        ("seed", "seed", "serial", "fast"),
        ("seed", "seed", "parallel", "fast"),
        ("seed", "trioswitch", "serial", "fast"),
        ("seed", "trioswitch", "parallel", "fast"),
    ]
    for mode in report["modes"]:
        assert mode["failed"] == 0
        assert len(mode["times_s"]) == mode["images"] == (6 if mode["server"] == "trioswitch" else 4)
        assert 0 < mode["p50_ms"] <= mode["p99_ms"] <= mode["slowest_ms"] <= 1000 * mode["total_s"]
    assert report["processes"] == 1


@pytest.mark.parametrize("missing", ["numpy", "rich", "trio_parallel", "matplotlib"])
def test_speed_names_the_extra_that_is_missing(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "find_spec", lambda name: None if name == missing else object())
    assert bench("--plot", "speed.png") == 1
    name = missing.replace("_", "-")
    assert capsys.readouterr().err == f"speed.py: this needs {name}: pip install trioswitch[bench]\n"


def test_speed_does_not_measure_what_it_could_not_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--json", str(tmp_path / "nowhere" / "speed.json")) == 1
    assert "there is no folder" in capsys.readouterr().err


def test_verdicts_and_remarks() -> None:
    def mode(server: str, clients: str, way: str, seconds: float, images: int, answered: int) -> Mode:
        times = {number: (seconds * number / answered, seconds * (number + 1) / answered) for number in range(answered)}
        return Mode(server, clients, way, "fast", images, times)

    ours = [mode("trioswitch", "trioswitch", "serial", 4.0, 1000, 1000)]
    ours.append(mode("trioswitch", "trioswitch", "parallel", 2.0, 1000, 1000))
    whole = Report(1000, 1000, 100, 1, [*ours, mode("seed", "seed", "parallel", 19.0, 1000, 900)])
    assert whole.verdicts() == [
        ("serial fast: 4.00 ms an image (target: below 5)", True),
        ("parallel fast: 9.5 times as quick as seed (target: 10)", False),
    ]
    assert whole.remarks()[-1] == "seed, parallel fast: 100 of 1,000 images were not answered"
    part = Report(1000, 100, 100, 1, [*ours, mode("seed", "seed", "parallel", 3.0, 100, 100)])
    assert part.verdicts()[1] == ("parallel fast: 15.0 times as quick as seed (target: 10)", True)
    assert "100 images only: what is said of its totals is extrapolated" in part.remarks()[-1]


def test_freed_memory_is_kept_where_the_c_library_can() -> None:
    assert keep_freed_memory() == keep_freed_memory()
