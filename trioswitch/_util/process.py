"""How much freed memory the C library keeps, and how often Python looks for more to free. For programs, not libraries.

glibc takes large blocks straight from the kernel and soon gives them back; each page of the next one is then a page
fault again. For messages of some hundred KB that is most of what they cost. Measured on a virtual machine with images of
480,000 bytes: a connection that sends one took 350 page faults and 1.85 ms of the server, with this 1 and 1.2 ms; to hand
one to a worker process and back took 1.14 ms, with this 0.27 ms.

Python looks at all objects there are ("full collection") each time they have become a quarter more. Measured with
15,000 connections that came at once: 10 times, 2.2 of 5.6 seconds, and nobody was served for up to 0.5 seconds. The collections
of young objects cost, too: each looks at all messages that are on their way (decision 15 has the figures).
"""

import ctypes
import gc
import os
import resource
import sys
from typing import Final

__all__ = ["collect_rarely", "connections_by_files", "keep_freed_memory", "resident_bytes"]

KEPT: Final = 16 * 1024 * 1024
"""Bytes that stay with the process when they are freed at the end of the heap: some messages of `max_message_bytes`."""
OWN_BLOCK: Final = 4 * 1024 * 1024
"""Bytes from which a block comes from the kernel by itself, and goes back there when it is freed."""
YOUNG: Final = 5000
"""New containers until the young ones are collected; Python has 700."""
MIDDLE: Final = 3
"""Collections of young ones until those of middle age are collected: 15,000 containers, which takes a few milliseconds."""
OLD: Final = 93
"""Collections of middle age until a full one. It comes after 1.4 million more containers, of which a connection has 53. Cycles of
old objects wait for one, in 250 MB at most."""

FILE_RESERVE: Final = 64
"""Open files that are reserved for other uses than connections."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Have the C library keep up to KEPT bytes that this process has freed. It holds for the whole process.

    Returns whether the C library can be told: glibc can. A program that embeds trioswitch calls it if it wants to.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, KEPT) and mallopt(_M_MMAP_THRESHOLD, OWN_BLOCK))


def collect_rarely() -> None:
    """Have Python look for garbage rarely. It holds for the whole process."""
    gc.set_threshold(YOUNG, MIDDLE, OLD)


def resident_bytes() -> int:
    """The memory of this process that is in RAM; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return 0


def connections_by_files() -> int:
    """As many connections as this process may have open files, but for some."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(1, soft - FILE_RESERVE)
