"""Telling systemd what the service does (sd_notify(3)), and taking the sockets that it holds for the service (sd_listen_fds(3)).

Both do nothing where systemd did not ask for it.
"""

import os
import socket
from typing import Final

__all__ = ["inherited_sockets", "notify"]

FIRST: Final = 3
"""The descriptor of the first of these sockets."""


def inherited_sockets() -> list[socket.socket]:
    """The listening sockets that systemd has given to this process, once: its children are not to take them for theirs.

    Raises ValueError for descriptors that are no sockets.
    """
    count = os.environ.pop("LISTEN_FDS", "")
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()) or not count.isdecimal():
        return []
    try:
        sockets = [socket.socket(fileno=FIRST + number) for number in range(int(count))]
    except OSError as error:
        raise ValueError(f"LISTEN_FDS promises {count} sockets from descriptor {FIRST} on: {error.strerror}") from None
    for each in sockets:
        each.set_inheritable(False)
        each.setblocking(False)
    return sockets


def notify(state: str) -> None:
    """Send a state such as `READY=1` to the service manager. What cannot be sent is left out: the service goes on."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(state.encode(), address)
    except OSError:
        return
