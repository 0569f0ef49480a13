"""What is measured: for each scenario its rows, the columns that matter, and why."""

from collections.abc import Callable, Sequence

import attrs
from servers import ROOMS, SERVERS, TRIOSWITCH, Server, Texts, chat_in_msgpack

PADDING = 60
"""Bytes of filling in a message, where a scenario says nothing else."""


@attrs.frozen
class Row:
    """One line of a table: a server, and the load on it."""

    label: str
    server: Server
    load: tuple[str, ...]
    """Arguments of `wsload`, or, where `benchmark` is set, of `python -m trioswitch bench`."""
    texts: Texts | None = None
    """None: the server's own for the mode."""
    mode: str = "fan"
    benchmark: str = ""
    server_options: tuple[str, ...] = ()


@attrs.frozen
class Column:
    """A figure: its name in the results, its title, and how it is written."""

    name: str
    title: str
    form: str = "{:,.0f}"


@attrs.frozen
class Scenario:
    name: str
    title: str
    rows: Callable[[Sequence[str], bool], list[Row]]
    """Of the servers with these names; `quick` makes them small."""
    columns: tuple[Column, ...]
    """The first one decides the order."""
    ascending: bool = False
    """Whether less is better, in the first column."""
    watch_memory: bool = False
    ordered: bool = True
    """Whether rows are sorted by the first column; otherwise they stay as they are."""


DELIVERED = Column("messages_per_s", "messages/s")
P50, P99 = Column("p50_ms", "p50 ms", "{:,.2f}"), Column("p99_ms", "p99 ms", "{:,.2f}")
SLOWEST = Column("max_ms", "slowest ms", "{:,.1f}")
CONNECTS = Column("connect_per_s", "connects/s")
BUSY = Column("server_busy", "server's core", "{:.1%}")
CLIENT = Column("client_busy", "client's core", "{:.0%}")


def _peers(mode: str, full: str, small: str) -> Callable[[Sequence[str], bool], list[Row]]:
    def rows(names: Sequence[str], quick: bool) -> list[Row]:
        load = tuple((small if quick else full).split())
        able = [SERVERS[name] for name in names if SERVERS[name].texts(mode).message]
        return [Row(server.name, server, load, mode=mode) for server in able]

    return rows


def _slow(names: Sequence[str], quick: bool) -> list[Row]:
    load = (
        "-m fixed -n 50 -r 20 -d 0.6 -s 8192 -w 0.2" if quick else "-m fixed -n 500 -r 100 -d 12 -s 8192 -w 1.5 -L 1000"
    )
    rows = [Row(name, SERVERS[name], (*load.split(), "-z", "10")) for name in names]
    return [*rows, Row("trioswitch, none of them slow", TRIOSWITCH, tuple(load.split()))]


def _protocols(_names: Sequence[str], quick: bool) -> list[Row]:
    load = "-m ramp -n 20 -r 500 -T 0.2 -N 3 -w 0.2" if quick else "-m ramp -n 500 -r 1000 -w 1.5"
    return [
        Row(
            label,
            TRIOSWITCH,
            (*load.split(), "-S", subprotocol, *(["-b"] if label == "msgpack" else [])),
            texts=chat_in_msgpack(PADDING) if label == "msgpack" else TRIOSWITCH.fan,
        )
        for label, subprotocol in (
            ("json", "trioswitch.v1"),
            ("batch", "trioswitch.v1.batch"),
            ("msgpack", "trioswitch.v1.msgpack"),
        )
    ]


def _history(_names: Sequence[str], quick: bool) -> list[Row]:
    load = "-m ramp -n 20 -r 500 -T 0.2 -N 3 -w 0.2" if quick else "-m ramp -n 500 -r 1000 -w 1.5"
    return [
        Row(keep, TRIOSWITCH, tuple(load.split()), server_options=("--room", f"*:history={keep}"))
        for keep in ("none", "memory")
    ]


def _tls(_names: Sequence[str], quick: bool) -> list[Row]:
    seconds = "0.6" if quick else "4"
    rows = []
    for benchmark, how in (("fanout", "--connections 20 --rate 100" if quick else "--connections 500"), ("echo", "")):
        for scheme in ("ws", "wss"):
            options = ("--tls-cert", "{dir}/certificate.pem") if scheme == "wss" else ()
            load = (*how.split(), "--duration", seconds)
            rows.append(Row(f"{benchmark}, {scheme}", TRIOSWITCH, load, benchmark=benchmark, server_options=options))
    return rows


def _deflate(_names: Sequence[str], quick: bool) -> list[Row]:
    load = "--connections 20 --rate 50 --duration 0.6" if quick else "--connections 500 --rate 100 --duration 5"
    counted = attrs.evolve(TRIOSWITCH, command="{python} {here}/counted.py {port} {dir}/statistics.json")
    return [
        Row(label, counted, (*load.split(), "--size", "4096", *options), benchmark="fanout")
        for label, options in (("off", ()), ("on", ("--compression",)))
    ]


def _rooms(_names: Sequence[str], quick: bool) -> list[Row]:
    seconds = "0.5" if quick else "4"
    return [
        Row(
            f"{rooms:,} rooms",
            TRIOSWITCH,
            ("-m", "echo", "-n", "100", "-A", "10", "-R", str(rooms), "-w", rest, "-d", seconds),
            texts=ROOMS,
        )
        for rooms, rest in ([(10, "0.2"), (1000, "0.2")] if quick else [(10, "1"), (1000, "1"), (100_000, "15")])
    ]


