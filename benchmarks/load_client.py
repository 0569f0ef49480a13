"""`wsload`, the load client in C: building it, and one run of it against a server whose process is known."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processes import Failed

from trioswitch.bench.host import memory, processor_seconds

SOURCES = Path(__file__).resolve().parent / "load"
LONGEST = 400.0
"""Seconds after which a run is ended without a result."""
WATCH = 0.25
"""Seconds between two samples of the server's memory."""


def build_load_client(folder: Path) -> Path:
    """Compile `wsload` into the folder, unless the program there is newer than its sources. Exits when there is no compiler."""
    sources = sorted(SOURCES.iterdir())
    program = folder.resolve() / "wsload"
    if program.exists() and program.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        return program
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        sys.exit("the load client is written in C, and there is no C compiler: install gcc")
    files = [str(source) for source in sources if source.suffix == ".c"]
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), *files, "-lm"], check=True)
    return program


def run_load_client(
    command: list[str], server: int, *, watch_memory: bool, on_mark: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Run `wsload`, and add to its figures what the process `server` used meanwhile. Raises Failed.

    `server_busy` is the share of a core between the begin and the end of the measurement, and `cpu_us` the microseconds of a core
    for each message. With `watch_memory`, `memory_mib` is the highest sample, and `bytes_per_connection` what was added to the
    memory that the server held before the first connection. `on_mark` is called in a thread with each mark of `wsload`
    (`@connected`, `@begin 0`, `@end 0`) when it is read.
    """
    before = memory(server)
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    marks: dict[str, tuple[float, float]] = {}
    said: list[str] = []

    def listen() -> None:
        assert client.stderr is not None
        for line in client.stderr:
            if line.startswith("@"):
                marks[line.strip()] = (time.monotonic(), processor_seconds(server))
                if on_mark is not None:
                    on_mark(line.strip())
            else:
                said.append(line)

    listener = threading.Thread(target=listen)
    listener.start()
    peak, give_up = before, time.monotonic() + LONGEST
    try:
        while client.poll() is None and time.monotonic() < give_up:
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
        assert client.stderr is not None
        client.stderr.close()
    try:
        result = json.loads(out)
        (began, used_before), (ended, used) = (marks[f"@{mark} {result['measurement']}"] for mark in ("begin", "end"))
    except (ValueError, KeyError):
        raise Failed(f"the load client has no result: {''.join(said)[-300:]}") from None
    if result.get("stuck"):
        raise Failed(f"{result['stuck']} connections got no answer to their last message for a second")
    spent, took = used - used_before, ended - began
    result["server_busy"] = spent / took
    if result.get("messages_per_s"):
        result["cpu_us"] = spent * 1e6 / (result["messages_per_s"] * took)
    if watch_memory:
        result["memory_mib"] = peak / 2**20
        result["bytes_per_connection"] = (peak - before) / max(1, result["conns"])
    return result
