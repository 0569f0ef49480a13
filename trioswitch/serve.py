"""Listeners: TCP, TLS and Unix sockets; who is accepted, and what happens when files run out."""

import errno
import logging
import math
import os
import shutil
import signal
import socket
import ssl
import stat
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

import attrs
import trio

from ._util.nurseries import open_nursery
from .admission import RETRY_AFTER, TransportName
from .errors import ServeError
from .switch import Switch
from .transport.streams import ByteStream, SocketByteStream, address
from .transport.tls import TlsByteStream
from .web import Pages, Site
from .wire.handshake import response

__all__ = ["Server", "serve", "serve_until_signal"]

_log = logging.getLogger(__name__)

BACKLOG: Final = 4096
"""Connections that wait to be accepted; the kernel caps it at net.core.somaxconn."""
ACCEPT_BURST: Final = 64
"""Connections accepted before other tasks run: measured, one at a time made 300 connects/s under a saturating publisher."""
DEFER_ACCEPT: Final = 5
"""Seconds that the kernel keeps a connection to itself until its request has arrived."""
USER_TIMEOUT: Final = 60
"""Seconds after which the kernel gives up a connection whose peer acknowledges nothing."""
MAX_UNSENT_BYTES: Final = 128 * 1024
"""Bytes that the kernel takes of what a client has no window for yet; what is on its way to it counts apart."""
ACCEPT_RETRY_DELAY: Final = 0.1
"""Seconds without accepting after files ran out."""
COMPLAINT_INTERVAL: Final = 60.0
"""Seconds between two complaints that files have run out."""
_NO_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_NO_ADDRESS = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}
"""`localhost` is `::1` too, even where there is no IPv6: it is enough when one address of a name can be listened on."""


@attrs.define(eq=False)
class Server:
    """A server that listens; `stop` ends that."""

    urls: tuple[str, ...]
    """Of the WebSocket, one for each address."""
    page_urls: tuple[str, ...]
    """Of the pages; none for a Unix socket."""
    port: int | None
    """The TCP port; None for a Unix socket."""
    _listening: trio.CancelScope

    def stop(self) -> None:
        """Accept nobody more. `serve` returns when the connections that are open have ended (`Switch.drain`)."""
        self._listening.cancel()


