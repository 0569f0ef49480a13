"""One run: starts a server on one core, the load client on the other, and puts together what both have to say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from load_client import LONGEST, run_load_client
from processes import Failed, cores, free_port, last_line, running
from scenarios import PADDING, Row
from servers import HERE


def run(row: Row, peers: Path, load_client: Path, folder: Path, *, watch_memory: bool) -> dict[str, Any]:
    """The figures of one run. Raises Failed."""
    port = free_port()
    values = {"port": port, "dir": folder, "mode": row.mode}
    _write_configurations(folder, port)
    if row.server_options:
        _write_certificate(folder)
    command = [*row.server.command_line(peers, **values), *(part.format(**values) for part in row.server_options)]
    servers_core, clients_core = cores()
    log, environment = folder / "server.log", {"NODE_PATH": str(peers / "node_modules")}
    with running(servers_core + command, port, log, environment=environment) as server:
        if row.benchmark:
            result = _run_benchmark(row, clients_core, port, server.pid, folder)
        else:
            load = [*clients_core, str(load_client), "-p", str(port), "-s", str(PADDING), *_arguments(row)]
            result = run_load_client(load, server.pid, watch_memory=watch_memory)
        if server.poll() is not None:
            raise Failed(f"the server ended: {last_line(log)}")
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


def _write_configurations(folder: Path, port: int) -> None:
    for template in (HERE / "peers" / "nchan.conf", HERE / "peers" / "centrifugo.json"):
        text = template.read_text().replace("@PORT@", str(port)).replace("@DIR@", str(folder))
        (folder / template.name).write_text(text)


def _write_certificate(folder: Path) -> None:
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "certificate.pem"))
