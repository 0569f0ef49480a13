"""Listening sockets: on TCP ports, for one process or several, and on Unix sockets."""

import errno
import os
import shutil
import socket
import stat
from collections.abc import Sequence
from typing import Any, Final

import trio

from ..errors import ServeError

__all__ = ["bound_sockets", "remove_unix_socket", "tcp_listeners", "unix_listener"]

BACKLOG: Final = 4096
"""Connections that wait to be accepted; the kernel caps it at net.core.somaxconn."""
DEFER_ACCEPT: Final = 5
"""Seconds that the kernel keeps a connection to itself until its request has arrived."""
_NO_ADDRESS = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}
"""`localhost` is `::1` too, even where there is no IPv6: it is enough when one address of a name can be listened on."""


async def tcp_listeners(hosts: Sequence[str], port: int, *, reuse_port: bool = False) -> list[socket.socket]:
    """Listeners for all addresses of these hosts. A free port (0) is the same for all hosts, on one address of each.

    `reuse_port`: several processes listen on the port, and the kernel spreads the connections. Raises ServeError.
    """
    listeners = await bound_sockets(hosts, port, reuse_port=reuse_port)
    for listener in listeners:
        if hasattr(socket, "TCP_DEFER_ACCEPT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_ACCEPT)
        try:
            listener.listen(BACKLOG)
        except OSError as error:
            for each in listeners:
                each.close()
            raise ServeError(f"cannot listen on port {listener.getsockname()[1]}: {error.strerror}") from None
    return listeners


async def bound_sockets(hosts: Sequence[str], port: int, *, reuse_port: bool = False) -> list[socket.socket]:
    """As `tcp_listeners`, but they do not listen yet: with `reuse_port`, they keep a port for other processes."""
    listeners: list[socket.socket] = []
    try:
        for host in hosts:
            wildcard_only = host == "::" and "0.0.0.0" not in hosts  # it is compared, not listened on
            found = await _sockets_of(host, port, both_families=wildcard_only, reuse_port=reuse_port)
            listeners += found
            port = port or found[0].getsockname()[1]
    except ServeError:
        for listener in listeners:
            listener.close()
        raise
    if not listeners:
        raise ServeError("there is no address to listen on")
    return listeners


async def _sockets_of(host: str, port: int, *, both_families: bool, reuse_port: bool) -> list[socket.socket]:
    """`both_families`: an IPv6 socket takes clients of IPv4 as well."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        unknown = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not a host name"
        raise ServeError(f"cannot listen on {host!r}: {unknown}") from None
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, _kind, _protocol, _canonical, name in found:
            if listeners and not port:
                break  # a free port of one address may be taken on the next
            try:
                listeners.append(_tcp_socket(family, name, v6_only=not both_families, reuse_port=reuse_port))
            except OSError as error:
                if error.errno not in _NO_ADDRESS:
                    raise
                missing = error
        if missing is not None and not listeners:
            raise missing
    except (OSError, OverflowError) as error:
        for listener in listeners:
            listener.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ServeError(f"cannot listen on {host} port {port}: {reason}") from None
    return listeners


def _tcp_socket(family: int, name: Any, *, v6_only: bool, reuse_port: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(name)
        listener.setblocking(False)
    except (OSError, OverflowError):
        listener.close()
        raise
    return listener


def unix_listener(path: str, mode: int | None, group: str | int | None) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path):
            _make_way(path)
        listener.bind(path)
        try:
            if group is not None:
                shutil.chown(path, group=group)
            if mode is not None:
                os.chmod(path, mode)
        except (OSError, LookupError) as error:
            os.unlink(path)
            reason = f"there is no group {group!r}" if isinstance(error, LookupError) else error.strerror or error
            raise ServeError(f"cannot set the permissions of the Unix socket {path!r}: {reason}") from None
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if isinstance(error, ServeError):
            raise
        raise ServeError(f"cannot listen on the Unix socket {path!r}: {error.strerror or error}") from None
    return listener


def _make_way(path: str) -> None:
    """Remove what a server left behind that was killed. Raises ServeError for anything else."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise ServeError(f"cannot listen on the Unix socket {path!r}: there is something else, which is left alone")
    if _answers(path):
        raise ServeError(f"cannot listen on the Unix socket {path!r}: another server does")
    os.unlink(path)


def remove_unix_socket(path: str, made: os.stat_result) -> None:
    """Remove our socket's file, before the socket is closed: afterwards a successor may have made its own there."""
    try:
        if os.path.samestat(os.stat(path), made):
            os.unlink(path)
    except FileNotFoundError:
        pass


def _answers(path: str) -> bool:
    """Whether somebody listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True
