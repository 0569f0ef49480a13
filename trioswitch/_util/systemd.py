"""Telling systemd what the service does (sd_notify(3)); it does nothing where systemd did not ask for it."""

import os
import socket

__all__ = ["notify"]


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
