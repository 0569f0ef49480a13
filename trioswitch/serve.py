"""Listeners: TCP, TLS and Unix sockets; who is accepted, and what happens when files run out."""

import errno
import logging
import math
import os
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

import attrs
import trio

from ._util.nurseries import open_nursery
from .admission import TransportName
from .errors import ServeError
from .refusals import RETRY_AFTER
from .switch import Switch
from .transport.listeners import remove_unix_socket, tcp_listeners, unix_listener
from .transport.streams import ByteStream, SocketByteStream, address
from .transport.tls import TlsByteStream
from .web import Pages, Site
from .wire.handshake import response

__all__ = ["Server", "serve", "serve_until_signal"]

_log = logging.getLogger(__name__)

ACCEPT_BURST: Final = 64
"""Connections accepted before other tasks run: measured, one at a time made 300 connects/s under a saturating publisher."""
USER_TIMEOUT: Final = 60
"""Seconds after which the kernel gives up a connection whose peer acknowledges nothing."""
MAX_UNSENT_BYTES: Final = 128 * 1024
"""Bytes that the kernel takes of what a client has no window for yet; what is on its way to it counts apart."""
ACCEPT_RETRY_DELAY: Final = 0.1
"""Seconds without accepting after files ran out."""
COMPLAINT_INTERVAL: Final = 60.0
"""Seconds between two complaints that files have run out."""
_NO_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


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
    reuse_port: bool = False,
    proxy_protocol: bool = False,
    sockets: Sequence[socket.socket] = (),
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept clients for a switch, on a TCP port (0: any free one) or a Unix socket, until cancelled or stopped.

    `host` is one address or several; `::` is all addresses of the machine, those of IPv4 included. A Unix socket gets the
    permissions `uds_mode` and the group `uds_group`: whoever may write to it may connect, such as a proxy of another user.
    `sockets` are sockets that listen already, in the place of these: of systemd, say. They are closed in the end.
    With `reuse_port`, several processes listen on the same port, and the kernel spreads the connections.
    With `proxy_protocol`, those who connect from one of `Options.trusted_proxies` must begin with a PROXY header, of version 1 or
    2, which tells the address of the client; others are served without.
    `server = await nursery.start(serve, switch)` returns when it listens. `pages` are served to whatever is no WebSocket.
    Cancelling closes the listeners and every connection at once; for an orderly end use `Server.stop` and `Switch.drain`.
    Raises ServeError when it cannot listen.
    """
    if not 0 <= port <= 65535:
        raise ServeError(f"{port} is not a valid port (0 to 65535)")
    path = None if uds is None else os.fspath(uds)
    if sockets:
        listeners, path = list(sockets), None
    elif path is not None:
        listeners = [unix_listener(path, uds_mode, uds_group)]
    else:
        listeners = await tcp_listeners([host] if isinstance(host, str) else host, port, reuse_port=reuse_port)
    made = None if path is None else os.stat(path)
    site = Site(
        pages or {},
        websocket_path=switch.options.path,
        max_head_bytes=switch.options.max_head_bytes,
        allow_origins=switch.options.allow_origins,
        timeout=switch.options.handshake_timeout,
    )

    def serve_one(accepted: socket.socket) -> Coroutine[Any, Any, None]:
        return switch.serve_byte_stream(
            _channel(accepted, ssl_context), http_handler=site, transport=transport, proxy_protocol=proxy_protocol
        )

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
            site.stop()
            if path is not None and made is not None:
                remove_unix_socket(path, made)
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


def _server(
    listeners: Sequence[socket.socket], *, tls: bool, uds: str | None, scope: trio.CancelScope, at: str
) -> Server:
    if uds is not None:
        return Server((f"ws+unix:{uds}",), (), None, scope)
    names = [listener.getsockname() for listener in listeners if listener.family != socket.AF_UNIX]
    if not names:
        return Server(tuple(f"ws+unix:{listener.getsockname()}" for listener in listeners), (), None, scope)
    scheme = "wss" if tls else "ws"
    urls = tuple(f"{scheme}://{address(name)}{at}" for name in names)
    pages = tuple(f"http{scheme[2:]}://{address(name)}/" for name in names)
    return Server(urls, pages, names[0][1], scope)
