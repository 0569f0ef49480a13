"""What `speed.py` found: numbers for each mode, the table, the JSON, and the figure that the article describes."""

import datetime
import io
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Final

import attrs
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from trioswitch.bench.host import machine

__all__ = ["Mode", "Report", "draw", "show"]

SERIAL_TARGET: Final = 5.0
"""Milliseconds for an image over one long connection, on average, at most."""
PARALLEL_TARGET: Final = 10.0
"""Times that the parallel way is quicker than the seed's own, in total, at least."""

COLOURS: Final = {
    ("serial", True): "#1f5fa8",
    ("serial", False): "#7fb6ea",
    ("parallel", True): "#c2410c",
    ("parallel", False): "#f2a65a",
}
"""By the way, and whether it is the first of two."""
OURS: Final = " *"
"""Marks the seed's server with our clients."""


@attrs.define
class Mode:
    """One server, one kind of client, one kind of answer; and what became of each image."""

    server: str
    clients: str
    way: str
    answer: str
    images: int
    times: dict[int, tuple[float, float]] = attrs.field(factory=dict)
    """By image number: when it was begun and when it was answered, in seconds since the mode began."""
    work_done: float | None = None
    """Seconds until the work on all images was done, where the server can tell; fast answers are earlier."""

    @property
    def name(self) -> str:
        return f"{self.way} {self.answer}"

    @property
    def borrowed(self) -> bool:
        """Whether the seed's server was asked by our clients."""
        return self.server != self.clients

    @property
    def failed(self) -> int:
        """Images that were never answered."""
        return self.images - len(self.times)

    @property
    def total(self) -> float:
        """Seconds from the start until the last answer."""
        return max((answered for _, answered in self.times.values()), default=0.0)

    def milliseconds(self) -> Any:
        """What each image took, in the order of its number: an array of floats."""
        return np.array([1000 * (answered - begun) for _, (begun, answered) in sorted(self.times.items())])

    def summary(self) -> dict[str, Any]:
        took = self.milliseconds() if self.times else np.zeros(1)
        return {
            "server": self.server,
            "clients": self.clients,
            "way": self.way,
            "answer": self.answer,
            "images": self.images,
            "failed": self.failed,
            "total_s": self.total,
            "work_done_s": self.work_done,
            "mean_ms": float(took.mean()),
            "p50_ms": float(np.percentile(took, 50)),
            "p99_ms": float(np.percentile(took, 99)),
            "slowest_ms": float(took.max()),
        }


@attrs.frozen
class Report:
    """All modes of one run. `images` were sent in each of ours, `seed_images` in each of the seed's."""

    images: int
    seed_images: int
    parallel: int
    processes: int
    modes: Sequence[Mode]

    def remarks(self) -> list[str]:
        """What has to be known to read the table."""
        found = []
        if self.seed_images:
            found.append("seed: websockets on asyncio; a process for each message, a connection for each image")
            found.append(f"seed{OURS}: the same server with the clients of trioswitch's parallel mode")
        if self.seed_images not in (0, self.images):
            found.append(f"the seed got {self.seed_images:,} images only: what is said of its totals is extrapolated")
        found += [
            f"{mode.server}, {mode.name}: {mode.failed:,} of {mode.images:,} images were not answered"
            for mode in self.modes
            if mode.failed
        ]
        return found

    def verdicts(self) -> list[tuple[str, bool]]:
        """Sentences that compare with the targets, and whether they are reached."""
        found = []
        for mode in self._of("trioswitch", "serial"):
            mean = float(mode.milliseconds().mean())
            found.append(
                (f"{mode.name}: {mean:.2f} ms an image (target: below {SERIAL_TARGET:g})", mean < SERIAL_TARGET)
            )
        for mode in self._of("trioswitch", "parallel"):
            factors = {
                seed.borrowed: self.images / self.seed_images * seed.total / mode.total
                for seed in self._of("seed", "parallel")
            }
            if False in factors:
                text = f"{mode.name}: {factors[False]:.1f} times as quick as seed (target: {PARALLEL_TARGET:g})"
                if True in factors:
                    text += f", {factors[True]:.1f} as seed{OURS}"
                found.append((text, factors[False] >= PARALLEL_TARGET))
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": {
                name: version(name) for name in ("trioswitch", "trio", "trio-parallel", "websockets", "numpy")
            },
            "images": self.images,
            "seed_images": self.seed_images,
            "parallel": self.parallel,
            "processes": self.processes,
            "verdicts": [{"text": text, "reached": reached} for text, reached in self.verdicts()],
            "modes": [
                {**mode.summary(), "times_s": [[number, *times] for number, times in sorted(mode.times.items())]}
                for mode in self.modes
            ],
        }

    def _of(self, server: str, way: str) -> list[Mode]:
        return [mode for mode in self.modes if mode.server == server and mode.way == way and mode.times]


def show(report: Report) -> None:
    """The table and the verdicts, on stdout."""
    console = Console()
    title = f"{report.images:,} images of 800 x 600 bytes, {report.parallel} at once"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("server", "mode"):
        table.add_column(column, no_wrap=True)
    for column in ("total s", "done s", "mean ms", "p50 ms", "p99 ms"):
        table.add_column(column, justify="right", no_wrap=True)
    for mode in report.modes:
        numbers = mode.summary()
        done = "" if mode.work_done is None else f"{mode.work_done:.2f}"
        took = [f"{numbers[key]:,.2f}" for key in ("mean_ms", "p50_ms", "p99_ms")]
        table.add_row(mode.server + (OURS if mode.borrowed else ""), mode.name, f"{mode.total:.2f}", done, *took)
    console.print(table)
    for text in report.remarks():
        console.print(text, highlight=False)
    for text, reached in report.verdicts():
        console.print(f"{'[green]yes[/green]' if reached else '[red]no[/red] '} {text}", highlight=False)


def _key(mode: Mode) -> tuple[str, bool]:
    return mode.way, mode.answer == "slow" if mode.server == "trioswitch" else not mode.borrowed


def draw(report: Report) -> bytes:
    """A PNG: what each image took, and when it was answered, over its number."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.size": 9,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(11, 7), dpi=150, layout="constrained")
        rows = figure.subplots(2, 2, sharex=True, sharey="row")
        servers = {"trioswitch": "trioswitch", "seed": "websockets on asyncio, a process for each message"}
        for column, (server, title) in enumerate(servers.items()):
            took, answered = rows[0][column], rows[1][column]
            took.set_title(title, loc="left")
            for mode in (mode for mode in report.modes if mode.server == server and mode.times):
                numbers = sorted(mode.times)
                whose = f" ({'our' if mode.borrowed else 'its own'} clients)" if server == "seed" else ""
                label = f"{mode.name}{whose}: {mode.total:.1f} s"
                look: dict[str, Any] = {"linestyle": "", "markersize": 3, "color": COLOURS[_key(mode)]}
                look["marker"] = "." if mode.way == "serial" else "x"
                took.plot(numbers, mode.milliseconds() / 1000, label=label, **look)
                answered.plot(numbers, [mode.times[number][1] for number in numbers], **look)
            took.set_yscale("log")
            took.legend(markerscale=3, loc="best", framealpha=0.8)
            answered.set_xlabel("number of the image")
        rows[0][0].set_ylabel("time of the image (s, logarithmic)")
        rows[1][0].set_ylabel("answered after (s)")
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
    return picture.getvalue()
