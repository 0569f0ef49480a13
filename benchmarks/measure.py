"""One run: starts a server on one core, the load client on the other, and puts together what both have to say."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scenarios import PADDING, Row
from servers import HERE

from trioswitch.bench.host import memory, processor_seconds

START = 20.0
"""Seconds that a server has to start."""
LONGEST = 400.0
"""Seconds after which a run is given up."""
WATCH = 0.25
"""Seconds between two looks at the server's memory."""


class Failed(Exception):
    """A run has no result. The text says why."""


def run(row: Row, peers: Path, load_client: Path, folder: Path, *, watch_memory: bool) -> dict[str, Any]:
    """The figures of one run. Raises Failed."""
    port = _free_port()
    values = {"port": port, "dir": folder, "mode": row.mode}
    _write_configurations(folder, port)
    if row.server_options:
        _write_certificate(folder)
    command = [*row.server.command_line(peers, **values), *(part.format(**values) for part in row.server_options)]
    servers_core, clients_core = _cores()
    with _running(servers_core + command, folder / "server.log", peers) as server:
        _wait_for(port, server, folder / "server.log")
        before = memory(server.pid)
        if row.benchmark:
            result = _run_benchmark(row, clients_core, port, server.pid, folder)
        else:
            load = [*clients_core, str(load_client), "-p", str(port), "-s", str(PADDING), *_arguments(row)]
            result = _run_load(load, server.pid, before, watch_memory=watch_memory)
        if server.poll() is not None:
            raise Failed(f"the server ended: {_tail(folder / 'server.log')}")
    statistics = folder / "statistics.json"
    if statistics.exists():
        counted = json.loads(statistics.read_text())
        result["compressions"] = counted["tried"]
        result["bytes_per_delivery"] = counted["bytes_sent"] / max(1, counted["messages_sent"])
    return result


# --- the load clients


def _arguments(row: Row) -> list[str]:
    server, texts = row.server, row.texts or row.server.texts(row.mode)
    arguments = ["-P", server.path, "-t", texts.message, *(["-j", texts.join] if texts.join else [])]
    return [*arguments, *(["-Q", server.publisher_path] if server.publisher_path else []), *row.load]


def _run_load(load: list[str], server: int, before: int, *, watch_memory: bool) -> dict[str, Any]:
    """Run `wsload`; what the server used between its two marks is measured from outside."""
    client = subprocess.Popen(load, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    marks: dict[str, tuple[float, float]] = {}
    said: list[str] = []

    def listen() -> None:
        assert client.stderr is not None
        for line in client.stderr:
            if line.startswith("@"):
                marks[line.strip()] = (time.monotonic(), processor_seconds(server))
            else:
                said.append(line)

    listener = threading.Thread(target=listen)
    listener.start()
    peak, report_loss = before, time.monotonic() + LONGEST
    try:
        while client.poll() is None and time.monotonic() < report_loss:
            time.sleep(WATCH)
            if watch_memory:
                peak = max(peak, memory(server))
    finally:
        if client.poll() is None:
            client.kill()
        assert client.stdout is not None
        out = client.stdout.read()
        client.wait()
        listener.join()
        client.stdout.close()
        client.stderr.close()
    try:
        result = json.loads(out)
        (began, used_before), (ended, used) = (marks[f"@{mark} {result['measurement']}"] for mark in ("begin", "end"))
    except (ValueError, KeyError):
        raise Failed(f"the load client has no result: {''.join(said)[-300:]}") from None
    spent, took = used - used_before, ended - began
    result["server_busy"] = spent / took
    if result.get("messages_per_s"):
        result["cpu_us"] = spent * 1e6 / (result["messages_per_s"] * took)
    if watch_memory:
        result["memory_mib"] = peak / 2**20
        result["bytes_per_connection"] = (peak - before) / max(1, result["conns"])
    return result


def _run_benchmark(row: Row, core: list[str], port: int, server: int, folder: Path) -> dict[str, Any]:
    """Run `python -m trioswitch bench` where the load client in C does not do: TLS and compression."""
    scheme = "wss" if row.server_options else "ws"
    file = folder / "benchmark.json"
    command = [*core, sys.executable, "-m", "trioswitch", "bench", row.benchmark]
    command += [f"{scheme}://127.0.0.1:{port}/ws", *row.load, "--pid", str(server), "--json", str(file)]
    if row.server_options:
        command += ["--ca", str(folder / "authority.pem")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"the benchmark took longer than {LONGEST:.0f} s") from None
    if done.returncode:
        raise Failed(done.stderr.strip()[-300:])
    said = json.loads(file.read_text())
    return {
        **said["measured"],
        "conns": said["connected"],
        "connect_per_s": said["connects_per_s"],
        "max_rate": said["rate"],
        "arrived": said["arrived"],
        "server_busy": said["server_busy"],
        "client_busy": said["client_busy"],
    }


# --- the server


@contextmanager
def _running(command: list[str], log: Path, peers: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process group of its own, which ends with the block."""
    environment = {**os.environ, "NODE_PATH": str(peers / "node_modules")}
    with log.open("wb") as file:
        try:
            server = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
        except OSError as error:
            raise Failed(f"cannot start {command[0]}: {error.strerror}") from None
        try:
            yield server
        finally:
            for force in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(server.pid, force)
                    server.wait(10)
                    break
                except ProcessLookupError:
                    server.wait()
                    break
                except subprocess.TimeoutExpired:
                    continue


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    report_loss = time.monotonic() + START
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            break
        except OSError:
            if server.poll() is not None or time.monotonic() > report_loss:
                raise Failed(f"the server did not start: {_tail(log)}") from None
            time.sleep(0.05)
    time.sleep(0.5)


def _write_configurations(folder: Path, port: int) -> None:
    for template in (HERE / "peers" / "nchan.conf", HERE / "peers" / "centrifugo.json"):
        text = template.read_text().replace("@PORT@", str(port)).replace("@DIR@", str(folder))
        (folder / template.name).write_text(text)


def _write_certificate(folder: Path) -> None:
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "certificate.pem"))


def _cores() -> tuple[list[str], list[str]]:
    """What pins the server and the load client; nothing where there is one core only."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return [], []
    return ["taskset", "-c", str(cores[0])], ["taskset", "-c", str(cores[1])]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _tail(log: Path) -> str:
    """The last that it said."""
    lines = log.read_text(errors="replace").strip(" +-|\n").splitlines()
    return lines[-1].strip() if lines else "nothing was said"
