"""The clients of one process: non-blocking sockets in one epoll, from dialling to the end.

    DIALLING -> (SECURING, with TLS) -> UPGRADING -> JOINING -> READY -> gone

A client joins its room as soon as the handshake is answered, and is READY when the server has acknowledged that.
"""

import errno
import os
import select
import socket
import ssl
import struct
import time
from collections import Counter
from typing import Final

from .orders import Connect
from .recorder import Recorder
from .target import BenchError, Target, tls_context
from .wire import CLOSE, PING, PONG, Language, Scanned, Scanner, Stamped, frame, request, upgraded

__all__ = ["Client", "Crowd"]

DIALLING, SECURING, UPGRADING, JOINING, READY, GONE = range(6)
READ_SIZE: Final = 64 * 1024
"""Bytes; from 128 KiB on the C library would map and unmap memory for each read."""
EVENTS: Final = 128
"""Sockets that are served between two looks at the clock."""
HOPELESS: Final = 16
"""Handshakes that failed, when none has succeeded, after which connecting is given up."""
_AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_NO_FILES = {errno.EMFILE, errno.ENFILE}


class Client:
    """One connection."""

    __slots__ = ("began", "number", "out", "rest", "socket", "stamped", "state")

    def __init__(self, connecting: socket.socket, number: int, began: int) -> None:
        self.socket = connecting
        self.number = number
        self.began = began
        """When it was dialled, ns."""
        self.state = DIALLING
        self.rest = b""
        """What has arrived of a head or a frame that is not there in full."""
        self.out = b""
        """What the socket did not take yet."""
        self.stamped: Stamped | None = None
        """The message that it sends."""


