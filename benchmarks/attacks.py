"""Attacks by one hostile client: how long others wait meanwhile, and how much memory the server takes.

    .venv/bin/python benchmarks/attacks.py [NAME ...]

Each attack runs against a server of its own, in a process of its own. A neighbour, a well-behaved client, sends a heartbeat every
20 ms; the slowest answer is compared with the slowest one before the attack. Memory is the server's peak resident size during the
attack, less what it had before. `allowed` is what the limits say that the attacker may take, times two, and 16 MiB for what one
message takes while it is on its way. `docs/security.md` explains the bounds.
"""

import argparse
import json
import socket
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import attrs
import msgspec
from processes import free_port, running

MIB: Final = 1024 * 1024
TRANSIENT: Final = 16
"""MiB that one message may take while it is decoded, inflated, encoded and written."""
PATIENCE: Final = 60.0
"""Seconds after which an answer is given up."""
GUARDED: Final = """
import sys, trio, trioswitch

async def authenticate(token):
    if token == "neighbour":
        return trioswitch.Identity(user="neighbour")
    raise trioswitch.Refused("no")

async def main():
    async with trioswitch.open_switch(authenticate=authenticate) as switch:
        await trioswitch.serve_until_signal(switch, host="127.0.0.1", port=int(sys.argv[1]))

trio.run(main)
"""
"""A server that wants tokens."""


