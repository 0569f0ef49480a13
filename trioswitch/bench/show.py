"""The output for a person: a progress bar during the run, a table at the end."""

import math
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from .result import Result

__all__ = ["Show", "show_result"]


class Show:
    """A progress bar on stderr, where that is a terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(),
            TextColumn("{task.fields[note]:>24}"),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> "Show":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def phase(self, name: str, total: float | None) -> None:
        """Something new begins; a `total` of None says that its end is not known."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=total, note="")

    def update(self, done: float, note: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done, note=note)
            self._progress.refresh()


def show_result(result: Result) -> None:
    """The table and the warnings, on stdout."""
    console = Console()
    table = Table(title=f"{result.settings.scenario}: {result.settings.target.url}", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    for name, value in _rows(result):
        table.add_row(name, value)
    console.print(table)
    for warning in result.warnings():
        console.print(f"[yellow]![/yellow] {warning}", highlight=False)


def _rows(result: Result) -> list[tuple[str, str]]:
    measured, handshakes = result.measured, result.handshakes
    assert measured is not None
    assert handshakes is not None
    settings, latencies = result.settings, measured.latencies
    rows = [
        ("server", result.server),
        ("client processes", str(result.processes)),
        ("connections", f"{measured.open:,} of {settings.connections:,}"),
        ("connects/s", f"{result.connects_per_s:,.0f}"),
    ]
    if settings.scenario == "idle":
        latencies = handshakes.latencies
        rows.append(("time", f"{measured.seconds:.1f} s"))
    else:
        rows.append(("messages/s delivered", f"{measured.messages_per_s:,.0f}"))
    if settings.scenario == "fanout":
        published = measured.sent / measured.seconds if measured.seconds else 0.0
        rows += [
            ("messages/s published", f"{published:,.1f}"),
            ("arrived", "-" if result.arrived is None else f"{result.arrived:.2%}"),
        ]
    what = "handshake and join" if settings.scenario == "idle" else "latency"
    rows += [(f"{what}, p{percent:g}", _ms(latencies.percentile(percent))) for percent in (50, 99, 99.9)]
    rows.append((f"{what}, slowest", _ms(latencies.slowest / 1e6)))
    if result.bytes_per_connection is not None:
        rows.append(("server, memory a connection", f"{result.bytes_per_connection / 1024:,.1f} KiB"))
    if result.server_busy is not None:
        rows.append(("server, share of a processor", f"{result.server_busy:.1%}"))
    rows.append(("busiest client process", f"{measured.busy:.0%}"))
    return rows


def _ms(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.3f} ms" if value < 10 else f"{value:,.1f} ms"
