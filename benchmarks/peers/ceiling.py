"""What one core can do: a bare Trio server with the hot path of the design and nothing else.

One task reads each connection, one task a room collects what is waiting into a window, a window is encoded once and
written straight to every receiver whose outbox is empty; only a receiver whose socket is full uses its outbox and its
flusher task. No validation, no limits, no protocol beyond text frames: a ceiling to be measured against, not a start.

    ceiling.py PORT        any text frame {"content": ...} goes to all connections
"""

import base64
import hashlib
import os
import socket
import struct
import sys

import msgspec
import trio
from trio.lowlevel import checkpoint, wait_readable, wait_writable
from websockets.speedups import apply_mask

decode, encode = msgspec.json.Decoder(dict).decode, msgspec.json.Encoder().encode


def framed(payload: bytes) -> bytes:
    n = len(payload)
    if n < 126:
        return bytes((0x81, n)) + payload
    return (struct.pack("!BBH", 0x81, 126, n) if n < 65536 else struct.pack("!BBQ", 0x81, 127, n)) + payload


def parse(buffer: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    frames, at, n = [], 0, len(buffer)
    while n - at >= 6:
        length, mask = buffer[at + 1] & 127, at + 2
        if length == 126:
            if n - at < 8:
                break
            length, mask = int.from_bytes(buffer[mask : mask + 2], "big"), mask + 2
        elif length == 127:
            if n - at < 14:
                break
            length, mask = int.from_bytes(buffer[mask : mask + 8], "big"), mask + 8
        end = mask + 4 + length
        if end > n:
            break
        frames.append((buffer[at] & 15, apply_mask(buffer[mask + 4 : end], buffer[mask : mask + 4])))
        at = end
    return frames, buffer[at:]


class Outbox:
    """The way out of one connection: written through while the socket takes it, a memory channel and a task when not."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.send, self.receive = trio.open_memory_channel(256)
        self.rest = b""
        self.congested = False
        self.wake = trio.Event()

    def write_through(self, data: bytes) -> bool:
        if self.congested:
            return False
        try:
            written = os.write(self.fd, data)
        except BlockingIOError:
            written = 0
        except OSError:
            return True
        if written < len(data):
            self.rest, self.congested = data[written:], True
            self.wake.set()
        return True

    async def flusher(self) -> None:
        while True:
            await self.wake.wait()
            self.wake = trio.Event()
            while self.rest or self.receive.statistics().current_buffer_used:
                if not self.rest:
                    parts = []
                    try:
                        while len(parts) < 64:
                            parts.append(self.receive.receive_nowait())
                    except trio.WouldBlock:
                        pass
                    self.rest = b"".join(parts)
                await wait_writable(self.fd)
                try:
                    self.rest = self.rest[os.write(self.fd, self.rest) :]
                except OSError:  # its reader will notice
                    return
            self.congested = False


class Room:
    def __init__(self) -> None:
        self.members: dict[int, Outbox] = {}
        self.send, self.receive = trio.open_memory_channel(4096)

    async def run(self) -> None:
        async for message in self.receive:
            window = [message]
            try:
                while len(window) < 1024:
                    window.append(self.receive.receive_nowait())
            except trio.WouldBlock:
                pass
            data = b"".join(window)
            for i, outbox in enumerate(list(self.members.values())):
                if not i & 127:
                    await checkpoint()
                if not outbox.write_through(data):
                    await outbox.send.send(data)


async def serve_one(room: Room, stream: trio.SocketStream) -> None:
    stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = b""
    while b"\r\n\r\n" not in head:
        if not (data := await stream.receive_some(4096)):
            return
        head += data
    key = next(
        line.split(b":", 1)[1].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")
    )
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + accept
        + b"\r\n\r\n"
    )
    fd, rest = stream.socket.fileno(), b""
    outbox = Outbox(fd)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.flusher)
        room.members[fd] = outbox
        try:
            while True:
                await wait_readable(fd)
                if not (data := os.read(fd, 65536)):
                    break
                frames, rest = parse(rest + data if rest else data)
                for opcode, payload in frames:
                    if opcode == 8:
                        return
                    message = framed(
                        encode({"type": "chat_message", "room": "r", "content": decode(payload)["content"]})
                    )
                    try:  # `await send()` alone would yield after every message and keep the windows at one message
                        room.send.send_nowait(message)
                    except trio.WouldBlock:
                        await room.send.send(message)
        except OSError:
            pass
        finally:
            del room.members[fd]
            nursery.cancel_scope.cancel()


async def main() -> None:
    room = Room()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.run)
        nursery.start_soon(trio.serve_tcp, lambda stream: serve_one(room, stream), int(sys.argv[1]))


trio.run(main)
