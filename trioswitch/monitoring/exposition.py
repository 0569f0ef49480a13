"""Metrics in the text format of Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4).

No label is the name of a room, a user or an address: there is a bounded number of series. Rooms are told apart by the pattern of
their policy.
"""

import os
import platform
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from ..api import Api
from ..metrics import Distribution
from ..switch import Switch
from ..version import __version__
from ..web import Page, Request, Route
from .monitor import Monitor, file_limit, open_files

__all__ = ["metrics_of_workers", "metrics_page"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
QUESTION: Final = "metrics"
SUFFIX: Final = "__suffix__"
"""The label that stands for the end of a series' name."""
_STARTED: Final = time.time()

Labels = Mapping[str, str]
Family = tuple[str, str, str, Iterable[tuple[Labels, float]]]
"""Name, type, help, and values by labels."""


def metrics_page(monitor: Monitor, api: Api | None = None) -> Callable[[], Page]:
    """`/metrics`, for this process. Without a lock and without waiting: it reads what the switch counts anyway."""

    def page() -> Page:
        return _page([("", families(monitor, api))])

    return page


def metrics_of_workers(monitor: Monitor, api: Api | None = None) -> Route:
    """`/metrics`, for all workers of this machine, whichever of them is asked. They are told apart by the label `worker`."""
    machine = f"{socket.gethostname()} {os.getppid()}"

    async def answer() -> list[Any]:
        name = monitor.switch.nodes()[0].name if monitor.switch.nodes() else ""
        return [machine, name, list(families(monitor, api))]

    async def page(_request: Request) -> Page:
        answers = await monitor.switch.administration.ask(QUESTION)
        return _page(sorted([(name, found) for where, name, found in answers if where == machine]))

    monitor.switch.administration.add_question(QUESTION, answer)
    return Route(page)


def _page(processes: Sequence[tuple[str, Iterable[Family]]]) -> Page:
    """The metrics of processes, by the value of the label `worker`; empty: there is no such label."""
    merged: dict[str, tuple[str, str, list[tuple[Labels, float]]]] = {}
    for worker, found in processes:
        for name, kind, help, values in found:
            label = {"worker": worker} if worker else {}
            series = merged.setdefault(name, (kind, help, []))[2]
            series += [({**label, **labels}, value) for labels, value in values]
    text = [_render(name, kind, help, values) for name, (kind, help, values) in merged.items()]
    return Page("".join(text).encode(), CONTENT_TYPE)


def _render(name: str, kind: str, help: str, values: Iterable[tuple[Labels, float]]) -> str:
    lines = [f"# HELP {name} {help}\n# TYPE {name} {kind}\n"]
    for labels, value in values:
        suffix = labels.get(SUFFIX, "")
        shown = ",".join([f'{key}="{_escaped(text)}"' for key, text in labels.items() if key != SUFFIX])
        lines.append(f"{name}{suffix}{{{shown}}} {value:.17g}\n" if shown else f"{name}{suffix} {value:.17g}\n")
    return "".join(lines)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _one(value: float) -> list[tuple[Labels, float]]:
    return [({}, value)]


def _by(label: str, values: Mapping[str, int]) -> list[tuple[Labels, float]]:
    return [({label: name}, value) for name, value in sorted(values.items())]


def _histogram(distribution: Distribution) -> list[tuple[Labels, float]]:
    series: list[tuple[Labels, float]] = []
    total = 0
    for bound, count in zip((*map(str, distribution.bounds), "+Inf"), distribution.counts, strict=True):
        total += count
        series.append(({SUFFIX: "_bucket", "le": bound}, total))
    return [*series, ({SUFFIX: "_sum"}, distribution.sum), ({SUFFIX: "_count"}, total)]


def families(monitor: Monitor, api: Api | None) -> Iterable[Family]:
    """What there is to tell of a process."""
    switch = monitor.switch
    yield from _of_switch(switch)
    yield from _of_process(monitor)
    if api is not None:
        yield "trioswitch_api_calls_total", "counter", "Calls of the HTTP API with a valid key.", _one(api.calls)
        yield "trioswitch_api_refused_total", "counter", "Calls of the HTTP API without one.", _one(api.refused)


def _of_switch(switch: Switch) -> Iterable[Family]:
    counted = switch.statistics()
    gauges = {
        "connections": ("Connections that are open.", counted.active_connections),
        "users": ("Users that have a connection.", counted.users),
        "rooms": ("Rooms that are open.", len(counted.rooms)),
        "groups": ("Groups that have users.", counted.groups),
        "sessions": ("Sessions of clients that are away.", counted.sessions),
        "outbox_messages": ("Messages that wait in outboxes.", counted.pending_messages),
        "outbox_bytes": ("Bytes that wait in outboxes.", counted.pending_bytes),
        "history_bytes": ("Bytes of histories in memory.", counted.history_bytes),
        "uncommitted_messages": ("Messages that wait for the store.", counted.uncommitted_messages),
        "draining": ("1 during a drain.", int(switch.draining)),
        "store_up": ("0 while the store does not work.", int(switch.store_error is None)),
        "broker_up": ("0 while the broker does not work; 1 without one.", int(switch.broker_error is None)),
        "nodes": ("Nodes of the cluster; 0 without one.", len(switch.nodes())),
    }
    for name, (help, gauge) in gauges.items():
        yield f"trioswitch_{name}", "gauge", help, _one(gauge)
    counters = {
        "connections_opened": ("Connections that were admitted.", counted.connections_opened),
        "rate_pauses": ("Times that a client which sent too fast was not read for a while.", counted.rate_pauses),
        "messages_received": ("Messages of clients.", counted.messages_received),
        "received_bytes": ("Bytes of messages of clients.", counted.bytes_received),
        "messages_queued": ("Messages to clients, once for each receiver.", counted.messages_queued),
        "messages_sent": ("Messages that were written to sockets, once for each receiver.", counted.messages_sent),
        "batches_sent": ("Writes to sockets.", counted.batches_sent),
        "sent_bytes": ("Bytes that were written to sockets.", counted.bytes_sent),
        "room_crashes": ("Rooms that failed, and were started again.", counted.room_crashes),
    }
    for name, (help, counter) in counters.items():
        yield f"trioswitch_{name}_total", "counter", help, _one(counter)
    yield (
        "trioswitch_outbox_wait_seconds",
        "histogram",
        "How long messages waited in an outbox, the oldest of each batch. What is written straight through is not counted.",
        _histogram(counted.outbox_waits),
    )
    yield (
        "trioswitch_outbox_batch_messages",
        "histogram",
        "Messages in a batch of an outbox.",
        _histogram(counted.outbox_batches),
    )
    yield (
        "trioswitch_connections_refused_total",
        "counter",
        "Clients that were turned away, by cause.",
        _by("cause", {"unauthorised": 0, **counted.refusals}),
    )
    yield (
        "trioswitch_connections_closed_total",
        "counter",
        "Connections that have ended, by cause.",
        _by("cause", counted.closes),
    )
    yield (
        "trioswitch_messages_dropped_total",
        "counter",
        "Receivers that missed a message, by cause, and by the pattern of the room's policy (empty: none, or no room).",
        [
            ({"policy": policy, "cause": cause}, count)
            for (policy, cause), count in sorted(counted.drops_by_policy.items())
        ],
    )


def _of_process(monitor: Monitor) -> Iterable[Family]:
    lags = _histogram(monitor.lags.distribution())
    yield "trioswitch_event_loop_lag_seconds", "histogram", "How late the event loop is, once a second.", lags
    newest = monitor.samples[-1] if monitor.samples else monitor.take_sample()
    yield "process_resident_memory_bytes", "gauge", "Resident memory.", _one(newest.memory)
    yield "process_cpu_seconds_total", "counter", "CPU time, of the user and the system.", _one(time.process_time())
    yield "process_open_fds", "gauge", "Open files.", _one(open_files())
    yield "process_max_fds", "gauge", "Open files at most.", _one(file_limit())
    yield "process_start_time_seconds", "gauge", "When the process began, in seconds since 1970.", _one(_STARTED)
    names = ("memory", "cpu", "lag", "error_rate", "connections")
    raised = {name: int(name in monitor.alarms) for name in names}
    yield "trioswitch_alarm", "gauge", "1 while a threshold is exceeded.", _by("name", raised)
    labels = {"version": __version__, "python": platform.python_version()}
    yield "trioswitch_build_info", "gauge", "Always 1.", [(labels, 1)]
