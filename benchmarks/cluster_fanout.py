"""Fan-out of one room by one process, and by two workers: the most that arrives in time, and who uses the processor for it.

    python benchmarks/cluster_fanout.py [--runs 5] [--receivers 500]

One publisher, and the load client in C, which reads what the receivers get. The processes are not pinned to cores: on a machine
with two of them, what the load client and the hub use is not left to the workers; the table says how much that is.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from load_client import build_load_client, run_load_client
from processes import Failed, free_port, running

from trioswitch.bench.host import processor_seconds

JOIN = '{"type":"join_room","room":"bench"}'
CHAT = '{"type":"chat_message","room":"bench","content":"ts=%TS% %PAD%"}'


def children(pid: int) -> list[int]:
    found = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for child in " ".join(found).split()]


def measure(program: Path, workers: int, receivers: int) -> tuple[float, float, float]:
    """Deliveries a second, and cores that the processes that serve clients used meanwhile, and the supervisor with its hub."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "trioswitch", "serve", "--port", str(port), "--log-level", "warning"]
        if workers > 1:
            command += ["--workers", str(workers)]
        with running(command, port, Path(directory) / "log") as server:
            time.sleep(1)
            serving = children(server.pid) or [server.pid]
            before = sum(map(processor_seconds, serving)), processor_seconds(server.pid), time.perf_counter()
            load = ["-p", str(port), "-P", "/ws", "-s", "60", "-j", JOIN, "-t", CHAT]
            ramp = [
                "-m",
                "ramp",
                "-n",
                str(receivers),
                "-r",
                str(1_000_000 // receivers),
                "-T",
                "0.5",
                "-E",
                "1",
                "-w",
                "1.5",
            ]
            result = run_load_client([str(program), *load, *ramp], server.pid, watch_memory=False)
            seconds = time.perf_counter() - before[2]
            used = (sum(map(processor_seconds, serving)) - before[0]) / seconds
            hub = (processor_seconds(server.pid) - before[1]) / seconds - used  # it counts its children, too
    if result["dead"]:
        raise Failed(f"{result['dead']} connections were lost")
    return result["messages_per_s"], used, hub


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--receivers", type=int, default=500)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        program = build_load_client(Path(directory))
        found: dict[int, list[tuple[float, float, float]]] = {1: [], 2: []}
        for _ in range(chosen.runs):
            for workers, results in found.items():
                results.append(measure(program, workers, chosen.receivers))
        for workers, results in found.items():
            rate, used, hub = (statistics.median(column) for column in zip(*results, strict=True))
            print(f"{workers} process(es) {rate:14,.0f} deliveries/s   cores: {used:.2f} serving, {hub:.2f} hub")
        ratios = [two[0] / one[0] for one, two in zip(found[1], found[2], strict=True)]
        print(f"ratio {statistics.median(ratios):.2f} (lowest {min(ratios):.2f}, highest {max(ratios):.2f})")


if __name__ == "__main__":
    main()