class Crowd:
    """Connects clients, reads what comes, answers pings. `echoing`: what comes back is sent again."""

    def __init__(self, order: Connect, recorder: Recorder) -> None:
        self.ready: dict[int, Client] = {}
        """By number."""
        self.refused: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.server = ""
        self.echoing = False
        self._order = order
        self._recorder = recorder
        self._target = target = Target.parse(order.url)
        self._tls = tls_context(order.ca) if target.tls else None
        self._language = Language(order.protocol)
        self._scanner = Scanner(self._language)
        self._head = request(
            target.authority, target.path, order.protocol, compression=order.compression, token=order.token
        )
        self._family, self._address = _resolve(target)
        self._epoll = select.epoll()
        self._open: dict[int, Client] = {}
        self._dialled = self._under_way = 0
        self._told = 0  # when epoll told of the events that are being served, ns

    @property
    def settled(self) -> bool:
        """Whether every handshake is over, or the first of them say that there is no point in going on."""
        hopeless = not self.ready and self.refused.total() >= HOPELESS
        return hopeless or (self._dialled == self._order.count and not self._under_way)

    # --- in and out

    def watch(self, descriptor: int) -> None:
        """Let `pump` return when something else can be read."""
        self._epoll.register(descriptor, select.EPOLLIN)

    def pump(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for events, and serve some. Returns whether a watched descriptor has any."""
        while self._dialled < self._order.count and self._under_way < self._order.under_way:
            self._dial()
        others = False
        events = self._epoll.poll(timeout, EVENTS)
        self._told = time.monotonic_ns()
        for descriptor, event in events:
            client = self._open.get(descriptor)
            if client is None:
                others = True
            elif client.state == READY and event == select.EPOLLIN:
                self._read(client)
            else:
                self._progress(client, event)
        return others

    def send(self, client: Client, data: bytes) -> None:
        """Send as soon as the socket takes it."""
        if client.out:
            client.out += data
            return
        try:
            sent = client.socket.send(data)
        except _AGAIN:
            sent = 0
        except OSError as error:
            self._lose(client, error.strerror or str(error))
            return
        if sent < len(data):
            client.out = data[sent:]
            self._epoll.modify(client.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def send_stamped(self, client: Client) -> None:
        assert client.stamped is not None
        self.send(client, client.stamped.frame(time.monotonic_ns()))

    def _flush(self, client: Client) -> None:
        data, client.out = client.out, b""
        self.send(client, data)
        if not client.out and client.state != GONE:
            self._epoll.modify(client.socket.fileno(), select.EPOLLIN)

    def _read(self, client: Client) -> None:
        try:
            data = client.socket.recv(READ_SIZE)
        except _AGAIN:
            return
        except OSError as error:
            self._lose(client, error.strerror or str(error))
            return
        if not data:
            self._lose(client, "the server closed the connection")
        elif client.state == READY:
            self._take(client, self._scanner.scan(client.rest + data if client.rest else data))
        elif client.state == JOINING:
            self._join(client, client.rest + data)
        else:
            self._upgrade(client, client.rest + data)

    def _take(self, client: Client, scanned: Scanned) -> None:
        client.rest = scanned.rest
        if scanned.stamps:
            self._recorder.add(scanned.stamps, time.monotonic_ns(), self._told)
            if self.echoing:
                for _ in scanned.stamps:
                    self.send_stamped(client)
                self._recorder.sent += len(scanned.stamps)
        if scanned.complaint:
            self._recorder.complaint = self._recorder.complaint or scanned.complaint
        for opcode, payload in scanned.controls:
            self._control(client, opcode, payload)

    def _control(self, client: Client, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self.send(client, frame(PONG, payload))
        elif opcode == CLOSE and client.state != GONE:
            code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else 1005
            self.send(client, frame(CLOSE, payload[:2]))
            self._lose(client, f"closed with {code} {payload[2:].decode('utf-8', 'replace')}".strip())

    # --- handshakes

    def _dial(self) -> None:
        try:
            connecting = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            if error.errno in _NO_FILES:
                raise BenchError(f"too many open files: no more than {self._dialled} clients fit one process") from None
            raise
        if self._family != socket.AF_UNIX:
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Client(connecting, self._order.first + self._dialled, time.monotonic_ns())
        self._dialled += 1
        self._under_way += 1
        result = connecting.connect_ex(self._address)
        if result == errno.EADDRNOTAVAIL:
            connecting.close()
            raise BenchError(f"no local port is left for more than {self._dialled - 1} connections to one address")
        self._open[connecting.fileno()] = client
        self._epoll.register(connecting.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _progress(self, client: Client, event: int) -> None:
        """Anything but plain reading: a handshake's next step, or a socket that takes data again."""
        if client.state == DIALLING:
            error = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._lose(client, os.strerror(error))
                return
            if self._tls is None:
                self._begin(client)
                return
            client.socket = self._tls.wrap_socket(
                client.socket, server_hostname=self._target.host, do_handshake_on_connect=False
            )
            client.state = SECURING
        if client.state == SECURING:
            self._secure(client)
            return
        if event & select.EPOLLOUT and client.out:
            self._flush(client)
        if event & ~select.EPOLLOUT and client.state != GONE:
            self._read(client)

    def _secure(self, client: Client) -> None:
        assert isinstance(client.socket, ssl.SSLSocket)
        descriptor = client.socket.fileno()
        try:
            client.socket.do_handshake()
        except ssl.SSLWantReadError:
            self._epoll.modify(descriptor, select.EPOLLIN)
        except ssl.SSLWantWriteError:
            self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLOUT)
        except ssl.SSLCertVerificationError as error:
            self._lose(client, f"its certificate is not trusted ({error.verify_message})")
        except OSError as error:
            self._lose(client, f"it does not speak TLS ({error.strerror or error})")
        else:
            self._begin(client)

    def _begin(self, client: Client) -> None:
        self._epoll.modify(client.socket.fileno(), select.EPOLLIN)
        client.state = UPGRADING
        self.send(client, self._head)

    def _upgrade(self, client: Client, data: bytes) -> None:
        client.rest = data
        if b"\r\n\r\n" not in data and data[:5] == b"HTTP/"[: len(data)] and len(data) < READ_SIZE:
            return  # so far it may be the answer
        fault = upgraded(data)
        if fault:
            self._lose(client, fault)
            return
        client.state, client.rest = JOINING, b""
        room = self._room(client.number)
        client.stamped = Stamped(self._language, room, self._order.size)
        self.send(client, self._language.frame({"type": "join_room", "room": room, "id": "join"}))
        self._join(client, data.partition(b"\r\n\r\n")[2])

    def _join(self, client: Client, data: bytes) -> None:
        scanned = self._scanner.scan_anew(data)
        for message in (m for payload in scanned.messages for m in self._language.messages(payload)):
            kind = message.get("type")
            if kind == "connected":
                self.server = str(message.get("server", "trioswitch"))
            elif kind == "error":
                room = self._room(self._order.first)  # the same for all clients, so that the reasons can be counted
                self._lose(
                    client,
                    f"it did not let a client join the room {room!r} ({scanned.complaint}); "
                    "--room names a room that clients may join, --token authenticates them",
                )
                return
            elif kind == "ack" and message.get("id") == "join" and client.state == JOINING:
                self._is_ready(client)
        if scanned.messages and not self.server:
            self._lose(client, "it is a WebSocket server, but not trioswitch: its first message is not `connected`")
        self._take(client, scanned)

    def _is_ready(self, client: Client) -> None:
        client.state = READY
        self._under_way -= 1
        self.ready[client.number] = client
        now = time.monotonic_ns()
        self._recorder.add([client.began], now, now)

    def _room(self, number: int) -> str:
        """The room of the client with this number."""
        return f"{self._order.room}-{number}" if self._order.room_each else self._order.room

    # --- ends

    def _lose(self, client: Client, reason: str) -> None:
        """A connection is over, and not because we wanted it."""
        if client.state == GONE:
            return
        if client.state == READY:
            del self.ready[client.number]
            self.lost[reason] += 1
        else:
            self._under_way -= 1
            self.refused[reason] += 1
        self._discard(client)

    def _discard(self, client: Client) -> None:
        client.state, client.out = GONE, b""
        self._open.pop(client.socket.fileno(), None)
        client.socket.close()

    def close(self) -> None:
        """End every connection, with a close frame where there is a WebSocket."""
        goodbye = frame(CLOSE, struct.pack("!H", 1000))
        for client in list(self._open.values()):
            if client.state in (JOINING, READY):
                self.send(client, goodbye)
            self._discard(client)
        self._epoll.close()


def _resolve(target: Target) -> tuple[int, tuple[object, ...]]:
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise BenchError(f"cannot find {target.host!r}: {error.strerror or error}") from None
    return found[0][0], found[0][4]
