"""Processes and the machine, as /proc shows them."""

import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["machine", "memory", "processor_seconds"]


def _tree(pid: int) -> list[int]:
    """A process and its descendants."""
    children = list[int]()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += map(int, task.read_text().split())
        except OSError:  # it is gone
            continue
    return [pid, *(descendant for child in children for descendant in _tree(child))]


def memory(pid: int) -> int:
    """Bytes that a process and its descendants hold (proportional set size); 0 when it is gone."""
    total = 0
    for each in _tree(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def processor_seconds(pid: int) -> float:
    """Seconds for which a process and its descendants have run so far; 0.0 when it is gone."""
    ticks = 0
    for each in _tree(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, Any]:
    """What a figure should be read with: processors, memory, system, Python."""
    try:
        model = next(
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": _system(),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
    }


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