def _receivers(_names: Sequence[str], quick: bool) -> list[Row]:
    counts = (10, 50) if quick else (100, 1000, 10_000)
    deliveries, seconds = (1000, "0.6") if quick else (40_000, "5")
    return [
        Row(
            f"{count:,} receivers",
            TRIOSWITCH,
            ("-m", "fixed", "-n", str(count), "-r", str(deliveries / count), "-d", seconds, "-w", "2", "-L", "2000"),
        )
        for count in counts
    ]


def _idle(_names: Sequence[str], quick: bool) -> list[Row]:
    load = "-m idle -n 50 -d 1 -w 0.2" if quick else "-m idle -n 15000 -d 60 -w 3"
    return [Row("trioswitch", TRIOSWITCH, tuple(load.split()))]


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "fan500",
            "One publisher, 500 receivers in one room: the most that is delivered with a p99 of 100 ms at most",
            _peers("fan", "-m ramp -n 500 -r 100 -w 1.5", "-m ramp -n 20 -r 500 -T 0.2 -N 3 -w 0.2"),
            (DELIVERED, Column("max_rate", "published/s", "{:,.1f}"), P50, P99, BUSY, CLIENT),
        ),
        Scenario(
            "fan5000",
            "The same with 5,000 receivers",
            _peers("fan", "-m ramp -n 5000 -r 4 -w 4", "-m ramp -n 50 -r 200 -T 0.2 -N 3 -w 0.2"),
            (DELIVERED, Column("max_rate", "published/s", "{:,.1f}"), P50, P99, BUSY, CLIENT),
        ),
        Scenario(
            "once5000",
            "5,000 receivers, 4 messages a second: how long one takes to reach them",
            _peers("fan", "-m fixed -n 5000 -r 4 -d 6 -w 4 -L 2000", "-m fixed -n 50 -r 10 -d 0.6 -w 0.2"),
            (P99, P50, SLOWEST, Column("arrived", "arrived", "{:.1%}")),
            ascending=True,
        ),
        Scenario(
            "echo",
            "100 connections, each with one message under way through a room of its own",
            _peers("echo", "-m echo -n 100 -d 4", "-m echo -n 10 -d 0.5 -w 0.2"),
            (DELIVERED, P50, P99, SLOWEST, BUSY, CLIENT),
        ),
        Scenario(
            "idle",
            "8,000 connections that have joined a room",
            _peers("fan", "-m idle -n 8000 -d 3 -w 1", "-m idle -n 50 -d 0.6 -w 0.3"),
            (Column("bytes_per_connection", "bytes a connection"), CONNECTS),
            ascending=True,
            watch_memory=True,
        ),
        Scenario(
            "slow",
            "500 receivers of which 10 % never read, 100 messages/s of 8 KiB: what the others get, and the server's memory",
            _slow,
            (P99, Column("arrived", "arrived", "{:.1%}"), P50, SLOWEST, Column("memory_mib", "memory MiB", "{:,.0f}")),
            ascending=True,
            watch_memory=True,
        ),
        Scenario(
            "connects",
            "A room of 500 that is saturated, and visitors who come, are let in, and go",
            _peers("fan", "-m connects -n 500 -r 1000000 -d 4 -w 1.5", "-m connects -n 20 -r 500 -d 0.6 -w 0.2"),
            (Column("visits_per_s", "connects/s"), Column("messages_per_s", "messages/s meanwhile")),
        ),
        Scenario(
            "protocols",
            "As fan500, in each client protocol",
            _protocols,
            (DELIVERED, Column("max_rate", "published/s", "{:,.1f}"), P50, P99, BUSY, CLIENT),
            ordered=False,
        ),
        Scenario(
            "history",
            "As fan500, without a history and with one in memory",
            _history,
            (DELIVERED, Column("max_rate", "published/s", "{:,.1f}"), P50, P99, BUSY, CLIENT),
            ordered=False,
        ),
        Scenario(
            "tls",
            "With and without TLS, by `python -m trioswitch bench`",
            _tls,
            (DELIVERED, P50, P99, CONNECTS, BUSY, CLIENT),
            ordered=False,
        ),
        Scenario(
            "deflate",
            "100 messages/s of 4 KiB to 500 receivers, with and without permessage-deflate, by `python -m trioswitch bench`",
            _deflate,
            (
                BUSY,
                P50,
                P99,
                Column("sent", "published"),
                Column("received", "delivered"),
                Column("compressions", "compressions"),
                Column("bytes_per_delivery", "bytes on the wire"),
            ),
            ordered=False,
        ),
        Scenario(
            "idle15000",
            "15,000 connections that have joined a room and are silent for a minute, with heartbeats",
            _idle,
            (BUSY, Column("bytes_per_connection", "bytes a connection"), CONNECTS, Column("dead", "lost")),
            watch_memory=True,
        ),
        Scenario(
            "rooms",
            "10 connections with one message under way each, in turn through all their rooms, beside 90 idle ones",
            _rooms,
            (Column("cpu_us", "\N{MICRO SIGN}s of a core a message", "{:,.2f}"), DELIVERED, P50, P99),
            ordered=False,
        ),
        Scenario(
            "receivers",
            "40,000 deliveries a second: what one costs",
            _receivers,
            (
                Column("cpu_us", "\N{MICRO SIGN}s of a core a delivery", "{:,.2f}"),
                P50,
                P99,
                Column("arrived", "arrived", "{:.1%}"),
            ),
            ordered=False,
        ),
    )
}
