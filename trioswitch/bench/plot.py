"""The picture of a benchmark: how latency is distributed, and how it went over time. A PNG, drawn by matplotlib."""

import io
from typing import Any, Final

import attrs
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from .histogram import Histogram
from .measurement import Measurement, Moment
from .orders import SLOT
from .result import Result

__all__ = ["draw"]

BARS: Final = 90
"""Bars of the distribution at most: more of them are noise."""
BLUE, ORANGE, RED, GREY = "#2f6db3", "#d9822b", "#b3312f", "#666666"
PERCENTILES: Final = ((50, BLUE), (99, ORANGE), (99.9, RED))
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


def draw(result: Result) -> bytes:
    """A PNG of 1,650 x 900 pixels."""
    measured, handshakes = result.measured, result.handshakes
    assert measured is not None
    assert handshakes is not None
    idle = result.settings.scenario == "idle"
    shown = handshakes if idle else measured
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(11, 6), dpi=150, layout="constrained")
        axes = figure.subplot_mosaic([["distribution", "rate"], ["distribution", "latency"]])
        figure.suptitle(_title(result, shown), x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        what = "Time from dialling to having joined" if idle else "Latency"
        _distribution(axes["distribution"], shown.latencies, what)
        moments = _moments(shown)
        _rate(axes["rate"], moments, "Clients joined per second" if idle else "Messages delivered per second")
        _over_time(axes["latency"], moments, f"{what} over time")
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
    return picture.getvalue()


def _title(result: Result, shown: Measurement) -> str:
    settings = result.settings
    what = [settings.scenario, f"{result.connected:,} connections", settings.protocol, result.server]
    if settings.scenario == "idle":
        return _joined([*what, f"{result.connects_per_s:,.0f} connects/s"])
    figures = [f"{shown.messages_per_s:,.0f} messages/s delivered"]
    if result.rate is not None:
        figures.append(f"{result.rate:,.1f} messages/s published")
    return _joined([*what, f"{settings.size} bytes"]) + "\n" + _joined(figures)


def _joined(parts: list[str]) -> str:
    return " \N{MIDDLE DOT} ".join(parts)


def _distribution(axes: Any, latencies: Histogram, what: str) -> None:
    axes.set_title(f"{what}: how it is distributed")
    limits, shares = _even(*latencies.bars())
    axes.stairs(shares, limits, fill=True, color=BLUE, alpha=0.3)
    axes.stairs(shares, limits, color=BLUE, linewidth=0.8)
    for percent, colour in PERCENTILES:
        value = latencies.percentile(percent)
        axes.axvline(value, color=colour, linewidth=1.4, label=f"p{percent:g}  {_ms(value)}")
    axes.set_xscale("log")
    axes.set_ylim(0, float(shares.max()) * 1.25)
    axes.legend(loc="best")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("ms (logarithmic)")
    axes.set_ylabel("share of the messages" if what == "Latency" else "share of the clients")


def _even(limits: Any, counts: Any) -> tuple[Any, Any]:
    """The same distribution as shares, in bars that are equally wide on a logarithmic axis."""
    if not counts.size:
        return np.array([0.1, 1.0]), np.array([0.0])
    reached = np.append(0, np.cumsum(counts)) / counts.sum()
    edges = np.geomspace(limits[0], limits[-1], min(BARS, counts.size) + 1)
    return edges, np.diff(np.interp(edges, limits, reached))


def _moments(shown: Measurement) -> list[Moment]:
    """What there is to see over time, from the first arrival to the last; in between a moment may be empty."""
    moments = shown.moments()
    filled = [number for number, moment in enumerate(moments) if moment.messages_per_s]
    if not filled:
        return []
    start = moments[filled[0]].at - SLOT / 1e9
    return [attrs.evolve(moment, at=moment.at - start) for moment in moments[filled[0] : filled[-1] + 1]]


def _rate(axes: Any, moments: list[Moment], title: str) -> None:
    axes.set_title(title)
    axes.plot([m.at for m in moments], [m.messages_per_s for m in moments], color=BLUE, marker=".", markersize=4)
    axes.fill_between([m.at for m in moments], [m.messages_per_s for m in moments], color=BLUE, alpha=0.15)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)
    axes.tick_params(labelbottom=False)


def _over_time(axes: Any, moments: list[Moment], title: str) -> None:
    axes.set_title(title)
    at = [m.at for m in moments]
    for name, colour, values in (
        ("p50", BLUE, [m.p50_ms for m in moments]),
        ("p99", ORANGE, [m.p99_ms for m in moments]),
        ("slowest", GREY, [m.slowest_ms for m in moments]),
    ):
        style = ":" if name == "slowest" else "-"
        axes.plot(at, values, color=colour, label=name, linestyle=style, marker=".", markersize=4, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds")
    axes.set_ylabel("ms")
    if at:
        axes.legend(ncols=3, loc="upper right", borderpad=0)
        _low, high = axes.get_ylim()
        axes.set_ylim(0, high * 1.2)


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"