async def serve(
    switch: Switch,
    *,
    host: str | Sequence[str] = "127.0.0.1",
    port: int = 8765,
    uds: str | os.PathLike[str] | None = None,
    uds_mode: int | None = None,
    uds_group: str | int | None = None,
    ssl_context: ssl.SSLContext | None = None,
    transport: TransportName = "native",
    pages: Pages | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept clients for a switch, on a TCP port (0: any free one) or a Unix socket, until cancelled or stopped.

    `host` is one address or several; `::` is all addresses of the machine, those of IPv4 included. A Unix socket gets the
    permissions `uds_mode` and the group `uds_group`: whoever may write to it may connect, such as a proxy of another user.
    `server = await nursery.start(serve, switch)` returns when it listens. `pages` are served to whatever is no WebSocket.
    Cancelling closes the listeners and every connection at once; for an orderly end use `Server.stop` and `Switch.drain`.
    Raises ServeError when it cannot listen.
    """
    if not 0 <= port <= 65535:
        raise ServeError(f"{port} is not a valid port (0 to 65535)")
    path = None if uds is None else os.fspath(uds)
    if path is not None:
        listeners = [_unix_listener(path, uds_mode, uds_group)]
    else:
        listeners = await _tcp_listeners([host] if isinstance(host, str) else host, port)
    made = None if path is None else os.stat(path)
    site = Site(pages or {}, websocket_path=switch.options.path)

    def serve_one(accepted: socket.socket) -> Coroutine[Any, Any, None]:
        return switch.serve_byte_stream(_channel(accepted, ssl_context), http_handler=site, transport=transport)

    async with trio.open_nursery() as connections:
        try:
            async with trio.open_nursery() as accepting:
                acceptor = _Acceptor(connections, serve_one)
                for listener in listeners:
                    accepting.start_soon(acceptor.run, listener)
                scope = accepting.cancel_scope
                task_status.started(
                    _server(listeners, tls=ssl_context is not None, uds=path, scope=scope, at=switch.options.path)
                )
        finally:
            if path is not None and made is not None:
                _remove(path, made)
            for listener in listeners:
                listener.close()


async def serve_until_signal(
    switch: Switch,
    *,
    host: str | Sequence[str] = "127.0.0.1",
    port: int = 8765,
    uds: str | os.PathLike[str] | None = None,
    uds_mode: int | None = None,
    uds_group: str | int | None = None,
    ssl_context: ssl.SSLContext | None = None,
    transport: TransportName = "native",
    pages: Pages | None = None,
    drain_timeout: float = 10.0,
    on_listening: Callable[[Server], object] | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> bool:
    """Serve until SIGINT (Ctrl-C) or SIGTERM comes, then drain: the whole life of a server in one call.

    The arguments are those of `serve`; `drain_timeout` is the number of seconds that a graceful shutdown may take, and
    `on_listening` is called with the Server when it listens, to print where that is, say. A second signal, or the end of that
    time, cuts the connections that are left. Returns whether all connections were closed in time; nothing of the server runs
    any more then. `server = await nursery.start(serve_until_signal, switch)` returns when it listens. Raises ServeError when it
    cannot listen. Call it in the main thread, which is where Python handles signals.
    """
    drained = False
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_nursery() as nursery:
            server = await nursery.start(
                partial(
                    serve,
                    switch,
                    host=host,
                    port=port,
                    uds=uds,
                    uds_mode=uds_mode,
                    uds_group=uds_group,
                    ssl_context=ssl_context,
                    transport=transport,
                    pages=pages,
                )
            )
            _log.info("listening on %s", " and ".join(server.urls))
            if on_listening is not None:
                on_listening(server)
            task_status.started(server)
            await anext(signals)
            server.stop()

            async def cut_at_second_signal() -> None:
                await anext(signals)
                nursery.cancel_scope.cancel()

            nursery.start_soon(cut_at_second_signal)
            drained = await switch.drain(drain_timeout)
            nursery.cancel_scope.cancel()
    return drained


class _Acceptor:
    """Accepts in bursts, and starts a task for each connection."""

    def __init__(
        self, connections: trio.Nursery, serve_one: Callable[[socket.socket], Coroutine[Any, Any, None]]
    ) -> None:
        self._connections = connections
        self._serve_one = serve_one
        self._quiet_until = -math.inf  # before that it has complained enough
        self._spare: int | None = None  # an open file, given up to answer a client when there is no other

    async def run(self, listener: socket.socket) -> None:
        self._take_spare()
        try:
            while True:
                await trio.lowlevel.wait_readable(listener)
                if not self._burst(listener):
                    await trio.sleep(ACCEPT_RETRY_DELAY)
        finally:
            self._release_spare()

    def _burst(self, listener: socket.socket) -> bool:
        """Accept what waits. Returns False when files have run out."""
        for _ in range(ACCEPT_BURST):
            try:
                accepted, _address = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _NO_FILES:
                    self._complain(error)
                    self._turn_away(listener)
                    return False
                continue  # the client went before it was accepted
            accepted.setblocking(False)
            try:
                self._connections.start_soon(self._serve_one, accepted)
            except OSError:  # its options cannot be set: it is gone already
                accepted.close()
        return True

    def _complain(self, error: OSError) -> None:
        now = trio.current_time()
        if now >= self._quiet_until:
            _log.warning("cannot accept: %s; clients are answered 503", error.strerror)
            self._quiet_until = now + COMPLAINT_INTERVAL

    def _turn_away(self, listener: socket.socket) -> None:
        """No file is left: tell those who wait, one after the other, with the help of the spare one."""
        refusal = response(503, "the server is full\n", [("Retry-After", str(RETRY_AFTER))])
        for _ in range(ACCEPT_BURST):
            self._release_spare()
            try:
                accepted, _address = listener.accept()
                with accepted:
                    accepted.setblocking(False)
                    SocketByteStream(accepted).read_nowait()  # bytes left unread would turn the answer into a reset
                    accepted.send(refusal)
            except OSError:
                return
            finally:
                self._take_spare()

    def _take_spare(self) -> None:
        if self._spare is None:
            try:
                self._spare = os.open(os.devnull, os.O_RDONLY)
            except OSError:
                _log.debug("no file is left to keep in reserve")

    def _release_spare(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None


def _channel(accepted: socket.socket, ssl_context: ssl.SSLContext | None) -> ByteStream:
    if accepted.family != socket.AF_UNIX:
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # batching is the outbox's business
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                # What a slow client has not taken waits in its outbox, within its bounds and under its policy; the system
                # would take megabytes of it, in memory that nobody counts.
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                # A peer that vanished while something is under way to it is given up, even where we do not read from it.
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT * 1000)
        except OSError as error:  # on some systems, for a client that has gone already: reading will tell
            _log.debug("cannot set the options of a socket: %s", error)
    return SocketByteStream(accepted) if ssl_context is None else TlsByteStream(accepted, ssl_context)


async def _tcp_listeners(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Listeners for all addresses of these hosts. A free port (0) is the same for all hosts, on one address of each."""
    listeners: list[socket.socket] = []
    try:
        for host in hosts:
            wildcard_only = host == "::" and "0.0.0.0" not in hosts  # it is compared, not listened on
            found = await _listeners_of(host, port, both_families=wildcard_only)
            listeners += found
            port = port or found[0].getsockname()[1]
    except ServeError:
        for listener in listeners:
            listener.close()
        raise
    if not listeners:
        raise ServeError("there is no address to listen on")
    return listeners


async def _listeners_of(host: str, port: int, *, both_families: bool) -> list[socket.socket]:
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
                listeners.append(_tcp_listener(family, name, v6_only=not both_families))
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


def _tcp_listener(family: int, name: Any, *, v6_only: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
        if hasattr(socket, "TCP_DEFER_ACCEPT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_ACCEPT)
        listener.bind(name)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except (OSError, OverflowError):
        listener.close()
        raise
    return listener


def _unix_listener(path: str, mode: int | None, group: str | int | None) -> socket.socket:
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


def _remove(path: str, made: os.stat_result) -> None:
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


def _server(
    listeners: Sequence[socket.socket], *, tls: bool, uds: str | None, scope: trio.CancelScope, at: str
) -> Server:
    if uds is not None:
        return Server((f"ws+unix:{uds}",), (), None, scope)
    names = [listener.getsockname() for listener in listeners]
    scheme = "wss" if tls else "ws"
    urls = tuple(f"{scheme}://{address(name)}{at}" for name in names)
    pages = tuple(f"http{scheme[2:]}://{address(name)}/" for name in names)
    return Server(urls, pages, names[0][1], scope)
