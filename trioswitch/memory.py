"""How much freed memory the C library keeps.

glibc takes large blocks straight from the kernel and soon gives them back; each page of the next one is then a page
fault again. For messages of some hundred KB that is most of what they cost. Measured on a virtual machine with images of
480,000 bytes: a connection that sends one took 350 page faults and 1.85 ms of the server, with this 1 and 1.2 ms; to hand
one to a worker process and back took 1.14 ms, with this 0.27 ms.
"""

import ctypes
from typing import Final

__all__ = ["keep_freed_memory"]

KEPT: Final = 16 * 1024 * 1024
"""Bytes that stay with the process when they are freed at the end of the heap: some messages of `max_message_bytes`."""
OWN_BLOCK: Final = 4 * 1024 * 1024
"""Bytes from which a block comes from the kernel by itself, and goes back there when it is freed."""

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