class Client:
    """A client with blocking sockets."""

    def __init__(self, port: int, *, binary: bool = False, token: str = "", receive_buffer: int = 0) -> None:
        self.binary = binary
        self._rest = b""
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        protocol = "Sec-WebSocket-Protocol: trioswitch.v1.msgpack\r\n" if binary else ""
        self.socket.sendall(
            f"GET /ws?token={token} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            f"Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover\r\n{protocol}\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError(f"refused: {head!r}")
            head += data
        self._rest = head.partition(b"\r\n\r\n")[2]

    def frame(self, payload: bytes, *, deflate: bool = True) -> bytes:
        """A frame with a whole message, compressed."""
        first = 0x82 if self.binary else 0x81
        if deflate:
            deflater = zlib.compressobj(9, zlib.DEFLATED, -12)
            payload, first = (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4], first | 0x40
        size = len(payload)
        if size < 126:
            head = bytes((first, 0x80 | size))
        elif size < 65536:
            head = struct.pack("!BBH", first, 0xFE, size)
        else:
            head = struct.pack("!BBQ", first, 0xFF, size)
        return head + bytes(4) + payload

    def encode(self, type: str, **fields: Any) -> bytes:
        message = {"type": type, **fields}
        return msgspec.msgpack.encode(message) if self.binary else json.dumps(message).encode()

    def send(self, type: str, *, deflate: bool = False, **fields: Any) -> None:
        self.socket.sendall(self.frame(self.encode(type, **fields), deflate=deflate))

    def _take(self, count: int) -> bytes:
        while len(self._rest) < count:
            data = self.socket.recv(1 << 20)
            if not data:
                raise ConnectionError("the server has closed the connection")
            self._rest += data
        data, self._rest = self._rest[:count], self._rest[count:]
        return data

    def receive(self) -> dict[str, Any]:
        """The next message. Raises ConnectionError at the end."""
        while True:
            first, size = self._take(2)
            if size == 126:
                size = int.from_bytes(self._take(2))
            elif size == 127:
                size = int.from_bytes(self._take(8))
            payload = self._take(size)
            if first & 0x40:
                payload = zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")
            if first & 0x0F == 8:
                raise ConnectionError(f"closed: {payload!r}")
            if first & 0x0F in (1, 2):
                decoded: dict[str, Any] = msgspec.msgpack.decode(payload) if self.binary else json.loads(payload)
                return decoded

    def ask(self, type: str, **fields: Any) -> dict[str, Any]:
        """Send a command, and return its `ack` or `error`."""
        self.send(type, id="q", **fields)
        while (message := self.receive()).get("id") != "q":
            pass
        return message

    def drain(self) -> None:
        """Read until nothing more comes for half a second, or the connection is closed."""
        self.socket.settimeout(0.5)
        with suppress(OSError):
            while self.socket.recv(MIB):
                pass
        self.socket.settimeout(PATIENCE)


@attrs.define(eq=False)
class Neighbour:
    """Sends heartbeats all the time, and notes how long the answers take."""

    client: Client
    slowest: float = 0.0
    failed: str = ""
    _over: threading.Event = attrs.field(factory=threading.Event)

    def run(self) -> None:
        try:
            while not self._over.is_set():
                start = time.monotonic()
                self.client.ask("heartbeat")
                self.slowest = max(self.slowest, time.monotonic() - start)
                self._over.wait(0.02)
        except OSError as error:
            self.failed = repr(error)

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            self._over.clear()


@attrs.define(eq=False)
class Victim:
    """The server that is attacked."""

    port: int
    pid: int
    store: Path
    token: str
    _clients: list[Client] = attrs.field(factory=list)

    def client(self, **options: Any) -> Client:
        client = Client(self.port, **options)
        self._clients.append(client)
        return client

    def close(self) -> None:
        """Close all clients."""
        for client in self._clients:
            client.socket.close()

    def memory(self, field: str) -> float:
        """MiB: `VmRSS` now, `VmHWM` at the peak."""
        (line,) = [line for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if line.startswith(field)]
        return int(line.split()[1]) / 1024

    def reset_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")


@attrs.frozen
class Result:
    """What an attack did."""

    before: float
    """Seconds of the neighbour's slowest answer before the attack."""
    during: float
    memory: float
    """MiB."""
    sent: float
    """MiB on the wire."""
    remark: str = ""


@attrs.frozen
class Attack:
    """`run` attacks, and returns the bytes that it sent, and a remark. It raises AssertionError if others are harmed."""

    what: str
    run: Callable[[Victim], tuple[int, str]]
    allowed: float
    """MiB that the server may grow by."""
    arguments: tuple[str, ...] = ()
    guarded: bool = False


EMPTY_OBJECTS = b"[" + b",".join([b"{}"] * 333_000) + b"]"
PACKED_OBJECTS = b"\xdd" + (900_000).to_bytes(4) + b"\x80" * 900_000


def padded(client: Client, type: str, raw: bytes, field: str = "x", **fields: Any) -> bytes:
    """A message with one field that is encoded already."""
    if client.binary:
        message = msgspec.msgpack.encode({"type": type, **fields, field: None})
        return message[:-1] + raw
    return client.encode(type, **fields)[:-1] + b',"%b":%b}' % (field.encode(), raw)


def hash_collisions(victim: Victim) -> tuple[int, str]:
    keys = [b"\x9f" + bytes(0xFF if number >> bit & 1 else 0xFE for bit in range(15)) for number in range(1 << 15)]
    map_ = b"\xdf" + len(keys).to_bytes(4) + b"".join(key + b"\x00" for key in keys)
    sent = 0
    for type, field in (("heartbeat", "x"), ("message", "data"), ("mine", "x"), ("authenticate", "x")):
        for _ in range(2):
            attacker = victim.client(binary=True)
            frame = attacker.frame(padded(attacker, type, map_, field, room="r", token="t", id=1))
            attacker.socket.sendall(frame)
            sent += len(frame)
            attacker.drain()
    return sent, ""


def history_of_objects(victim: Victim) -> tuple[int, str]:
    sent = 0
    for binary in (False, True):
        attacker = victim.client(binary=binary)
        room = f"kept{binary}"
        attacker.ask("join_room", room=room)
        refused = 0
        for count in (300_000, 99_000):  # more values than there may be, and as many
            raw = b"\xdd" + count.to_bytes(4) + b"\x80" * count if binary else b"[" + b",".join([b"{}"] * count) + b"]"
            frame = attacker.frame(padded(attacker, "message", raw, "data", room=room, id="q"))
            for _ in range(20):
                attacker.socket.sendall(frame)
                sent += len(frame)
                while (answer := attacker.receive()).get("id") != "q":
                    pass
                refused += answer["type"] == "error"
        assert refused == 20, refused
    return sent, "messages with more than 100,000 values are refused"


def members_that_do_not_read(victim: Victim) -> tuple[int, str]:
    attackers, sent = [], 0
    for pair in range(15):
        member = victim.client(receive_buffer=4096)
        member.ask("join_room", room=f"pair{pair}")
        publisher = victim.client()
        publisher.ask("join_room", room=f"pair{pair}")
        attackers += [member, publisher]
        raw = b"[" + b",".join([b"{}"] * 10_000) + b"]"
        frame = publisher.frame(padded(publisher, "message", raw, "data", room=f"pair{pair}", exclude_self=True))
        publisher.socket.sendall(frame * 1100)
        sent += len(frame) * 1100
        publisher.ask("heartbeat")
    time.sleep(2)
    for attacker in attackers:
        attacker.socket.close()
    return sent, ""


def ignored_fields(victim: Victim) -> tuple[int, str]:
    sent = 0
    for binary in (False, True):
        attacker = victim.client(binary=binary)
        raw = PACKED_OBJECTS if binary else EMPTY_OBJECTS
        frames = attacker.frame(padded(attacker, "heartbeat", raw)) * 50
        attacker.socket.sendall(frames)
        sent += len(frames)
        attacker.ask("heartbeat")
    return sent, ""


def invented_inboxes(victim: Victim) -> tuple[int, str]:
    attacker = victim.client()
    content, sent, refused = "x" * (MIB - 200), 0, 0
    for number in range(516):
        frame = attacker.frame(attacker.encode("direct_message", to=f"nobody{number}", content=content, id="q"))
        attacker.socket.sendall(frame)
        sent += len(frame)
        while (answer := attacker.receive()).get("id") != "q":
            pass
        refused += answer["type"] == "error"
    assert refused
    return sent, f"{refused} of 516 refused"


def noisy_rooms(victim: Victim) -> tuple[int, str]:
    quiet = victim.client()
    for number in range(10):
        quiet.ask("join_room", room=f"quiet{number}")
        quiet.ask("message", room=f"quiet{number}", data="kept")
    attacker = victim.client()
    content, sent = "x" * (MIB - 200), 0
    for number in range(6):
        attacker.ask("join_room", room=f"noisy{number}")
    for number in range(520):
        frame = attacker.frame(
            attacker.encode("message", room=f"noisy{number % 6}", data=content, exclude_self=True, id="q")
        )
        attacker.socket.sendall(frame)
        sent += len(frame)
        while attacker.receive().get("id") != "q":
            pass
    for number in range(10):
        messages = quiet.ask("history", room=f"quiet{number}")["messages"]
        assert [message["data"] for message in messages] == ["kept"]
    return sent, "quiet rooms keep their histories"


def stored_rooms(victim: Victim) -> tuple[int, str]:
    attacker = victim.client()
    content, sent, refused = "x" * (MIB - 200), 0, 0
    for number in range(300):
        room = f"stored{number}"
        attacker.ask("join_room", room=room)
        answer_frame = attacker.frame(attacker.encode("chat_message", room=room, content=content, id="q"))
        attacker.socket.sendall(answer_frame)
        sent += len(answer_frame)
        while (answer := attacker.receive()).get("id") != "q":
            pass
        refused += answer["type"] == "error"
        attacker.ask("leave_room", room=room)
    size = sum(path.stat().st_size for path in victim.store.parent.iterdir()) / MIB
    assert size < 2 * 64, size
    return sent, f"{size:.0f} MiB on the disk, {refused} of 300 refused"


def long_names(victim: Victim) -> tuple[int, str]:
    sent = 0
    for connection in range(5):
        attacker = victim.client()
        for number in range(1000):
            attacker.send("join_room", room=f"{number:03}" + "\U0001f600" * 63)
        for number in range(2000):
            key = f"{connection:02}{number:04}" + "k" * 58
            attacker.send("message", room="000" + "\U0001f600" * 63, data=0, idempotency_key=key)
        attacker.drain()
        sent += 1000 * 300 + 2000 * 500
        attacker.socket.close()
    return sent, ""


def presence(victim: Victim) -> tuple[int, str]:
    members = []
    for number in range(500):
        member = victim.client()
        member.send("join_room", room="crowd", user_id=f"{number:03}" + "n" * 250)
        members.append(member)
    attacker = victim.client()
    attacker.ask("join_room", room="own")
    frames = attacker.frame(attacker.encode("presence", room="crowd", id=1), deflate=False) * 2000
    attacker.socket.sendall(frames)
    start, received = time.monotonic(), 0
    attacker.socket.settimeout(1.5)
    with suppress(OSError):
        while time.monotonic() - start < 8:
            received += attacker.socket.recv_into(bytearray(MIB))
    rate = received / MIB / (time.monotonic() - start)
    assert rate < 8, rate
    return len(frames), f"{rate:.0f} MiB/s"


ATTACKS: Final[dict[str, Attack]] = {
    "hash": Attack(
        "MessagePack maps whose keys have one hash, before authentication", hash_collisions, TRANSIENT, guarded=True
    ),
    "history": Attack(
        "messages of empty objects into rooms with history", history_of_objects, 2 * (20 * 0.3 + 20 * 0.1) + TRANSIENT,
        ("--room", "kept*:history=memory"),
    ),
    "outboxes": Attack("15 members that do not read", members_that_do_not_read, 15 * 2 * 1 + 15 * 2 * 0.1 + TRANSIENT),
    "ignored": Attack("heartbeats with an ignored field of a million empty objects", ignored_fields, TRANSIENT),
    "inboxes": Attack(
        "direct messages of 1 MB to invented names", invented_inboxes, 2 * 64 + TRANSIENT,
        ("--total-inbox-bytes", str(64 * MIB), "--inbox-bytes", str(2 * MIB)),
    ),
    "rooms": Attack(
        "messages of 1 MB into six rooms with history", noisy_rooms, 2 * 64 + TRANSIENT,
        ("--room", "*:history=memory,announce=no", "--history-bytes", str(64 * MIB)),
    ),
    "stored": Attack(
        "300 stored rooms with 1 MB each", stored_rooms, 2 * 32 + TRANSIENT,
        ("--room", "stored*:history=stored,announce=no", "--total-stored-bytes", str(64 * MIB),
         "--history-bytes", str(32 * MIB), "--store", "sqlite:STORE"),
    ),
    "names": Attack(
        "5 connections with rooms of long names, keys and sessions", long_names, 2 * (5 * 0.7 + 10) + TRANSIENT
    ),
    "presence": Attack("presence of a room of 500 long names, 2,000 times", presence, 500 * 0.03 + 2 * 16 + TRANSIENT),
}  # fmt: skip


def attack(attack: Attack) -> Result:
    """Run an attack against a server of its own."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        store = Path(directory) / "store.db"
        arguments = [argument.replace("STORE", str(store)) for argument in attack.arguments]
        command = [sys.executable, "-m", "trioswitch", "serve", "--port", str(port), "--log-level", "error", *arguments]
        if attack.guarded:
            command = [sys.executable, "-c", GUARDED, str(port)]
        with running(command, port, Path(directory) / "log") as process:
            victim = Victim(port, process.pid, store, "neighbour" if attack.guarded else "")
            neighbour = Neighbour(victim.client(token=victim.token))
            with neighbour.running():
                time.sleep(1)
            before, neighbour.slowest = neighbour.slowest, 0.0
            memory = victim.memory("VmRSS")
            victim.reset_peak()
            with neighbour.running():
                sent, remark = attack.run(victim)
            victim.close()
            assert not neighbour.failed, neighbour.failed
            return Result(before, neighbour.slowest, victim.memory("VmHWM") - memory, sent / MIB, remark)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"attacks, of: {', '.join(ATTACKS)}; by default all")
    chosen = parser.parse_args().names or list(ATTACKS)
    unknown = set(chosen) - ATTACKS.keys()
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: there is no such attack")
    print(f"{'attack':10} {'sent MiB':>9} {'slowest answer ms':>20} {'memory MiB':>18}")
    print(f"{'':10} {'':>9} {'before':>10} {'during':>9} {'grown by':>9} {'allowed':>8}")
    for name in chosen:
        one = ATTACKS[name]
        result = attack(one)
        print(
            f"{name:10} {result.sent:9.2f} {1000 * result.before:10.0f} {1000 * result.during:9.0f}"
            f" {result.memory:9.0f} {one.allowed:8.0f}  {one.what}{': ' if result.remark else ''}{result.remark}",
            flush=True,
        )


if __name__ == "__main__":
    main()
